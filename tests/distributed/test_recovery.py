"""When a training that lost a worker is started again, and when it is not."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from tensorlite.distributed.errors import Failure, SlotsError, WorkerError
from tensorlite.distributed.recovery import Heard, Restarts, may_be_mended


def lost(**fields: Any) -> WorkerError:
    return WorkerError(Failure(1, "host1", "lost", "PeerError", "gone", **fields))


def raised(error_type: str) -> WorkerError:
    return WorkerError(Failure(1, "host1", "error", error_type, "oh"))


def test_what_may_be_mended() -> None:
    assert may_be_mended(lost())
    assert may_be_mended(raised("DeadlineError"))
    assert may_be_mended(SlotsError("few"))
    for error_type in ("ValueError", "FloatingPointError", "MismatchError", "MemoryError"):
        assert not may_be_mended(raised(error_type))
    # What counts is where it began.
    stopped = Failure(0, "host0", "error", "PeerError", "x", origin=False)
    cause = Failure(1, "host1", "error", "ValueError", "bad row")
    follows = Failure(**{**vars(stopped), "cause": cause})
    assert not may_be_mended(WorkerError(follows))


class Run:
    """Restarts without pauses, and what is said of them."""

    def __init__(self, limit: int, has_checkpoint: bool = True):
        self.pauses: list[float] = []
        self.restarts = Restarts(limit, has_checkpoint, self.pauses.append)
        self.heard = Heard(None)

    def attempt(self, steps: range, error: Any = None) -> str:
        """An attempt that reports these steps and fails; the warning."""
        self.heard.begin()
        for step in steps:
            self.heard({"step": step})
        with pytest.warns(RuntimeWarning) as said:
            self.restarts.after(error or lost(), self.heard)
        return str(said[0].message)


def test_restarts_without_progress_are_limited() -> None:
    run = Run(2)
    assert "from the newest checkpoint in 1 s (1 of 2 restarts" in run.attempt(range(11, 14))
    assert "(2 of 2 restarts without progress)" in run.attempt(range(11, 13))
    run.heard.begin()
    run.heard({"step": 11})
    with pytest.raises(WorkerError) as error:
        run.restarts.after(lost(), run.heard)
    notes = " ".join(error.value.__notes__)
    assert "of the training; the last step that was reported as finished is 11." in notes
    assert "started again 2 times from the same step" in notes
    assert run.pauses == [1.0, 2.0]


def test_progress_starts_the_count_anew() -> None:
    run = Run(2)
    for first in (1, 51, 101, 151):
        run.attempt(range(first, first + 60))
    assert run.restarts.count == 4
    assert run.pauses == [1.0, 1.0, 1.0, 1.0]


def test_an_attempt_that_reports_nothing_is_no_progress() -> None:
    run = Run(1)
    run.attempt(range(1, 10))
    run.heard.begin()
    with pytest.raises(WorkerError):
        run.restarts.after(lost(), run.heard)


def test_without_a_checkpoint_it_begins_again() -> None:
    assert "from the beginning in 1 s" in Run(1, has_checkpoint=False).attempt(range(1, 4))


def test_the_users_exception_is_raised_at_once() -> None:
    run = Run(3)
    with pytest.raises(WorkerError, match="ValueError"), warnings.catch_warnings():
        warnings.simplefilter("error")
        run.restarts.after(raised("ValueError"), run.heard)


def test_too_few_slots_before_anything_has_run() -> None:
    run = Run(3)
    with pytest.raises(SlotsError):
        run.restarts.after(SlotsError("few"), run.heard)
    run.attempt(range(1, 3))
    run.attempt(range(0), SlotsError("an executor is not back yet"))
    assert run.restarts.count == 2
