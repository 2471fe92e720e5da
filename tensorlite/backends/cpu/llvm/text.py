"""LLVM IR as text: types, literals, and a function that is written line by line.

Text is quick to write and to parse, and it can be read, hashed and tested.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from .... import dtypes

_FLOATS = {dtypes.float16: "half", dtypes.float32: "float", dtypes.float64: "double"}


def register_type(dtype: np.dtype[Any], lanes: int = 1) -> str:
    """The type of a value of `dtype`, or of a vector of them. bfloat16 is held as its bits."""
    if dtype == dtypes.bool_:
        name = "i1"
    elif dtype == dtypes.bfloat16:
        name = "i16"
    else:
        name = _FLOATS.get(dtype) or f"i{8 * dtype.itemsize}"
    return vector(name, lanes)


def memory_type(dtype: np.dtype[Any], lanes: int = 1) -> str:
    """The type of an element of `dtype` in a buffer: a boolean is a byte there."""
    return vector("i8", lanes) if dtype == dtypes.bool_ else register_type(dtype, lanes)


def vector(name: str, lanes: int) -> str:
    """The vector type of so many lanes; of one lane it is the scalar type."""
    return name if lanes == 1 else f"<{lanes} x {name}>"


def literal(value: Any, dtype: np.dtype[Any], lanes: int = 1) -> str:
    """A constant operand, in all lanes."""
    scalar = _scalar_literal(value, dtype)
    return scalar if lanes == 1 else f"splat ({register_type(dtype)} {scalar})"


def _scalar_literal(value: Any, dtype: np.dtype[Any]) -> str:
    if dtype == dtypes.bool_:
        return "true" if value else "false"
    if dtype == dtypes.bfloat16:
        return str(int(np.asarray(value, dtype).view(np.int16)))
    if dtype == dtypes.float16:
        return f"0xH{int(np.asarray(value, dtype).view(np.uint16)):04X}"
    if dtype in _FLOATS:
        with np.errstate(over="ignore"):
            rounded = float(np.asarray(value).astype(dtype))
        return f"0x{struct.unpack('<Q', struct.pack('<d', rounded))[0]:016X}"
    return str(int(value))


class Module:
    """Functions and what they declare. `avx512`: its instructions may be named; `float16`: there
    are instructions that convert it."""

    def __init__(self, avx512: bool = False, float16: bool = True) -> None:
        self.avx512 = avx512
        self.float16 = float16
        self.functions: list[str] = []
        self._declarations: dict[str, str] = {}

    def declare(self, result: str, name: str, parameters: str) -> None:
        """Make a function from outside known."""
        self._declarations.setdefault(name, f"declare {result} @{name}({parameters})")

    def define(self, name: str, text: str) -> None:
        """Add a helper, once."""
        if name not in self._declarations:
            self._declarations[name] = ""
            self.functions.append(text)

    def __str__(self) -> str:
        declarations = [text for text in self._declarations.values() if text]
        return "\n".join([*declarations, "", *self.functions, ""])


class Function:
    """A function while it is written."""

    def __init__(self, module: Module, header: str):
        self.module = module
        self._header = header
        self._entry: list[str] = []  # allocations, which belong to the first block
        self._lines: list[str] = []
        self._count = 0
        self._block = "entry"

    def line(self, text: str) -> None:
        """Append an instruction that gives no value."""
        self._lines.append(f"  {text}")

    def value(self, text: str) -> str:
        """Append an instruction; its value's name."""
        self._count += 1
        name = f"%v{self._count}"
        self._lines.append(f"  {name} = {text}")
        return name

    def call(self, result: str, name: str, *args: tuple[str, str], flags: str = "") -> str:
        """Call an intrinsic or a function from outside with (type, operand) pairs."""
        self.module.declare(result, name, ", ".join(t for t, _ in args))
        operands = ", ".join(f"{t} {v}" for t, v in args)
        return self.value(f"call {flags}{result} @{name}({operands})")

    def slot(self, kind: str, count: int = 1, align: int = 0) -> str:
        """Memory of this call, allocated once."""
        self._count += 1
        name = f"%s{self._count}"
        many = f", i64 {count}" if count != 1 else ""
        aligned = f", align {align}" if align else ""
        self._entry.append(f"  {name} = alloca {kind}{many}{aligned}")
        return name

    def label(self, hint: str) -> str:
        """A fresh name of a block."""
        self._count += 1
        return f"{hint}{self._count}"

    def block(self, name: str) -> None:
        """Begin a block."""
        self._lines.append(f"{name}:")
        self._block = name

    def integer(self, op: str, x: str, y: str) -> str:
        """Arithmetic on i64 that folds literals."""
        a, b = _as_int(x), _as_int(y)
        if a is not None and b is not None and op in _FOLDED:
            return str(_FOLDED[op](a, b))
        if op == "add" and (a == 0 or b == 0):
            return y if a == 0 else x
        if op == "mul" and (a == 0 or b == 0):
            return "0"
        if op == "mul" and (a == 1 or b == 1):
            return y if a == 1 else x
        wrap = " nsw" if op in ("add", "mul", "sub") else ""
        return self.value(f"{op}{wrap} i64 {x}, {y}")

    @contextmanager
    def loop(self, begin: str, end: str, step: int = 1) -> Iterator[str]:
        """A loop whose body, the `with` block, runs while begin + i * step < end."""
        a, b = _as_int(begin), _as_int(end)
        if a is not None and b is not None and a + step >= b > a:
            yield begin  # runs once
            return
        head, body, done = self.label("head"), self.label("body"), self.label("done")
        before = self._block
        self.line(f"br label %{head}")
        self.block(head)
        self._count += 1
        index, following = f"%i{self._count}", f"%n{self._count}"
        position = len(self._lines)
        self._lines.append("")  # the phi, when it is known where the loop comes back from
        more = self.value(f"icmp slt i64 {index}, {end}")
        self.line(f"br i1 {more}, label %{body}, label %{done}")
        self.block(body)
        yield index
        self.line(f"{following} = add nsw i64 {index}, {step}")
        phi = f"  {index} = phi i64 [ {begin}, %{before} ], [ {following}, %{self._block} ]"
        self._lines[position] = phi
        self.line(f"br label %{head}")
        self.block(done)

    @contextmanager
    def when(self, condition: str) -> Iterator[None]:
        """Run the `with` block if an i1 holds."""
        body, done = self.label("then"), self.label("rest")
        self.line(f"br i1 {condition}, label %{body}, label %{done}")
        self.block(body)
        yield
        self.line(f"br label %{done}")
        self.block(done)

    def finish(self) -> None:
        """Close the function with a return and add it to the module."""
        self.line("ret void")
        text = "\n".join([f"{self._header} {{", "entry:", *self._entry, *self._lines, "}"])
        self.module.functions.append(text)


_FOLDED = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
}


def _as_int(operand: str) -> int | None:
    return None if operand.startswith("%") else int(operand)
