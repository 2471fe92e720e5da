"""What Spark's pages say of a training while it goes on.

Spark takes a job's description when the job is submitted and never looks at it again, accumulators
of Python tasks reach the driver when a task ends, and all slots are taken by the workers. So the
training's own job says what is planned, and now and then a job without tasks, which is over as soon
as it is submitted, says in its description how far the training is: the list of completed jobs
becomes a log of it.
"""

from __future__ import annotations

import time
import warnings
from typing import TYPE_CHECKING, Any

from .monitor import Record
from .steps import Job

if TYPE_CHECKING:
    from pyspark import SparkContext

LEAST_SECONDS = 30.0  # between two notes
MOST_SECONDS = 300.0  # without one, within an epoch

_DESCRIPTION = "spark.job.description"


def planned(job: Job, workers: int, restarts: int) -> str:
    """What the job of a training is called."""
    lengths = []
    if job.epochs is not None:
        lengths.append(_count(job.epochs, "epoch"))
    if job.steps:  # of a DataFrame the workers count the rows
        lengths.append(_count(job.steps, "step"))
    again = f", restart {restarts}" if restarts else ""
    return (
        f"tensorlite: {', '.join(lengths)} in batches of {job.batch_size} rows on "
        f"{_count(workers, 'worker')}{again}"
    )


class Notes:
    """Notes on Spark's pages: after the first step, in each epoch, again in a long one, at the end.

    Args:
        epochs: how many there will be; None if that is not known.
    """

    def __init__(self, context: SparkContext, epochs: int | None):
        self._context, self._epochs = context, epochs
        self._last: float | None = None
        self._epoch = -1
        self._steps: int | None = None
        self._is_broken = False

    def __call__(self, record: Record) -> None:
        """Note a record, if it is time to."""
        now = time.monotonic()
        since = float("inf") if self._last is None else now - self._last
        is_new = record["epoch"] != self._epoch and since >= LEAST_SECONDS
        self._steps = record["steps"]
        if is_new or since >= MOST_SECONDS:
            self._last, self._epoch = now, record["epoch"]
            self._note(f"tensorlite: {reached(record, self._epochs)}")

    def finish(self, result: Any, error: BaseException | None) -> None:
        """Note the end of a training that has a result; of another one Spark knows the failure."""
        if result is None:
            return
        step, stopped = result.summary["steps"], result.summary["stopped"]
        of = f"/{self._steps}" if self._steps is not None else ""
        why = f" ({stopped})" if stopped else ""
        loss = result.history["loss"][-1]
        self._note(f"tensorlite: ended at step {step}{of}{why}, loss {loss:.4g}")

    def _note(self, text: str) -> None:
        if self._is_broken:
            return
        context: Any = self._context
        try:
            before = context.getLocalProperty(_DESCRIPTION)
            context.setJobDescription(text)
            context._jsc.emptyRDD().count()
            context.setLocalProperty(_DESCRIPTION, before)
        except Exception as error:  # py4j raises whatever has become of the JVM
            self._is_broken = True
            warnings.warn(
                f"Spark's pages no longer say how far the training is: {type(error).__name__}: "
                f"{str(error).splitlines()[0] if str(error) else ''}",
                RuntimeWarning,
                stacklevel=2,
            )


def epochs_of(job: Job) -> int | None:
    """How many epochs a training has, the last one perhaps not whole; None if only the workers know
    the rows."""
    if job.epochs is not None or not job.arrays:
        return job.epochs
    return -(-job.steps // job.steps_per_epoch)


def reached(record: Record, epochs: int | None) -> str:
    """How far a training is. Epochs are counted from 1, as steps are."""
    of = f"/{epochs}" if epochs is not None else ""
    return (
        f"epoch {record['epoch'] + 1}{of}, step {record['step']}/{record['steps']}, "
        f"loss {record['loss']:.4g}"
    )


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'s' * (number != 1)}"
