"""Faults that strike a training on a Spark cluster at a random step, and what became of it.

The training is small, but real: two workers on two executors, a checkpoint each 50 steps, and the
trainer that a user has. What is struck is found through files in which the workers write their
process ids while they trace the loss. After each fault the parameters and all losses must have the
bits of an undisturbed run, so that every row was seen as often as it should be.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import random
import signal
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

import tensorlite as tl
import tensorlite.distributed as dist
from tensorlite import nn, optim
from tensorlite.data import ArrayDataset
from tests.chaos.remains import Before, left_behind
from tests.distributed.conftest import parent_of

STEPS, EVERY, ROWS, FEATURES = 800, 50, 1000, 48
NOTICED, RESUMED = 10.0, 30.0  # seconds, at most


def data() -> ArrayDataset:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, ROWS)
    images = rng.normal(size=(ROWS, FEATURES)) + labels[:, None] * 0.3
    return ArrayDataset(images.astype(np.float32), labels)


def model() -> dict[str, Any]:
    rng = np.random.default_rng(1)
    shapes = {"w1": (FEATURES, 64), "b1": (64,), "w2": (64, 10), "b2": (10,)}
    drawn = {name: rng.normal(size=shape, scale=0.1) for name, shape in shapes.items()}
    return {name: tl.asarray(array.astype(np.float32)) for name, array in drawn.items()}


def loss_in(folder: str) -> Callable[..., Any]:
    """The loss; where it is traced, the process is noted in `folder`."""

    def loss(model: Any, images: Any, labels: Any) -> Any:
        import os
        import pathlib

        import tensorlite.distributed as dist

        with contextlib.suppress(dist.DistributedError):
            rank = dist.current_worker().rank
            pathlib.Path(folder, f"rank{rank}").write_text(str(os.getpid()))
        hidden = nn.relu(images @ model["w1"] + model["b1"])
        logits = hidden @ model["w2"] + model["b2"]
        return tl.mean(nn.softmax_cross_entropy(logits, labels))

    return loss


def fit(
    folder: pathlib.Path,
    watch: Callable[[dict[str, Any]], None],
    rows: Any = None,
    steps: int = STEPS,
    **options: Any,
) -> Any:
    """A training with two workers, on a DataFrame if one is given."""
    (folder / "pids").mkdir(parents=True, exist_ok=True)
    trainer = dist.Trainer(
        loss=loss_in(str(folder / "pids")),
        optimizer=optim.adam(0.003),
        batch_size=64,
        num_workers=2,
        checkpoint=str(folder / "run"),
        checkpoint_every=EVERY,
        progress=watch,
        **options,
    )
    return trainer.fit(model(), data() if rows is None else rows, steps=steps)


def worker(folder: pathlib.Path, rank: int) -> int:
    """The process id of a worker."""
    return int((folder / "pids" / f"rank{rank}").read_text())


# ---- faults --------------------------------------------------------------------------------------


def kill_worker(folder: pathlib.Path, rank: int) -> None:
    os.kill(worker(folder, rank), signal.SIGKILL)


def stop_worker(folder: pathlib.Path, rank: int) -> None:
    os.kill(worker(folder, rank), signal.SIGSTOP)


def kill_executor(folder: pathlib.Path, rank: int) -> None:
    # A worker is forked by a daemon of Python's, which the executor has started.
    os.kill(parent_of(parent_of(worker(folder, rank))), signal.SIGKILL)


def kill_daemon(folder: pathlib.Path, rank: int) -> None:
    """The daemon of a standalone cluster that has started the worker's executor."""
    os.kill(parent_of(parent_of(parent_of(worker(folder, rank)))), signal.SIGKILL)


def tear_checkpoint(folder: pathlib.Path, rank: int) -> None:
    """The newest one loses its end, and then a worker is killed."""
    saved = sorted((folder / "run").glob("step-*"))
    if saved:
        content = saved[-1].read_bytes()
        saved[-1].write_bytes(content[: len(content) // 2])
    kill_worker(folder, rank)


FAULTS: dict[str, Callable[[pathlib.Path, int], None]] = {
    "kill -9 of a worker": kill_worker,
    "kill -9 of an executor": kill_executor,
    "SIGSTOP of a worker": stop_worker,
    "a torn checkpoint": tear_checkpoint,
}
ON_STANDALONE = {"kill -9 of a daemon": kill_daemon}  # of a cluster with a host to spare


# ---- what became of it ---------------------------------------------------------------------------


@dataclasses.dataclass
class Outcome:
    """How a training went that was struck.

    Attributes:
        at: the last step that was reported before the fault.
        noticed: seconds from the fault until the driver named it.
        resumed: seconds from the fault until a step was reported again.
        named: what the driver said.
        differences: what is not as in the undisturbed run.
        left: what was left behind.
    """

    fault: str
    at: int = -1
    noticed: float = float("nan")
    resumed: float = float("nan")
    named: str = ""
    differences: list[str] = dataclasses.field(default_factory=list)
    left: list[str] = dataclasses.field(default_factory=list)

    @property
    def is_well(self) -> bool:
        """Whether nothing was lost and nothing left behind."""
        return not self.differences and not self.left

    @property
    def is_in_time(self) -> bool:
        """Whether the bounds were kept. Where all steps were saved before the fault took effect,
        there is none to resume."""
        nothing_left = self.at > STEPS - EVERY and np.isnan(self.resumed)
        return self.noticed <= NOTICED and (nothing_left or self.resumed <= RESUMED)

    def __str__(self) -> str:
        wrong = "; ".join([*self.differences, *self.left]) or "nothing lost, nothing left"
        resumed = f"resumed after {self.resumed:5.1f} s"
        if np.isnan(self.resumed):
            resumed = "no step was resumed"
        return (
            f"{self.fault:24} at step {self.at:4}: named after {self.noticed:5.1f} s, "
            f"{resumed}; {wrong}"
        )


def strike(
    fault: str, seed: int, folder: pathlib.Path, undisturbed: Any, rows: Any = None
) -> Outcome:
    """Train, strike once at a random step, and compare."""
    chance = random.Random(seed)
    rank, target = chance.randrange(2), chance.randrange(EVERY, STEPS - EVERY)
    outcome, struck = Outcome(fault), [0.0]
    before = Before.now()

    def watch(record: dict[str, Any]) -> None:
        if not struck[0] and record["step"] >= target:
            outcome.at = record["step"]
            struck[0] = time.monotonic()
            (FAULTS | ON_STANDALONE)[fault](folder, rank)
        elif struck[0] and outcome.named and np.isnan(outcome.resumed):
            outcome.resumed = time.monotonic() - struck[0]

    def said(message: Any, *rest: Any, **options: Any) -> None:
        if struck[0] and "started again" in str(message):
            outcome.noticed = time.monotonic() - struck[0]
            outcome.named = str(message)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = said
        result = fit(folder, watch, rows)
    outcome.differences = differences(result, undisturbed)
    if not struck[0]:
        outcome.differences.append("the fault came too late")
    names = [entry.name for entry in (folder / "run").iterdir()]
    outcome.left = [f"{name} in the folder" for name in names if not name.startswith("step-")]
    outcome.left += left_behind(before)
    return outcome


def differences(result: Any, undisturbed: Any) -> list[str]:
    """What of a result has other bits."""
    found = []
    if result.history["loss"] != undisturbed.history["loss"]:
        pairs = zip(result.history["loss"], undisturbed.history["loss"], strict=False)
        first = next((i for i, (a, b) in enumerate(pairs) if a != b), -1)
        found.append(f"losses differ from step {first + 1} on")
    for part in ("model", "optimizer_state"):
        mine, theirs = getattr(result, part), getattr(undisturbed, part)
        for name, a, b in zip(
            tl.tree.paths(mine), tl.tree.leaves(mine), tl.tree.leaves(theirs), strict=True
        ):
            if np.asarray(a).tobytes() != np.asarray(b).tobytes():
                found.append(f"{part}.{name} differs")
    return found
