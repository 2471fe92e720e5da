"""Two Spark tasks on two cores beside one on one core, and beside PySpark's TorchDistributor.

    make peers                                the environment of PyTorch and PySpark, once
    python benchmarks/spark_tasks.py
    python benchmarks/spark_tasks.py --rounds 2 --steps 20 --peers torch

All train the network of TensorFlow's CIFAR-10 tutorial, from the same weights, on the same rows at
each step, with the same global batch however many tasks share it; their losses are compared. They
take turns: in each round everyone trains once, in a Spark of its own that is stopped while others
work. Images per second are counted after the first steps. TorchDistributor runs PyTorch's
DistributedDataParallel over Gloo, eager and compiled, one process with one thread in each task.

Exits 1 if losses disagree or a bar of this project is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import pathlib
import signal
import statistics
import sys
import tempfile
from typing import Any

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks.models import definitions
from benchmarks.spark import MODEL
from benchmarks.workers import Worker, WorkerError, interpreter, warn_if_busy
from tensorlite.data import permutation

ROWS = 1024  # of the data
BATCH = 128  # of all tasks together
TOLERANCE = 1e-4  # relative, of the losses of the first `COMPARED` steps
COMPARED = 5
SPEEDUP = 1.85  # two tasks beside one
LEAD = 1.5  # beside the best of TorchDistributor


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A framework, how many tasks it has, each with a core, and how it is used."""

    framework: str
    tasks: int
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


ONE, TWO = "tensorlite, 1 task", "tensorlite, 2 tasks"
OURS = {ONE: Contestant("tensorlite", 1), TWO: Contestant("tensorlite", 2)}
PEERS = {
    "torch": Contestant("torch", 2),
    "torch-nhwc": Contestant("torch", 2, {"channels_last": True}),
    "torch-compile-nhwc": Contestant("torch", 2, {"compiled": True, "channels_last": True}),
}
CONTESTANTS = OURS | PEERS


@dataclasses.dataclass
class Result:
    """Images per second of every round, and the losses of the first steps."""

    rates: list[float]
    losses: list[float]

    @property
    def rate(self) -> float:
        """The median."""
        return statistics.median(self.rates)


def measure(names: list[str], rounds: int, steps: int) -> dict[str, Result]:
    """Everyone's results after so many rounds.

    Raises:
        WorkerError: somebody failed.
    """
    results: dict[str, Result] = {}
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        definitions.save(folder / "arrays.npz", MODEL, ROWS)
        np.save(folder / "order.npy", order(steps))
        workers = {}
        for name in names:
            contestant = CONTESTANTS[name]
            worker = Worker(
                contestant.framework, f"spark.in_{contestant.framework}", contestant.tasks
            )
            workers[name] = stack.enter_context(worker)
            paths = {"arrays": str(folder / "arrays.npz"), "order": str(folder / "order.npy")}
            sizes = {"batch": BATCH, "steps": steps, "tasks": contestant.tasks}
            worker.ask(build="build_training", arguments=paths | sizes | contestant.options)
        for number in range(rounds):
            for name, worker in workers.items():
                (found,) = worker.ask(run=1)["values"]
                result = results.setdefault(name, Result([], found["losses"][:COMPARED]))
                result.rates.append(found["images_per_second"])
                print(f"round {number + 1}: {name}: {result.rates[-1]:.0f} images/s")
    return results


def order(steps: int) -> np.ndarray:
    """The rows of each step's batch, (steps, BATCH): those that `Trainer` takes with seed 0."""
    epochs = -(-steps * BATCH // ROWS)
    rows = np.concatenate([permutation(ROWS, 0, epoch) for epoch in range(epochs)])
    return rows[: steps * BATCH].reshape(steps, BATCH)


def judge(results: dict[str, Result]) -> list[tuple[bool, str]]:
    """Whether losses agree and bars are met, each with a line that says so."""
    lines = []
    for name, result in results.items():
        pairs = zip(result.losses, results[TWO].losses, strict=True)
        worst = max(abs(a - b) / abs(b) for a, b in pairs)
        text = f"the losses of {name} and ours differ by at most {worst:.1e}"
        lines.append((worst <= TOLERANCE, text))
    ratio = results[TWO].rate / results[ONE].rate
    lines.append(_verdict("two tasks beside one", ratio, SPEEDUP))
    theirs = {name: result.rate for name, result in results.items() if name in PEERS}
    if theirs:
        best = max(theirs, key=lambda name: theirs[name])
        ratio = results[TWO].rate / theirs[best]
        lines.append(_verdict(f"beside TorchDistributor ({best})", ratio, LEAD))
    return lines


def _verdict(what: str, ratio: float, bar: float) -> tuple[bool, str]:
    met = ratio >= bar
    return met, f"{what}: {ratio:.2f}x, bar {bar:g}x, {'met' if met else 'MISSED'}"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options, checked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--rounds", type=int, default=5, help="(default: %(default)s)")
    add("--steps", type=int, default=40, help="of each training (default: %(default)s)")
    add("--peers", help=f"of {','.join(PEERS)}, or none (default: all, if there is torch)")
    args = parser.parse_args(arguments)
    if args.rounds < 1:
        parser.error(f"--rounds must be at least 1, not {args.rounds}")
    if args.steps < 10:
        parser.error(f"--steps must be at least 10, not {args.steps}")
    if len(os.sched_getaffinity(0)) < 2:
        parser.error("two tasks need two processors, and there is one")
    there = interpreter("torch") is not None
    if args.peers is None:
        args.peers = list(PEERS) if there else []
        if not there:
            print("without TorchDistributor: there is no environment for it; make peers")
    else:
        args.peers = [] if args.peers == "none" else args.peers.split(",")
        for name in args.peers:
            if name not in PEERS:
                parser.error(f"--peers: there is no {name!r}; of {', '.join(PEERS)}")
        if args.peers and not there:
            parser.error("--peers: torch has no environment; make one with `make peers`")
    return args


def main() -> int:
    """Measure, print, judge."""
    args = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # which ends the workers, and their Spark
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    warn_if_busy()
    try:
        results = measure([*OURS, *args.peers], args.rounds, args.steps)
    except WorkerError as error:
        print(f"spark_tasks.py: {error}", file=sys.stderr)
        return 2
    print(f"\n| a global batch of {BATCH} | images/s | ours, 2 tasks, beside it |")
    print("| --- | ---: | ---: |")
    for name, result in results.items():
        print(f"| {name} | {result.rate:.0f} | {results[TWO].rate / result.rate:.2f}x |")
    print()
    lines = judge(results)
    for _, line in lines:
        print(line)
    return 0 if all(met for met, _ in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
