"""How far the loss curves of 1, 2 and 4 workers are apart: the tutorial network on the digits.

    python benchmarks/loss_curves.py

All train on the same global batches of 128, without augmentation, in threads of this process. The
sums over the batch are rounded in another order for each number of workers, and nothing else
differs. Bars: float32 within 1e-5 for the first 10 steps and 5e-3 for 100; float64 within 1e-10 for
the first 20.
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
from tensorlite.distributed.training import Job, train

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from examples.cifar10 import TutorialCNN, loss_fn, optimizer

BATCH = 128


def losses(workers: int, steps: int, dtype: np.dtype) -> np.ndarray:
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
        alone = losses(1, steps, dtype)
        for workers in (2, 4):
            apart = np.abs(losses(workers, steps, dtype) - alone) / np.abs(alone)
            for first, bar in bars.items():
                worst = apart[:first].max()
                verdict = "met" if worst <= bar else "MISSED"
                missed |= worst > bar
                print(
                    f"{dtype.name}, {workers} workers against 1, first {first:3d} steps: "
                    f"{worst:.1e} (bar {bar:.0e}, {verdict})"
                )
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
