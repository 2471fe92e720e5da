"""Shapes: reshape, permute, broadcast and its adjoint sum, pad and its adjoint slice, concatenate,
flip.

Each primitive's derivative is another one of this file, so every order of derivative stays here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import dtypes
from ..core import Aval, Primitive, Tensor, bind
from .creation import Shape, as_shape, asarray, integers

Axes = tuple[int, ...]


# ---- reshape -------------------------------------------------------------------------------------

reshape_p = Primitive("reshape")


@reshape_p.shape
def _(x: Aval, *, shape: Shape) -> Aval:
    if math.prod(shape) != x.size:
        raise ValueError(
            f"reshape: {x} has {x.size} elements, shape {shape} has {math.prod(shape)}"
        )
    return Aval(shape, x.dtype)


@reshape_p.numpy
def _(x: np.ndarray, *, shape: Shape) -> np.ndarray:
    return np.reshape(x, shape)


@reshape_p.vjp
def _(y: Tensor, x: Tensor, *, shape: Shape) -> Any:
    source = x.shape
    return lambda g: bind(reshape_p, g, shape=source)


@reshape_p.batch
def _(args: list[Tensor], batched: list[bool], *, shape: Shape) -> Tensor:
    return bind(reshape_p, args[0], shape=(args[0].shape[0], *shape))


def reshape(x: Tensor, /, shape: int | Shape, *, copy: bool | None = None) -> Tensor:
    """`x` with another shape and the same elements in row-major order; one size may be -1."""
    x = asarray(x)
    sizes = integers(shape, "reshape: the shape is an int or a sequence of ints")
    if sizes.count(-1) > 1:
        raise ValueError(f"reshape: only one size may be -1, got shape {tuple(sizes)}")
    if -1 in sizes:
        known = -math.prod(sizes)
        if known == 0 or x.size % known:
            raise ValueError(
                f"reshape: {x.size} elements of shape {x.shape} do not fit shape {tuple(sizes)}"
            )
        sizes[sizes.index(-1)] = x.size // known
    if any(n < 0 for n in sizes):
        raise ValueError(f"reshape: a shape has no negative sizes but one -1, got {tuple(sizes)}")
    target = tuple(sizes)
    return x if target == x.shape else bind(reshape_p, x, shape=target)


def expand_dims(x: Tensor, /, axis: int | Axes = 0) -> Tensor:
    """`x` with axes of size 1 inserted so that they stand at `axis` in the result."""
    x = asarray(x)
    new = (axis,) if isinstance(axis, int) else tuple(axis)
    ndim = x.ndim + len(new)
    places = normalize_axes("expand_dims", new, ndim)
    sizes = iter(x.shape)
    return reshape(x, tuple(1 if i in places else next(sizes) for i in range(ndim)))


def squeeze(x: Tensor, /, axis: int | Axes | None = None) -> Tensor:
    """`x` without the axes of size 1 at `axis` (all of them by default)."""
    x = asarray(x)
    if axis is None:
        gone: Axes = tuple(i for i, n in enumerate(x.shape) if n == 1)
    else:
        gone = normalize_axes("squeeze", axis, x.ndim)
    for i in gone:
        if x.shape[i] != 1:
            raise ValueError(f"squeeze: axis {i} of shape {x.shape} has size {x.shape[i]}, not 1")
    return reshape(x, tuple(n for i, n in enumerate(x.shape) if i not in gone))


# ---- permute -------------------------------------------------------------------------------------

permute_p = Primitive("permute")


@permute_p.shape
def _(x: Aval, *, axes: Axes) -> Aval:
    return Aval(tuple(x.shape[a] for a in axes), x.dtype)


@permute_p.numpy
def _(x: np.ndarray, *, axes: Axes) -> np.ndarray:
    return np.transpose(x, axes)


@permute_p.vjp
def _(y: Tensor, x: Tensor, *, axes: Axes) -> Any:
    inverse = tuple(int(i) for i in np.argsort(axes))
    return lambda g: bind(permute_p, g, axes=inverse)


@permute_p.batch
def _(args: list[Tensor], batched: list[bool], *, axes: Axes) -> Tensor:
    return bind(permute_p, args[0], axes=(0, *(a + 1 for a in axes)))


def permute_dims(x: Tensor, /, axes: Axes) -> Tensor:
    """`x` with its axes in the order `axes`."""
    x = asarray(x)
    order = normalize_axes("permute_dims", axes, x.ndim)
    if len(order) != x.ndim:
        raise ValueError(f"permute_dims: axes {axes} do not name each axis of shape {x.shape} once")
    return x if order == tuple(range(x.ndim)) else bind(permute_p, x, axes=order)


def matrix_transpose(x: Tensor, /) -> Tensor:
    """`x` with its last two axes exchanged."""
    x = asarray(x)
    if x.ndim < 2:
        raise ValueError(f"matrix_transpose: needs at least two dimensions, got shape {x.shape}")
    return permute_dims(x, (*range(x.ndim - 2), x.ndim - 1, x.ndim - 2))


def moveaxis(x: Tensor, source: int | Axes, destination: int | Axes, /) -> Tensor:
    """`x` with the axes `source` moved to `destination`; the others keep their order."""
    x = asarray(x)
    src = normalize_axes("moveaxis", source, x.ndim)
    dst = normalize_axes("moveaxis", destination, x.ndim)
    if len(src) != len(dst):
        raise ValueError(f"moveaxis: {len(src)} source axes for {len(dst)} destinations")
    order = [a for a in range(x.ndim) if a not in src]
    for to, axis in sorted(zip(dst, src, strict=True)):
        order.insert(to, axis)
    return permute_dims(x, tuple(order))


def swapaxes(x: Tensor, axis1: int, axis2: int, /) -> Tensor:
    """`x` with two axes exchanged."""
    x = asarray(x)
    first, second = (
        normalize_axes("swapaxes", axis1, x.ndim)[0],
        normalize_axes("swapaxes", axis2, x.ndim)[0],
    )
    order = list(range(x.ndim))
    order[first], order[second] = order[second], order[first]
    return permute_dims(x, tuple(order))


# ---- broadcast and sum, each other's adjoint -----------------------------------------------------

broadcast_p = Primitive("broadcast")
sum_p = Primitive("sum")  # over `axes`, which it drops


@broadcast_p.shape
def _(x: Aval, *, shape: Shape) -> Aval:
    if broadcast_shapes("broadcast_to", x.shape, shape) != shape:
        raise ValueError(f"broadcast_to: shape {x.shape} does not broadcast to {shape}")
    return Aval(shape, x.dtype)


@broadcast_p.numpy
def _(x: np.ndarray, *, shape: Shape) -> np.ndarray:
    return np.broadcast_to(x, shape)


@broadcast_p.vjp
def _(y: Tensor, x: Tensor, *, shape: Shape) -> Any:
    source = x.shape
    return lambda g: unbroadcast(g, source)


@broadcast_p.batch
def _(args: list[Tensor], batched: list[bool], *, shape: Shape) -> Tensor:
    aligned = pad_rank(args[0], len(shape))
    return bind(broadcast_p, aligned, shape=(args[0].shape[0], *shape))


@sum_p.shape
def _(x: Aval, *, axes: Axes) -> Aval:
    return Aval(tuple(n for i, n in enumerate(x.shape) if i not in axes), x.dtype)


@sum_p.numpy
def _(x: np.ndarray, *, axes: Axes) -> np.ndarray:
    narrow = x.dtype in (dtypes.float16, dtypes.bfloat16)  # accumulate in float32
    return np.sum(x, axis=axes, dtype=np.float32 if narrow else x.dtype).astype(x.dtype, copy=False)


@sum_p.vjp
def _(y: Tensor, x: Tensor, *, axes: Axes) -> Any:
    source = x.shape
    return lambda g: broadcast_to(restore_axes(g, axes), source)


@sum_p.batch
def _(args: list[Tensor], batched: list[bool], *, axes: Axes) -> Tensor:
    return bind(sum_p, args[0], axes=tuple(a + 1 for a in axes))


def broadcast_to(x: Tensor, /, shape: Shape) -> Tensor:
    """`x` repeated along new leading axes and along axes of size 1, to `shape`."""
    x = asarray(x)
    target = as_shape(shape)
    return x if x.shape == target else bind(broadcast_p, x, shape=target)


def broadcast_arrays(*arrays: Tensor) -> list[Tensor]:
    """All of them at their common shape."""
    tensors = [asarray(a) for a in arrays]
    shape = broadcast_shapes("broadcast_arrays", *[t.shape for t in tensors])
    return [broadcast_to(t, shape) for t in tensors]


def unbroadcast(g: Tensor, shape: Shape) -> Tensor:
    """`g` summed over the axes along which `shape` was broadcast: the adjoint of broadcasting."""
    if g.shape == shape:
        return g
    extra = g.ndim - len(shape)
    axes = tuple(range(extra))
    axes += tuple(i + extra for i, n in enumerate(shape) if n == 1 and g.shape[i + extra] != 1)
    return reshape(bind(sum_p, g, axes=axes), shape) if axes else reshape(g, shape)


def restore_axes(x: Tensor, axes: Axes) -> Tensor:
    """`x`, the result of a reduction, with size 1 where the reduced `axes` were."""
    return expand_dims(x, axis=axes) if axes else x


def pad_rank(x: Tensor, ndim: int) -> Tensor:
    """A batched `x` with axes of size 1 after the batch, so that each example has `ndim`
    dimensions."""
    missing = ndim - (x.ndim - 1)
    return reshape(x, (x.shape[0], *(1,) * missing, *x.shape[1:])) if missing > 0 else x


# ---- pad and slice, each other's adjoint ---------------------------------------------------------

pad_p = Primitive(
    "pad"
)  # zeros (or `value`) at both ends and `interior` ones between elements; no negative amounts
slice_p = Primitive("slice")  # x[start:stop:step] along each axis, positive steps

PadConfig = tuple[tuple[int, int, int], ...]


@pad_p.shape
def _(x: Aval, *, config: PadConfig, value: float) -> Aval:
    if len(config) != x.ndim or any(amount < 0 for axis in config for amount in axis):
        raise ValueError(
            f"pad: needs (low, high, interior) >= 0 for each axis of {x}, got {config}"
        )
    sizes = zip(x.shape, config, strict=True)
    return Aval(tuple(lo + hi + n + max(n - 1, 0) * inner for n, (lo, hi, inner) in sizes), x.dtype)


@pad_p.numpy
def _(x: np.ndarray, *, config: PadConfig, value: float) -> np.ndarray:
    shape = tuple(
        lo + hi + n + max(n - 1, 0) * inner
        for n, (lo, hi, inner) in zip(x.shape, config, strict=True)
    )
    out = np.full(shape, value, x.dtype)
    out[_inside(x.shape, config)] = x
    return out


def _inside(shape: Shape, config: PadConfig) -> tuple[slice, ...]:
    """Where the elements of an array of `shape` lie after padding."""
    return tuple(
        slice(lo, lo + max(n + (n - 1) * inner, 0), inner + 1)
        for n, (lo, _, inner) in zip(shape, config, strict=True)
    )


@pad_p.vjp
def _(y: Tensor, x: Tensor, *, config: PadConfig, value: float) -> Any:
    parts = _inside(x.shape, config)
    limits = tuple((s.start, s.stop, s.step) for s in parts)
    return lambda g: bind(slice_p, g, limits=limits)


@pad_p.batch
def _(args: list[Tensor], batched: list[bool], *, config: PadConfig, value: float) -> Tensor:
    return bind(pad_p, args[0], config=((0, 0, 0), *config), value=value)


Limits = tuple[tuple[int, int, int], ...]


@slice_p.shape
def _(x: Aval, *, limits: Limits) -> Aval:
    for n, (start, stop, step) in zip(x.shape, limits, strict=True):
        if not (0 <= start <= stop <= n and step > 0):
            raise ValueError(f"slice: limits {limits} do not fit {x}")
    return Aval(tuple(-(-(stop - start) // step) for start, stop, step in limits), x.dtype)


@slice_p.numpy
def _(x: np.ndarray, *, limits: Limits) -> np.ndarray:
    return x[tuple(slice(*limit) for limit in limits)]


@slice_p.vjp
def _(y: Tensor, x: Tensor, *, limits: Limits) -> Any:
    config = tuple(
        (start, n - start - (kept + (kept - 1) * (step - 1) if kept else 0), step - 1)
        for n, kept, (start, _, step) in zip(x.shape, y.shape, limits, strict=True)
    )
    return lambda g: bind(pad_p, g, config=config, value=0)


@slice_p.batch
def _(args: list[Tensor], batched: list[bool], *, limits: Limits) -> Tensor:
    return bind(slice_p, args[0], limits=((0, args[0].shape[0], 1), *limits))


def pad(x: Tensor, /, pad_width: Any, *, constant_values: float = 0) -> Tensor:
    """`x` with `constant_values` around it. `pad_width`: an int, a pair (low, high), or one pair
    for each axis."""
    x = asarray(x)
    given = np.asarray(pad_width)
    if (
        given.dtype.kind not in "iu"
        or given.shape not in ((), (2,), (1, 2), (x.ndim, 2))
        or (given < 0).any()
    ):
        raise ValueError(
            "pad: pad_width is an int, a pair (low, high) or one pair for each of the "
            f"{x.ndim} axes of {x.aval}, none negative; got {pad_width!r}"
        )
    widths = np.broadcast_to(given, (x.ndim, 2))
    config = tuple((int(lo), int(hi), 0) for lo, hi in widths)
    return bind(pad_p, x, config=config, value=constant_values)


# ---- concatenate ---------------------------------------------------------------------------------

concat_p = Primitive("concat")


@concat_p.shape
def _(*xs: Aval, axis: int) -> Aval:
    first = xs[0]
    for x in xs[1:]:
        if x.dtype != first.dtype or x.ndim != first.ndim:
            raise ValueError(f"concat: {first} and {x} do not fit together")
        if any(
            m != n for i, (m, n) in enumerate(zip(first.shape, x.shape, strict=True)) if i != axis
        ):
            raise ValueError(f"concat along axis {axis}: {first} and {x} differ along another axis")
    total = sum(x.shape[axis] for x in xs)
    return Aval((*first.shape[:axis], total, *first.shape[axis + 1 :]), first.dtype)


@concat_p.numpy
def _(*xs: np.ndarray, axis: int) -> np.ndarray:
    return np.concatenate(xs, axis)


@concat_p.vjp
def _(y: Tensor, *xs: Tensor, axis: int) -> Any:
    ends = np.cumsum([x.shape[axis] for x in xs]).tolist()
    starts = [0, *ends[:-1]]

    def part(start: int, end: int) -> Any:
        def pull(g: Tensor) -> Tensor:
            limits = tuple(
                (start, end, 1) if i == axis else (0, n, 1) for i, n in enumerate(g.shape)
            )
            return bind(slice_p, g, limits=limits)

        return pull

    return tuple(part(start, end) for start, end in zip(starts, ends, strict=True))


@concat_p.batch
def _(args: list[Tensor], batched: list[bool], *, axis: int) -> Tensor:
    size = next(x.shape[0] for x, b in zip(args, batched, strict=True) if b)
    every = [
        x if b else broadcast_to(x, (size, *x.shape)) for x, b in zip(args, batched, strict=True)
    ]
    return bind(concat_p, *every, axis=axis + 1)


def concat(arrays: Sequence[Tensor], /, *, axis: int | None = 0) -> Tensor:
    """The arrays joined along an existing axis (flattened first if `axis` is None), at their common
    dtype."""
    tensors = [asarray(a) for a in arrays]
    if not tensors:
        raise ValueError("concat: needs at least one array")
    if axis is None:
        tensors, axis = [reshape(t, -1) for t in tensors], 0
    dtype = dtypes.result_type(*tensors)
    tensors = [asarray(t, dtype=dtype) for t in tensors]
    where = normalize_axes("concat", axis, tensors[0].ndim)[0]
    return tensors[0] if len(tensors) == 1 else bind(concat_p, *tensors, axis=where)


def stack(arrays: Sequence[Tensor], /, *, axis: int = 0) -> Tensor:
    """Arrays of one shape joined along a new axis."""
    tensors = [asarray(a) for a in arrays]
    if not tensors:
        raise ValueError("stack: needs at least one array")
    if len({t.shape for t in tensors}) > 1:
        raise ValueError(f"stack: shapes differ: {[t.shape for t in tensors]}")
    return concat([expand_dims(t, axis=axis) for t in tensors], axis=axis)


# ---- flip ----------------------------------------------------------------------------------------

flip_p = Primitive("flip")


@flip_p.shape
def _(x: Aval, *, axes: Axes) -> Aval:
    return x


@flip_p.numpy
def _(x: np.ndarray, *, axes: Axes) -> np.ndarray:
    return np.flip(x, axes)


@flip_p.vjp
def _(y: Tensor, x: Tensor, *, axes: Axes) -> Any:
    return lambda g: bind(flip_p, g, axes=axes)


@flip_p.batch
def _(args: list[Tensor], batched: list[bool], *, axes: Axes) -> Tensor:
    return bind(flip_p, args[0], axes=tuple(a + 1 for a in axes))


def flip(x: Tensor, /, *, axis: int | Axes | None = None) -> Tensor:
    """`x` reversed along `axis` (every axis by default)."""
    x = asarray(x)
    return bind(flip_p, x, axes=normalize_axes("flip", axis, x.ndim))


# ---- helpers -------------------------------------------------------------------------------------


def normalize_axes(op: str, axis: int | Sequence[int] | None, ndim: int) -> Axes:
    """`axis` as a tuple of non-negative ints; None is every axis.

    Raises:
        numpy.exceptions.AxisError: an axis is out of range; a ValueError and an IndexError.
        ValueError: an axis is named twice.
        TypeError: an axis is no integer.
    """
    if axis is None:
        return tuple(range(ndim))
    rule = "axis is an int, a sequence of ints or None"
    given = [axis] if type(axis) is int else integers(axis, f"{op}: {rule}")
    for a in given:
        if not -ndim <= a < ndim:
            raise np.exceptions.AxisError(f"{op}: axis {a} is out of range for {ndim} dimensions")
    result = tuple([a % ndim for a in given])
    if len(set(result)) != len(result):
        raise ValueError(f"{op}: axis {axis} names an axis twice")
    return result


def broadcast_shapes(op: str, *shapes: Shape) -> Shape:
    """The common shape of `shapes` by the usual broadcasting rules.

    Raises:
        ValueError: they do not broadcast together.
    """
    ndim = max((len(s) for s in shapes), default=0)
    result = []
    for i in range(-ndim, 0):
        sizes = {s[i] for s in shapes if len(s) >= -i} - {1}
        if len(sizes) > 1:
            raise ValueError(
                f"{op}: shapes {' and '.join(map(str, shapes))} do not broadcast together"
            )
        result.append(sizes.pop() if sizes else 1)
    return tuple(result)
