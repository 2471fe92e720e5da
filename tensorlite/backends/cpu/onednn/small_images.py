"""Convolutions of images so small that most cells of the window lie outside them.

At the end of a deep network 3 x 3 windows slide over images of 2 x 2 or 4 x 4 pixels of hundreds of
channels. oneDNN's kernels also multiply what lies in the padding, and copy megabytes of weights
into their own layout first. Matrix products over the pixels inside need neither: the weights of a
cell of the window are a matrix as they lie, and so are the pixels at one position of all images.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from .... import dtypes
from ....compiler.launches import Ref
from ....core import Aval
from ....ops.window import Window, steps_inside
from . import memory
from .plan import Draft, Epilogue
from .primitives import ARG_DST, ARG_SRC, ARG_WEIGHTS, describe

# Measured for 3 x 3 windows, 256 and 512 channels, batches of 1 to 128 images: the share of all
# products of a convolution that lie inside the images, below which these plans are faster. That is
# images of 2 x 2 pixels; for the weights' gradient, whose products are longer, of 4 x 4.
_INSIDE, _INSIDE_FOR_WEIGHTS = 0.5, 0.7
_CHANNELS = 256  # with fewer, oneDNN's kernels win

FIRST, SECOND, RESULT = Ref("input", 0), Ref("input", 1), Ref("output", 0)

Box = tuple[slice, ...]  # of the batch axis and of the spatial ones


def suits(x: Aval, y: Aval, window: Window, *, weights: bool = False) -> bool:
    """Whether the convolution from images x to images y is planned here: it and its gradient by the
    images, or the one by the `weights`."""
    if window.groups > 1 or min(x.shape[-1], y.shape[-1]) < _CHANNELS:
        return False
    cells = steps_inside(window, x.shape[1:-1])
    inside = [_pixels(places[1:]) for _, places, _ in cells]
    share = sum(inside) / (math.prod(y.shape[1:-1]) * len(cells))
    if weights:
        return set(window.strides) == {1} and min(inside) > 0 and share <= _INSIDE_FOR_WEIGHTS
    # Sums of narrower numbers would be rounded after each product.
    return x.dtype == dtypes.float32 and share <= _INSIDE and _central(x, y, window) is not None


def plan_conv(draft: Draft, x: Aval, w: Aval, y: Aval, window: Window, epilogue: Epilogue) -> None:
    """Write the calls of `conv` into a draft."""
    draft.no_epilogue(epilogue)  # loop nests do it: not every pixel has the same last product
    _by_cells(draft, x, w, y, window, adjoint=False)


def plan_input_grad(draft: Draft, g: Aval, w: Aval, x: Aval, window: Window) -> None:
    """Write the calls of `conv_input_grad` into a draft."""
    _by_cells(draft, g, w, x, window, adjoint=True)


def _by_cells(
    draft: Draft, source: Aval, w: Aval, result: Aval, window: Window, adjoint: bool
) -> None:
    """For each cell of the window, multiply the pixels under it by its weights, and add that to the
    positions at which it lies inside the image; the adjoint takes it from there to the pixels."""
    x, y = (result, source) if adjoint else (source, result)
    central = _central(x, y, window)
    cells = steps_inside(window, x.shape[1:-1])
    size = w.shape[-2] * w.shape[-1] * w.dtype.itemsize
    for cell, places, pixels in sorted(cells, key=lambda item: item[0] != central):
        if _pixels(places[1:]) == 0:
            continue
        read, written = (places, pixels) if adjoint else (pixels, places)
        weights = SECOND._replace(offset=cell * size)
        _multiply(draft, source, read, result, written, w, weights, cell != central, adjoint)


def _central(x: Aval, y: Aval, window: Window) -> int | None:
    """A cell that has a pixel below it at every position, and a position for every pixel."""
    for cell, places, pixels in steps_inside(window, x.shape[1:-1]):
        every = math.prod(y.shape[1:-1]), math.prod(x.shape[1:-1])
        if (_pixels(places[1:]), _pixels(pixels[1:])) == every:
            return cell
    return None


def _pixels(slices: Sequence[slice]) -> int:
    return math.prod(len(range(s.start, s.stop, s.step or 1)) for s in slices)


class _Axis(NamedTuple):
    """Pixels at equal distances, in elements, where they are read and where they are written."""

    size: int
    read: int
    written: int


def _multiply(
    draft: Draft,
    source: Aval,
    read: Box,
    result: Aval,
    written: Box,
    w: Aval,
    weights: Ref,
    accumulate: bool,
    transposed: bool,
) -> None:
    """The pixels of a box times the weights of a cell, to the pixels of another box."""
    axes = _merged(source, read, result, written)
    rows = max(axes)
    given, made = (
        memory.strided((rows.size, aval.shape[-1]), (stride, 1), aval.dtype)
        for aval, stride in ((source, rows.read), (result, rows.written))
    )
    kernel = memory.of_array(w.shape[-2:], w.dtype, (1, 0) if transposed else None)
    attributes = draft.attributes()
    if accumulate:
        attributes.sum()
    desc = describe(draft.op, "matmul", given, kernel, None, made, attributes=attributes)
    axes.remove(rows)
    for index in itertools.product(*(range(axis.size) for axis in axes)):
        at = _start(source, read) + sum(i * a.read for i, a in zip(index, axes, strict=True))
        to = _start(result, written) + sum(i * a.written for i, a in zip(index, axes, strict=True))
        draft.call(
            desc,
            (ARG_SRC, given, FIRST._replace(offset=at * source.dtype.itemsize)),
            (ARG_WEIGHTS, kernel, weights),
            (ARG_DST, made, RESULT._replace(offset=to * result.dtype.itemsize)),
        )


def _merged(source: Aval, read: Box, result: Aval, written: Box) -> list[_Axis]:
    """The axes of the pixels of two boxes of the same sizes, as few as will do."""
    axes: list[_Axis] = []
    sizes = (source.shape[0], *[_pixels([s]) for s in read[1:]])
    strides = (_strides(source, read), _strides(result, written))
    for axis in map(_Axis, sizes, *strides):
        last = axes[-1] if axes else None
        if last and last[1:] == (axis.size * axis.read, axis.size * axis.written):
            axes[-1] = axis._replace(size=last.size * axis.size)
        else:
            axes.append(axis)
    return axes


def _strides(images: Aval, box: Box) -> list[int]:
    """The distances of the pixels of a box, in elements."""
    strides = memory.plain_strides(images.shape)[:-1]
    return [n * (s.step or 1) for n, s in zip(strides, box, strict=True)]


def _start(images: Aval, box: Box) -> int:
    """How many elements lie before a box."""
    strides = memory.plain_strides(images.shape)[:-1]
    return sum((s.start or 0) * n for s, n in zip(box, strides, strict=True))


def plan_weight_grad(draft: Draft, x: Aval, g: Aval, w: Aval, window: Window) -> None:
    """Write the calls of `conv_weight_grad` into a draft: for each cell of the window, the product
    of the pixels under it and the positions at which it lies inside the image."""
    *_, channels_in, channels_out = w.shape
    result = memory.of_array((channels_in, channels_out), w.dtype)
    for cell, places, pixels in steps_inside(window, x.shape[1:-1]):
        left, count = _box(draft, x, FIRST, pixels, turned=True)
        right, _ = _box(draft, g, SECOND, places, turned=False)
        source = memory.of_array((channels_in, count), x.dtype)
        weights = memory.of_array((count, channels_out), g.dtype)
        desc = describe(draft.op, "matmul", source, weights, None, result)
        to = RESULT._replace(offset=cell * result.size)
        draft.call(
            desc, (ARG_SRC, source, left), (ARG_WEIGHTS, weights, right), (ARG_DST, result, to)
        )


def _box(draft: Draft, images: Aval, at: Ref, box: Box, turned: bool) -> tuple[Ref, int]:
    """The pixels of a box of every image, one after the other, each a row of channels or, `turned`,
    a column; and how many there are."""
    sizes = (images.shape[0], *[_pixels([s]) for s in box[1:]])
    counts, starts = (*sizes, images.shape[-1]), (0, *[s.start for s in box[1:]], 0)
    pixels = math.prod(sizes)
    if not turned and counts == images.shape:
        return at, pixels
    source = memory.part(images.shape, images.dtype, starts, counts)
    strides = (*memory.plain_strides(sizes), pixels) if turned else memory.plain_strides(counts)
    return draft.brought(source, at, memory.strided(counts, strides, images.dtype)), pixels
