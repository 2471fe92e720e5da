"""How numbers lie in memory and how they are computed with, in OpenCL C.

Sums of float16 and bfloat16 are float32. Integers are summed as unsigned ones, whose overflow is
defined and gives the same bits.

`vloadn`, `vstoren`, `min` and their like are calls of functions in PoCL, which the compiler does
not see through: a product that uses them in its inner loop is three to four times slower. So
vectors are read through pointers to types that are aligned as their elements.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .... import dtypes
from ....dtypes import DType

_STORED = {
    dtypes.float16: "half",
    dtypes.bfloat16: "ushort",
    dtypes.float32: "float",
    dtypes.float64: "double",
    dtypes.int8: "char",
    dtypes.int16: "short",
    dtypes.int32: "int",
    dtypes.int64: "long",
    dtypes.uint8: "uchar",
    dtypes.uint16: "ushort",
    dtypes.uint32: "uint",
    dtypes.uint64: "ulong",
}
SUPPORTED = frozenset(_STORED)

BFLOAT16 = """
float bfloat16_value(ushort bits) { return as_float((uint)bits << 16); }

// To the nearest, ties to even; NaN stays NaN.
ushort bfloat16_bits(float value) {
  const uint bits = as_uint(value);
  const uint rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return (ushort)(value != value ? (bits >> 16) | 0x40u : rounded);
}
"""


class Number(NamedTuple):
    """A dtype as it is stored, and what it is computed in."""

    dtype: DType

    @property
    def stored(self) -> str:
        return _STORED[self.dtype]

    @property
    def computed(self) -> str:
        """The OpenCL type of a value and of a sum."""
        if self.dtype in dtypes.INTEGERS:
            return "ulong" if self.dtype.itemsize == 8 else "uint"
        return "double" if self.dtype == dtypes.float64 else "float"

    @property
    def accumulator(self) -> DType:
        """The dtype of a sum."""
        if self.dtype in dtypes.INTEGERS:
            return np.dtype(np.uint64 if self.dtype.itemsize == 8 else np.uint32)
        return self.dtype if self.dtype == dtypes.float64 else dtypes.float32

    @property
    def is_plain(self) -> bool:
        """Whether what is stored is what is computed with, bit for bit."""
        return self.dtype.itemsize == self.accumulator.itemsize

    def load(self, pointer: str, index: str) -> str:
        """An expression for a value in memory."""
        if self.dtype == dtypes.float16:
            return f"vload_half({index}, {pointer})"
        if self.dtype == dtypes.bfloat16:
            return f"bfloat16_value({pointer}[{index}])"
        return f"({self.computed}){pointer}[{index}]"

    def store(self, value: str, pointer: str, index: str) -> str:
        """A statement that stores a computed value."""
        if self.dtype == dtypes.float16:
            return f"vstore_half_rte({value}, {index}, {pointer});"
        if self.dtype == dtypes.bfloat16:
            return f"{pointer}[{index}] = bfloat16_bits({value});"
        return f"{pointer}[{index}] = ({self.stored})({value});"

    def zero(self) -> str:
        return f"({self.computed})0"

    def vector(self, lanes: int) -> str:
        """The OpenCL type of a vector of computed values."""
        return self.computed if lanes == 1 else f"{self.computed}{lanes}"


def preamble(*numbers: Number) -> str:
    """What a program that uses these begins with."""
    parts = []
    if any(number.dtype == dtypes.float64 for number in numbers):
        parts.append("#pragma OPENCL EXTENSION cl_khr_fp64 : enable\n")
    if any(number.dtype == dtypes.bfloat16 for number in numbers):
        parts.append(BFLOAT16)
    return "".join(parts)
