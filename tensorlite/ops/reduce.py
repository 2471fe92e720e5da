"""Reductions: sum, mean, prod, max, min, their positions, all, any, cumulative sum, and what is
composed of them."""

from __future__ import annotations

import builtins
from typing import Any

import numpy as np

from .. import dtypes
from ..core import Aval, Primitive, Tensor, bind
from .creation import asarray, cast
from .elementwise import exp, isfinite, log, not_equal, sqrt, square, where
from .shape import (
    Axes,
    flip,
    normalize_axes,
    pad,
    reshape,
    restore_axes,
    sum_p,
)

Axis = int | Axes | None


def sum(x: Tensor, /, *, axis: Axis = None, dtype: Any = None, keepdims: bool = False) -> Tensor:
    """The sum over `axis` (all by default). Integers are summed as int64 (uint64), float16 and
    bfloat16 in float32."""
    x = numeric(x, dtype)
    axes = normalize_axes("sum", axis, x.ndim)
    return _keep(bind(sum_p, x, axes=axes), axes, keepdims)


def mean(x: Tensor, /, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The arithmetic mean over `axis` (all by default), a float."""
    x = _floating(x)
    axes = normalize_axes("mean", axis, x.ndim)
    wide = _wide(x)  # neither the sum nor the count need fit float16
    return cast(sum(wide, axis=axes, keepdims=keepdims) / count(x, axes), x.dtype)


def var(
    x: Tensor, /, *, axis: Axis = None, correction: float = 0.0, keepdims: bool = False
) -> Tensor:
    """The variance over `axis`: squared deviations from the mean, summed and divided by n -
    correction."""
    x = _floating(x)
    axes = normalize_axes("var", axis, x.ndim)
    wide = _wide(x)
    deviation = wide - mean(wide, axis=axes, keepdims=True)
    total = sum(square(deviation), axis=axes, keepdims=keepdims)
    return cast(total / builtins.max(count(x, axes) - correction, 0), x.dtype)


def std(
    x: Tensor, /, *, axis: Axis = None, correction: float = 0.0, keepdims: bool = False
) -> Tensor:
    """The standard deviation: the square root of `var`."""
    return sqrt(var(x, axis=axis, correction=correction, keepdims=keepdims))


def count(x: Tensor, axes: Axes) -> int:
    """How many elements of `x` each result of a reduction over `axes` takes in."""
    return int(np.prod([x.shape[a] for a in axes], dtype=np.int64))


def count_nonzero(x: Tensor, /, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """How many values over `axis` (all by default) are not zero, int64."""
    marks = cast(_boolean(x), dtypes.default_int)
    axes = normalize_axes("count_nonzero", axis, marks.ndim)
    return sum(marks, axis=axes, keepdims=keepdims)


# ---- max and min ---------------------------------------------------------------------------------

max_p = Primitive("reduce_max")
min_p = Primitive("reduce_min")


def _reduced(x: Aval, axes: Axes) -> Aval:
    return Aval(tuple(n for i, n in enumerate(x.shape) if i not in axes), x.dtype)


def _extremum(prim: Primitive, function: Any) -> None:
    @prim.shape
    def _(x: Aval, *, axes: Axes) -> Aval:
        if builtins.any(x.shape[a] == 0 for a in axes):
            raise ValueError(
                f"{prim.name}: {x} has no elements along axes {axes}, so there is no extremum"
            )
        return _reduced(x, axes)

    @prim.numpy
    def _(x: np.ndarray, *, axes: Axes) -> np.ndarray:
        return function(x, axis=axes)

    @prim.vjp
    def _(y: Tensor, x: Tensor, *, axes: Axes) -> Any:
        def pull(g: Tensor) -> Tensor:
            hits = cast(x == restore_axes(y, axes), x.dtype)  # equal extrema share the gradient
            return hits * restore_axes(g / sum(hits, axis=axes), axes)

        return pull

    @prim.batch
    def _(args: list[Tensor], batched: list[bool], *, axes: Axes) -> Tensor:
        return bind(prim, args[0], axes=tuple(a + 1 for a in axes))


_extremum(max_p, np.max)
_extremum(min_p, np.min)


def max(x: Tensor, /, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The largest value over `axis` (all by default); NaN if there is one. Equal ones share the
    gradient."""
    x = asarray(x)
    axes = normalize_axes("max", axis, x.ndim)
    return _keep(bind(max_p, x, axes=axes), axes, keepdims)


def min(x: Tensor, /, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The smallest value over `axis` (all by default); NaN if there is one. Equal ones share the
    gradient."""
    x = asarray(x)
    axes = normalize_axes("min", axis, x.ndim)
    return _keep(bind(min_p, x, axes=axes), axes, keepdims)


# ---- positions -----------------------------------------------------------------------------------

argmax_p = Primitive("argmax", differentiable=False)
argmin_p = Primitive("argmin", differentiable=False)


def _position(prim: Primitive, function: Any) -> None:
    @prim.shape
    def _(x: Aval, *, axis: int) -> Aval:
        if x.shape[axis] == 0:
            raise ValueError(f"{prim.name}: {x} has no elements along axis {axis}")
        return Aval(_reduced(x, (axis,)).shape, dtypes.default_int)

    @prim.numpy
    def _(x: np.ndarray, *, axis: int) -> np.ndarray:
        return np.asarray(function(x, axis=axis), np.int64)

    @prim.batch
    def _(args: list[Tensor], batched: list[bool], *, axis: int) -> Tensor:
        return bind(prim, args[0], axis=axis + 1)


_position(argmax_p, np.argmax)
_position(argmin_p, np.argmin)


def _arg(prim: Primitive, x: Tensor, axis: int | None, keepdims: bool) -> Tensor:
    x = asarray(x)
    flat = x if axis is not None else reshape(x, -1)
    where_ = normalize_axes(prim.name, 0 if axis is None else axis, flat.ndim)
    result = bind(prim, flat, axis=where_[0])
    if not keepdims:
        return result
    return reshape(result, (1,) * x.ndim) if axis is None else restore_axes(result, where_)


def argmax(x: Tensor, /, *, axis: int | None = None, keepdims: bool = False) -> Tensor:
    """Where the largest value is, int64: the first of equal ones; in the flattened tensor by
    default."""
    return _arg(argmax_p, x, axis, keepdims)


def argmin(x: Tensor, /, *, axis: int | None = None, keepdims: bool = False) -> Tensor:
    """Where the smallest value is, int64: the first of equal ones; in the flattened tensor by
    default."""
    return _arg(argmin_p, x, axis, keepdims)


# ---- all, any ------------------------------------------------------------------------------------

all_p = Primitive("reduce_all", differentiable=False)
any_p = Primitive("reduce_any", differentiable=False)


def _logical(prim: Primitive, function: Any) -> None:
    @prim.shape
    def _(x: Aval, *, axes: Axes) -> Aval:
        return Aval(_reduced(x, axes).shape, dtypes.bool_)

    @prim.numpy
    def _(x: np.ndarray, *, axes: Axes) -> np.ndarray:
        return function(x, axis=axes)

    @prim.batch
    def _(args: list[Tensor], batched: list[bool], *, axes: Axes) -> Tensor:
        return bind(prim, args[0], axes=tuple(a + 1 for a in axes))


_logical(all_p, np.all)
_logical(any_p, np.any)


def all(x: Tensor, /, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Whether every value over `axis` (all by default) is nonzero."""
    x = _boolean(x)
    axes = normalize_axes("all", axis, x.ndim)
    return _keep(bind(all_p, x, axes=axes), axes, keepdims)


def any(x: Tensor, /, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Whether some value over `axis` (all by default) is nonzero."""
    x = _boolean(x)
    axes = normalize_axes("any", axis, x.ndim)
    return _keep(bind(any_p, x, axes=axes), axes, keepdims)


# ---- products and cumulative sums ----------------------------------------------------------------

prod_p = Primitive("prod")  # over one axis, which it drops
cumsum_p = Primitive("cumulative_sum")


@prod_p.shape
def _(x: Aval, *, axis: int) -> Aval:
    return _reduced(x, (axis,))


@prod_p.numpy
def _(x: np.ndarray, *, axis: int) -> np.ndarray:
    return np.prod(x, axis=axis, dtype=x.dtype)


@prod_p.vjp
def _(y: Tensor, x: Tensor, *, axis: int) -> Any:
    def pull(g: Tensor) -> Tensor:
        # The product of all others at each place, from both sides, so that zeros do no harm.
        before = shifted_products(x, axis)
        after = flip(shifted_products(flip(x, axis=axis), axis), axis=axis)
        return restore_axes(g, (axis,)) * before * after

    return pull


@prod_p.batch
def _(args: list[Tensor], batched: list[bool], *, axis: int) -> Tensor:
    return bind(prod_p, args[0], axis=axis + 1)


def shifted_products(x: Tensor, axis: int) -> Tensor:
    """At each place along `axis` the product of the elements before it, in log2(n) multiplications
    (Hillis and Steele)."""
    from .creation import ones
    from .shape import concat

    size = x.shape[axis]

    def shifted(t: Tensor, by: int) -> Tensor:
        by = builtins.min(by, size)
        head = ones((*x.shape[:axis], by, *x.shape[axis + 1 :]), dtype=x.dtype, device=x.device)
        kept = [slice(None)] * x.ndim
        kept[axis] = slice(0, size - by)
        return concat([head, t[tuple(kept)]], axis=axis)

    result, reach = shifted(x, 1), 1
    while reach < size:
        result, reach = result * shifted(result, reach), 2 * reach
    return result


def prod(x: Tensor, /, *, axis: Axis = None, dtype: Any = None, keepdims: bool = False) -> Tensor:
    """The product over `axis` (all by default). Integers are multiplied as int64 (uint64)."""
    x = numeric(x, dtype)
    axes = normalize_axes("prod", axis, x.ndim)
    result = x
    for a in sorted(axes, reverse=True):
        result = bind(prod_p, result, axis=a)
    return _keep(result, axes, keepdims)


@cumsum_p.shape
def _(x: Aval, *, axis: int) -> Aval:
    return x


@cumsum_p.numpy
def _(x: np.ndarray, *, axis: int) -> np.ndarray:
    narrow = x.dtype in (dtypes.float16, dtypes.bfloat16)
    return np.cumsum(x, axis=axis, dtype=np.float32 if narrow else x.dtype).astype(
        x.dtype, copy=False
    )


@cumsum_p.vjp
def _(y: Tensor, x: Tensor, *, axis: int) -> Any:
    return lambda g: flip(bind(cumsum_p, flip(g, axis=axis), axis=axis), axis=axis)


@cumsum_p.batch
def _(args: list[Tensor], batched: list[bool], *, axis: int) -> Tensor:
    return bind(cumsum_p, args[0], axis=axis + 1)


def cumulative_sum(
    x: Tensor, /, *, axis: int | None = None, dtype: Any = None, include_initial: bool = False
) -> Tensor:
    """Running sums along `axis` (may be left out in one dimension), with a leading zero if
    `include_initial`."""
    x = numeric(x, dtype)
    where_ = one_axis("cumulative_sum", axis, x)
    return bind(cumsum_p, with_initial(x, where_, 0) if include_initial else x, axis=where_)


def one_axis(op: str, axis: int | None, x: Tensor) -> int:
    """The axis of a running sum or product."""
    if axis is None and x.ndim != 1:
        raise ValueError(f"{op}: needs an axis for shape {x.shape}")
    return normalize_axes(op, axis or 0, x.ndim)[0]


def with_initial(x: Tensor, axis: int, value: int) -> Tensor:
    """`x` with one more place at the start of `axis`, which holds `value`."""
    return pad(x, [(1 if i == axis else 0, 0) for i in range(x.ndim)], constant_values=value)


# ---- composed ------------------------------------------------------------------------------------


def logsumexp(x: Tensor, /, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """log(sum(exp(x))) over `axis` without overflow."""
    from .control import stop_gradient

    x = _floating(x)
    axes = normalize_axes("logsumexp", axis, x.ndim)
    top = stop_gradient(max(x, axis=axes, keepdims=True))
    top = where(isfinite(top), top, 0.0)  # a row of -inf stays -inf
    result = log(sum(exp(x - top), axis=axes, keepdims=True)) + top
    return result if keepdims else _drop(result, axes)


# ---- helpers -------------------------------------------------------------------------------------


def _keep(reduced: Tensor, axes: Axes, keepdims: bool) -> Tensor:
    return restore_axes(reduced, axes) if keepdims else reduced


def _drop(x: Tensor, axes: Axes) -> Tensor:
    return reshape(x, tuple(n for i, n in enumerate(x.shape) if i not in axes))


def numeric(x: Tensor, dtype: Any) -> Tensor:
    """`x` in the dtype in which it is summed: `dtype`, or the widest integer of its kind."""
    x = asarray(x)
    if dtype is not None:
        return cast(x, dtypes.canonical(dtype))
    if x.dtype in dtypes.UNSIGNED:
        return cast(x, dtypes.uint64)
    return cast(x, dtypes.default_int) if x.dtype not in dtypes.FLOATS else x


def _floating(x: Tensor) -> Tensor:
    x = asarray(x)
    return x if x.dtype in dtypes.FLOATS else cast(x, dtypes.default_float)


def _wide(x: Tensor) -> Tensor:
    return cast(x, dtypes.float32) if x.dtype in (dtypes.float16, dtypes.bfloat16) else x


def _boolean(x: Tensor) -> Tensor:
    x = asarray(x)
    return x if x.dtype == dtypes.bool_ else not_equal(x, 0)
