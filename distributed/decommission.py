"""Executors that are about to leave: Spark is told some time before a host is taken away, gives it
no new tasks, and ends its executor with its last task, or kills both.

A training that learns of it in time loses nothing: it ends in order, with a checkpoint, and goes on
from there on the executors that stay."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyspark import SparkContext

POLL_SECONDS = 1.0


@contextlib.contextmanager
def noticed(context: SparkContext, leave: Callable[[], None]) -> Iterator[list[str]]:
    """Within the block `leave` is called, once, when an executor that runs tasks is to leave. Gives
    a list that then names such executors."""
    found: list[str] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(POLL_SECONDS):
            try:
                found.extend(leaving(context))
            except Exception as error:  # it asks Spark's internals
                if not ended.is_set():
                    reason = f"{type(error).__name__}: {error}"
                    warnings.warn(
                        f"executors that are decommissioned are not noticed ({reason}); a training "
                        "that loses one starts again from its last checkpoint",
                        RuntimeWarning,
                        stacklevel=2,
                    )
                return
            if found:
                leave()
                return

    if context.getConf().get("spark.decommission.enabled", "false") != "true":
        yield found
        return
    thread = threading.Thread(target=watch, name="tensorlite-decommission", daemon=True)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


def leaving(context: SparkContext) -> list[str]:
    """The executors that run tasks and are being decommissioned, such as "3 (host-7)"."""
    scala = context._jsc.sc()
    scheduler = scala.taskScheduler()
    executors = scala.statusStore().executorList(True)
    found = []
    for position in range(executors.size()):
        executor = executors.apply(position)
        is_leaving = scheduler.getExecutorDecommissionState(executor.id()).isDefined()
        if is_leaving and executor.activeTasks():
            found.append(f"{executor.id()} ({str(executor.hostPort()).rpartition(':')[0]})")
    return found
