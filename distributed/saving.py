"""What of a run is saved, and where one goes on that was interrupted."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

import tensorlite as tl

from .batches import order_of
from .checkpoint import CheckpointFolder, DamagedError, Writer
from .collectives import all_gather, broadcast
from .steps import Functions, Job
from .validation import Validation
from .worker import Worker


@dataclasses.dataclass
class Start:
    """Where a run begins or goes on: what has been done so far."""

    step: int
    state: dict[str, Any]
    losses: list[float]
    skipped: int = 0  # steps whose update was not made


def is_due(job: Job, step: int) -> bool:
    """Whether a checkpoint is to be saved after `step` steps."""
    every = job.checkpoint_every
    is_last = step == job.steps
    return job.checkpoint is not None and (is_last or (every is not None and step % every == 0))


def opened(worker: Worker, job: Job) -> CheckpointFolder | None:
    """The folder of checkpoints, which rank 0 can write to."""
    if job.checkpoint is None:
        return None
    folder = CheckpointFolder(job.checkpoint, job.keep_checkpoints, job.keep_best)
    if worker.rank == 0:
        folder.prepare()
    return folder


def saver(
    worker: Worker,
    job: Job,
    folder: CheckpointFolder | None,
    report: Callable[..., None],
    validation: Validation | None,
    stack: contextlib.ExitStack,
) -> Callable[[Start], None]:
    """What saves a whole state: on rank 0 a thread of its own, which has saved everything when
    `stack` ends."""
    if folder is None or worker.rank != 0:
        return lambda done: None
    writer = Writer(folder, lambda problem: report({"warning": problem}, last=True))
    stack.callback(writer.close)
    about = order_of(job) | {"workers": str(worker.size)}

    def save(done: Start) -> None:
        recent = done.losses[-(job.checkpoint_every or 1) :]
        kept = validation.state() if validation is not None else None
        tree = _tree(done.state, done.losses, kept)
        loss = sum(recent) / len(recent)
        writer.put(done.step, tree, about | {"skipped": str(done.skipped)}, loss)

    return save


def resume(
    worker: Worker,
    job: Job,
    functions: Functions,
    folder: CheckpointFolder | None,
    state: dict[str, Any],
    validation: Validation | None,
    report: Callable[..., None],
) -> Start:
    """Where to start: the newest whole checkpoint that any rank finds, sent to all, or the
    beginning with `state`.

    Raises:
        ValueError: the folder holds another run.
    """
    if folder is None:
        return Start(0, state, [])
    root, step = _newest(worker, folder, report)
    if step == 0:
        return Start(0, state, [])
    if step > job.steps:
        raise ValueError(
            f"Trainer: the checkpoint folder {job.checkpoint} holds step {step}, but this run ends "
            f"at step {job.steps}; choose another folder, or more steps"
        )
    about = folder.metadata(step) if worker.rank == root else {}
    numbers = [int(about.get("workers", "1")), int(about.get("skipped", "0"))]
    workers, skipped = np.asarray(broadcast(tl.asarray(np.asarray(numbers)), root=root)).tolist()
    like = functions.whole(state)
    if "compression" in like:
        errors = {
            n: tl.zeros((workers, *e.shape[1:]), dtype=e.dtype)
            for n, e in like["compression"]["errors"].items()
        }
        like["compression"] = {**like["compression"], "errors": errors}
    kept = validation.like(step // job.steps_per_epoch) if validation is not None else None
    tree = _tree(like, [0.0] * step, kept)
    if worker.rank == root:
        order = order_of(job)
        changed = [k for k in order if about.get(k) != order[k]]
        if changed:
            differences = ", ".join(f"{k}={about.get(k)} (now {order[k]})" for k in changed)
            raise ValueError(
                f"Trainer: the checkpoint folder {job.checkpoint} holds a run with {differences}; "
                "rows would be repeated or left out. Choose another folder, or the old values"
            )
        tree = folder.load(step, like=tree)
    tree = broadcast(tree, root=root)
    if validation is not None:
        validation.restore(tree["validation"])
    losses = np.asarray(tree["losses"]).tolist()
    return Start(step, functions.own(tree["state"]), losses, skipped)


def _newest(
    worker: Worker, folder: CheckpointFolder, report: Callable[..., None]
) -> tuple[int, int]:
    """A rank that has the newest whole checkpoint, and its step; 0 if there is none. Ranks on
    several hosts may see several folders; only the rank whose turn it is reads a file."""
    seen = folder.steps()
    while True:
        newest = seen[-1] if seen else 0
        everyone = np.asarray(all_gather(tl.asarray(np.asarray(newest))))
        root = int(np.argmax(everyone))
        step = int(everyone[root])
        if step == 0:
            return root, 0
        problem = f"the checkpoint of step {step} that rank {root} sees is damaged"
        is_whole = True
        if worker.rank == root:
            try:
                folder.check(step)
            except DamagedError as error:
                is_whole, problem = False, str(error)
        if bool(broadcast(tl.asarray(np.asarray(is_whole)), root=root)):
            return root, step
        seen = [earlier for earlier in seen if earlier < step]
        if worker.rank == 0:
            report({"warning": f"{problem}; an older one is used"}, last=True)


def _tree(
    state: dict[str, Any], losses: list[float], validation: dict[str, Any] | None
) -> dict[str, Any]:
    tree = {"state": state, "losses": tl.asarray(np.asarray(losses, np.float64))}
    return tree if validation is None else {**tree, "validation": validation}
