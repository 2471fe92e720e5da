"""Memory: where the values of a graph lie in one arena.

A value needs its bytes from the launch that writes it to the last one that reads it. Values whose
lives do not overlap may share them. Placing largest first, each at the lowest offset that is free
for its whole life, comes close to the bound that the fullest moment sets, which `peak` computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

ALIGNMENT = 64  # bytes: a cache line, and the widest vector


class Life(NamedTuple):
    """A value of `size` bytes, written by launch `first` and last read by launch `last`."""

    size: int
    first: int
    last: int


class Layout(NamedTuple):
    """The offset in bytes of each value, and the size of the arena."""

    offsets: tuple[int, ...]
    size: int


def place(lives: Sequence[Life], alignment: int = ALIGNMENT) -> Layout:
    """Offsets for values, multiples of `alignment` bytes, such that no two that live at the same
    time overlap."""
    offsets = [0] * len(lives)
    placed: list[tuple[int, int, int, int]] = []  # start, end, first, last; sorted by start
    # Equal sizes are placed in the order of their lives, so that the result is the same each time.
    for number in sorted(range(len(lives)), key=lambda i: (-lives[i].size, lives[i].first, i)):
        size, first, last = lives[number]
        start = 0
        for other_start, other_end, other_first, other_last in placed:
            if other_last < first or last < other_first:
                continue
            if start + size <= other_start:
                break
            start = max(start, -(-other_end // alignment) * alignment)
        offsets[number] = start
        placed.append((start, start + size, first, last))
        placed.sort()
    return Layout(tuple(offsets), max((end for _, end, _, _ in placed), default=0))


def peak(lives: Sequence[Life]) -> int:
    """The bytes that live at the fullest moment: no layout is smaller."""
    moments = range(max((life.last for life in lives), default=-1) + 1)
    return max(
        (sum(life.size for life in lives if life.first <= t <= life.last) for t in moments),
        default=0,
    )
