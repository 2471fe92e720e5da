"""How far the loss curves of 1, 2 and 4 workers are apart: the tutorial network on the digits.

    python benchmarks/loss_curves.py

All train on the same global batches of 128, without augmentation, in threads of this process. Bars:
float32 within 1e-5 for the first 10 steps and 5e-3 for 100; float64 within 1e-10 for the first 20.

With `shards=4`, as in the main job, all numbers of workers give the same bits. Without, sums over
the batch are rounded in another order for each number of workers, and nothing else differs; the
tutorial's learning rate is at the edge of stability on the digits, where such differences grow.
"""

from __future__ import annotations

import pathlib
import sys
import tempfile

import numpy as np

import tensorlite as tl
import tensorlite.distributed as dist
from tensorlite import random
from tensorlite.data import augment
from tensorlite.distributed.steps import Job
from tensorlite.distributed.training import train

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from examples.cifar10 import TutorialCNN, loss_fn, optimizer

BATCH = 128


def losses(workers: int, steps: int, dtype: np.dtype, shards: int | None) -> np.ndarray:
    """The loss at every step, by `workers` workers."""
    with tempfile.TemporaryDirectory() as scratch:
        data = tl.data.cifar10(tl.data.digits_as_cifar10(scratch))
    images, labels = data.arrays
    prepared = augment.cifar10_eval(tl.asarray(images)).astype(dtype).numpy()
    job = Job(
        loss=loss_fn,
        optimizer=optimizer(len(data), BATCH),
        arrays=(prepared, labels),
        batch_size=BATCH,
        steps=steps,
        seed=0,
        augment=None,
        ema=None,
        checkpoint=None,
        checkpoint_every=None,
        drop_last=False,
        shards=shards,
    )
    model = tl.tree.map(lambda x: x.astype(dtype), TutorialCNN(random.key(0)))

    def main(worker: dist.Worker) -> list[float]:
        return train(worker, job, model, lambda record, last=False: None).losses

    return np.asarray(dist.run_local(main, num_workers=workers)[0])


def main() -> int:
    """Print the largest relative differences, and whether they are within the bars."""
    missed = False
    for dtype, steps, bars in (
        (tl.float32, 100, {10: 1e-5, 100: 5e-3}),
        (tl.float64, 20, {20: 1e-10}),
    ):
        for shards in (4, None):
            alone = losses(1, steps, dtype, shards)
            for workers in (2, 4):
                apart = np.abs(losses(workers, steps, dtype, shards) - alone) / np.abs(alone)
                for first, bar in bars.items():
                    worst = apart[:first].max()
                    verdict = "met" if worst <= bar else "MISSED"
                    missed |= worst > bar and shards is not None
                    print(
                        f"{dtype.name}, shards={shards}, {workers} workers against 1, first "
                        f"{first} steps: {worst:.1e} (bar {bar:.0e}, {verdict})",
                        flush=True,
                    )
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
