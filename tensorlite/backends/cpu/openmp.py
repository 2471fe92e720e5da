"""The OpenMP runtimes of this process, usually one: how many threads they use, and forks.

Whoever loads a library that brings a runtime along registers it here. OpenMP keeps the number of
threads for each calling thread, so whoever runs parallel code calls `use_threads` or `num_threads`
first.
"""

from __future__ import annotations

import ctypes
import os
import threading
from ctypes import c_int

from ...threads import get_num_threads

_PAUSE_SOFT = 1  # omp_pause_soft


class _Runtime(threading.local):
    """A runtime; `told` is the number of threads that it knows in this thread."""

    def __init__(self, library: ctypes.CDLL):
        self.told: int = library.omp_get_max_threads()
        self._set = library.omp_set_num_threads
        self._set.restype, self._set.argtypes = None, (c_int,)

    def tell(self, count: int) -> None:
        if self.told != count:
            self._set(count)
            self.told = count


_runtimes: dict[int, _Runtime] = {}  # by the address of a function of theirs
_lock = threading.Lock()


def register(library: ctypes.CDLL) -> None:
    """Take note of the runtime that `library` is or depends on."""
    address = ctypes.cast(library.omp_set_num_threads, ctypes.c_void_p).value or 0
    with _lock:
        if address in _runtimes:
            return
        pause = getattr(library, "omp_pause_resource_all", None)
        if pause is not None:  # older runtimes lack it
            # A forked child inherits the record of a thread pool but not its threads, and would
            # wait for them for ever. Without a pool at the fork, parent and child each start their
            # own.
            os.register_at_fork(before=lambda: pause(_PAUSE_SOFT))
        _runtimes[address] = _Runtime(library)


def num_threads() -> int:
    """How many threads an operation may use (see `tl.set_num_threads`); OpenMP is told so, for
    calls from this thread."""
    count = get_num_threads()
    use_threads(count)
    return count


def use_threads(count: int) -> None:
    """Have OpenMP use `count` threads for calls from this thread. A primitive of oneDNN must run
    with as many threads as it was planned for."""
    for runtime in _runtimes.values():
        runtime.tell(count)
