"""Starting a training again that has lost a worker.

Spark does not run a barrier stage again that is the last one of its job, so the trainer does: a new
stage, with new tasks, a new ring and a new secret, which goes on from the newest checkpoint. Only
what a new start may mend is started again: a process, a host or a connection that was lost. An
exception in the user's code would come again, and is raised at once.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

from .errors import SlotsError, WorkerError

# What a worker raises when another one, or the way to it, has failed.
_OF_CONNECTIONS = ("PeerError", "DeadlineError", "RendezvousError", "ConnectionLost", "Stalled")
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0  # seconds


def may_be_mended(error: Exception) -> bool:
    """Whether the same training may succeed with other processes."""
    if isinstance(error, WorkerError):
        root = error.failure.root()
        return root.kind == "lost" or root.error_type in _OF_CONNECTIONS
    return isinstance(error, SlotsError)


class Heard:
    """What the driver hears of a run: the steps, as rank 0 reports them.

    Args:
        watch: is handed every record; None where nobody watches.
    """

    def __init__(self, watch: Callable[[dict[str, Any]], None] | None):
        self._watch = watch
        self._lock = threading.Lock()
        self.first: int | None = None  # of this attempt
        self.last: int | None = None  # of all

    def __call__(self, record: dict[str, Any]) -> None:
        if "warning" in record:
            self.warn(str(record["warning"]), stacklevel=3)
            return
        if "details" in record:
            tell = getattr(self._watch, "details", None)
            if tell is not None:
                tell(record["details"])
            return
        with self._lock:
            step = int(record["step"])
            if self.first is None:
                self.first = step
            self.last = step
        if self._watch is not None:
            self._watch(record)

    def warn(self, text: str, stacklevel: int = 2) -> None:
        """Warn, and let it be recorded by who watches."""
        warnings.warn(text, RuntimeWarning, stacklevel=stacklevel)
        tell = getattr(self._watch, "warn", None)
        if tell is not None:
            tell(text)

    def begin(self) -> None:
        """Another attempt starts."""
        with self._lock:
            self.first = None


class Restarts:
    """Decides whether to start again.

    An attempt that began at a later step than the one before it has made progress: then counting
    begins anew.

    Attributes:
        count: of all restarts so far.
    """

    def __init__(
        self, limit: int, has_checkpoint: bool, sleep: Callable[[float], Any] = time.sleep
    ):
        self.count = 0
        self._limit = limit
        self._has_checkpoint = has_checkpoint
        self._sleep = sleep
        self._without_progress = 0
        self._began_at: int | None = None

    def elsewhere(self, executors: list[str], heard: Heard) -> None:
        """The training has ended in order, since executors are taken away, and is to go on."""
        self.count += 1
        heard.warn(
            f"executor {', '.join(executors)} is decommissioned; the training goes on from its "
            "checkpoint on those that stay",
            stacklevel=5,
        )

    def after(self, error: WorkerError | SlotsError, heard: Heard) -> None:
        """Wait before the next attempt, or raise `error` if there shall be none."""
        note = f"This was attempt {self.count + 1} of the training"
        if heard.last is not None:
            note += f"; the last step that was reported as finished is {heard.last}"
        error.add_note(f"{note}.")
        if not may_be_mended(error) or (isinstance(error, SlotsError) and not self.count):
            raise error
        is_further = heard.first is not None and (
            self._began_at is None or heard.first > self._began_at
        )
        if is_further and self._began_at is not None:
            self._without_progress = 0
        if heard.first is not None:
            self._began_at = heard.first
        if self._without_progress >= self._limit:
            if self._limit:
                error.add_note(
                    f"It was started again {self._without_progress} times from the same step and "
                    "failed each time (max_restarts). If a worker is killed at the same step, it "
                    "probably needs more memory than there is."
                )
            raise error
        self._without_progress += 1
        self.count += 1
        pause = min(_FIRST_PAUSE * 2 ** (self._without_progress - 1), _LONGEST_PAUSE)
        where = "from the newest checkpoint" if self._has_checkpoint else "from the beginning"
        what = str(error).splitlines()[0]
        heard.warn(
            f"{what}. The training is started again {where} in {pause:g} s "
            f"({self._without_progress} of {self._limit} restarts without progress)",
            stacklevel=5,
        )
        self._sleep(pause)
