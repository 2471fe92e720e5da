"""Sliding windows: the one parameter of convolution and pooling, and how options become one.

Words such as "same" are resolved here, before a primitive is bound, so that a primitive only ever
sees numbers.
"""

from __future__ import annotations

import difflib
import functools
import math
import operator
from collections.abc import Iterator
from typing import Any, NamedTuple

from ..core import Tensor
from .shape import reshape

Sizes = tuple[int, ...]
Pairs = tuple[tuple[int, int], ...]


class Window(NamedTuple):
    """How a window slides over the spatial axes of an image; one entry for each axis.

    Along an axis the window covers `dilation * (size - 1) + 1` pixels (its extent), and its first
    position starts `padding[axis][0]` pixels before the image.
    """

    sizes: Sizes
    strides: Sizes
    padding: Pairs
    dilation: Sizes
    groups: int = 1

    @property
    def extents(self) -> Sizes:
        return extents(self.sizes, self.dilation)

    def padded(self, spatial: Sizes) -> Sizes:
        """The sizes of an image of sizes `spatial` with its padding."""
        return tuple(n + lo + hi for n, (lo, hi) in zip(spatial, self.padding, strict=True))

    def positions(self, spatial: Sizes) -> Sizes:
        """How many positions the window takes along each axis: the sizes of the result."""
        axes = zip(self.padded(spatial), self.extents, self.strides, strict=True)
        return tuple((n - extent) // stride + 1 for n, extent, stride in axes)

    def check(self, op: str, spatial: Sizes) -> None:
        """Raise ValueError if the window does not fit into the padded image."""
        for axis, (n, extent) in enumerate(zip(self.padded(spatial), self.extents, strict=True)):
            if extent > n:
                raise ValueError(
                    f"{op}: the window spans {extent} pixels along spatial axis {axis}, but the "
                    f"image has {spatial[axis]}, and {n} with its padding; pad more "
                    "(padding='same' always fits) or use a smaller window"
                )

    def cells(self) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Each cell in row-major order: its number, its offset from the window's first pixel."""
        for number in range(math.prod(self.sizes)):
            index, rest = [], number
            for size, step in zip(reversed(self.sizes), reversed(self.dilation), strict=True):
                index.append(rest % size * step)
                rest //= size
            yield number, tuple(reversed(index))


def extents(sizes: Sizes, dilation: Sizes) -> Sizes:
    """How many pixels a window of `sizes` spans along each axis."""
    return tuple((size - 1) * step + 1 for size, step in zip(sizes, dilation, strict=True))


@functools.lru_cache(maxsize=1024)
def steps_inside(
    window: Window, spatial: Sizes
) -> tuple[tuple[int, tuple[slice, ...], tuple[slice, ...]], ...]:
    """For each cell of the window, the positions at which it lies inside the image.

    Returns (number of the cell, slices of the positions, slices of the pixels under the cell
    there), batch axis included.
    """
    counts = window.positions(spatial)
    result = []
    for number, offset in window.cells():
        places, pixels = [slice(None)], [slice(None)]
        for n, count, stride, (lo, _), start in zip(
            spatial, counts, window.strides, window.padding, offset, strict=True
        ):
            first = max(0, -((start - lo) // stride))
            last = min(count, (n - 1 + lo - start) // stride + 1)
            kept = max(last - first, 0)
            begin = first * stride + start - lo
            places.append(slice(first, first + kept))
            pixels.append(
                slice(begin, begin + (kept - 1) * stride + 1, stride) if kept else slice(0, 0)
            )
        result.append((number, tuple(places), tuple(pixels)))
    return tuple(result)


# ---- options -------------------------------------------------------------------------


def per_axis(op: str, option: str, value: Any, ndim: int) -> Sizes:
    """An option given as one positive integer or one for each spatial axis, as a tuple.

    Raises:
        TypeError: it is something else.
        ValueError: it has the wrong number of entries, or one below 1.
    """
    try:
        given = value if isinstance(value, list | tuple) else (value,) * ndim
        values = tuple(map(operator.index, given))
    except TypeError:
        raise TypeError(
            f"{op}: {option} is an integer or one for each spatial axis, got {value!r}"
        ) from None
    if len(values) != ndim:
        raise ValueError(
            f"{op}: {option} has {len(values)} entries, but there are {ndim} spatial axes; "
            f"got {value!r}"
        )
    if any(v < 1 for v in values):
        raise ValueError(f"{op}: {option} must be at least 1 along every axis, got {value!r}")
    return values


PADDINGS = ("full", "same", "valid")
_WORDS = ", ".join(map(repr, PADDINGS))
_NUMBERS = "an int, or a (low, high) pair for each spatial axis"


def resolve_padding(
    op: str, padding: Any, spatial: Sizes, sizes: Sizes, strides: Sizes, dilation: Sizes
) -> Pairs:
    """The padding in pixels (low, high) along each axis.

    Args:
        padding: "valid" is none; "same" makes ceil(n / stride) positions, with the odd pixel at the
            end, as in TensorFlow; "full" pads by the extent of the window less one on both sides;
            an int is that many pixels on every side; else an int or (low, high) pair for each axis.

    Raises:
        TypeError, ValueError: it is none of these; the message says what to write.
    """
    ndim = len(spatial)
    spans = extents(sizes, dilation)
    if isinstance(padding, str):
        if padding not in PADDINGS:
            close = difflib.get_close_matches(padding.lower(), PADDINGS, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"use {_WORDS}, {_NUMBERS}"
            raise ValueError(f"{op}: there is no padding {padding!r}; {hint}")
        if padding == "valid":
            return ((0, 0),) * ndim
        if padding == "full":
            return tuple((span - 1, span - 1) for span in spans)
        missing = [
            max((-(-n // stride) - 1) * stride + span - n, 0)
            for n, span, stride in zip(spatial, spans, strides, strict=True)
        ]
        return tuple((total // 2, total - total // 2) for total in missing)
    try:
        given = padding if isinstance(padding, list | tuple) else (padding,) * ndim
        pairs = tuple(map(_pair, given))
    except TypeError:
        raise TypeError(f"{op}: padding is one of {_WORDS}, {_NUMBERS}, got {padding!r}") from None
    if len(pairs) != ndim:
        raise ValueError(
            f"{op}: padding has {len(pairs)} entries, but there are {ndim} spatial axes; "
            f"got {padding!r}"
        )
    if any(amount < 0 for pair in pairs for amount in pair):
        raise ValueError(
            f"{op}: padding is not negative, got {padding!r}; slice the image to crop it"
        )
    return pairs


def _pair(entry: Any) -> tuple[int, int]:
    """An entry of a padding as (low, high): a bare int is both. TypeError if it is neither."""
    if isinstance(entry, list | tuple) and len(entry) == 2:
        return operator.index(entry[0]), operator.index(entry[1])
    return operator.index(entry), operator.index(entry)


# ---- the axis of vmap ----------------------------------------------------------------


def fold(x: Tensor) -> Tensor:
    """(B, N, ...) -> (B * N, ...): a batch of batches of images as one."""
    return reshape(x, (x.shape[0] * x.shape[1], *x.shape[2:]))


def unfold(y: Tensor, like: Tensor) -> Tensor:
    """(B * N, ...) -> (B, N, ...), where (B, N) are the first two sizes of `like`."""
    return reshape(y, (*like.shape[:2], *y.shape[1:]))
