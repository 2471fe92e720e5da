"""Ending a training early and in order: all workers after the same step, with a checkpoint.

Whoever wants the end adds a number to what every step sums over the workers anyway, so all of them
hear of it at once and it costs nothing. A number says why: one for each worker in the lowest ten
bits, the next, or those above.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator

REASONS = {"stop()": 1.0, "time limit": 2.0**10, "SIGTERM": 2.0**20}


class Wishes:
    """Why this worker wants to stop, if it does.

    Args:
        time_limit: seconds from now on; None is for ever.
        asked: whether the driver has asked for the end.
    """

    def __init__(self, time_limit: float | None, asked: Callable[[], bool]):
        self._deadline = None if time_limit is None else time.monotonic() + time_limit
        self._asked = asked
        self._terminated = False

    def number(self) -> float:
        """What to add to the sum of this step."""
        if self._terminated:
            return REASONS["SIGTERM"]
        if self._deadline is not None and time.monotonic() >= self._deadline:
            return REASONS["time limit"]
        return REASONS["stop()"] if self._asked() else 0.0

    @contextlib.contextmanager
    def catching(self) -> Iterator[None]:
        """Within the block SIGTERM is a wish. Only a main thread can have that."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def terminate(number: int, frame: object) -> None:
            self._terminated = True

        before = signal.signal(signal.SIGTERM, terminate)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)


def reason_of(total: float) -> str:
    """What the sum of all wishes says: "" if nobody has any."""
    return next((why for why, n in reversed(REASONS.items()) if total >= n), "")
