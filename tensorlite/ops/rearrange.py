"""Elements moved, repeated or masked: roll, repeat, tile, unstack, meshgrid, tril, triu, diff.

All of it is composed of the primitives of `shape`, `index` and `elementwise`, so every transform
has it for nothing.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from .. import dtypes
from ..core import Tensor
from .creation import Shape, as_count, as_integer, asarray, full, integers, iota
from .elementwise import less_equal, not_equal, subtract, where
from .index import take
from .shape import (
    Axes,
    broadcast_arrays,
    broadcast_to,
    concat,
    expand_dims,
    normalize_axes,
    reshape,
)


def roll(x: Tensor, /, shift: int | Axes, *, axis: int | Axes | None = None) -> Tensor:
    """`x` with its elements moved `shift` places towards the end of `axis`; those that leave come
    back at the start. Without an axis the flattened tensor is rolled. Several shifts go with
    several axes; one may be named twice."""
    x = asarray(x)
    if axis is None:
        return reshape(roll(reshape(x, -1), shift, axis=0), x.shape)
    shifts = tuple(integers(shift, "roll: shift is an int or a sequence of ints"))
    axes = tuple(integers(axis, "roll: axis is an int, a sequence of ints or None"))
    if len(shifts) not in (1, len(axes)) and len(axes) != 1:
        raise ValueError(f"roll: {len(shifts)} shifts {shift} for {len(axes)} axes {axis}")
    count = max(len(shifts), len(axes))
    for by, a in zip(_to_length(shifts, count), _to_length(axes, count), strict=True):
        (place,) = normalize_axes("roll", a, x.ndim)
        size = x.shape[place]
        by = by % size if size else 0
        if by:
            x = concat(
                [_part(x, place, size - by, size), _part(x, place, 0, size - by)], axis=place
            )
    return x


def _to_length(values: tuple[int, ...], count: int) -> tuple[int, ...]:
    return values * count if len(values) == 1 else values


def _part(x: Tensor, axis: int, start: int, stop: int) -> Tensor:
    """x[start:stop] along `axis`."""
    return x[(*[slice(None)] * axis, slice(start, stop))]


def repeat(x: Tensor, repeats: int | Tensor, /, *, axis: int | None = None) -> Tensor:
    """Each element of `x` repeated along `axis` (of the flattened tensor by default).

    Args:
        repeats: how often, one number for all or a one-dimensional integer tensor with one number
            for each. The shape of the result depends on these numbers, so a tensor of them must be
            concrete.

    Raises:
        ValueError: a number is negative, or there are more or fewer of them than elements.
        TracerError: `repeats` is traced by jit or vmap.
    """
    x = asarray(x)
    if axis is None:
        x, axis = reshape(x, -1), 0
    (place,) = normalize_axes("repeat", axis, x.ndim)
    size = x.shape[place]
    if isinstance(repeats, int | np.integer):
        counts = np.asarray(repeats, np.int64)
    else:
        given = asarray(repeats)
        if given.dtype not in dtypes.INTEGERS:
            raise TypeError(f"repeat: repeats are integers, got {given.aval}")
        counts = given.concrete("repeat, whose result's shape depends on repeats").numpy()
    if counts.ndim > 1 or (counts.ndim == 1 and counts.size not in (1, size)):
        raise ValueError(
            f"repeat: repeats is one number or {size}, one for each place along axis {place} of "
            f"shape {x.shape}; got shape {counts.shape}"
        )
    if (counts < 0).any():
        raise ValueError(f"repeat: repeats must not be negative, got {counts.tolist()}")
    places = np.repeat(np.arange(size), counts.astype(np.int64))
    return take(x, asarray(places, device=x.device), axis=place)


def tile(x: Tensor, repetitions: Axes, /) -> Tensor:
    """`x` laid side by side `repetitions[i]` times along axis i; the shorter of `x.shape` and
    `repetitions` is filled up with ones at the front."""
    x = asarray(x)
    times = tuple(integers(repetitions, "tile: repetitions is an int or a sequence of ints"))
    if any(n < 0 for n in times):
        raise ValueError(f"tile: repetitions must not be negative, got {repetitions}")
    ndim = max(x.ndim, len(times))
    times = (1,) * (ndim - len(times)) + times
    sizes = (1,) * (ndim - x.ndim) + x.shape
    apart = reshape(x, tuple(itertools.chain.from_iterable((1, n) for n in sizes)))
    wide: Shape = tuple(itertools.chain.from_iterable(zip(times, sizes, strict=True)))
    return reshape(
        broadcast_to(apart, wide), tuple(t * n for t, n in zip(times, sizes, strict=True))
    )


def unstack(x: Tensor, /, *, axis: int = 0) -> tuple[Tensor, ...]:
    """The slices of `x` along `axis`, which they lack: the inverse of `stack`."""
    x = asarray(x)
    (place,) = normalize_axes("unstack", axis, x.ndim)
    return tuple(x[(*[slice(None)] * place, i)] for i in range(x.shape[place]))


def meshgrid(*arrays: Tensor, indexing: str = "xy") -> list[Tensor]:
    """Coordinate grids of one-dimensional tensors of one dtype: shape (n1, n2, n3, ...) with
    indexing "ij", (n2, n1, n3, ...) with "xy".

    Raises:
        ValueError: `indexing` is neither, a tensor has more than one dimension, or dtypes differ.
    """
    if indexing not in ("xy", "ij"):
        raise ValueError(f'meshgrid: indexing is "xy" or "ij", got {indexing!r}')
    tensors = [asarray(a) for a in arrays]
    if any(t.ndim > 1 for t in tensors) or len({t.dtype for t in tensors}) > 1:
        raise ValueError(
            "meshgrid: takes one-dimensional tensors of one dtype, got "
            f"{[str(t.aval) for t in tensors]}"
        )
    order = list(range(len(tensors)))
    if indexing == "xy":
        order[:2] = order[:2][::-1]
    grid = [
        reshape(t, tuple(-1 if place == axis else 1 for axis in range(len(tensors))))
        for t, place in zip(tensors, order, strict=True)
    ]
    return broadcast_arrays(*grid)


def tril(x: Tensor, /, *, k: int = 0) -> Tensor:
    """The lower triangle of the last two axes, up to the k-th diagonal; zeros above."""
    x = asarray(x)
    return where(_below("tril", x, k), x, full((), 0, dtype=x.dtype, device=x.device))


def triu(x: Tensor, /, *, k: int = 0) -> Tensor:
    """The upper triangle of the last two axes, from the k-th diagonal; zeros below."""
    x = asarray(x)
    return where(_below("triu", x, k - 1), full((), 0, dtype=x.dtype, device=x.device), x)


def _below(op: str, x: Tensor, k: int) -> Tensor:
    """True on and below the k-th diagonal of a matrix shaped like those of `x`."""
    if x.ndim < 2:
        raise ValueError(f"{op}: needs at least two dimensions, got shape {x.shape}")
    k = as_integer(f"{op}: k is an integer", k)
    rows, columns = x.shape[-2:]
    k = max(-rows, min(k, columns))  # any integer may be given, and int64 overflows
    return less_equal(expand_dims(iota((columns,), 0), axis=0), iota((rows, 1), 0) + k)


def diff(
    x: Tensor,
    /,
    *,
    axis: int = -1,
    n: int = 1,
    prepend: Tensor | None = None,
    append: Tensor | None = None,
) -> Tensor:
    """The n-th differences of neighbours along `axis`, after `prepend` and `append` are joined to
    `x` there. Of booleans: whether neighbours differ."""
    x = asarray(x)
    (place,) = normalize_axes("diff", axis, x.ndim)
    n = as_count("diff: n", n)
    if n == 0:
        return x
    parts: list[Any] = [part for part in (prepend, x, append) if part is not None]
    x = concat(parts, axis=place)
    difference = not_equal if x.dtype == dtypes.bool_ else subtract
    for _ in range(n):
        size = x.shape[place]
        x = difference(_part(x, place, 1, size), _part(x, place, 0, max(size - 1, 0)))
    return x
