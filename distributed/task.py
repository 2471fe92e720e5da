"""What runs inside a Spark task: the bridge between `BarrierTaskContext` and the life of a worker.

The outcome goes to the driver as the task's data, error or not, because a task that fails takes the
other tasks' results and reports with it. Only when the other workers might not end by themselves
does the task fail: then Spark stops them all. The report travels in the text of that exception,
between two marks."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from pyspark import BarrierTaskContext, cloudpickle

from .accelerators import chosen, device_of
from .errors import DistributedError, Failure, failure_of
from .life import Options, Place, live
from .rendezvous import host_of
from .worker import Worker

if TYPE_CHECKING:
    import pyarrow as pa

_MARKED = re.compile(r"\[worker-report:([A-Za-z0-9+/=]+):end\]")


@dataclasses.dataclass(frozen=True)
class Report:
    """What a task sends to the driver: a pickled result, or a failure."""

    rank: int
    result: bytes = b""
    failure: Failure | None = None


class TaskFailed(RuntimeError):
    """Fails the Spark task, so that Spark stops the other ones. Its text holds the report."""

    def __init__(self, failure: Failure):
        report = base64.b64encode(failure.to_json().encode()).decode()
        super().__init__(f"{failure.describe()}\n[worker-report:{report}:end]")


def failure_in(text: str) -> Failure | None:
    """The report in the text of a `TaskFailed` that went through Spark, or None."""
    found = _MARKED.search(text)
    return Failure.from_json(base64.b64decode(found[1]).decode()) if found else None


@dataclasses.dataclass(frozen=True)
class BarrierTask:
    """The function of the barrier stage. `call` is the pickled `(main, args)`; with `takes_rows`
    main gets the rows of its partition, after the worker."""

    call: bytes
    options: Options
    takes_rows: bool = False

    def __call__(self, rows: Iterator[Any]) -> Iterator[Report]:
        context = BarrierTaskContext.get()
        place = Place(
            rank=context.partitionId(),
            hosts=tuple(host_of(task.address) for task in context.getTaskInfos()),
            attempt=context.taskAttemptId(),
            partition=context.partitionId(),
            cpus=context.cpus(),
            resources={name: tuple(r.addresses) for name, r in context.resources().items()},
        )
        given = (rows,) if self.takes_rows else ()
        options = dataclasses.replace(self.options, device=self._device(context, place))
        outcome = live(
            lambda worker: self._call_main(worker, *given), place, options, context.allGather
        )
        if outcome.failure is not None and not outcome.settled:
            root = outcome.failure.root()
            raise TaskFailed(dataclasses.replace(root, partition=root.rank))
        return iter([Report(place.rank, outcome.result or b"", outcome.failure)])

    def _device(self, context: BarrierTaskContext, place: Place) -> str:
        """Where this worker computes: with "auto", on what Spark's scheduler gave the task."""
        if self.options.device != "auto":
            return self.options.device
        own = json.dumps([place.hosts[place.rank], chosen(place.resources)])
        given = [tuple(json.loads(text)) for text in context.allGather(own)]
        try:
            return device_of(place.rank, given)
        except DistributedError as error:
            host = place.hosts[place.rank]
            raise TaskFailed(failure_of(error, place.rank, host, place.partition)) from error

    def _call_main(self, worker: Worker, *given: Any) -> bytes:
        # Unpickled here rather than by Spark, so that a module missing on one host is reported like
        # any other error.
        try:
            main, args = cloudpickle.loads(self.call)
        except ModuleNotFoundError as error:
            raise DistributedError(
                f"main or its arguments need a module that this worker has not: {error}; install "
                "it on the executors, or ship it with SparkContext.addPyFile or --py-files"
            ) from error
        result = main(worker, *given, *args)
        try:
            return cloudpickle.dumps(result)
        except Exception as error:  # pickle raises whatever the result's own methods raise
            raise DistributedError(
                "the result of main cannot be sent to the driver: "
                f"{type(error).__name__}: {error}; return tensors, arrays, numbers or trees of them"
            ) from error


ARROW_SCHEMA = "report binary"  # of what `in_arrow` yields


def in_arrow(
    task: BarrierTask,
) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """The task as a function for `DataFrame.mapInArrow`, which yields the pickled report."""

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        for report in task(batches):
            yield pa.RecordBatch.from_arrays([pa.array([cloudpickle.dumps(report)])], ["report"])

    return run
