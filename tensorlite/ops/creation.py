"""Tensors from nothing or from other arrays: `asarray`, `full`, `zeros`, `ones`, `arange`, `eye`,
and the cast between dtypes.

The transforms import this file for the zeros and ones that they need; so it imports none of them.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import dtypes
from ..core import Aval, Primitive, Tensor, Tracer, TracerError, bind
from ..device import Device, current_device, get_device

Shape = tuple[int, ...]

full_p = Primitive("full", differentiable=False)


@full_p.shape
def _(*, shape: Shape, dtype: np.dtype, value: Any, device: Device) -> Aval:
    return Aval(shape, dtype)


@full_p.numpy
def _(*, shape: Shape, dtype: np.dtype, value: Any, device: Device) -> np.ndarray:
    return np.full(shape, value, dtype)


iota_p = Primitive("iota", differentiable=False)  # 0, 1, 2, ... along one axis


@iota_p.shape
def _(*, shape: Shape, dtype: np.dtype, axis: int, device: Device) -> Aval:
    return Aval(shape, dtype)


@iota_p.numpy
def _(*, shape: Shape, dtype: np.dtype, axis: int, device: Device) -> np.ndarray:
    along = np.arange(shape[axis]).astype(dtype)
    return np.broadcast_to(
        along.reshape([-1 if i == axis else 1 for i in range(len(shape))]), shape
    )


cast_p = Primitive("cast")


@cast_p.shape
def _(x: Aval, *, dtype: np.dtype) -> Aval:
    return Aval(x.shape, dtype)


@cast_p.numpy
def _(x: np.ndarray, *, dtype: np.dtype) -> np.ndarray:
    return x.astype(dtype)


@cast_p.vjp
def _(y: Tensor, x: Tensor, *, dtype: np.dtype) -> Any:
    source = x.dtype
    return lambda g: cast(g, source) if dtypes.is_float(dtype) and dtypes.is_float(source) else None


@cast_p.batch
def _(args: list[Tensor], batched: list[bool], *, dtype: np.dtype) -> Tensor:
    return bind(cast_p, args[0], dtype=dtype)


def cast(x: Tensor, dtype: np.dtype) -> Tensor:
    """`x` as `dtype`; `x` itself when it has it already."""
    return x if x.dtype == dtype else bind(cast_p, x, dtype=dtype)


transfer_p = Primitive("transfer")  # to another device


@transfer_p.shape
def _(x: Aval, *, device: Device) -> Aval:
    return x


@transfer_p.vjp
def _(y: Tensor, x: Tensor, *, device: Device) -> Any:
    home = x.device
    return lambda g: bind(transfer_p, g, device=home)


@transfer_p.batch
def _(args: list[Tensor], batched: list[bool], *, device: Device) -> Tensor:
    return bind(transfer_p, args[0], device=device)


def asarray(
    obj: Any, /, *, dtype: Any = None, device: str | Device | None = None, copy: bool | None = None
) -> Tensor:
    """A tensor of the values of `obj`: a tensor, a NumPy array or anything NumPy understands, a
    Python scalar, nested lists. A complex Python scalar counts as its real part if the other is 0.

    Args:
        dtype: wanted dtype. Default: that of `obj`; Python floats become float32, ints int64.
        device: where to put it. Default: where `obj` is if it is a tensor, else the default device.
        copy: True always copies, False never (ValueError where a copy is needed), None copies
            memory that could still be written to, since tensors are immutable.

    Raises:
        TypeError: `obj` is no array of a supported dtype.
        ValueError: nested lists are ragged, or copy=False and a copy is needed.
        OverflowError: a Python integer does not fit `dtype`.

    Example:
        >>> tl.asarray([[1, 2], [3, 4]], dtype=tl.float32)
        Tensor([[1., 2.],
                [3., 4.]], dtype=float32, device=cpu)
        >>> tl.asarray(np.linspace(0, 1, 3))
        Tensor([0. , 0.5, 1. ], dtype=float64, device=cpu)
    """
    target = None if device is None else get_device(device)
    if isinstance(obj, Tensor):
        result: Any = _strong(obj) if obj.weak else obj
        result = result if dtype is None else cast(result, dtypes.canonical(dtype))
        if target is not None and result.device is not target:
            result = bind(transfer_p, result, device=target)
        if copy is False and result is not obj:
            raise ValueError(f"asarray: copy=False, but {obj.dtype} on {obj.device} must be copied")
        if copy and result is obj and not isinstance(obj, Tracer):
            result = Tensor(obj.device.from_numpy(np.array(obj.numpy())), obj.device)
        return result
    if isinstance(obj, list | tuple) and _holds(obj, Tensor):
        from .shape import stack  # nested lists of tensors stay differentiable

        return asarray(stack([asarray(item) for item in obj]), dtype=dtype, device=device)
    array, shared = _to_numpy(obj, None if dtype is None else dtypes.canonical(dtype))
    if copy is False and not shared:
        raise ValueError(f"asarray: copy=False, but {type(obj).__name__} must be copied")
    if shared and (copy or (copy is None and _can_change(array))):
        array = array.copy()
    home = target or current_device()
    return Tensor(home.from_numpy(array), home)


def from_dlpack(
    x: Any, /, *, device: str | Device | None = None, copy: bool | None = None
) -> Tensor:
    """A tensor of the values of `x`, an array of any library that speaks DLPack. On the CPU it
    shares the memory of `x` unless `copy` is True; writing to `x` afterwards changes the tensor.

    Raises:
        TypeError: `x` does not speak DLPack, or has a dtype that tensorlite lacks.
        ValueError: copy=False, but the values must go to another device.
        BufferError: `x` cannot be exported, e.g. because NumPy does not know its dtype.
    """
    if not hasattr(x, "__dlpack__"):
        raise TypeError(f"from_dlpack: {type(x).__name__} has no __dlpack__ method; use tl.asarray")
    array = np.from_dlpack(x)
    if array.dtype not in dtypes.ALL:
        raise TypeError(f"from_dlpack: tensors have no dtype {array.dtype}")
    home = _place(device)
    if copy is False and home.name != "cpu":
        raise ValueError(f"from_dlpack: copy=False, but {home} does not share the host's memory")
    return Tensor(home.from_numpy(array.copy() if copy else array), home)


def _strong(scalar: Any) -> Tensor:
    """A traced Python scalar as a tensor of its own; while it is weak it has Python's precision."""
    result = scalar.as_weak(False)
    return cast(result, dtypes.default_float) if result.dtype == dtypes.float64 else result


def weak_aval(scalar: bool | int | float) -> Aval:
    """What a traced Python scalar is: a float keeps Python's precision until it meets a tensor."""
    wide = dtypes.float64 if isinstance(scalar, float) else dtypes.of_python_scalar(scalar)
    return Aval((), wide)


def _to_numpy(obj: Any, dtype: np.dtype | None) -> tuple[np.ndarray, bool]:
    """The values of `obj` as an array, and whether it may share memory with `obj`."""
    if type(obj) is complex and obj.imag == 0:
        obj = obj.real
    if type(obj) in (bool, int, float):
        return constant_array(obj, dtype or dtypes.of_python_scalar(obj), "asarray"), False
    nested = isinstance(obj, list | tuple)
    try:
        array = np.asarray(obj)
        source = array.dtype.newbyteorder("=")
        if nested and source != np.int64 and array.size and _only_integers(obj):
            # Of one beyond int64, NumPy makes uint64, object or, beside a smaller one, float64.
            source = dtypes.bool_ if source == dtypes.bool_ else dtypes.default_int
            dtype = dtype or source
        elif nested and source == np.float64 and not _holds(obj, np.ndarray | np.generic):
            source = dtypes.default_float
        if source not in dtypes.ALL:
            raise TypeError(
                f"asarray: cannot make a tensor of {type(obj).__name__} with dtype {array.dtype}"
            )
        if nested and source in dtypes.INTEGERS and dtype in dtypes.INTEGERS:
            result = np.asarray(obj, dtype)  # refuses Python integers that do not fit
        else:
            with np.errstate(all="ignore"):
                result = array.astype(dtype or source, copy=False)
    except OverflowError as error:
        raise OverflowError(
            f"asarray: a number does not fit {dtype}: {error}; use another dtype"
        ) from None
    except ValueError as error:
        why = "its rows differ in length" if "inhomogeneous" in str(error) else error
        raise ValueError(
            f"asarray: cannot make a tensor of this {type(obj).__name__}: {why}"
        ) from None
    return result, result is array and not nested and not isinstance(obj, np.generic)


def _can_change(array: np.ndarray) -> bool:
    """Whether somebody could still write to this memory: a read-only view keeps nobody from writing
    to what it is a view of."""
    owner: Any = array
    while isinstance(owner, np.ndarray):
        if owner.flags.writeable:
            return True
        owner = owner.base
    return isinstance(owner, memoryview) and not isinstance(owner.obj, bytes)


def _holds(obj: Any, kinds: Any) -> bool:
    return any(
        isinstance(x, kinds) or (isinstance(x, list | tuple) and _holds(x, kinds)) for x in obj
    )


def _only_integers(obj: Any) -> bool:
    return all(
        isinstance(x, int) or (isinstance(x, list | tuple) and _only_integers(x)) for x in obj
    )


def full(
    shape: int | Shape,
    fill_value: bool | int | float,
    *,
    dtype: Any = None,
    device: str | Device | None = None,
) -> Tensor:
    """A tensor of `shape` filled with one number; the dtype defaults to that of the number."""
    if isinstance(fill_value, np.generic):
        dtype, fill_value = fill_value.dtype if dtype is None else dtype, fill_value.item()
    if not isinstance(fill_value, bool | int | float):
        raise TypeError(
            f"full: fill_value is a number, got {type(fill_value).__name__}; "
            "for a tensor use tl.broadcast_to"
        )
    wanted = dtypes.of_python_scalar(fill_value) if dtype is None else dtypes.canonical(dtype)
    if isinstance(fill_value, int):
        constant_array(fill_value, wanted, "full")  # raises if it does not fit
    return bind(
        full_p, shape=as_shape(shape), dtype=wanted, value=fill_value, device=_place(device)
    )


def zeros(shape: int | Shape, *, dtype: Any = None, device: str | Device | None = None) -> Tensor:
    """A tensor of zeros, float32 by default."""
    return full(shape, 0, dtype=dtypes.default_float if dtype is None else dtype, device=device)


def ones(shape: int | Shape, *, dtype: Any = None, device: str | Device | None = None) -> Tensor:
    """A tensor of ones, float32 by default."""
    return full(shape, 1, dtype=dtypes.default_float if dtype is None else dtype, device=device)


def empty(shape: int | Shape, *, dtype: Any = None, device: str | Device | None = None) -> Tensor:
    """A tensor whose values do not matter; they are zeros, since tensors are immutable."""
    return zeros(shape, dtype=dtype, device=device)


def full_like(
    x: Tensor,
    /,
    fill_value: bool | int | float,
    *,
    dtype: Any = None,
    device: str | Device | None = None,
) -> Tensor:
    """A tensor shaped like `x`, filled with one value."""
    return full(
        x.shape,
        fill_value,
        dtype=x.dtype if dtype is None else dtype,
        device=x.device if device is None else device,
    )


def zeros_like(x: Tensor, /, *, dtype: Any = None, device: str | Device | None = None) -> Tensor:
    """Zeros of the shape, dtype and device of `x`."""
    return full_like(x, 0, dtype=dtype, device=device)


def ones_like(x: Tensor, /, *, dtype: Any = None, device: str | Device | None = None) -> Tensor:
    """Ones of the shape, dtype and device of `x`."""
    return full_like(x, 1, dtype=dtype, device=device)


def empty_like(x: Tensor, /, *, dtype: Any = None, device: str | Device | None = None) -> Tensor:
    """A tensor like `x` whose values do not matter."""
    return full_like(x, 0, dtype=dtype, device=device)


def arange(
    start: int | float,
    /,
    stop: int | float | None = None,
    step: int | float = 1,
    *,
    dtype: Any = None,
    device: str | Device | None = None,
) -> Tensor:
    """Evenly spaced values in [start, stop); int64 if all three are integers, else float32.

    Raises:
        ValueError: `step` is 0.
        TypeError: one of the three is no number.
        OverflowError: a value does not fit `dtype`, an integer one.
    """
    if stop is None:
        start, stop = 0, start
    for number in (start, stop, step):
        if not isinstance(number, int | float | np.integer | np.floating):
            raise TypeError(f"arange: start, stop and step are numbers, got {number!r}")
    if step == 0:
        raise ValueError("arange: step is 0; it must be positive or negative")
    integral = all(isinstance(v, int | np.integer) for v in (start, stop, step))
    default = dtypes.default_int if integral else dtypes.default_float
    wanted = default if dtype is None else dtypes.canonical(dtype)
    if not integral or wanted not in dtypes.INTEGERS:
        return asarray(np.arange(start, stop, step).astype(wanted), device=device)
    values = range(int(start), int(stop), int(step))
    for end in (*values[:1], *values[-1:]):
        constant_array(end, wanted, "arange")  # raises if it does not fit
    if wanted == dtypes.uint64:  # NumPy counts in int64, which is too narrow
        return asarray(np.fromiter(values, wanted, len(values)), device=device)
    return asarray(np.arange(start, stop, step).astype(wanted), device=device)


def linspace(
    start: int | float,
    stop: int | float,
    /,
    num: int,
    *,
    dtype: Any = None,
    device: str | Device | None = None,
    endpoint: bool = True,
) -> Tensor:
    """`num` evenly spaced values from `start` to `stop`, which is included unless `endpoint` is
    False."""
    wanted = dtypes.default_float if dtype is None else dtypes.canonical(dtype)
    count = as_count("linspace: num", num)
    return asarray(np.linspace(start, stop, count, endpoint=endpoint).astype(wanted), device=device)


def eye(
    n_rows: int,
    n_cols: int | None = None,
    /,
    *,
    k: int = 0,
    dtype: Any = None,
    device: str | Device | None = None,
) -> Tensor:
    """Ones on the k-th diagonal, zeros elsewhere: shape (n_rows, n_cols), float32 by default."""
    wanted = dtypes.default_float if dtype is None else dtypes.canonical(dtype)
    rows = as_count("eye: n_rows", n_rows)
    columns = rows if n_cols is None else as_count("eye: n_cols", n_cols)
    diagonal = as_integer("eye: k is an integer", k)
    return asarray(np.eye(rows, columns, k=diagonal, dtype=wanted), device=device)


def iota(shape: Shape, axis: int, dtype: np.dtype = dtypes.default_int) -> Tensor:
    """Of shape `shape`, each element its own index along `axis`."""
    return bind(iota_p, shape=shape, dtype=dtype, axis=axis % len(shape), device=current_device())


def constant(value: bool | int | float, partner: np.dtype, device: Device, op: str) -> Tensor:
    """A 0-d constant on `device`, as operators make of a Python scalar that meets a tensor of dtype
    `partner`.

    Raises:
        OverflowError: an integer does not fit the dtype in which they meet.
    """
    # Numbers that are equal compute alike if they are of one type, except for the two zeros.
    kind: Any = type(value) if value else repr(value)
    try:
        return _constant(value, kind, partner, device)
    except OverflowError:
        dtype = dtypes.of_python_scalar(value, partner)
        raise OverflowError(_does_not_fit(value, dtype, op)) from None


@functools.lru_cache(maxsize=512)
def _constant(value: Any, kind: Any, partner: np.dtype, device: Device) -> Tensor:
    """Programs use few numbers, again and again, and tensors are immutable."""
    array = constant_array(value, dtypes.of_python_scalar(value, partner), "")
    return Tensor(device.from_numpy(array), device)


def constant_array(value: bool | int | float, dtype: np.dtype, op: str) -> np.ndarray:
    """`value` as a 0-d array; floats that are too large for `dtype` become infinite.

    Raises:
        OverflowError: an integer does not fit `dtype`.
    """
    try:
        if -60000 < value < 60000:  # fits every float, so NumPy has nothing to warn of
            return np.asarray(value, dtype)
        with np.errstate(all="ignore"):
            return np.asarray(value, dtype)
    except OverflowError:
        raise OverflowError(_does_not_fit(value, dtype, op)) from None


def _does_not_fit(value: int | float, dtype: np.dtype, op: str) -> str:
    return f"{op}: the number {value} does not fit {dtype}; use another dtype"


def as_shape(shape: int | Shape) -> Shape:
    """A shape as a tuple of Python ints; a bare int is one dimension.

    Raises:
        TypeError: it is neither an int nor a sequence of ints.
        ValueError: a size is negative.
    """
    sizes = integers(shape, "a shape is an int or a sequence of ints")
    if any(n < 0 for n in sizes):
        raise ValueError(f"a shape has no negative sizes, got {tuple(sizes)}")
    return tuple(sizes)


def as_count(what: str, value: Any) -> int:
    """`value` as a Python int of at least 0.

    Raises:
        TypeError: it is no integer.
        ValueError: it is negative.
    """
    count = as_integer(f"{what} is an integer of at least 0", value)
    if count < 0:
        raise ValueError(f"{what} is an integer of at least 0, got {count}")
    return count


def integers(value: Any, rule: str) -> list[int]:
    """An integer, or a sequence or one-dimensional array of integers, as a list of Python ints.

    Raises:
        TypeError: it is none of these, against the `rule`.
        TracerError: it is traced.
    """
    if isinstance(value, int):
        return [int(value)]
    several = isinstance(value, Sequence) or getattr(value, "ndim", 0) == 1
    return [as_integer(rule, n, value) for n in (value if several else (value,))]


def as_integer(rule: str, n: Any, value: Any = None) -> int:
    """`n`, which is one of `value`, as a Python int.

    Raises:
        TypeError: it is none, against the `rule`.
        TracerError: it is traced.
    """
    try:
        return operator.index(n)
    except TracerError:
        raise
    except TypeError:
        raise TypeError(f"{rule}, got {n if value is None else value!r}") from None


def _place(device: str | Device | None) -> Device:
    return current_device() if device is None else get_device(device)
