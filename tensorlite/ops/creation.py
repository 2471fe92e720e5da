"""Tensors from nothing or from other arrays: `asarray`, `full`, `zeros`, `ones`, `arange`, `eye`,
and the cast between dtypes.

The transforms import this file for the zeros and ones that they need; so it imports none of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import dtypes
from ..core import Aval, Primitive, Tensor, Tracer, bind
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
    Python scalar, nested lists.

    Args:
        dtype: wanted dtype. Default: that of `obj`; Python floats become float32, ints int64.
        device: where to put it. Default: where `obj` is if it is a tensor, else the default device.
        copy: True always copies, False never (ValueError where a copy is needed), None copies NumPy
            arrays that could still be written to, since tensors are immutable.
    """
    target = None if device is None else get_device(device)
    if isinstance(obj, Tensor):
        result = obj if dtype is None else cast(obj, dtypes.canonical(dtype))
        if target is not None and result.device is not target:
            result = bind(transfer_p, result, device=target)
        if copy is False and result is not obj:
            raise ValueError(f"asarray: copy=False, but {obj.dtype} on {obj.device} must be copied")
        if copy and result is obj and not isinstance(obj, Tracer):
            result = Tensor(obj.device.from_numpy(np.array(obj.numpy())), obj.device)
        return result
    if isinstance(obj, list | tuple) and _holds_tensors(obj):
        from .shape import stack  # nested lists of tensors stay differentiable

        return asarray(stack([asarray(item) for item in obj]), dtype=dtype, device=device)
    array = _to_numpy(obj, None if dtype is None else dtypes.canonical(dtype))
    shared = array is obj and array.flags.writeable
    if copy is False and array is not obj:
        raise ValueError(f"asarray: copy=False, but {type(obj).__name__} must be copied")
    if copy or (copy is None and shared):
        array = array.copy()
    home = target or current_device()
    return Tensor(home.from_numpy(array), home)


def _to_numpy(obj: Any, dtype: np.dtype | None) -> np.ndarray:
    if isinstance(obj, np.ndarray | np.generic):
        source = dtypes.canonical(obj.dtype)
        return (
            obj
            if isinstance(obj, np.ndarray) and dtype in (None, source)
            else np.asarray(obj, dtype)
        )
    if isinstance(obj, bool | int | float):
        wanted = dtype or dtypes.of_python_scalar(obj)
        try:
            return np.asarray(obj, wanted)
        except OverflowError:
            raise OverflowError(f"asarray: {obj} does not fit {wanted}") from None
    array = np.asarray(obj)
    if array.dtype == np.float64 and not hasattr(obj, "__array__"):
        array = array.astype(dtype or dtypes.default_float)
    if array.dtype not in dtypes.ALL:
        raise TypeError(
            f"asarray: cannot make a tensor of {type(obj).__name__} with dtype {array.dtype}"
        )
    return array.astype(dtype) if dtype is not None else array


def _holds_tensors(obj: Any) -> bool:
    return any(
        isinstance(x, Tensor) or (isinstance(x, list | tuple) and _holds_tensors(x)) for x in obj
    )


def full(
    shape: int | Shape,
    fill_value: bool | int | float,
    *,
    dtype: Any = None,
    device: str | Device | None = None,
) -> Tensor:
    """A tensor of `shape` filled with one value; the dtype defaults to that of the value."""
    wanted = dtypes.of_python_scalar(fill_value) if dtype is None else dtypes.canonical(dtype)
    return bind(
        full_p, shape=as_shape(shape), dtype=wanted, value=fill_value, device=_place(device)
    )


def zeros(shape: int | Shape, *, dtype: Any = None, device: str | Device | None = None) -> Tensor:
    """A tensor of zeros, float32 by default."""
    return full(shape, 0, dtype=dtype or dtypes.default_float, device=device)


def ones(shape: int | Shape, *, dtype: Any = None, device: str | Device | None = None) -> Tensor:
    """A tensor of ones, float32 by default."""
    return full(shape, 1, dtype=dtype or dtypes.default_float, device=device)


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
    return full(x.shape, fill_value, dtype=dtype or x.dtype, device=device or x.device)


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
    """Evenly spaced values in [start, stop); int64 if all three are integers, else float32."""
    if stop is None:
        start, stop = 0, start
    integral = all(isinstance(v, int) for v in (start, stop, step))
    wanted = (
        dtypes.canonical(dtype)
        if dtype is not None
        else dtypes.default_int
        if integral
        else dtypes.default_float
    )
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
    return asarray(np.linspace(start, stop, num, endpoint=endpoint).astype(wanted), device=device)


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
    return asarray(np.eye(n_rows, n_cols, k=k, dtype=wanted), device=device)


def iota(shape: Shape, axis: int, dtype: np.dtype = dtypes.default_int) -> Tensor:
    """Of shape `shape`, each element its own index along `axis`."""
    return bind(iota_p, shape=shape, dtype=dtype, axis=axis % len(shape), device=current_device())


def constant(value: Any, dtype: np.dtype, device: Device) -> Tensor:
    """A 0-d constant, as operators make of a Python scalar."""
    return Tensor(device.from_numpy(np.asarray(value, dtype)), device)


def as_shape(shape: int | Shape) -> Shape:
    """A shape as a tuple of Python ints; a bare int is one dimension."""
    sizes = (shape,) if isinstance(shape, int | np.integer) else tuple(shape)
    result = tuple(int(n) for n in sizes)
    if any(n < 0 for n in result):
        raise ValueError(f"a shape has no negative sizes, got {result}")
    return result


def _place(device: str | Device | None) -> Device:
    return current_device() if device is None else get_device(device)
