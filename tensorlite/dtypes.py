"""Dtypes and their promotion.

A dtype is a NumPy dtype; bfloat16 comes from ml_dtypes. Promotion follows the Python array API
standard within a kind; across kinds the result stays in the "higher" kind without widening (int64
with float32 gives float32), as in JAX and PyTorch. A Python scalar takes the dtype of the tensor it
meets; so does `numpy.float64`, which is a Python float, and which `np.sqrt(2)` gives.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from .core import Tensor

DType = np.dtype[Any]

bool_ = np.dtype(np.bool_)
int8, int16, int32, int64 = (np.dtype(f"int{n}") for n in (8, 16, 32, 64))
uint8, uint16, uint32, uint64 = (np.dtype(f"uint{n}") for n in (8, 16, 32, 64))
float16, float32, float64 = (np.dtype(f"float{n}") for n in (16, 32, 64))
bfloat16 = np.dtype(ml_dtypes.bfloat16)

default_float = float32
default_int = int64

SIGNED = frozenset({int8, int16, int32, int64})
UNSIGNED = frozenset({uint8, uint16, uint32, uint64})
INTEGERS = SIGNED | UNSIGNED
FLOATS = frozenset({float16, bfloat16, float32, float64})
ALL = frozenset({bool_}) | INTEGERS | FLOATS


def is_float(dtype: DType) -> bool:
    """Whether `dtype` is a real floating-point one."""
    return dtype in FLOATS


_KINDS = {
    "bool": frozenset({bool_}),
    "signed integer": SIGNED,
    "unsigned integer": UNSIGNED,
    "integral": INTEGERS,
    "real floating": FLOATS,
    "complex floating": frozenset(),
    "numeric": INTEGERS | FLOATS,
}


def isdtype(dtype: DType, kind: DType | str | tuple[DType | str, ...]) -> bool:
    """Whether `dtype` is `kind`: a dtype, one of the array API's kinds such as "integral" or "real
    floating", or any of a tuple of these.

    Raises:
        TypeError: `dtype` or `kind` is no dtype.
        ValueError: there is no such kind.
    """
    if not isinstance(dtype, np.dtype):
        raise TypeError(f"isdtype: takes a dtype such as tl.float32 or x.dtype, got {dtype!r}")
    if isinstance(kind, tuple):
        return any(isdtype(dtype, k) for k in kind)
    if isinstance(kind, str):
        if kind not in _KINDS:
            raise ValueError(f"isdtype: no kind {kind!r}; there are {', '.join(_KINDS)}")
        return dtype in _KINDS[kind]
    return dtype == (kind if isinstance(kind, np.dtype) else canonical(kind))


class FInfo(NamedTuple):
    """The limits of a floating-point dtype, as Python numbers."""

    bits: int
    eps: float  # from 1 to the next larger number
    max: float
    min: float
    smallest_normal: float
    dtype: DType


class IInfo(NamedTuple):
    """The limits of an integer dtype, as Python numbers."""

    bits: int
    max: int
    min: int
    dtype: DType


def finfo(type: Any, /) -> FInfo:
    """The limits of a floating-point dtype, or of that of a tensor.

    Raises:
        TypeError: it is no floating-point dtype.
    """
    dtype = _dtype_of(type)
    if dtype not in FLOATS:
        raise TypeError(f"finfo: takes a floating-point dtype, got {dtype}; use iinfo for integers")
    limits: Any = ml_dtypes.finfo(dtype)
    return FInfo(
        bits=8 * dtype.itemsize,
        eps=float(limits.eps),
        max=float(limits.max),
        min=float(limits.min),
        smallest_normal=float(limits.smallest_normal),
        dtype=dtype,
    )


def iinfo(type: Any, /) -> IInfo:
    """The limits of an integer dtype, or of that of a tensor.

    Raises:
        TypeError: it is no integer dtype.
    """
    dtype = _dtype_of(type)
    if dtype not in INTEGERS:
        raise TypeError(f"iinfo: takes an integer dtype, got {dtype}; use finfo for floats")
    limits = np.iinfo(dtype)
    return IInfo(8 * dtype.itemsize, int(limits.max), int(limits.min), dtype)


def can_cast(from_: Any, to: Any, /) -> bool:
    """Whether a dtype (or that of a tensor) becomes `to` by promotion within its kind (booleans,
    integers, floats), so that no value is lost."""
    source, target = _dtype_of(from_), canonical(to)
    same_kind = any(source in kind and target in kind for kind in ({bool_}, INTEGERS, FLOATS))
    return same_kind and promote(source, target) == target


def _dtype_of(value: Any) -> DType:
    return canonical(value.dtype if isinstance(value, Tensor | np.ndarray) else value)


def canonical(dtype: Any) -> DType:
    """The dtype that `dtype` names (a dtype, a NumPy scalar type, a name, or Python's bool, int,
    float)."""
    if dtype is float:
        return default_float
    if dtype is int:
        return default_int
    try:
        result = np.dtype(dtype)
    except TypeError:
        result = bfloat16 if dtype == "bfloat16" else None
    if result not in ALL:
        names = ", ".join(sorted(d.name for d in ALL))
        raise TypeError(f"dtype {dtype!r} is not supported; use one of {names}")
    return result


@functools.cache
def promote(a: DType, b: DType) -> DType:
    """The dtype in which values of dtypes `a` and `b` meet."""
    if a == b:
        return a
    if a in FLOATS or b in FLOATS:
        if not (a in FLOATS and b in FLOATS):
            return a if a in FLOATS else b
        if {a, b} == {float16, bfloat16}:
            return float32
        return max(a, b, key=lambda d: (d.itemsize, d == float16))
    if a == bool_ or b == bool_:
        return b if a == bool_ else a
    if (a in SIGNED) == (b in SIGNED):
        return max(a, b, key=lambda d: d.itemsize)
    signed, unsigned = (a, b) if a in SIGNED else (b, a)
    if signed.itemsize > unsigned.itemsize:
        return signed
    # uint64 meets a signed integer: no integer holds both, so the result is the default float.
    return default_float if unsigned == uint64 else np.dtype(f"int{16 * unsigned.itemsize}")


def of_python_scalar(value: bool | int | float, partner: DType | None = None) -> DType:
    """The dtype that a Python scalar takes beside a tensor of dtype `partner` (None: alone)."""
    if partner is not None and partner in FLOATS:
        return partner
    if isinstance(value, bool):
        return bool_ if partner is None else partner
    if isinstance(value, int):
        return default_int if partner is None or partner == bool_ else partner
    return default_float


def result_type(*values: Any) -> DType:
    """The dtype in which tensors, arrays, dtypes and Python scalars meet.

    Raises:
        TypeError: nothing was given, or a dtype is not supported.

    Example:
        >>> tl.result_type(tl.float32, tl.int64), tl.result_type(tl.bfloat16, 1.0)
        (dtype('float32'), dtype(bfloat16))
    """
    result: DType | None = None
    scalars: list[Any] = []
    for value in values:
        if _is_weak(value):
            scalars.append(value)
        else:
            dtype = value.dtype if hasattr(value, "dtype") else canonical(value)
            result = dtype if result is None else promote(result, dtype)
    for scalar in scalars:
        traced = isinstance(scalar, Tensor)
        result = of_weak(scalar.dtype, result) if traced else of_python_scalar(scalar, result)
    if result is None:
        raise TypeError("result_type: needs at least one tensor, dtype or scalar")
    return result


def _is_weak(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.weak
    return isinstance(value, bool | int | float)


def of_weak(dtype: DType, partner: DType | None) -> DType:
    """`of_python_scalar` for a traced scalar, whose value is not known but whose kind is."""
    example = False if dtype == bool_ else 0 if dtype in INTEGERS else 0.0
    return of_python_scalar(example, partner)
