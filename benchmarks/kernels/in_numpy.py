"""A plain copy: what a kernel that does nothing but move memory would take."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np


def build_copy(moved: int, threads: int = 1, parts: int = 1) -> Callable[[], None]:
    """A function that moves `moved` bytes, reading half of them and writing the other half, in as
    many parts as are given at the same time."""
    source, target = np.ones(moved // 8, np.float32), np.zeros(moved // 8, np.float32)
    pieces = list(zip(np.array_split(target, parts), np.array_split(source, parts), strict=True))
    pool = ThreadPoolExecutor(parts)

    def copy() -> None:
        # The calling thread takes a part itself, and NumPy copies without the lock.
        others = [pool.submit(np.copyto, *piece) for piece in pieces[1:]]
        np.copyto(*pieces[0])
        for other in others:
            other.result()

    return copy
