"""What operations that are not elementwise do in a nest: views, casts, gathers and reductions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from .. import dtypes
from ..checkpoint_policies import name_p
from ..graph import Equation
from ..ops.control import stop_gradient_p
from ..ops.creation import cast_p, full_p, iota_p
from ..ops.index import gather_p
from ..ops.reduce import all_p, any_p, argmax_p, argmin_p, max_p, min_p, prod_p
from ..ops.shape import (
    broadcast_p,
    concat_p,
    flip_p,
    pad_p,
    permute_p,
    reshape_p,
    slice_p,
    sum_p,
)
from .affine import ZERO, Affine
from .body import Body, Fold, Index, Place, Scalar, broadcast, folds, points, views

PARTS = 8  # a concatenation of more is left to the backend

# ---- views ---------------------------------------------------------------------------------------


def _view(prim: Any) -> Callable[[Callable[..., Scalar]], Callable[..., Scalar]]:
    def register(rule: Callable[..., Scalar]) -> Callable[..., Scalar]:
        views[prim] = lambda body, eqn, place, _: rule(body, eqn, place, **eqn.params)
        return rule

    return register


def _same(body: Body, eqn: Equation, place: Place, **_: Any) -> Scalar:
    return body.value(eqn.inputs[0], place)


_view(stop_gradient_p)(_same)
_view(name_p)(_same)


@_view(reshape_p)
def _(body: Body, eqn: Equation, place: Place, *, shape: Any) -> Scalar:
    x = eqn.inputs[0]
    return body.value(x, place.reshaped(body, x.aval.shape))


@_view(permute_p)
def _(body: Body, eqn: Equation, place: Place, *, axes: Any) -> Scalar:
    x, indices = eqn.inputs[0], place.indices(body)
    source: list[Index] = [ZERO] * len(axes)
    for axis, index in zip(axes, indices, strict=True):
        source[axis] = index
    return body.value(x, Place(x.aval.shape, source))


@_view(broadcast_p)
def _(body: Body, eqn: Equation, place: Place, *, shape: Any) -> Scalar:
    x = eqn.inputs[0]
    return body.value(x, broadcast(body, place, x.aval.shape))


@_view(slice_p)
def _(body: Body, eqn: Equation, place: Place, *, limits: Any) -> Scalar:
    x = eqn.inputs[0]
    source = [
        body.plus(body.scaled(i, step), start)
        for i, (start, _, step) in zip(place.indices(body), limits, strict=True)
    ]
    return body.value(x, Place(x.aval.shape, source))


@_view(flip_p)
def _(body: Body, eqn: Equation, place: Place, *, axes: Any) -> Scalar:
    x = eqn.inputs[0]
    source = [
        body.plus(body.scaled(i, -1), n - 1) if axis in axes else i
        for axis, (i, n) in enumerate(zip(place.indices(body), place.shape, strict=True))
    ]
    return body.value(x, Place(x.aval.shape, source))


@_view(pad_p)
def _(body: Body, eqn: Equation, place: Place, *, config: Any, value: Any) -> Scalar:
    x = eqn.inputs[0]
    source: list[Index] = []
    checks: list[Scalar | bool] = []
    sizes = zip(place.indices(body), x.aval.shape, config, strict=True)
    for i, n, (low, _, interior) in sizes:
        index = body.plus(i, -low)
        extent = n + max(n - 1, 0) * interior
        checks.append(body.within(index, 0, extent))
        if interior:
            index, rest = body.divide(body.clamp(index, extent), interior + 1)
            checks.append(body.within(rest, 0, 1))
        source.append(ZERO if n == 1 else index)
    inside = body.both(*checks)
    padding = body.constant(value, x.aval.dtype)
    if inside is False:
        return padding
    return body.choose(inside, body.guarded(inside, x, Place(x.aval.shape, source)), padding)


@_view(concat_p)
def _(body: Body, eqn: Equation, place: Place, *, axis: int) -> Scalar:
    indices, end = list(place.indices(body)), place.shape[axis]
    result: Scalar | None = None
    for x in reversed(eqn.inputs):
        size = x.aval.shape[axis]
        start, stop = end - size, end
        end = start
        inside = body.within(indices[axis], start, stop)
        if not size or inside is False:
            continue
        index = ZERO if size == 1 else body.plus(indices[axis], -start)
        at = Place(x.aval.shape, [*indices[:axis], index, *indices[axis + 1 :]])
        value = body.guarded(inside, x, at)
        # Whether the place lies behind this part was decided before; is it in front of its end?
        before = body.within(indices[axis], -math.inf, stop)
        result = value if result is None else body.choose(before, value, result)
    assert result is not None
    return result


@_view(iota_p)
def _(body: Body, eqn: Equation, place: Place, *, dtype: Any, axis: int, **_: Any) -> Scalar:
    return body.recorder.cast(body.scalar(place.indices(body)[axis]), dtype)


@_view(full_p)
def _(body: Body, eqn: Equation, place: Place, *, dtype: Any, value: Any, **_: Any) -> Scalar:
    return body.constant(value, dtype)


# ---- points --------------------------------------------------------------------------------------


def _cast(body: Body, eqn: Equation, place: Place, _: int) -> Scalar:
    return body.recorder.cast(body.value(eqn.inputs[0], place), eqn.params["dtype"])


def _gather(body: Body, eqn: Equation, place: Place, _: int) -> Scalar:
    x, *indices = eqn.inputs
    along = place.indices(body)
    shape = indices[0].aval.shape
    here = Place(shape, along[: len(shape)])
    chosen = [
        _counted(body, body.value(index, here), n)
        for index, n in zip(indices, x.aval.shape, strict=False)
    ]
    return body.value(x, Place(x.aval.shape, [*chosen, *along[len(shape) :]]))


def _counted(body: Body, value: Scalar, size: int) -> Index:
    """An index of an axis of `size`, counted from its end if it is negative."""
    index = body.as_index(value)
    if isinstance(index, Affine):
        least, most = body.axes.span(index)
        if most < 0:
            index = index.plus(size)
        if least >= 0 or most < 0:
            return body.clamp(index, size)
    if value.dtype in dtypes.UNSIGNED and value.dtype.itemsize < 8:
        return body.clamp(index, size)
    position = body.scalar(index)
    from_end = body.apply("add", position, body.constant(size, dtypes.int64))
    negative = body.apply("less", position, body.constant(0, dtypes.int64))
    return body.clamp(body.choose(negative, from_end, position), size)


points[cast_p] = _cast
points[gather_p] = _gather


# ---- folds ---------------------------------------------------------------------------------------


def _reduction(prim: Any, how: str, *, flipped: bool = False) -> None:
    """A primitive that folds `axes` (or one `axis`) of its argument."""

    def axes(eqn: Equation) -> tuple[tuple[int, ...], tuple[int, ...]]:
        folded = eqn.params["axes"] if "axes" in eqn.params else (eqn.params["axis"],)
        return eqn.inputs[0].aval.shape, tuple(sorted(folded))

    def rule(body: Body, eqn: Equation, loop: tuple[Affine, ...], _: int) -> Scalar:
        x = eqn.inputs[0]
        sizes, folded = axes(eqn)
        alone = math.prod(sizes[a] for a in folded) == 1
        if alone and how == "argmax":
            return body.constant(0, dtypes.int64)
        value = body.value(x, Place(x.aval.shape, loop))
        if alone:
            return value
        if flipped:
            op = "negative" if dtypes.is_float(value.dtype) else "invert"
            value = body.apply(op, value)
        dtype = dtypes.int64 if how == "argmax" else value.dtype
        return body.recorder.emit("reduce", (value,), dtype, how)

    folds[prim] = Fold(axes, rule)


_reduction(sum_p, "sum")
_reduction(max_p, "max")
_reduction(min_p, "min")
_reduction(any_p, "any")
_reduction(all_p, "all")
_reduction(prod_p, "prod")
_reduction(argmax_p, "argmax")
_reduction(argmin_p, "argmax", flipped=True)  # in the order from large to small
