"""What runs on a host: one rank of a world, which trains the tutorial network for as long as it is
let.

    python -m benchmarks.lab.rank < task

The laboratory writes the task, a JSON object, on the first line of standard input; everything else
goes the same way. `{"gather": text}` from every rank is answered by the list of all texts. Rank 0
writes a `{"step": ...}` for each step that is done. A world ends by being killed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time
from typing import Any

import numpy as np

import tensorlite as tl
from benchmarks.models.definitions import batch_of
from examples.cifar10 import TutorialCNN, loss_fn
from tensorlite import optim, random
from tensorlite.data import ArrayDataset
from tensorlite.distributed import PowerSGD, Trainer, Worker
from tensorlite.distributed.life import Options, Place, live
from tensorlite.distributed.training import train

ROWS = 1024  # of the data set, at least
LEARNING_RATE = 0.01
FOREVER = 1_000_000  # steps
WARM, PROFILED = 3, 5  # steps before a profile and in it
RING_BYTES = [4 * 1024, 256 * 1024, 1024 * 1024, 4 * 1024 * 1024]  # of arrays that are all-reduced


@dataclasses.dataclass(frozen=True)
class Task:
    """What a rank is told.

    Attributes:
        rank: its number in its world.
        hosts: the addresses of its world, by rank.
        batch: rows of a global batch.
        secret: of its world, in hexadecimal.
        what: "train", "ring" or "profile".
        options: of the `Trainer`.
    """

    rank: int
    hosts: tuple[str, ...]
    batch: int
    secret: str
    what: str = "train"
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


def trainer(batch: int, **options: Any) -> Trainer:
    """The training that is measured: the step that `Trainer` runs, of the network of
    examples/cifar10.py, on images that it cannot learn by heart."""
    if options.get("compression") == "powersgd":
        options["compression"] = PowerSGD()
    optimizer = optim.sgd(LEARNING_RATE)
    return Trainer(loss=loss_fn, optimizer=optimizer, batch_size=batch, **options)


def model() -> TutorialCNN:
    """The network, with the same parameters on every host."""
    return TutorialCNN(random.key(0))


def data(batch: int) -> ArrayDataset:
    """Images and labels; the same on every host."""
    return ArrayDataset(*batch_of("tutorial", max(ROWS, batch)))


def run_training(worker: Worker, task: Task) -> None:
    """Train, and let rank 0 tell of every step."""

    def report(record: dict[str, Any], last: bool = False) -> None:
        say(told(record, task.batch))

    job = trainer(task.batch, **task.options)._job(data(task.batch), FOREVER, None)
    train(worker, job, model(), report)


def told(record: dict[str, Any], batch: int) -> dict[str, Any]:
    """What the laboratory is told of a step: its number, when it was done, and the seconds of all
    steps but the first in which there was only communication; and its loss."""
    rows = (record["step"] - 1) * batch
    total = rows / record["images_per_second"] if rows else 0.0
    communication = record["communication"] * total
    at = time.monotonic()
    return {
        "step": record["step"],
        "at": at,
        "communication": communication,
        "loss": record["loss"],
    }


def run_ring(worker: Worker, task: Task) -> None:
    """All-reduce arrays of several sizes, and tell the seconds and the processor time of each."""
    while True:
        for size in RING_BYTES:
            array = np.ones(size // 4, np.float32)
            worker.ring.barrier()
            began, used = time.monotonic(), time.process_time()
            worker.ring.all_reduce_(array, "max")
            ended = time.monotonic()
            if worker.rank == 0:
                say({"bytes": size, "seconds": ended - began, "used": time.process_time() - used})


def main() -> int:
    """Read the task, join the world, do it; what went wrong goes to standard error."""
    task = Task(**json.loads(sys.stdin.readline()))
    place = Place(task.rank, tuple(task.hosts), cpus=1)
    options = Options(bytes.fromhex(task.secret))
    work = {"train": run_training, "ring": run_ring, "profile": run_profile}[task.what]
    outcome = live(lambda worker: work(worker, task), place, options, gather)
    if outcome.failure is not None:
        print(outcome.failure.describe(), file=sys.stderr)
    return 1


def run_profile(worker: Worker, task: Task) -> None:
    """Train some steps, and let rank 0 tell when each bucket of gradients was ready."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as profile:
        path = pathlib.Path(folder) / "profile.json"

        def report(record: dict[str, Any], last: bool = False) -> None:
            if record["step"] == WARM:
                profile.enter_context(tl.profile(path))

        steps = WARM + PROFILED
        job = trainer(task.batch, **task.options)._job(data(task.batch), steps, None)
        train(worker, job, model(), report)
        profile.close()
        if worker.rank == 0:
            events = json.loads(path.read_text())["traceEvents"]
            while True:  # until this world is ended
                say({"buckets": buckets_of(events)})
                time.sleep(1.0)


def buckets_of(events: list[dict[str, Any]]) -> list[tuple[int, float]]:
    """Bytes of each bucket and the part of the computation of a step that came before it: medians
    of the steps in a profile."""
    slices = [event for event in events if event["ph"] == "X"]
    work = sorted((e["ts"], e["dur"]) for e in slices if e["cat"] == "step" and not _waits(e))
    found: dict[int, list[float]] = {}
    for call in (event for event in slices if event["cat"] == "op"):
        begin, end = call["ts"], call["ts"] + call["dur"]
        of_call = [(ts, dur) for ts, dur in work if begin <= ts < end]
        total = sum(dur for _, dur in of_call)
        for event in slices:
            if "bytes" in event["args"] and begin <= event["ts"] < end:
                # A slice that had begun when the bucket left is counted as far as it was.
                before = sum(min(dur, event["ts"] - ts) for ts, dur in of_call if ts < event["ts"])
                found.setdefault(event["args"]["bytes"], []).append(before / total)
    medians = [(nbytes, statistics.median(shares)) for nbytes, shares in found.items()]
    return sorted(medians, key=lambda bucket: bucket[1])


def _waits(event: dict[str, Any]) -> bool:
    """Whether a slice of the computing thread is about communication."""
    return event["name"].startswith(("start ", "wait "))


def gather(text: str) -> list[str]:
    """The texts of all ranks of this world."""
    say({"gather": text})
    texts: list[str] = json.loads(sys.stdin.readline())
    return texts


def say(message: dict[str, Any]) -> None:
    """Tell the laboratory, in one write, so that a thread's line is never cut by another's."""
    os.write(sys.stdout.fileno(), (json.dumps(message) + "\n").encode())


if __name__ == "__main__":
    sys.exit(main())
