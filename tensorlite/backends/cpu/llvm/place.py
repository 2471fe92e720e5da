"""Where instructions are written: a function, and the number of lanes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .... import dtypes
from .text import Function, literal, register_type, vector


class Place(NamedTuple):
    """Where an operation is written, and in how many lanes."""

    function: Function
    lanes: int

    def type(self, dtype: np.dtype[Any]) -> str:
        """The type of values of `dtype` here."""
        return register_type(dtype, self.lanes)

    def value(self, text: str) -> str:
        """Append an instruction."""
        return self.function.value(text)

    def literal(self, value: Any, dtype: np.dtype[Any]) -> str:
        """A constant operand."""
        return literal(value, dtype, self.lanes)

    def intrinsic(self, name: str, dtype: np.dtype[Any], *args: str, flags: str = "") -> str:
        """Call an LLVM intrinsic on values of one dtype, with the fast-math flags given."""
        kind = self.type(dtype)
        ending = suffix(dtype, self.lanes)
        values = [(kind, a) for a in args]
        return self.function.call(kind, f"llvm.{name}.{ending}", *values, flags=flags)

    def select(self, condition: str, dtype: np.dtype[Any], x: str, y: str) -> str:
        """`x` where the condition holds, else `y`."""
        kind = self.type(dtype)
        mask = vector("i1", self.lanes)
        return self.value(f"select {mask} {condition}, {kind} {x}, {kind} {y}")


def suffix(dtype: np.dtype[Any], lanes: int) -> str:
    """What the name of an intrinsic on such values ends with."""
    base = {dtypes.float32: "f32", dtypes.float64: "f64", dtypes.bool_: "i1"}.get(dtype)
    name = base or f"i{8 * dtype.itemsize}"
    return name if lanes == 1 else f"v{lanes}{name}"
