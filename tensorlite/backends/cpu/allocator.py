"""Memory for the results of compiled graphs, which is kept when they are dropped.

Memory that is given back to the system must be cleared and mapped again, page by page, which for
large arrays takes longer than writing them. So the memory of a large result waits, when the last
array that shows it is gone, for the next result of that size: in a training step the donated
parameters of one step become those of the step after the next.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from ...compiler.memory import ALIGNMENT
from ...core import Aval

LIMIT = 1 << 29  # bytes that may wait to be used again
SMALL = 1 << 15  # bytes; NumPy and the C library keep smaller ones


class _Waiting:
    """Memory that waits, by its size. Arrays may die at any moment, in any thread and in the middle
    of any function here, so that nothing takes a lock: what is done to lists and dicts is done at
    once, and `held` may be a little off."""

    def __init__(self) -> None:
        self.by_size: dict[int, list[np.ndarray]] = {}
        self.held = 0

    def put(self, memory: np.ndarray) -> None:
        if self.held + memory.nbytes > LIMIT:
            self.by_size.clear()  # sizes that nobody asks for any more must not stay for ever
            self.held = 0
        self.held += memory.nbytes
        self.by_size.setdefault(memory.nbytes, []).append(memory)

    def take(self, size: int) -> np.ndarray | None:
        try:
            memory = self.by_size[size].pop()
        except (KeyError, IndexError):
            return None
        self.held -= size
        return memory


waiting = _Waiting()


class _Block:
    """The memory of an array. NumPy keeps this object for as long as any view of it is there."""

    __slots__ = ("__array_interface__", "_memory", "_waiting")

    def __init__(self, memory: np.ndarray):
        start = memory.__array_interface__["data"][0]
        self.__array_interface__ = {
            "shape": (memory.nbytes - ALIGNMENT,),
            "typestr": "|u1",
            "data": (start + -start % ALIGNMENT, False),
            "version": 3,
        }
        self._memory = memory
        self._waiting = waiting  # which outlives this module when the interpreter ends

    def __del__(self) -> None:
        self._waiting.put(self._memory)


def empty(aval: Aval) -> np.ndarray:
    """An uninitialized C-contiguous array."""
    size = aval.size * aval.dtype.itemsize
    if size < SMALL:
        return np.empty(aval.shape, aval.dtype)
    memory = waiting.take(size + ALIGNMENT)
    if memory is None:
        memory = np.empty(size + ALIGNMENT, np.uint8)
    block: Any = _Block(memory)
    return np.asarray(block).view(aval.dtype).reshape(aval.shape)


def is_seen_by_none(arrays: list[np.ndarray], number: int) -> bool:
    """Whether nobody can see the memory of an array but the tensor that holds it and the list
    `arrays`: it is memory of ours, and nothing else refers to it or to a view of it."""
    base = arrays[number].base
    if type(base) is not np.ndarray or not isinstance(base.base, _Block):
        return False
    # Counted are here the tensor's, the list's and the call's own; then the array's, the variable's
    # and the call's.
    return sys.getrefcount(arrays[number]) == 3 and sys.getrefcount(base) == 3
