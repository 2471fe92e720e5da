"""Order: sort, argsort, searchsorted.

NaN counts as larger than every number, so it comes last, or first if the order is descending. Equal
elements keep their order.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import dtypes
from ..core import Aval, Primitive, Tensor, bind
from .creation import asarray
from .elementwise import meet
from .index import take, take_along_axis
from .shape import broadcast_to, normalize_axes

sort_p = Primitive("sort")
argsort_p = Primitive("argsort", differentiable=False)


def _comparable(x: np.ndarray) -> np.ndarray:
    """`x` in a dtype that NumPy can sort, in the same order."""
    return x.astype(np.float32) if x.dtype == dtypes.bfloat16 else x


@sort_p.shape
def _(x: Aval, *, axis: int, descending: bool) -> Aval:
    return x


@sort_p.numpy
def _(x: np.ndarray, *, axis: int, descending: bool) -> np.ndarray:
    # Equal zeros may differ in their sign, so that stability shows in the values as well.
    result = np.sort(_comparable(np.flip(x, axis) if descending else x), axis, kind="stable")
    return (np.flip(result, axis) if descending else result).astype(x.dtype, copy=False)


@sort_p.vjp
def _(y: Tensor, x: Tensor, *, axis: int, descending: bool) -> Any:
    # Where each element of x went is the inverse of the permutation, which sorting it gives.
    order = bind(argsort_p, x, axis=axis, descending=descending)
    went_to = bind(argsort_p, order, axis=axis, descending=False)
    return lambda g: take_along_axis(g, went_to, axis=axis)


@sort_p.batch
def _(args: list[Tensor], batched: list[bool], *, axis: int, descending: bool) -> Tensor:
    return bind(sort_p, args[0], axis=axis + 1, descending=descending)


@argsort_p.shape
def _(x: Aval, *, axis: int, descending: bool) -> Aval:
    return Aval(x.shape, dtypes.default_int)


@argsort_p.numpy
def _(x: np.ndarray, *, axis: int, descending: bool) -> np.ndarray:
    x = _comparable(x)
    if not descending:
        return np.argsort(x, axis, kind="stable")
    reverse = np.argsort(np.flip(x, axis), axis, kind="stable")
    return x.shape[axis] - 1 - np.flip(reverse, axis)


@argsort_p.batch
def _(args: list[Tensor], batched: list[bool], *, axis: int, descending: bool) -> Tensor:
    return bind(argsort_p, args[0], axis=axis + 1, descending=descending)


def sort(x: Tensor, /, *, axis: int = -1, descending: bool = False, stable: bool = True) -> Tensor:
    """`x` sorted along `axis`. The order is always stable, whatever `stable` says."""
    x, place = _sortable("sort", x, axis)
    return bind(sort_p, x, axis=place, descending=bool(descending))


def argsort(
    x: Tensor, /, *, axis: int = -1, descending: bool = False, stable: bool = True
) -> Tensor:
    """The positions, int64, that sort `x` along `axis`. The order is always stable."""
    x, place = _sortable("argsort", x, axis)
    return bind(argsort_p, x, axis=place, descending=bool(descending))


def _sortable(op: str, x: Tensor, axis: int) -> tuple[Tensor, int]:
    x = asarray(x)
    (place,) = normalize_axes(op, axis, x.ndim)
    return x, place


# ---- searchsorted --------------------------------------------------------------------------------

# (sorted, values): the leading `stacked` axes of both are a stack of independent searches.
searchsorted_p = Primitive("searchsorted", differentiable=False)


@searchsorted_p.shape
def _(x: Aval, values: Aval, *, side: str, stacked: int) -> Aval:
    if x.dtype != values.dtype:
        raise TypeError(f"searchsorted: dtypes {x.dtype} and {values.dtype} differ")
    if x.ndim != stacked + 1 or x.shape[:stacked] != values.shape[:stacked]:
        raise ValueError(f"searchsorted: {values} cannot be searched for in {x}")
    return Aval(values.shape, dtypes.default_int)


@searchsorted_p.numpy
def _(x: np.ndarray, values: np.ndarray, *, side: Any, stacked: int) -> np.ndarray:
    x, values = _comparable(x), _comparable(values)
    result = np.empty(values.shape, np.int64)
    for i in np.ndindex(x.shape[:stacked]):
        result[i] = np.searchsorted(x[i], values[i], side)
    return result


@searchsorted_p.batch
def _(args: list[Tensor], batched: list[bool], *, side: str, stacked: int) -> Tensor:
    size = next(x.shape[0] for x, b in zip(args, batched, strict=True) if b)
    both = [
        x if b else broadcast_to(x, (size, *x.shape)) for x, b in zip(args, batched, strict=True)
    ]
    return bind(searchsorted_p, *both, side=side, stacked=stacked + 1)


def searchsorted(
    x1: Tensor, x2: Tensor, /, *, side: str = "left", sorter: Tensor | None = None
) -> Tensor:
    """Where in the sorted vector `x1` the elements of `x2` belong, int64.

    Args:
        side: "left" gives the first such place, "right" the last.
        sorter: positions that sort `x1`, if it is not sorted itself.
    """
    if side not in ("left", "right"):
        raise ValueError(f'searchsorted: side is "left" or "right", got {side!r}')
    x1, x2 = meet(x1, x2, "searchsorted")
    if x1.ndim != 1:
        raise ValueError(f"searchsorted: x1 is one-dimensional, got {x1.aval}")
    if sorter is not None:
        x1 = take(x1, asarray(sorter), axis=0)
    return bind(searchsorted_p, x1, x2, side=side, stacked=0)
