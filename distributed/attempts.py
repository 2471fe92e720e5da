"""What the driver does while workers train on Spark: it hears of their steps, starts them again
when one is lost, moves them when an executor is taken away, and asks them to end."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

from . import cluster, decommission, sparkpages
from .dataframes import FrameDataset
from .errors import SlotsError, WorkerError
from .launch import launch
from .monitor import Monitor
from .recovery import Heard, Restarts
from .steps import Job
from .training import Progress, train_in_worker, train_on_rows
from .watching import Watch, Watcher


@dataclasses.dataclass
class Attempts:
    """How a training runs on a cluster; `Trainer` describes the fields. `stopping` is set when
    somebody wants the end."""

    num_workers: int
    spark: Any
    device: str
    launch_options: dict[str, Any]
    first_step_timeout: float
    max_restarts: int
    stopping: threading.Event
    _monitor: Monitor | None = dataclasses.field(default=None, init=False)

    def stop(self) -> None:
        """Ask the workers to end, now or when they report."""
        self.stopping.set()
        if self._monitor is not None:
            self._monitor.stop()

    def train(
        self, job: Job, model: Any, watch: Watch, frame: FrameDataset | None
    ) -> tuple[Progress, int]:
        """How the training ended, and how many times it was started again.

        Raises:
            WorkerError, SlotsError: it failed, and is not started again.
        """
        began, heard = time.monotonic(), Heard(watch)
        restarts = Restarts(self.max_restarts, job.checkpoint is not None)
        context = cluster.spark_context(self.spark, self.num_workers)
        watch.also(sparkpages.Notes(context, sparkpages.epochs_of(job)))
        with self._listening(context, heard) as monitor:
            while True:
                heard.begin()
                self._ask_nobody(monitor)
                left = job
                if job.time_limit is not None:
                    rest = max(job.time_limit - (time.monotonic() - began), 0.0)
                    left = dataclasses.replace(job, time_limit=rest)
                try:
                    with self._leaving(context, job, monitor) as executors:
                        progress = self._attempt(left, model, monitor, frame, restarts.count)
                except (WorkerError, SlotsError) as error:
                    restarts.after(error, heard)  # raises it, or waits
                    continue
                is_over = progress.stopped != "stop()" or self.stopping.is_set()
                if monitor is None or not executors or is_over:
                    return progress, restarts.count
                restarts.elsewhere(executors, heard)

    def _attempt(
        self,
        job: Job,
        model: Any,
        monitor: Monitor | None,
        frame: FrameDataset | None,
        restarts: int,
    ) -> Progress:
        address = None if monitor is None else monitor.address
        rest = () if frame is None else (frame.reading(),)
        options = {
            "description": sparkpages.planned(job, self.num_workers, restarts),
            **self.launch_options,
            "timeout": self.first_step_timeout,  # the loop lowers it later
        }
        progress: Progress = launch(
            train_in_worker if frame is None else train_on_rows,
            (job, model, address, *rest),
            num_workers=self.num_workers,
            data=None if frame is None else frame.selected(),
            spark=self.spark,
            device=self.device,
            **options,
        )[0]
        return progress

    def _ask_nobody(self, monitor: Monitor | None) -> None:
        """Take back what an executor that leaves has asked for: an attempt that was to end for it
        may have failed before. What `stop` asks for stays, also if it comes at this moment."""
        if monitor is not None:
            monitor.go_on()
            if self.stopping.is_set():
                monitor.stop()

    def _leaving(self, context: Any, job: Job, monitor: Monitor | None) -> Any:
        """Notices executors that are taken away, which ends an attempt that can go on elsewhere."""
        if monitor is None or job.checkpoint is None or not self.max_restarts:
            return contextlib.nullcontext([])
        return decommission.noticed(context, monitor.stop)

    @contextlib.contextmanager
    def _listening(self, context: Any, watch: Watcher) -> Iterator[Monitor | None]:
        """Whom rank 0 may report to, while the block runs."""
        encrypt = cluster.must_encrypt(context, self.launch_options.get("encrypt"))
        host = cluster.driver_host(context)
        with contextlib.ExitStack() as stack:
            try:
                monitor = stack.enter_context(Monitor(host, watch, encrypt))
            except OSError as error:
                warnings.warn(
                    f"progress is not shown, and stop() does not reach the workers: this process "
                    f"cannot listen at spark.driver.host ({host}): {error}",
                    RuntimeWarning,
                    stacklevel=4,
                )
                yield None
                return
            self._monitor = monitor
            if self.stopping.is_set():
                monitor.stop()
            try:
                yield monitor
            finally:
                self._monitor = None
