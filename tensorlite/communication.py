"""The processes that run a program together, and how their collectives go on behind computation.

A `Communicator` is how one process reaches the others. The engine has none of its own:
`tensorlite.distributed` enters its ring, and without one the world is this process alone. A
compiled program starts a collective by writing its number into a pipe, which needs no interpreter
lock; one thread for each entered communicator reads the numbers and runs the collectives in that
order, which is the same on every rank. Collectives that must be waited for at once go through the
same queue while others are under way.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import contextvars
import itertools
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from time import perf_counter_ns
from typing import Any, NamedTuple, Protocol

import numpy as np

BUCKET_BYTES = 25 << 20  # with which a bucket of gradients is complete; see `bucketing`

Leaf = tuple[str, str, tuple[int, ...]]  # name, dtype, shape


class Communicator(Protocol):
    """Collectives on C-contiguous NumPy arrays. Every rank makes the same calls in the same order.

    `op` is "sum", "mean", "max" or "min"; `leaves` are the tensors that lie in the array, for the
    ranks to compare.
    """

    rank: int
    size: int

    def all_reduce_(
        self,
        array: np.ndarray,
        op: str = "sum",
        *,
        wire: str | None = None,
        leaves: Sequence[Leaf] = (),
    ) -> np.ndarray:
        """Replace `array` by its reduction over all ranks. Where float32 travels, it may be rounded
        to `wire`, "float16" or "bfloat16"; all ranks get the same bits."""

    def reduce_scatter_(
        self, array: np.ndarray, op: str = "sum", *, leaves: Sequence[Leaf] = ()
    ) -> np.ndarray:
        """The `rank`-th of `size` equal blocks of the reduction, along the first axis; the rest of
        `array` is overwritten."""

    def all_gather(self, array: np.ndarray, *, leaves: Sequence[Leaf] = ()) -> np.ndarray:
        """The arrays of all ranks, stacked along a new first axis."""


class Alone:
    """The communicator of a world of one."""

    rank, size = 0, 1

    def all_reduce_(
        self,
        array: np.ndarray,
        op: str = "sum",
        *,
        wire: str | None = None,
        leaves: Sequence[Leaf] = (),
    ) -> np.ndarray:
        return array

    def reduce_scatter_(
        self, array: np.ndarray, op: str = "sum", *, leaves: Sequence[Leaf] = ()
    ) -> np.ndarray:
        return array

    def all_gather(self, array: np.ndarray, *, leaves: Sequence[Leaf] = ()) -> np.ndarray:
        return array[None].copy()


class World(NamedTuple):
    """What a trace depends on: how many ranks there are, and the bytes with which a bucket is
    complete (None: all gradients in one)."""

    size: int
    bucket_bytes: int | None


class Spent(NamedTuple):
    """Seconds of communication: while the program waited for it, and behind its computation."""

    exposed: float
    hidden: float


class Channel:
    """The queue of a communicator's collectives, and the thread that runs them.

    Used by one thread at a time, like the communicator.

    Attributes:
        exposed, hidden: nanoseconds in all; see `Spent`.
    """

    def __init__(self, communicator: Communicator):
        self.communicator = communicator
        self.size = communicator.size
        self.exposed = self.hidden = 0
        self._jobs: dict[int, tuple[Callable[[], object], Callable[[], object]]] = {}
        self._busy = False  # with a job that is no longer in `_jobs`
        self._lock = threading.Lock()  # of these two
        self._numbers = itertools.count(1)
        self._outlet = self._inlet = -1
        self._thread: threading.Thread | None = None

    @property
    def inlet(self) -> int:
        """The file descriptor to which the number of a job is written, eight bytes, to start it."""
        if self._thread is None:
            self._outlet, self._inlet = os.pipe()
            self._thread = threading.Thread(
                target=self._serve, name="tensorlite-communication", daemon=True
            )
            self._thread.start()
        return self._inlet

    def enlist(self, act: Callable[[], object], signal: Callable[[], object]) -> int:
        """The number of a new job: `act` runs when its turn comes, `signal` once it is over.
        Neither raises."""
        number = next(self._numbers)
        with self._lock:
            self._jobs[number] = act, signal
        return number

    def withdraw(self, numbers: Sequence[int]) -> None:
        """Forget jobs that did not start."""
        with self._lock:
            for number in numbers:
                self._jobs.pop(number, None)

    def call(self, collective: Callable[[Communicator], Any]) -> Any:
        """What `collective` returns or raises, once those that were started before are over."""
        began = perf_counter_ns()
        try:
            if self._is_idle():
                return collective(self.communicator)
            future: concurrent.futures.Future[Any] = concurrent.futures.Future()

            def act() -> None:
                try:
                    future.set_result(collective(self.communicator))
                except BaseException as error:
                    future.set_exception(error)

            number = self.enlist(act, lambda: None)
            os.write(self.inlet, number.to_bytes(8, sys.byteorder))
            return future.result()
        finally:
            if self.size > 1:
                self.exposed += perf_counter_ns() - began

    def close(self) -> None:
        """Let the thread end when it has done what was started. Does not wait for a collective
        that is stuck: that ends when its communicator is closed."""
        if self._thread is None:
            return
        idle = self._is_idle()
        os.write(self._inlet, bytes(8))
        if idle:
            self._thread.join()

    def _is_idle(self) -> bool:
        with self._lock:
            return not self._jobs and not self._busy

    def _serve(self) -> None:
        try:
            while number := int.from_bytes(os.read(self._outlet, 8), sys.byteorder):
                with self._lock:
                    job = self._jobs.pop(number, None)
                    self._busy = job is not None
                if job is not None:
                    act, signal = job
                    act()
                    self._busy = False  # before anybody learns that it is over
                    signal()
        finally:
            os.close(self._outlet)
            os.close(self._inlet)


_WORLD_OF_ONE = World(1, None)
_alone = Channel(Alone())
_channel: contextvars.ContextVar[Channel] = contextvars.ContextVar("channel", default=_alone)
_bucket_bytes: contextvars.ContextVar[int | None] = contextvars.ContextVar(
    "bucket_bytes", default=BUCKET_BYTES
)


class _Here(threading.local):
    """The channel that this thread entered last. Kernels run in contexts that were copied when
    their thread began to compute, and would find an older one in the context variable; a thread
    that was started in a copy of a context finds it only there."""

    channel: Channel | None = None


_here = _Here()


def channel() -> Channel:
    """The channel of the current communicator."""
    return _here.channel or _channel.get()


def world() -> World:
    """The current world, as a trace sees it."""
    size = channel().size
    return World(size, _bucket_bytes.get()) if size > 1 else _WORLD_OF_ONE


def spent() -> Spent:
    """The seconds that collectives took since the current communicator was entered."""
    now = channel()
    return Spent(now.exposed / 1e9, now.hidden / 1e9)


@contextlib.contextmanager
def entered(communicator: Communicator | None) -> Iterator[None]:
    """Make `communicator` the current one within the block; None is a world of one."""
    new = _alone if communicator is None else Channel(communicator)
    outer, token = channel(), _channel.set(new)
    _here.channel = new
    try:
        yield
    finally:
        _here.channel = outer
        _channel.reset(token)
        new.close()


@contextlib.contextmanager
def bucketing(nbytes: int | None) -> Iterator[None]:
    """Within the block, functions are traced with buckets that are complete with `nbytes`, if not
    before (see `compiler.schedule`); None makes one bucket of all gradients, which is sent when the
    last one is ready."""
    token = _bucket_bytes.set(nbytes)
    try:
        yield
    finally:
        _bucket_bytes.reset(token)


def exchange(op: str, size: int, collective: Callable[[Communicator], Any]) -> Any:
    """Run `collective` with the current communicator, which must have `size` ranks.

    Raises:
        RuntimeError: it has another number of ranks.
    """
    return channel_of(op, size).call(collective)


def channel_of(op: str, size: int) -> Channel:
    """The channel of the current communicator.

    Raises:
        RuntimeError: it has another number of ranks than the `size` for which `op` was traced.
    """
    now = channel()
    if now.size != size:
        raise RuntimeError(
            f"{op}: traced for {size} workers, but {now.size} run it; call the jitted function "
            "(not a graph made earlier) inside the world that is to run it"
        )
    return now
