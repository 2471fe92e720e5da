"""Pooling in a nest.

Going forward, the cells of the window are folded axes. Going back, a pixel sums over the few
positions whose window covers it: the pixel `p` along an axis is cell `(p + low) % stride + t *
stride` of position `(p + low) // stride - t` for t = 0, 1, ...; up to `UNROLLED` such terms are
written out, which leaves the folded axes to what follows (such as the sum that is the gradient of a
bias).

A window that holds nothing but -inf chooses its first cell, which may lie in the padding.
"""

from __future__ import annotations

import itertools
import math

from .. import dtypes
from ..graph import Equation
from ..ops.pool import pool_argmax_p, pool_gather_p, pool_scatter_p, pool_spread_p, pool_sum_p
from ..ops.window import Window
from .affine import Affine
from .body import Body, Fold, Index, Place, Scalar, folds, points

UNROLLED = 4


def fits(window: Window) -> bool:
    """Whether this file can do a window: pooling makes no others."""
    return all(step == 1 for step in window.dilation)


# ---- forward -------------------------------------------------------------------------------------


def _cells(eqn: Equation) -> tuple[tuple[int, ...], tuple[int, ...]]:
    shape = eqn.outputs[0].aval.shape
    sizes = eqn.params["window"].sizes
    return (*shape, *sizes), tuple(range(len(shape), len(shape) + len(sizes)))


def _pixel(
    body: Body, window: Window, spatial: tuple[int, ...], at: list[Index], cell: list[Index]
) -> tuple[list[Index], Scalar | bool]:
    """The pixel under a cell of the window at a position, and whether it lies inside the image."""
    pixels: list[Index] = []
    inside: list[Scalar | bool] = []
    axes = zip(at, cell, window.strides, window.padding, spatial, strict=True)
    for position, offset, stride, (low, _), size in axes:
        pixel = body.plus(body.sum(body.scaled(position, stride), offset), -low)
        inside.append(body.within(pixel, 0, size))
        pixels.append(pixel)
    return pixels, body.both(*inside)


def _clamped(body: Body, pixels: list[Index], spatial: tuple[int, ...]) -> list[Index]:
    return [body.clamp(pixel, size) for pixel, size in zip(pixels, spatial, strict=True)]


def _under_cell(body: Body, eqn: Equation, loop: tuple[Affine, ...], outside: float) -> Scalar:
    x, window = eqn.inputs[0], eqn.params["window"]
    first, *rest = loop
    ndim = len(window.sizes)
    at, channel, cell = rest[:ndim], rest[ndim], rest[ndim + 1 :]
    spatial = x.aval.shape[1:-1]
    pixels, inside = _pixel(body, window, spatial, list(at), list(cell))
    # Neighbours along the innermost axis are loaded together, which clamping would prevent.
    if body.guards and x.aval.shape[-1] == 1:
        value = body.guarded(inside, x, Place(x.aval.shape, [first, *pixels, channel]))
    else:
        pixels = _clamped(body, pixels, spatial)
        value = body.value(x, Place(x.aval.shape, [first, *pixels, channel]))
    return body.choose(inside, value, body.constant(outside, x.aval.dtype))


def _argmax(body: Body, eqn: Equation, loop: tuple[Affine, ...], output: int) -> Scalar:
    value = _under_cell(body, eqn, loop, -math.inf)
    if math.prod(eqn.params["window"].sizes) == 1:
        return body.constant(0, dtypes.int64) if output else value
    if output:
        return body.recorder.emit("reduce", (value,), dtypes.int64, "argmax")
    return body.recorder.emit("reduce", (value,), value.dtype, "max")


def _sum(body: Body, eqn: Equation, loop: tuple[Affine, ...], _: int) -> Scalar:
    value = _under_cell(body, eqn, loop, 0)
    if math.prod(eqn.params["window"].sizes) == 1:
        return value
    return body.recorder.emit("reduce", (value,), value.dtype, "sum")


folds[pool_argmax_p] = Fold(_cells, _argmax)
folds[pool_sum_p] = Fold(_cells, _sum)


def _gather(body: Body, eqn: Equation, place: Place, _: int) -> Scalar:
    x, cells = eqn.inputs
    window = eqn.params["window"]
    first, *at, channel = place.indices(body)
    rest: Index = body.as_index(body.value(cells, place))
    cell: list[Index] = []
    for size in reversed(window.sizes):
        rest, inner = body.parts(rest, size)
        cell.insert(0, inner)
    pixels, inside = _pixel(body, window, x.aval.shape[1:-1], at, cell)
    pixels = _clamped(body, pixels, x.aval.shape[1:-1])
    source = Place(x.aval.shape, [first, *pixels, channel])
    zero = body.constant(0, x.aval.dtype)
    return body.choose(inside, body.value(x, source), zero)


points[pool_gather_p] = _gather


# ---- back ----------------------------------------------------------------------------------------


def _terms(window: Window) -> tuple[int, ...]:
    """How many positions cover a pixel, at most, along each axis."""
    return tuple(-(-n // step) for n, step in zip(window.sizes, window.strides, strict=True))


def _covering(eqn: Equation) -> tuple[tuple[int, ...], tuple[int, ...]]:
    shape, terms = eqn.outputs[0].aval.shape, _terms(eqn.params["window"])
    if math.prod(terms) <= UNROLLED:
        return shape, ()
    return (*shape, *terms), tuple(range(len(shape), len(shape) + len(terms)))


def _back(body: Body, eqn: Equation, loop: tuple[Affine, ...], _: int) -> Scalar:
    window: Window = eqn.params["window"]
    ndim = len(window.sizes)
    terms = _terms(window)
    if len(loop) > ndim + 2:
        value = _term(body, eqn, loop[: ndim + 2], loop[ndim + 2 :])
        return body.recorder.emit("reduce", (value,), value.dtype, "sum")
    total: Scalar | None = None
    for numbers in itertools.product(*map(range, terms)):
        value = _term(body, eqn, loop, tuple(Affine((), t) for t in numbers))
        total = value if total is None else body.recorder.emit("add", (total, value), value.dtype)
    assert total is not None
    return total


def _term(
    body: Body, eqn: Equation, loop: tuple[Affine, ...], numbers: tuple[Affine, ...]
) -> Scalar:
    """What one of the positions that may cover a pixel gives to it."""
    window: Window = eqn.params["window"]
    g = eqn.inputs[0]
    first, *pixel, channel = loop
    inside: list[Scalar | bool] = []
    at: list[Index] = []
    cell: Index = Affine()
    axes = zip(
        pixel,
        numbers,
        window.sizes,
        window.strides,
        window.padding,
        g.aval.shape[1:-1],
        strict=True,
    )
    for p, t, size, stride, (low, _), count in axes:
        position, offset = body.parts(p.plus(low), stride)
        position = body.sum(position, t.times(-1))
        offset = body.sum(offset, t.times(stride))
        inside += [body.within(position, 0, count), body.within(offset, 0, size)]
        at.append(body.clamp(position, count))
        cell = body.sum(body.scaled(cell, size), offset)
    place = Place(g.aval.shape, [first, *at, channel])
    if eqn.prim is pool_scatter_p:
        chosen = body.recorder.cast(body.value(eqn.inputs[1], place), dtypes.int64)
        inside.append(body.apply("equal", chosen, body.scalar(cell)))
    zero = body.constant(0, g.aval.dtype)
    return body.choose(body.both(*inside), body.value(g, place), zero)


folds[pool_scatter_p] = Fold(_covering, _back)
folds[pool_spread_p] = Fold(_covering, _back)
