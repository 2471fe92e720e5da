"""Indexing: `x[...]` as NumPy has it, `x.at[...]` for updates, `take` and `one_hot`.

Slices, integers and new axes become slice, flip and reshape. Integer arrays become `gather`, whose
adjoint is `scatter` with addition; the other scatter modes serve `x.at`. Indices count from the end
if negative; one that is out of range raises IndexError on the CPU.
"""

from __future__ import annotations

from types import EllipsisType
from typing import Any

import numpy as np

from .. import dtypes
from ..core import Aval, Primitive, Tensor, bind
from .creation import as_count, asarray, cast, full, iota, ones_like
from .elementwise import add, equal, maximum, minimum, multiply, where
from .shape import (
    broadcast_arrays,
    broadcast_shapes,
    broadcast_to,
    flip,
    moveaxis,
    normalize_axes,
    pad_p,
    permute_dims,
    reshape,
    slice_p,
)

# ---- gather and scatter --------------------------------------------------------------------------

gather_p = Primitive("gather")  # x indexed along its first axes by integer arrays of one shape
scatter_p = Primitive(
    "scatter"
)  # (base, updates, *indices): updates combined into base at the indices by `mode`


def _check_indices(op: str, x: Aval, indices: tuple[Aval, ...]) -> None:
    for index in indices:
        if index.dtype not in dtypes.INTEGERS:
            raise TypeError(f"{op}: indices are integers, got {index}")
        if index.shape != indices[0].shape:
            raise ValueError(f"{op}: index arrays {indices[0]} and {index} differ in shape")
    if len(indices) > x.ndim:
        raise IndexError(f"{op}: {len(indices)} indices for {x}")


@gather_p.shape
def _(x: Aval, *indices: Aval) -> Aval:
    _check_indices("gather", x, indices)
    return Aval(indices[0].shape + x.shape[len(indices) :], x.dtype)


@gather_p.numpy
def _(x: np.ndarray, *indices: np.ndarray) -> np.ndarray:
    try:
        return x[indices]
    except IndexError as error:
        raise IndexError(f"gather: {error}") from None


@gather_p.vjp
def _(y: Tensor, x: Tensor, *indices: Tensor) -> Any:
    aval, device = x.aval, x.device

    def pull(g: Tensor) -> Tensor:
        return bind(
            scatter_p, full(aval.shape, 0, dtype=aval.dtype, device=device), g, *indices, mode="add"
        )

    return (pull, *[None] * len(indices))


@gather_p.batch
def _(args: list[Tensor], batched: list[bool]) -> Tensor:
    x, *indices = args
    if not any(batched[1:]):  # the batch stays behind the indexed axes
        count, index_ndim = len(indices), indices[0].ndim
        return moveaxis(bind(gather_p, moveaxis(x, 0, count), *indices), index_ndim, 0)
    indices = _batched_alike(indices, batched[1:])
    if batched[0]:
        indices = [_example_numbers(indices[0]), *indices]
    return bind(gather_p, x, *indices)


def _batched_alike(xs: list[Tensor], batched: list[bool]) -> list[Tensor]:
    size = next(x.shape[0] for x, b in zip(xs, batched, strict=True) if b)
    return [x if b else broadcast_to(x, (size, *x.shape)) for x, b in zip(xs, batched, strict=True)]


def _example_numbers(index: Tensor) -> Tensor:
    """For a batched index array, the number of the example at each place."""
    return iota(index.shape, 0)


_UFUNCS = {"add": np.add, "multiply": np.multiply, "min": np.minimum, "max": np.maximum}


@scatter_p.shape
def _(base: Aval, updates: Aval, *indices: Aval, mode: str) -> Aval:
    _check_indices("scatter", base, indices)
    expected = indices[0].shape + base.shape[len(indices) :]
    if updates.shape != expected or updates.dtype != base.dtype:
        raise ValueError(
            f"scatter: updates are {updates}, but {base} at these indices takes {expected}"
        )
    return base


@scatter_p.numpy
def _(base: np.ndarray, updates: np.ndarray, *indices: np.ndarray, mode: str) -> np.ndarray:
    result = np.array(base)
    try:
        if mode == "set":
            result[indices] = updates
        else:
            _UFUNCS[mode].at(result, indices, updates)
    except IndexError as error:
        raise IndexError(f"scatter: {error}") from None
    return result


@scatter_p.vjp
def _(y: Tensor, base: Tensor, updates: Tensor, *indices: Tensor, mode: str) -> Any:
    def at(g: Tensor) -> Tensor:
        return bind(gather_p, g, *indices)

    no_index = (None,) * len(indices)
    if mode == "add":
        return (lambda g: g, at, *no_index)
    if mode == "set":
        nothing = full(updates.shape, 0, dtype=updates.dtype, device=updates.device)
        written = _last_writes(base, updates, indices)
        return (
            lambda g: bind(scatter_p, g, nothing, *indices, mode="set"),
            lambda g: where(written, at(g), 0.0),
            *no_index,
        )
    if mode == "multiply":
        factor = bind(scatter_p, ones_like(base), updates, *indices, mode="multiply")
        # The product of everything else at that place; at a zero update, right if it is the only
        # update there.
        others = where(updates == 0, at(base), at(y) / where(updates == 0, 1.0, updates))
        return (lambda g: g * factor, lambda g: at(g) * others, *no_index)
    kept, hit = cast(base == y, base.dtype), cast(updates == at(y), base.dtype)
    share = bind(scatter_p, kept, hit, *indices, mode="add")  # equal extrema share the gradient
    return (lambda g: g * kept / share, lambda g: at(g) * hit / at(share), *no_index)


def _last_writes(base: Tensor, updates: Tensor, indices: tuple[Tensor, ...]) -> Tensor:
    """Which updates survive a scatter with mode "set": of several at one place, one does."""
    numbers = reshape(iota((updates.size,), 0), updates.shape)
    nobody = full(base.shape, -1, dtype=dtypes.default_int, device=base.device)
    return equal(
        bind(gather_p, bind(scatter_p, nobody, numbers, *indices, mode="set"), *indices), numbers
    )


@scatter_p.batch
def _(args: list[Tensor], batched: list[bool], *, mode: str) -> Tensor:
    base, updates, *indices = _batched_alike(args, batched)
    return bind(scatter_p, base, updates, _example_numbers(indices[0]), *indices, mode=mode)


# ---- x[index] ------------------------------------------------------------------------------------


def getitem(x: Tensor, key: Any, /) -> Tensor:
    """`x[key]` as NumPy has it: integers, slices, `...`, None, integer arrays, boolean masks
    (outside of jit).

    Raises:
        IndexError: too many indices, or one is out of range.
        TypeError: an entry is none of these.
    """
    if isinstance(key, _ARRAYS) and getattr(key, "ndim", 0) == 0 and _is_mask(key):
        return getitem(reshape(x, (1, *x.shape)), reshape(asarray(key), (1,)))
    entries, dots = _expand(x, key)
    if not any(isinstance(e, Tensor) for e in entries):
        return _basic(x, entries)
    # First what is no array; then the arrays (an integer beside an array counts as one).
    entries = [asarray(e) if _is_int(e) else e for e in entries]
    x = _basic(x, [slice(None) if isinstance(e, Tensor) else e for e in entries])
    places = [i for i, e in enumerate(entries) if isinstance(e, Tensor)]
    arrays = broadcast_arrays(*[e for e in entries if isinstance(e, Tensor)])
    rest = [i for i in range(x.ndim) if i not in places]
    result = bind(gather_p, permute_dims(x, (*places, *rest)), *arrays)
    if not _adjacent(places, dots) or places[0] == 0:
        return result
    count = arrays[0].ndim
    return moveaxis(result, tuple(range(count)), tuple(range(places[0], places[0] + count)))


_ARRAYS = (Tensor, np.ndarray, np.bool_, bool)


def _is_mask(index: Any) -> bool:
    return isinstance(index, bool) or index.dtype == dtypes.bool_


def _is_int(entry: Any) -> bool:
    return isinstance(entry, int | np.integer) and not isinstance(entry, bool)


def _adjacent(places: list[int], dots: int | None) -> bool:
    """Whether the arrays among the entries stand side by side. If not, what they index comes first
    in the result. As in NumPy, a `...` between two of them counts even if it stands for no axis."""
    first, last = places[0], places[-1]
    return last - first + 1 == len(places) and not (dots is not None and first < dots <= last)


def _expand(x: Tensor, index: Any) -> tuple[list[Any], int | None]:
    """The entries of an index: ints, slices, None and integer tensors, with `...` and boolean masks
    spelt out; and before which of them `...` stood."""
    given = [_entry(e) for e in (index if isinstance(index, tuple) else (index,))]
    used = sum(_axes_used(e) for e in given)
    if used > x.ndim:
        raise IndexError(f"too many indices: {used} for shape {x.shape}")
    if sum(e is Ellipsis for e in given) > 1:
        raise IndexError("an index has at most one ...")
    if not any(e is Ellipsis for e in given):
        given += [slice(None)] * (x.ndim - used)
    entries: list[Any] = []
    dots = None
    axis = 0
    for entry in given:
        if entry is Ellipsis:
            dots = len(entries)
            entries += [slice(None)] * (x.ndim - used)
            axis += x.ndim - used
        elif isinstance(entry, Tensor) and entry.dtype == dtypes.bool_:
            entries += _mask_to_indices(x, entry, axis)
        else:
            entries.append(entry)
        axis += _axes_used(entry)
    return entries, dots


def _entry(entry: Any) -> Any:
    """One entry of an index, its arrays as tensors."""
    if _is_int(entry) or entry is None or isinstance(entry, slice | EllipsisType):
        return entry
    if not isinstance(entry, Tensor | np.ndarray | list | bool | np.bool_):
        raise TypeError(
            f"cannot index a tensor with {entry!r} ({type(entry).__name__}); "
            "use integers, slices, ..., None, or integer or boolean arrays"
        )
    array = asarray(entry)
    if isinstance(entry, list) and not array.size:
        array = cast(array, dtypes.default_int)
    if array.dtype not in dtypes.INTEGERS and array.dtype != dtypes.bool_:
        raise IndexError(f"an index array holds integers or booleans, got {array.dtype}")
    return array


def _axes_used(entry: Any) -> int:
    if entry is None or entry is Ellipsis:
        return 0
    if isinstance(entry, Tensor) and entry.dtype == dtypes.bool_:
        return max(entry.ndim, 1)
    return 1


def _mask_to_indices(x: Tensor, mask: Tensor, axis: int) -> list[Tensor]:
    if mask.ndim == 0:
        raise IndexError("a boolean index without dimensions must be the only one; use tl.where")
    sizes = x.shape[axis : axis + mask.ndim]
    if any(m not in (n, 0) for m, n in zip(mask.shape, sizes, strict=True)):
        raise IndexError(
            f"boolean index of shape {mask.shape} does not match shape {x.shape} at axis {axis}"
        )
    found = np.nonzero(mask.concrete("indexing with a boolean mask").numpy())
    return [asarray(i) for i in found]


def _basic(x: Tensor, entries: list[Any]) -> Tensor:
    limits, flips, shape = _plan(x, entries)
    if any(limit != (0, n, 1) for limit, n in zip(limits, x.shape, strict=True)):
        x = bind(slice_p, x, limits=limits)
    if flips:
        x = flip(x, axis=flips)
    return reshape(x, shape)


def _plan(
    x: Tensor, entries: list[Any]
) -> tuple[tuple[tuple[int, int, int], ...], tuple[int, ...], tuple[int, ...]]:
    """What ints, slices and None do: the limits of a slice, the axes to flip afterwards, the final
    shape."""
    limits: list[tuple[int, int, int]] = []
    flips: list[int] = []
    shape: list[int] = []
    for entry in entries:
        if entry is None:
            shape.append(1)
            continue
        axis = len(limits)
        size = x.shape[axis]
        if _is_int(entry):
            if not -size <= entry < size:
                raise IndexError(
                    f"index {entry} is out of range for axis {axis} of shape {x.shape}"
                )
            limits.append((int(entry) % size, int(entry) % size + 1, 1))
            continue
        kept = range(*entry.indices(size))
        shape.append(len(kept))
        if not kept:
            limits.append((0, 0, 1))
        elif kept.step > 0:
            limits.append((kept[0], kept[-1] + 1, kept.step))
        else:
            limits.append((kept[-1], kept[0] + 1, -kept.step))
            flips.append(axis)
    return tuple(limits), tuple(flips), tuple(shape)


# ---- x.at[index] ---------------------------------------------------------------------------------


class At:
    """`x.at[index]`: the methods return a copy of `x` updated there. Of several updates at one
    place, all count (except by `set`)."""

    def __init__(self, x: Tensor):
        self._x = x

    def __getitem__(self, index: Any) -> _Place:
        return _Place(self._x, index)


class _Place:
    def __init__(self, x: Tensor, index: Any):
        self._x, self._index = x, index

    def get(self) -> Tensor:
        """`x[index]`."""
        return getitem(self._x, self._index)

    def set(self, values: Any) -> Tensor:
        """`values` there; of several updates at one place, one wins."""
        return _update(self._x, self._index, values, "set")

    def add(self, values: Any) -> Tensor:
        """`values` added there."""
        return _update(self._x, self._index, values, "add")

    def multiply(self, values: Any) -> Tensor:
        """Multiplied by `values` there."""
        return _update(self._x, self._index, values, "multiply")

    def min(self, values: Any) -> Tensor:
        """The smaller of itself and `values` there."""
        return _update(self._x, self._index, values, "min")

    def max(self, values: Any) -> Tensor:
        """The larger of itself and `values` there."""
        return _update(self._x, self._index, values, "max")


_COMBINE = {"add": add, "multiply": multiply, "min": minimum, "max": maximum}


def _update(x: Tensor, index: Any, values: Any, mode: str) -> Tensor:
    values = _as_updates(x, values, mode)
    entries, dots = _expand(x, index)
    if any(isinstance(e, Tensor) for e in entries):
        return _update_at_arrays(x, index, entries, dots, values, mode)
    limits, flips, shape = _plan(x, entries)
    values = _fit(values, shape, mode)
    kept = tuple(len(range(*limit)) for limit in limits)
    values = reshape(values, kept)
    if flips:
        values = flip(values, axis=flips)
    config = tuple(
        (start, n - (start + (size - 1) * step + 1) if size else n - start, step - 1)
        for n, size, (start, _, step) in zip(x.shape, kept, limits, strict=True)
    )
    if mode == "set":
        everywhere = full(kept, True, dtype=dtypes.bool_, device=x.device)
        touched = bind(pad_p, everywhere, config=config, value=False)
        return where(touched, bind(pad_p, values, config=config, value=0), x)
    return _COMBINE[mode](x, bind(pad_p, values, config=config, value=_neutral(mode, x.dtype)))


def _as_updates(x: Tensor, values: Any, mode: str) -> Tensor:
    """The new values in the dtype of `x`, if they fit into it."""
    if isinstance(values, bool | int | float):
        if dtypes.of_python_scalar(values, x.dtype) == x.dtype:
            return asarray(values, dtype=x.dtype)
        given = type(values).__name__
    else:
        values = asarray(values)
        too_wide = values.ndim and dtypes.promote(x.dtype, values.dtype) != x.dtype
        is_float = dtypes.is_float(values.dtype)
        if not (is_float and (too_wide or not dtypes.is_float(x.dtype))):
            return cast(values, x.dtype)
        given = f"dtype {values.dtype}"
    raise TypeError(f"at[...].{mode}: updates of {given} do not fit into {x.dtype}; use astype")


def _fit(values: Tensor, shape: tuple[int, ...], mode: str) -> Tensor:
    if broadcast_shapes(f"at[...].{mode}", values.shape, shape) != shape:
        raise ValueError(
            f"at[...].{mode}: values of shape {values.shape} do not fit a place of shape {shape}"
        )
    return broadcast_to(values, shape)


def _neutral(mode: str, dtype: np.dtype) -> Any:
    """The value that leaves its partner as it is."""
    if mode in ("add", "multiply"):
        return 0 if mode == "add" else 1
    if dtypes.is_float(dtype):
        return np.inf if mode == "min" else -np.inf
    if dtype == dtypes.bool_:
        return mode == "min"
    limits = np.iinfo(dtype)
    return limits.max if mode == "min" else limits.min


def _update_at_arrays(
    x: Tensor, index: Any, entries: list[Any], dots: int | None, values: Tensor, mode: str
) -> Tensor:
    if any(e is None or (isinstance(e, slice) and e != slice(None)) for e in entries):
        # Beside partial slices or new axes: update the flattened tensor at the positions that
        # indexing picks.
        positions = getitem(reshape(iota((x.size,), 0), x.shape), index)
        values = _fit(values, positions.shape, mode)
        flat = bind(
            scatter_p, reshape(x, -1), reshape(values, -1), reshape(positions, -1), mode=mode
        )
        return reshape(flat, x.shape)
    entries = [asarray(e) if _is_int(e) else e for e in entries]
    places = [i for i, e in enumerate(entries) if isinstance(e, Tensor)]
    arrays = broadcast_arrays(*[e for e in entries if isinstance(e, Tensor)])
    order = (*places, *[i for i in range(x.ndim) if i not in places])
    moved = permute_dims(x, order)
    count = arrays[0].ndim
    start = places[0] if _adjacent(places, dots) else 0
    rest = moved.shape[len(places) :]
    values = _fit(values, rest[:start] + arrays[0].shape + rest[start:], mode)
    values = moveaxis(values, tuple(range(start, start + count)), tuple(range(count)))
    updated = bind(scatter_p, moved, values, *arrays, mode=mode)
    return permute_dims(updated, tuple(int(i) for i in np.argsort(order)))


# ---- named forms ---------------------------------------------------------------------------------


def take(x: Tensor, indices: Tensor, /, *, axis: int | None = None) -> Tensor:
    """The elements of `x` at `indices` along `axis` (may be left out in one dimension)."""
    x, indices = asarray(x), asarray(indices)
    if axis is None and x.ndim != 1:
        raise ValueError(f"take: needs an axis for shape {x.shape}")
    where_ = normalize_axes("take", axis or 0, x.ndim)[0]
    return getitem(x, (*[slice(None)] * where_, indices))


def take_along_axis(x: Tensor, indices: Tensor, /, *, axis: int = -1) -> Tensor:
    """For each place of `indices`, the element of `x` whose position along `axis` is given there;
    other axes broadcast."""
    x, indices = asarray(x), asarray(indices)
    where_ = normalize_axes("take_along_axis", axis, x.ndim)[0]
    if indices.ndim != x.ndim:
        raise ValueError(
            f"take_along_axis: indices {indices.aval} and {x.aval} differ in dimensions"
        )
    sizes = [
        (1, 1) if i == where_ else (m, n)
        for i, (m, n) in enumerate(zip(x.shape, indices.shape, strict=True))
    ]
    shape = broadcast_shapes("take_along_axis", *zip(*sizes, strict=True)) if sizes else ()
    shape = tuple(indices.shape[i] if i == where_ else n for i, n in enumerate(shape))
    x = broadcast_to(x, tuple(x.shape[i] if i == where_ else n for i, n in enumerate(shape)))
    indices = broadcast_to(indices, shape)
    return bind(gather_p, x, *[indices if i == where_ else iota(shape, i) for i in range(x.ndim)])


def one_hot(indices: Tensor, num_classes: int, *, dtype: Any = None, axis: int = -1) -> Tensor:
    """1 at each index and 0 elsewhere: shape (*indices.shape, num_classes), float32 by default; a
    row of zeros if out of range.

    Example:
        >>> print(nn.one_hot(tl.asarray([0, 2]), 3))
        [[1. 0. 0.]
         [0. 0. 1.]]
    """
    indices = asarray(indices)
    if indices.dtype not in dtypes.INTEGERS:
        raise TypeError(f"one_hot: takes integer class numbers, got {indices.aval}")
    count = as_count("one_hot: num_classes", num_classes)
    classes = iota((count,), 0)  # int64, since a narrow dtype may not count that far
    hot = equal(reshape(cast(indices, classes.dtype), (*indices.shape, 1)), classes)
    result = cast(hot, dtypes.default_float if dtype is None else dtypes.canonical(dtype))
    return result if axis in (-1, indices.ndim) else moveaxis(result, -1, axis)
