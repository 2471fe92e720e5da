"""The loop that every worker runs: its rows of each global batch, a step, and now and then a
checkpoint.

All workers start from the same bits and add the same bits, so they stay equal without ever sending
parameters. A batch is a list of row numbers that each worker computes for itself; each takes its
share in rank order."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

import tensorlite as tl
from tensorlite import communication

from . import saving
from .balance import Parts, Spent
from .batches import Batch, batches, gathered
from .checks import DRIFT_STEPS, check_agreement, check_drift, check_sound
from .collectives import all_gather
from .dataframes import Reading
from .details import Details
from .errors import DistributedError
from .monitor import MonitorAddress, Reporter
from .saving import Start
from .steps import Functions, Job
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
    own_rows: int = 0  # this worker's part of them
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
    check_agreement(worker, model)
    folder = saving.opened(worker, job)
    validation = Validation.of(job, worker, model)
    untouched = validation.state() if validation is not None else {}
    left_out: set[int] = set()
    while True:
        state = functions.start(model)
        if validation is not None:
            validation.restore(untouched)
        done = saving.resume(worker, job, functions, folder, state, validation, report)
        step = done.step
        with contextlib.ExitStack() as stack:
            save = saving.saver(worker, job, folder, report, validation, stack)
            wishes = Wishes(job.time_limit, getattr(report, "asked_to_stop", _never))
            stack.enter_context(wishes.catching())
            run = Run(worker, job, functions, report, save, wishes, validation, left_out)
            try:
                return _loop(run, done)
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
    save: Callable[[Start], None]
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


def _loop(run: Run, start: Start) -> Progress:
    """The steps from `start` on."""
    step, state, losses, skipped = start.step, start.state, start.losses, start.skipped
    worker, job, functions, report = run.worker, run.job, run.functions, run.report
    validation = run.validation
    details = Details(job, report if worker.rank == 0 else None)
    timing = Timing()
    shapes_seen: set[tuple[int, ...]] = set()
    stopped = ""
    parts = Parts(worker, job.balance)
    began = time.perf_counter()
    for batch, rows in gathered(job, batches(job, worker, parts, start=step)):
        shapes = tuple(len(share.rows) for share in batch.shares)
        worker.ring.timeout = job.timeout if shapes in shapes_seen else job.first_step_timeout
        epoch, before = batch.epoch, communication.spent()
        with _naming(step, batch):
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
            with _naming(step, batch):
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
        if shapes in shapes_seen:
            exposed = after.exposed - before.exposed
            timing.input += fed - began
            timing.compute += (done - fed) - exposed
            timing.communication += exposed
            timing.hidden += after.hidden - before.hidden
            timing.rows += batch.size
            timing.own_rows += sum(shapes)
            timing.steps += 1
        shapes_seen.add(shapes)
        parts.after_step(Spent(timing.own_rows, timing.input + timing.compute))
        found: dict[str, Any] = {}
        if validation is not None and step % job.steps_per_epoch == 0:
            worker.ring.timeout = job.first_step_timeout  # it may have to compile
            found = dict(validation.after_epoch(state["model"]))
            if validation.is_hopeless and step < job.steps:
                stopped = stopped or "no improvement"
        if step % job.steps_per_epoch == 0 and worker.size <= MOST_SHOWN:
            found = {**found, "ranks": _of_ranks(worker, timing)}
        if worker.rank == 0:
            record = _record(job, step, epoch, losses[-1], timing) | found
            report(record, last=step == job.steps or bool(stopped) or bool(found))
        is_due = saving.is_due(job, step) or (bool(stopped) and job.checkpoint is not None)
        if is_due or step % DRIFT_STEPS == 0 or step == job.steps:
            check_drift(worker, state["model"], step)
        if is_due:
            check_sound(state["model"], step, epoch)
            run.save(Start(step, functions.whole(state), losses, skipped))
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


@contextlib.contextmanager
def _naming(step: int, batch: Batch) -> Iterator[None]:
    """Say in an exception of the loss or the augmentation where it was raised."""
    try:
        yield
    except DistributedError:
        raise
    except Exception as error:
        error.add_note(f"This was at step {step + 1} ({_shown(batch)}).")
        raise


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


def _not_finite(worker: Worker, loss: float, is_sound: bool, step: int, batch: Batch) -> str:
    """What is wrong with a step; every worker must ask. `is_sound` says that the loss of this
    worker's own share is finite."""
    what = "the gradient is not finite" if math.isfinite(loss) else f"the loss is {loss}"
    sound = np.asarray(all_gather(tl.asarray(np.asarray(is_sound)))).tolist()
    bad = [str(rank) for rank in range(worker.size) if not sound[rank]]
    where = f", in the share of rank {', '.join(bad)}" if bad and worker.size > 1 else ""
    return f"{what} at step {step} ({_shown(batch)}{where})"


def _shown(batch: Batch) -> str:
    rows = ", ".join(map(str, batch.rows[:8].tolist())) + ", ..." * (batch.size > 8)
    return f"epoch {batch.epoch}, rows {rows} of the data"


def _of_ranks(worker: Worker, timing: Timing) -> list[dict[str, Any]]:
    """Where the time of each worker went; every worker must ask."""
    names = ("input", "compute", "communication", "steps", "own_rows")
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
