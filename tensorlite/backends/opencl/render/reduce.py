"""Accumulators of reductions in OpenCL C."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from .... import dtypes
from ....compiler.loops import Nest, identity
from .scalar import expression, literal, type_of
from .text import Block, Text

if TYPE_CHECKING:
    from .kernel import Body

_OPERATIONS = {
    "sum": "add",
    "prod": "multiply",
    "max": "max",
    "min": "min",
    "any": "or",
    "all": "and",
}


class Accumulator:
    """The reduction at `position` of a nest. `[j]` and the like choose one of several copies."""

    def __init__(self, nest: Nest, position: int):
        self.position = position
        instruction = nest.body[position]
        self.how = instruction.attribute
        (self.argument,) = instruction.args
        self.result = instruction.dtype
        self.numbered = self.how == "argmax"
        # What is folded; of argmax the result is the number of a point.
        self.dtype = nest.body[self.argument].dtype if self.numbered else instruction.dtype
        # Numbers of points, of which argmax keeps the least, and one that no point has.
        points = math.prod(nest.shape[axis] for axis in nest.reduced)
        self.number_dtype = dtypes.int32 if points < 2**31 else dtypes.int64
        self._never = int(np.iinfo(self.number_dtype).max)
        self.name = f"a{position}"
        self.number = f"n{position}"

    @property
    def outcome(self) -> str:
        """The name of the result."""
        return self.number if self.numbered else self.name

    @property
    def names(self) -> list[str]:
        """The variables that a copy consists of."""
        return [self.name, self.number] if self.numbered else [self.name]

    def _declared(self, text: Text, suffix: str, space: str = "") -> None:
        text.line(f"{space}{type_of(self.dtype)} {self.name}{suffix};")
        if self.numbered:
            text.line(f"{space}{type_of(self.number_dtype)} {self.number}{suffix};")

    def declare(self, text: Text) -> None:
        self._declared(text, "")

    def declare_array(self, text: Text, size: str) -> None:
        self._declared(text, f"[{size}]")

    def declare_local(self, text: Text, size: int) -> None:
        self._declared(text, f"[{size}]", "__local ")

    def reset(self, text: Text, place: str) -> None:
        """Set a copy to what changes nothing."""
        text.line(f"{self.name}{place} = {literal(identity(self.how, self.dtype), self.dtype)};")
        if self.numbered:
            text.line(f"{self.number}{place} = {self._never};")

    def taken_from(self, point: Block) -> str:
        """What is folded in at a point."""
        return point.term(self.argument) if self.how == "sum" else point.value(self.argument)

    def add(self, text: Text, place: str, value: str, kernel: Body, point: Block) -> None:
        """Fold the value of a point in."""
        here = "0"
        if self.numbered:
            terms = [
                f"({type_of(self.number_dtype)})({point.axes[axis]}) * {step}"
                for axis, step in enumerate(kernel.numbers)
                if step
            ]
            here = " + ".join(terms) or "0"
        self._fold(text, place, value, here)

    def add_parts(self, text: Text, value: str, number: str) -> None:
        """Fold in what was folded before."""
        self._fold(text, "", value, number)

    def merge(self, text: Text, place: str, other: str) -> None:
        """Fold one copy into another."""
        self._fold(text, place, f"{self.name}{other}", f"{self.number}{other}")

    def _fold(self, text: Text, place: str, value: str, number: str) -> None:
        target = f"{self.name}{place}"
        if not self.numbered:
            operands = [self.dtype, self.dtype]
            op = _OPERATIONS[self.how]
            text.line(f"{target} = {expression(op, None, self.dtype, operands, [target, value])};")
            return
        best = f"{self.number}{place}"
        with text.block(""):
            text.line(f"const {type_of(self.dtype)} x = {value}, y = {target};")
            text.line(f"const {type_of(self.number_dtype)} here = {number};")
            tied, wins = "x == y", "x > y"
            if self.dtype.kind == "f":  # a number that is none is larger than all numbers
                tied, wins = "(x == y || (x != x && y != y))", "(x > y || (x != x && y == y))"
            text.line(f"const bool wins = {wins} || ({tied} && here < {best});")
            text.line(f"{target} = wins ? x : y;")
            text.line(f"{best} = wins ? here : {best};")

    def to_local(self, text: Text, size: int) -> None:
        """Put the copy of each of `size` work-items into local memory, where it ends with s."""
        self._declared(text, f"s[{size}]", "__local ")
        for name in self.names:
            text.line(f"{name}s[item] = {name};")

    def from_local(self, text: Text, place: str) -> None:
        """Take a copy from local memory."""
        for name in self.names:
            text.line(f"{name} = {name}s[{place}];")
