"""How arrays are cut up. The bounds depend on length, dtype and number of ranks only, so that all
ranks cut alike, and every run does."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from ..reduction import Array
from ..transport.memory import SLOT_BYTES

SEGMENT_BYTES = SLOT_BYTES  # one segment is reduced while the next arrives
SMALL_BYTES = 32 * 1024  # arrays up to this size are gathered and reduced in rank order


def is_small(flat: Array) -> bool:
    """Whether fewer steps count for more than fewer bytes."""
    return flat.nbytes <= SMALL_BYTES


def chunks_of(flat: Array, size: int) -> list[Array]:
    """`size` parts of a flat array, as equal as can be."""
    bounds = [flat.size * part // size for part in range(size + 1)]
    return [flat[low:high] for low, high in itertools.pairwise(bounds)]


def segments(flat: Array, itemsize: int | None = None) -> Iterator[Array]:
    """Parts of at most `SEGMENT_BYTES`, if an element has `itemsize` bytes."""
    step = SEGMENT_BYTES // (itemsize or flat.itemsize)
    return (flat[start : start + step] for start in range(0, flat.size, step))


def as_bytes(array: Array) -> memoryview:
    """The memory of a contiguous array."""
    return array.view(np.uint8).data  # by way of uint8, since bfloat16 has no buffer format
