"""What `sum`, `mean`, `max` and `min` mean for each dtype, and which combinations are refused.

The dtype of the result is always that of the operand. Sums of 16-bit floats are added in float32
along the ring and rounded once at the end, so that the error does not grow with the number of
workers. Integer sums wrap around as NumPy's do."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import ml_dtypes
import numpy as np

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
OPS = ("sum", "mean", "max", "min")

WIRES = {"float16": np.dtype(np.float16), "bfloat16": BFLOAT16}

Array = np.ndarray[Any, np.dtype[Any]]

_UFUNCS = {"sum": np.add, "mean": np.add, "max": np.maximum, "min": np.minimum}


@dataclasses.dataclass(frozen=True)
class Reduction:
    """How to reduce arrays of one dtype: in which dtype, with which function, and what to do in the
    end."""

    ufunc: np.ufunc
    work_dtype: np.dtype[Any]
    divides: bool

    def accumulate(self, received: Array, into: Array) -> None:
        self.ufunc(received, into, out=into)

    def reduce(self, parts: Iterable[Array], into: Array) -> None:
        """Reduce whole arrays in their order. `into` may be the first one."""
        first, *rest = parts
        into[...] = first
        for part in rest:
            self.ufunc(into, part, out=into)

    def finish(self, total: Array, size: int) -> None:
        """Turn a complete reduction over `size` ranks into the result, in place."""
        if self.divides:
            np.true_divide(total, size, out=total)


def reduction(op: str, dtype: np.dtype[Any], caller: str) -> Reduction:
    """The reduction `op` of arrays of `dtype`; `caller` begins the error messages.

    Raises:
        ValueError: there is no such op.
        TypeError: it makes no sense for this dtype.
    """
    if op not in OPS:
        raise ValueError(f"{caller}: there is no op {op!r}; choose one of {', '.join(OPS)}")
    check_dtype(dtype, caller)
    kind = "f" if dtype == BFLOAT16 else dtype.kind
    if kind == "b" and op in ("sum", "mean"):
        raise TypeError(
            f"{caller}: the {op} of bool is not a bool; use op='max' (or) or op='min' (and), "
            "or convert to an integer dtype first"
        )
    if kind in "iu" and op == "mean":
        raise TypeError(
            f"{caller}: the mean of {dtype} is not a whole number; convert to a float dtype first, "
            "or use op='sum'"
        )
    if kind == "c" and op in ("max", "min"):
        raise TypeError(
            f"{caller}: {dtype} has no order, so there is no {op}; use its real or imaginary part"
        )
    half = dtype == BFLOAT16 or dtype == np.float16
    work = np.dtype(np.float32) if half and op in ("sum", "mean") else dtype
    return Reduction(_UFUNCS[op], work, divides=op == "mean")


def check_dtype(dtype: np.dtype[Any], caller: str) -> None:
    """Raises `TypeError` when arrays of `dtype` cannot be sent as they are."""
    if dtype != BFLOAT16 and (dtype.kind not in "biufc" or not dtype.isnative):
        raise TypeError(
            f"{caller}: cannot send arrays of dtype {dtype}; use bool, an integer, float16, "
            "bfloat16, float32, float64 or complex, in the machine's own byte order"
        )


def wire_dtype(wire: str | None, dtype: np.dtype[Any], caller: str) -> np.dtype[Any] | None:
    """The dtype in which arrays of `dtype` travel.

    Raises:
        ValueError: `wire` is no such dtype.
        TypeError: only float32 arrays can travel as something else.
    """
    if wire is None:
        return None
    if wire not in WIRES:
        raise ValueError(f"{caller}: wire must be None or one of {', '.join(WIRES)}, got {wire!r}")
    if dtype != np.float32:
        raise TypeError(
            f"{caller}: wire={wire!r} is for float32 arrays, not {dtype}; leave it out, "
            "or convert to float32 first"
        )
    return WIRES[wire]
