"""A distributed training step with and without overlap: what of the communication is seen.

    python benchmarks/overlap.py            the tutorial CNN, 64 images on each of 2 workers
    python benchmarks/overlap.py --batch 128 --workers 4 --bucket-bytes 1048576

Workers are processes of this machine, one thread each, joined by the loopback interface. Four ways
to make the step take turns, a few steps at a time, in the same processes:

    alone       no communication: what the computation takes
    apart       gradients, an all-reduce, the update: three calls, one after the other
    one bucket  one jitted step whose gradients are sent together, when the last one is ready
    buckets     one jitted step, as `Trainer` makes it

Printed are the medians of rank 0 and, for each way, the parts of a step in which communication was
waited for (exposed) and went on behind computation (hidden). On one machine the workers' threads
share the cores with those that communicate, so that what is hidden is not free.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import tensorlite as tl
import tensorlite.distributed as dist
from examples.cifar10 import TutorialCNN, loss_fn
from tensorlite import communication, optim, random

ROUNDS, STEPS, WARM_UP = 12, 5, 3


@dataclasses.dataclass
class Times:
    """Seconds of each step, and of communication in all."""

    steps: list[float] = dataclasses.field(default_factory=list)
    exposed: float = 0.0
    hidden: float = 0.0


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64, help="images of each worker")
    parser.add_argument("--bucket-bytes", type=int, default=communication.BUCKET_BYTES)
    options = parser.parse_args()
    arguments = (options.batch, options.bucket_bytes)
    results = dist.run_local(
        measure, arguments, num_workers=options.workers, mode="processes", timeout=120
    )
    print(f"{options.workers} workers, {options.batch} images each, one thread each; rank 0:")
    for way, times in results[0].items():
        total = sum(times.steps)
        print(
            f"{way:>11}  {statistics.median(times.steps) * 1e3:7.2f} ms a step  "
            f"exposed {times.exposed / total:5.1%}  hidden {times.hidden / total:5.1%}"
        )


def measure(worker: Any, batch: int, bucket_bytes: int) -> dict[str, Times]:
    """What each way takes, on this worker."""
    tl.set_num_threads(1)
    model = TutorialCNN(random.key(0))
    optimizer = optim.sgd(0.01)
    rng = np.random.default_rng(worker.rank)
    images = tl.asarray(rng.normal(size=(batch, 24, 24, 3)).astype(np.float32))
    labels = tl.asarray(rng.integers(0, 10, batch))

    def gradients(model: Any) -> Any:
        return tl.value_and_grad(loss_fn)(model, images, labels)

    def updated(model: Any, state: Any, gradient: Any) -> Any:
        updates, state = optimizer.update(gradient, state, model)
        return optim.apply_updates(model, updates), state

    def whole(model: Any, state: Any, reduce: Callable[[Any], Any]) -> Any:
        loss, gradient = reduce(gradients(model))
        return *updated(model, state, gradient), loss

    def mean(tree: Any) -> Any:
        return dist.all_reduce(tree, "mean")

    alone = tl.jit(lambda m, s: whole(m, s, lambda tree: tree), donate_argnums=(0, 1))
    together = tl.jit(lambda m, s: whole(m, s, mean), donate_argnums=(0, 1))
    of_gradients, of_update = tl.jit(gradients), tl.jit(updated, donate_argnums=(0, 1))

    def apart(model: Any, state: Any) -> Any:
        loss, gradient = mean(of_gradients(model))
        return *of_update(model, state, gradient), loss

    ways: dict[str, tuple[Callable[..., Any], int | None]] = {
        "alone": (alone, None),
        "apart": (apart, None),
        "one bucket": (together, None),
        "buckets": (together, bucket_bytes),
    }
    copies = {way: tl.tree.map(lambda x: tl.asarray(x, copy=True), model) for way in ways}
    states = {way: (copies[way], optimizer.init(copies[way])) for way in ways}
    results = {way: Times() for way in ways}
    for turn in range(-1, ROUNDS):
        for way, (step, size) in ways.items():
            dist.barrier()
            times = results[way] if turn >= 0 else Times()
            with communication.bucketing(size):
                for _ in range(WARM_UP if turn < 0 else STEPS):
                    began, before = time.perf_counter(), communication.spent()
                    *state, loss = step(*states[way])
                    states[way] = tuple(state)
                    float(loss)
                    after = communication.spent()
                    times.steps.append(time.perf_counter() - began)
                    times.exposed += after.exposed - before.exposed
                    times.hidden += after.hidden - before.hidden
    return results


if __name__ == "__main__":
    main()
