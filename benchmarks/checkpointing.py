"""What checkpoints cost: images per second of the tutorial network with and without one each 50
steps, in turns.

    python benchmarks/checkpointing.py [--steps 100] [--rounds 5]

The bar is 2%. Exits 1 if it is missed.
"""

from __future__ import annotations

import argparse
import pathlib
import statistics
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks.models.definitions import batch_of
from benchmarks.workers import warn_if_busy
from examples.cifar10 import TutorialCNN, loss_fn
from tensorlite import optim, random
from tensorlite.data import ArrayDataset
from tensorlite.distributed import Trainer

EVERY, BATCH, MOST = 50, 128, 0.02


def images_per_second(steps: int, data: ArrayDataset, saves: bool) -> float:
    """The throughput of a training, without its first step."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            loss=loss_fn,
            optimizer=optim.sgd(0.01, momentum=0.9),
            batch_size=BATCH,
            checkpoint=folder if saves else None,
            checkpoint_every=EVERY if saves else None,
            progress=False,
        )
        result = trainer.fit(TutorialCNN(random.key(0)), data, steps=steps)
    return float(result.summary["images_per_second"])


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--steps", type=int, default=2 * EVERY, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    args = parser.parse_args()
    warn_if_busy()
    data = ArrayDataset(*batch_of("tutorial", 8 * BATCH))
    found: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(args.rounds):
        for saves, rates in found.items():
            rates.append(images_per_second(args.steps, data, saves))
    plain, saving = (statistics.median(rates) for rates in found.values())
    # Rounds are compared with their neighbours, since the machine's speed drifts.
    costs = [1 - b / a for a, b in zip(found[False], found[True], strict=True)]
    cost = statistics.median(costs)
    met = cost <= MOST
    print(f"without {plain:.0f} images/s, with a checkpoint each {EVERY} steps {saving:.0f}")
    print(f"cost {cost:.1%} (rounds {', '.join(f'{c:.1%}' for c in costs)}), bar {MOST:.0%}, "
          f"{'met' if met else 'MISSED'}")  # fmt: skip
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
