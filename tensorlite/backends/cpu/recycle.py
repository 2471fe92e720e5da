"""Memory of donated arrays, kept for new results.

A training step donates its parameters and gives new ones of the same sizes. Memory that is given
back to the system must be cleared and mapped again, page by page, which for large arrays takes
longer than writing them. So the buffers of donated tensors become those of the next results.
"""

from __future__ import annotations

import sys
import threading

import numpy as np

from ...core import Aval

LIMIT = 1 << 30  # bytes that may wait to be used again
SMALL = 1 << 12  # bytes; NumPy itself keeps smaller ones

_lock = threading.Lock()
_waiting: dict[int, list[np.ndarray]] = {}  # by their size in bytes
_held = 0


def recycle(array: np.ndarray) -> None:
    """Take the memory of `array`, which the caller will not use again, unless somebody else can see
    it: a view, an exported buffer, another tensor."""
    global _held
    # The references of the caller, of its caller, of this function and of getrefcount.
    if type(array) is not np.ndarray or array.nbytes < SMALL or sys.getrefcount(array) > 4:
        return
    owner = array if array.base is None else array.base
    if owner is not array:
        # What `empty` gave, or another view of all there is: the references of the view, of this
        # function and of getrefcount.
        if type(owner) is not np.ndarray or sys.getrefcount(owner) > 3:
            return
        if owner.nbytes != array.nbytes or owner.base is not None:
            return
    if not owner.flags.owndata or not owner.flags.c_contiguous:
        return
    with _lock:
        if _held + owner.nbytes <= LIMIT:
            _held += owner.nbytes
            _waiting.setdefault(owner.nbytes, []).append(owner)


def empty(aval: Aval) -> np.ndarray:
    """An uninitialized C-contiguous array, in recycled memory if there is some of the size."""
    global _held
    size = aval.size * aval.dtype.itemsize
    if size < SMALL or size not in _waiting:
        return np.empty(aval.shape, aval.dtype)
    with _lock:
        fitting = _waiting.get(size)
        if not fitting:
            return np.empty(aval.shape, aval.dtype)
        owner = fitting.pop()
        if not fitting:
            del _waiting[size]
        _held -= size
    return owner.reshape(-1).view(np.uint8).view(aval.dtype).reshape(aval.shape)
