"""Who runs when: collectives take turns in the order in which they were started, whether their
callers wait for them or not.

A start takes a number, and runs when all earlier numbers are done: in the caller's own thread if it
waits, else in one thread that runs such starts."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError

from .errors import DistributedError
from .reduction import Array


class Handle:
    """A collective that was started and goes on in another thread. Until it is done its array must
    be left alone."""

    def __init__(self) -> None:
        self._future: Future[Array] = Future()

    def done(self) -> bool:
        """Whether `wait` would return, or raise, at once."""
        return self._future.done()

    def wait(self, timeout: float | None = None) -> Array:
        """The array with its result, once it is there.

        Args:
            timeout: seconds to wait at most; the collective goes on afterwards.

        Raises:
            TimeoutError: it was not done by then.
            PeerError, MismatchError, DeadlineError: see `Ring`.
        """
        return self._future.result(timeout)

    def settle(self, run: Callable[[], Array]) -> None:
        """Run the collective and keep its outcome, unless there is one already."""
        try:
            result = run()
        except BaseException as error:  # whoever waits gets it, whatever it is
            self.fail(error)
        else:
            with contextlib.suppress(InvalidStateError):
                self._future.set_result(result)

    def fail(self, error: BaseException) -> None:
        """Make `wait` raise this, unless there is an outcome already."""
        with contextlib.suppress(InvalidStateError):
            self._future.set_exception(error)


class Turns:
    """The order of one ring's collectives."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._changed = threading.Condition()
        self._next = 0  # the number that the next start takes
        self._running = 0  # the number whose turn it is
        self._closed = False
        self._thread: threading.Thread | None = None
        self._started: queue.SimpleQueue[tuple[int, Callable[[], Array], Handle] | None]
        self._started = queue.SimpleQueue()
        self._unsettled: set[Handle] = set()

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Take a number, and run the block in its turn.

        Raises:
            DistributedError: no collective runs any more.
        """
        with self._changed:
            number = self._take()
        with self._turn_of(number):
            yield

    def start(self, run: Callable[[], Array]) -> Handle:
        """Take a number, and let the thread run `run` in its turn.

        Raises:
            DistributedError: no collective runs any more.
        """
        handle = Handle()
        with self._changed:
            self._started.put((self._take(), run, handle))
            self._unsettled.add(handle)
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
                self._thread.start()
        return handle

    def close(self) -> None:
        """Let nothing more run; what was started and is not done fails."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._started.put(None)
            handles, self._unsettled = self._unsettled, set()
        for handle in handles:
            handle.fail(closed())

    def _take(self) -> int:
        if self._closed:
            raise closed()
        number, self._next = self._next, self._next + 1
        return number

    @contextlib.contextmanager
    def _turn_of(self, number: int) -> Iterator[None]:
        with self._changed:
            try:
                self._changed.wait_for(lambda: self._running == number or self._closed)
            except BaseException:
                self._closed = True  # nobody runs in this turn, so nobody gets past it
                self._changed.notify_all()
                raise
            if self._closed:
                raise closed()
        try:
            yield
        finally:
            with self._changed:
                self._running += 1
                self._changed.notify_all()

    def _serve(self) -> None:
        while (item := self._started.get()) is not None:
            number, run, handle = item

            def in_turn(number: int = number, run: Callable[[], Array] = run) -> Array:
                with self._turn_of(number):
                    return run()

            handle.settle(in_turn)
            with self._changed:
                self._unsettled.discard(handle)


def closed() -> DistributedError:
    """What those get who come too late, or did not wait."""
    return DistributedError(
        "the ring is closed: the worker's main has returned. Wait for every handle before it does"
    )
