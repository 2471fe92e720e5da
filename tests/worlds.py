"""Worlds for tests of collectives that need no other process."""

from __future__ import annotations

import time
from typing import Any

import numpy as np


class Mirror:
    """A world of `size` ranks that all hold the same, seen from one of them."""

    rank = 0

    def __init__(self, size: int = 2, seconds: float = 0.0):
        self.size = size
        self.seconds = seconds  # that a reduction takes
        self.calls: list[Any] = []  # the leaves of each reduction
        self.wires: list[str | None] = []  # the wire of each
        self.fail_at: int | None = None  # the number of the reduction that fails

    def all_reduce_(
        self, array: np.ndarray, op: str = "sum", *, wire: str | None = None, leaves: Any = ()
    ) -> np.ndarray:
        self.wires.append(wire)
        self.calls.append(list(leaves))
        time.sleep(self.seconds)
        if self.fail_at == len(self.calls):
            raise ConnectionError("rank 1 is gone")
        if op == "sum":
            array *= self.size
        return array

    def reduce_scatter_(
        self, array: np.ndarray, op: str = "sum", *, leaves: Any = ()
    ) -> np.ndarray:
        self.calls.append("reduce_scatter")
        return self.all_reduce_(array, op)[: len(array) // self.size]

    def all_gather(self, array: np.ndarray, *, leaves: Any = ()) -> np.ndarray:
        self.calls.append("all_gather")
        return np.stack([array] * self.size)
