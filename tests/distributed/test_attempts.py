"""What the driver does between attempts at a training."""

from __future__ import annotations

import contextlib
import threading
import types
from typing import Any

import pytest

from tensorlite import random
from tensorlite.distributed import attempts, recovery
from tensorlite.distributed.errors import Failure, WorkerError
from tensorlite.distributed.training import Progress, Timing
from tests.distributed.test_training import Classifier, dataset, job

LOST = WorkerError(Failure(1, "h", "lost", "PeerError", "its process was killed"))


class Asked:
    """A monitor without a network: whether workers are asked to stop."""

    address = None

    def __init__(self) -> None:
        self.is_asking = False

    def stop(self) -> None:
        self.is_asking = True

    def go_on(self) -> None:
        self.is_asking = False


def run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, outcomes: list[Any], stop_at: int | None = None
) -> tuple[Progress, int, list[bool]]:
    """Attempts with these outcomes, an executor being decommissioned in the first one; and
    whether the workers were asked to stop when each began."""
    monitor, stopping = Asked(), threading.Event()
    asked: list[bool] = []
    on_spark = attempts.Attempts(2, None, "cpu", {}, 10.0, 3, stopping)

    @contextlib.contextmanager
    def leaving(*args: Any) -> Any:
        yield ["1 (h)"] if len(asked) == 0 else []

    def attempt(*args: Any) -> Any:
        asked.append(monitor.is_asking)
        if len(asked) == 1:
            monitor.stop()  # as the one does that notices the executor
        if len(asked) == stop_at:
            on_spark.stop()
        outcome = outcomes[len(asked) - 1]
        if isinstance(outcome, Exception):
            raise outcome
        return Progress({}, [1.0], Timing(), 1, stopped=outcome)

    @contextlib.contextmanager
    def listening(*args: Any) -> Any:
        on_spark._monitor = monitor  # type: ignore[assignment]
        yield monitor

    monkeypatch.setattr(attempts.cluster, "spark_context", lambda *args: None)
    monkeypatch.setattr(recovery, "_FIRST_PAUSE", 0.0)
    monkeypatch.setattr(on_spark, "_listening", listening)
    monkeypatch.setattr(on_spark, "_leaving", leaving)
    monkeypatch.setattr(on_spark, "_attempt", attempt)
    the_job = job(dataset(), 4, checkpoint=str(tmp_path))
    watch: Any = types.SimpleNamespace(also=lambda watcher: None, warn=lambda text: None)
    with pytest.warns(RuntimeWarning):
        progress, restarts = on_spark.train(the_job, Classifier(random.key(0)), watch, None)
    return progress, restarts, asked


def test_after_a_decommissioned_executor_nobody_is_asked_to_stop(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    progress, restarts, asked = run(monkeypatch, tmp_path, ["stop()", ""])
    assert (progress.stopped, restarts, asked) == ("", 1, [False, False])


def test_an_executor_that_is_gone_before_the_training_has_ended_in_order(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """The workers were asked to stop, but one was killed first: the next attempt goes on."""
    progress, restarts, asked = run(monkeypatch, tmp_path, [LOST, ""])
    assert (progress.stopped, restarts, asked) == ("", 1, [False, False])


def test_stop_is_kept_when_an_executor_leaves_at_the_same_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    progress, restarts, asked = run(monkeypatch, tmp_path, [LOST, "stop()"], stop_at=1)
    assert (progress.stopped, restarts, asked) == ("stop()", 1, [False, True])
