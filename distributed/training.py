"""The loop that every worker runs: its rows of each global batch, a step, and now and then a
checkpoint.

All workers start from the same bits and add the same bits, so they stay equal without ever sending
parameters. A batch is a list of row numbers that each worker computes for itself; each takes its
share in rank order."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

import tensorlite as tl
from tensorlite import communication

from .batches import Batch, batches, gathered, order_of
from .checkpoint import CheckpointFolder, Writer
from .collectives import all_gather, broadcast
from .dataframes import Reading
from .details import Details
from .errors import DistributedError
from .monitor import MonitorAddress, Reporter
from .steps import Functions, Job, is_float
from .stopping import Wishes, reason_of
from .validation import Validation
from .worker import Worker

MOST_ROLLBACKS = 5  # of one training
MOST_SHOWN = 256  # workers whose time is told while the run goes on; a record has a bounded length


@dataclasses.dataclass
class Timing:
    """Seconds spent, and the rows seen meanwhile, since the first step of each shape is done:
    before that the time goes into tracing. Communication is what was waited for; what went on
    behind computation is `hidden`, and part of `compute`."""

    input: float = 0.0
    compute: float = 0.0
    communication: float = 0.0
    hidden: float = 0.0
    rows: int = 0
    steps: int = 0

    @property
    def total(self) -> float:
        return self.input + self.compute + self.communication


@dataclasses.dataclass
class Progress:
    """How a run ended, on one worker."""

    state: Any
    losses: list[float]
    timing: Timing
    steps_per_epoch: int
    validation: dict[str, list[float]] = dataclasses.field(default_factory=dict)  # by epoch
    stopped: str = ""  # why it ended early
    skipped: int = 0  # steps whose update was not made
    skipped_rows: int = 0  # that were not read
    ranks: list[dict[str, Any]] = dataclasses.field(default_factory=list)  # where time went


def train(worker: Worker, job: Job, model: Any, report: Callable[..., None]) -> Progress:
    """Run `job` from `model`, or from the newest checkpoint if there is one.

    Args:
        report: called on rank 0 after each step with a record (see `_record`) and `last`.

    Raises:
        DistributedError: the workers do not agree on where to start.
    """
    functions = Functions(job, worker)
    _check_agreement(worker, model)
    folder = _opened(worker, job)
    validation = Validation.of(job, worker, model)
    untouched = validation.state() if validation is not None else {}
    left_out: set[int] = set()
    while True:
        state = functions.start(model)
        if validation is not None:
            validation.restore(untouched)
        step, state, losses = _resume(worker, job, functions, folder, state, validation)
        with contextlib.ExitStack() as stack:
            save = _saver(worker, job, folder, report, validation, stack)
            wishes = Wishes(job.time_limit, getattr(report, "asked_to_stop", _never))
            stack.enter_context(wishes.catching())
            run = Run(worker, job, functions, report, save, wishes, validation, left_out)
            try:
                return _loop(run, step, state, losses)
            except RollBack as back:
                if len(left_out) == MOST_ROLLBACKS:
                    raise FloatingPointError(
                        f"{back}; {MOST_ROLLBACKS} times the training went back already, so it is "
                        "not single batches that are at fault"
                    ) from None
                left_out.add(back.step)
                if worker.rank == 0:
                    report(
                        {"warning": f"{back}; going back to step {step}, to go on without it"},
                        last=True,
                    )


@dataclasses.dataclass(frozen=True)
class Run:
    """What the loop needs besides the state. `left_out` are steps that are not made."""

    worker: Worker
    job: Job
    functions: Functions
    report: Callable[..., None]
    save: Callable[..., None]
    wishes: Wishes
    validation: Validation | None
    left_out: set[int]


class RollBack(Exception):
    """The update of a step is not finite, and the training shall go on from before it."""

    def __init__(self, step: int, what: str):
        super().__init__(what)
        self.step = step


def train_in_worker(
    worker: Worker, job: Job, model: Any, address: MonitorAddress | None
) -> Progress | None:
    """The main function of a worker. Only rank 0 sends its state back: the others' is the same."""
    reporter = Reporter(address if worker.rank == 0 else None)
    try:
        progress = train(worker, job, moved(model, worker.device), reporter)
    finally:
        reporter.close()
    if worker.rank != 0:
        return None
    # The driver need not have the workers' devices.
    return dataclasses.replace(progress, state=moved(progress.state, "cpu"))


def moved(tree: Any, device: str) -> Any:
    """A tree of tensors on a device."""
    return tl.tree.map(lambda leaf: tl.asarray(leaf, device=device), tree)


def train_on_rows(
    worker: Worker,
    batches: Iterable[Any],
    job: Job,
    model: Any,
    address: MonitorAddress | None,
    reading: Reading,
) -> Progress | None:
    """The main function of a worker that has rows of its own, which it reads from `batches`."""
    job = with_rows(worker, job, batches, reading)
    return train_in_worker(worker, job, model, address)


def with_rows(worker: Worker, job: Job, batches: Iterable[Any], reading: Reading) -> Job:
    """The job on rows of this worker's own, which are read from Arrow batches.

    Raises:
        DataFrameError: the rows cannot be used.
    """
    from .spool import read_rows  # which needs pyarrow

    rows = read_rows(worker, batches, reading)
    job = dataclasses.replace(
        job,
        arrays=rows.training,
        counts=rows.counts,
        validation=rows.validation,
        validation_counts=rows.validation_counts,
        skipped_rows=rows.skipped,
    )
    if job.patience is not None and job.validation is None:
        raise ValueError("Trainer.fit: patience needs validation rows; set a validation_column")
    return (
        job
        if job.epochs is None
        else dataclasses.replace(job, steps=job.epochs * job.steps_per_epoch)
    )


def _loop(run: Run, step: int, state: dict[str, Any], losses: list[float]) -> Progress:
    """The steps from `step` on."""
    worker, job, functions, report = run.worker, run.job, run.functions, run.report
    validation = run.validation
    details = Details(job, report if worker.rank == 0 else None)
    timing = Timing()
    shapes_seen: set[tuple[int, ...]] = set()
    stopped, skipped = "", 0
    began = time.perf_counter()
    for batch, rows in gathered(job, batches(job, worker, start=step)):
        epoch, before = batch.epoch, communication.spent()
        arrays = [
            functions.input(epoch, share, own)
            for share, own in zip(batch.shares, rows, strict=True)
        ]
        fed = time.perf_counter()
        if step in run.left_out:
            losses.append(math.nan)
            wish, skipped = 0.0, skipped + 1
        else:
            wants = details.wants_gradients(step + 1)
            state, told = functions.step(
                state, step, batch.shares, arrays, run.wishes.number(), wants
            )
            losses.append(float(told["loss"]))
            wish = float(told["wish"])
            if not (math.isfinite(losses[-1]) and bool(told["made"])):
                what = _not_finite(worker, losses[-1], bool(told["own"]), step + 1, batch)
                skipped += _treat(run, what, step, first=skipped == 0)
            details.after(step + 1, arrays[0], state["model"], told.get("gradients", []))
        step += 1
        stopped = reason_of(wish) if step < job.steps else ""
        done, after = time.perf_counter(), communication.spent()
        shapes = tuple(len(share.rows) for share in batch.shares)
        if shapes in shapes_seen:
            exposed = after.exposed - before.exposed
            timing.input += fed - began
            timing.compute += (done - fed) - exposed
            timing.communication += exposed
            timing.hidden += after.hidden - before.hidden
            timing.rows += batch.size
            timing.steps += 1
        shapes_seen.add(shapes)
        found: dict[str, Any] = {}
        if validation is not None and step % job.steps_per_epoch == 0:
            found = dict(validation.after_epoch(state["model"]))
            if validation.is_hopeless and step < job.steps:
                stopped = stopped or "no improvement"
        if step % job.steps_per_epoch == 0 and worker.size <= MOST_SHOWN:
            found = {**found, "ranks": _of_ranks(worker, timing)}
        if worker.rank == 0:
            record = _record(job, step, epoch, losses[-1], timing) | found
            report(record, last=step == job.steps or bool(stopped) or bool(found))
        if _is_due(job, step) or (stopped and job.checkpoint is not None):
            _check_sound(state["model"], step, epoch)
            _check_drift(worker, state["model"], step)
            run.save(step, functions.whole(state), losses)
        if stopped:
            break
        began = time.perf_counter()
    whole, history = functions.whole(state), {}
    if validation is not None:
        history = validation.history
        whole["model"] = validation.best(whole["model"])
    return Progress(
        whole,
        losses,
        timing,
        job.steps_per_epoch,
        validation=history,
        stopped=stopped,
        skipped=skipped,
        skipped_rows=job.skipped_rows,
        ranks=_of_ranks(worker, timing),
    )


def _never() -> bool:
    return False


def _treat(run: Run, what: str, step: int, first: bool) -> int:
    """Do with a step that is not finite what the job says: 1 if its update was left out.

    Raises:
        FloatingPointError: the training is to stop.
        RollBack: it is to go back.
    """
    if run.job.on_nonfinite == "stop":
        raise FloatingPointError(
            f"{what}, with the parameters from before that step's update. The usual causes: a "
            "learning rate that is too high, integer labels outside of the classes, or NaN in the "
            "data. tl.debug_nans() names the operation; on_nonfinite='skip' leaves such updates out"
        )
    if run.job.on_nonfinite == "rollback":
        raise RollBack(step, what)
    if first and run.worker.rank == 0:
        run.report({"warning": f"{what}; such updates are skipped"}, last=True)
    return 1


def _check_sound(model: Any, step: int, epoch: int) -> None:
    """Refuse to save parameters that are not finite: a gradient may be infinite where the loss is
    not, and a run that goes on from there is lost."""
    for name, leaf in zip(tl.tree.paths(model), tl.tree.leaves(model), strict=True):
        if is_float(leaf) and not bool(tl.all(tl.isfinite(leaf))):
            raise FloatingPointError(
                f"after step {step} (epoch {epoch}) {name!r} is not finite, though the loss was; "
                "nothing is saved, and the checkpoints from before are sound. on_nonfinite='skip' "
                "leaves such updates out"
            )


def _not_finite(worker: Worker, loss: float, is_sound: bool, step: int, batch: Batch) -> str:
    """What is wrong with a step; every worker must ask. `is_sound` says that the loss of this
    worker's own share is finite."""
    shown = ", ".join(map(str, batch.rows[:8].tolist())) + ", ..." * (batch.size > 8)
    what = "the gradient is not finite" if math.isfinite(loss) else f"the loss is {loss}"
    sound = np.asarray(all_gather(tl.asarray(np.asarray(is_sound)))).tolist()
    bad = [str(rank) for rank in range(worker.size) if not sound[rank]]
    where = f", in the share of rank {', '.join(bad)}" if bad and worker.size > 1 else ""
    return f"{what} at step {step} (epoch {batch.epoch}, rows {shown} of the data{where})"


def _of_ranks(worker: Worker, timing: Timing) -> list[dict[str, Any]]:
    """Where the time of each worker went; every worker must ask."""
    names = ("input", "compute", "communication", "steps")
    own = np.asarray([getattr(timing, name) for name in names], np.float64)
    everyone = np.asarray(all_gather(tl.asarray(own))).tolist()
    return [
        {"rank": rank, "host": worker.hosts[rank], **dict(zip(names, row, strict=True))}
        for rank, row in enumerate(everyone)
    ]


def _record(job: Job, step: int, epoch: int, loss: float, timing: Timing) -> dict[str, Any]:
    """What is shown of a step while the run goes on."""
    return {
        "step": step,
        "steps": job.steps,
        "epoch": epoch,
        "loss": loss,
        "images_per_second": timing.rows / timing.total if timing.rows else 0.0,
        "communication": timing.communication / timing.total if timing.rows else 0.0,
        "hidden_communication": timing.hidden / timing.total if timing.rows else 0.0,
    }


# ---- agreement, checkpoints --------------------------------------------------------------------


def _check_agreement(worker: Worker, model: Any) -> None:
    """Refuse to start from different parameters, or with different libraries."""
    versions = f"tensorlite {tl.__version__}, NumPy {np.__version__}, Python {sys.version_info[:2]}"
    digest = hashlib.sha256(versions.encode())
    for name, leaf in zip(tl.tree.paths(model), tl.tree.leaves(model), strict=True):
        array = np.ascontiguousarray(np.asarray(leaf))
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    everyone = np.asarray(all_gather(np.frombuffer(digest.digest(), np.uint8)))
    odd = [rank for rank in range(worker.size) if (everyone[rank] != everyone[0]).any()]
    if odd:
        raise DistributedError(
            f"ranks {odd} would start from other parameters or libraries than rank 0; rank "
            f"{worker.rank} has {versions}. Install the same versions on all hosts"
        )


def _check_drift(worker: Worker, model: Any, step: int) -> None:
    """Refuse to save parameters that are not those of all workers: they are computed by each, and
    equal unless a processor, a memory or a library is at fault."""
    if worker.size == 1:
        return
    names = tl.tree.paths(model)
    digests = [hashlib.sha256(np.asarray(x).tobytes()).digest()[:8] for x in tl.tree.leaves(model)]
    own = np.frombuffer(b"".join(digests), np.uint8).reshape(len(names), 8)
    everyone = np.asarray(all_gather(own))
    differs = (everyone != everyone[0]).any(axis=2)  # (workers, leaves)
    if differs.any():
        ranks = [rank for rank in range(worker.size) if differs[rank].any()]
        first = names[int(np.argmax(differs.any(axis=0)))]
        raise DistributedError(
            f"after step {step} ranks {ranks} have other parameters than rank 0, {first!r} first: "
            "a processor or its memory fails, or the hosts have different libraries. The "
            "checkpoints from before are sound"
        )


def _checkpoint_of(
    state: dict[str, Any], losses: list[float], validation: dict[str, Any] | None
) -> dict[str, Any]:
    tree = {"state": state, "losses": tl.asarray(np.asarray(losses, np.float64))}
    return tree if validation is None else {**tree, "validation": validation}


def _is_due(job: Job, step: int) -> bool:
    every = job.checkpoint_every
    is_last = step == job.steps
    return job.checkpoint is not None and (is_last or (every is not None and step % every == 0))


def _opened(worker: Worker, job: Job) -> CheckpointFolder | None:
    """The folder of checkpoints, which rank 0 can write to."""
    if job.checkpoint is None:
        return None
    folder = CheckpointFolder(job.checkpoint, job.keep_checkpoints, job.keep_best)
    if worker.rank == 0:
        folder.prepare()
    return folder


def _saver(
    worker: Worker,
    job: Job,
    folder: CheckpointFolder | None,
    report: Callable[..., None],
    validation: Validation | None,
    stack: contextlib.ExitStack,
) -> Callable[..., None]:
    """What saves a whole state: on rank 0 a thread of its own, which has saved everything when
    `stack` ends."""
    if folder is None or worker.rank != 0:
        return lambda step, state, losses: None
    writer = Writer(folder, lambda problem: report({"warning": problem}, last=True))
    stack.callback(writer.close)
    about = order_of(job) | {"workers": str(worker.size)}

    def save(step: int, state: dict[str, Any], losses: list[float]) -> None:
        recent = losses[-(job.checkpoint_every or 1) :]
        kept = validation.state() if validation is not None else None
        writer.put(step, _checkpoint_of(state, losses, kept), about, sum(recent) / len(recent))

    return save


def _resume(
    worker: Worker,
    job: Job,
    functions: Functions,
    folder: CheckpointFolder | None,
    state: dict[str, Any],
    validation: Validation | None,
) -> tuple[int, dict[str, Any], list[float]]:
    """Where to start: the newest whole checkpoint that any rank finds, sent to all, or the
    beginning. Ranks on several hosts may see several folders."""
    found = folder.newest() if folder is not None else None
    workers = 0
    if folder is not None and found is not None:
        workers = int(folder.metadata(found).get("workers", "1"))
    everyone = np.asarray(all_gather(tl.asarray(np.asarray([found or 0, workers]))))
    root = int(np.argmax(everyone[:, 0]))
    step, workers = everyone[root].tolist()
    if step == 0:
        return 0, state, []
    if step > job.steps:
        raise ValueError(
            f"Trainer: the checkpoint folder {job.checkpoint} holds step {step}, but this run ends "
            f"at step {job.steps}; choose another folder, or more steps"
        )
    like = functions.whole(state)
    if "compression" in like:
        errors = {
            n: tl.zeros((workers, *e.shape[1:]), dtype=e.dtype)
            for n, e in like["compression"]["errors"].items()
        }
        like["compression"] = {**like["compression"], "errors": errors}
    kept = validation.like(step // job.steps_per_epoch) if validation is not None else None
    tree = _checkpoint_of(like, [0.0] * step, kept)
    if worker.rank == root:
        assert folder is not None
        saved_order, order = folder.metadata(step), order_of(job)
        changed = [k for k in order if saved_order.get(k) != order[k]]
        if changed:
            differences = ", ".join(f"{k}={saved_order.get(k)} (now {order[k]})" for k in changed)
            raise ValueError(
                f"Trainer: the checkpoint folder {job.checkpoint} holds a run with {differences}; "
                "rows would be repeated or left out. Choose another folder, or the old values"
            )
        tree = folder.load(step, like=tree)
    tree = broadcast(tree, root=root)
    if validation is not None:
        validation.restore(tree["validation"])
    return step, functions.own(tree["state"]), np.asarray(tree["losses"]).tolist()
