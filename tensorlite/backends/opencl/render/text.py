"""The text of a kernel under construction: lines, nested blocks, and the values at hand in each.

A `Block` knows under which names the values of a nest can be read at a place of the kernel. What is
computed in an inner block is forgotten when the block ends; what is asked for twice is written
once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence

from ....compiler.loops import Instruction, Nest, Operand
from .scalar import expression, literal, stored_type, type_of


class Text:
    """Lines with their indentation."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._depth = 1

    def line(self, text: str) -> None:
        self._lines.append("    " * self._depth + text)

    @contextlib.contextmanager
    def block(self, head: str) -> Iterator[None]:
        """`head { ... }`."""
        self.line(f"{head} {{")
        self._depth += 1
        yield
        self._depth -= 1
        self.line("}")

    def vector_loop(self, head: str, hints: str = "") -> contextlib.AbstractContextManager[None]:
        """A loop whose rounds do not depend on each other."""
        self.line(f"#pragma clang loop vectorize(assume_safety) {hints}".rstrip())
        return self.block(head)

    def __str__(self) -> str:
        return "\n".join(self._lines)


class Block:
    """A place in a kernel: the indices of the axes there, and the values that have names.

    Args:
        axes: the expression of the index along each axis, None where no loop runs.
        values: the names of values, by their positions in the nest.
        index: the type of addresses, int or long.
        factors: the products that nothing but one sum reads.
    """

    def __init__(
        self,
        text: Text,
        nest: Nest,
        axes: Sequence[str | None],
        values: Mapping[int, str],
        index: str,
        factors: Collection[int] = (),
    ):
        self.text = text
        self.nest = nest
        self.axes = list(axes)
        self.values = dict(values)
        self.index = index
        self.factors = factors

    def inner(self, axes: Mapping[int, str], values: Mapping[int, str] | None = None) -> Block:
        """A block inside this one, with more indices and more values."""
        places = [axes.get(axis, known) for axis, known in enumerate(self.axes)]
        named = {**self.values, **(values or {})}
        return Block(self.text, self.nest, places, named, self.index, self.factors)

    def value(self, position: int) -> str:
        """The name of a value, written before if it is not at hand."""
        found = self.values.get(position)
        if found is not None:
            return found
        instruction = self.nest.body[position]
        named = self.term if instruction.op in ("add", "subtract") else self.value
        args = [named(a) for a in instruction.args]
        written = self._written(instruction, args)
        if instruction.op == "constant":
            self.values[position] = written
            return written
        name = f"v{position}"
        self.text.line(f"const {type_of(instruction.dtype)} {name} = {written};")
        self.values[position] = name
        return name

    def term(self, position: int) -> str:
        """A value as a term of a sum. A product that nothing else reads has no name: compilers make
        one rounded operation of product and sum, but only within an expression."""
        if position in self.values or position not in self.factors:
            return self.value(position)
        first, second = (self.value(a) for a in self.nest.body[position].args)
        return f"({first} * {second})"

    def _written(self, instruction: Instruction, args: Sequence[str]) -> str:
        op, positions, dtype, attribute = instruction
        if op == "constant":
            return literal(attribute, dtype)
        if op == "index":
            return f"(long)({self.axes[attribute]})"
        if op == "load":
            element = self.element(f"in{attribute}", self.nest.inputs[attribute], ())
            return f"{args[0]} ? {element} : 0" if args else element
        if op == "gather":
            number, strides = attribute
            moves = [
                f"({self.index}){arg} * {step}" for arg, step in zip(args, strides, strict=True)
            ]
            return self.element(f"in{number}", self.nest.inputs[number], moves)
        if op == "reduce":
            raise AssertionError("a reduction is computed before it is used")
        operands = [self.nest.body[p].dtype for p in positions]
        return expression(op, attribute, dtype, operands, args)

    def element(self, name: str, operand: Operand, moves: Sequence[str]) -> str:
        """An element of a buffer, as the value of its dtype."""
        found = f"{name}[{self.address(operand, moves)}]"
        return f"{found} != 0" if stored_type(operand.dtype) != type_of(operand.dtype) else found

    def address(self, operand: Operand, moves: Sequence[str] = ()) -> str:
        """Where the element of this point is."""
        terms = [
            f"({self.axes[axis]})" if step == 1 else f"({self.axes[axis]}) * {step}"
            for axis, step in enumerate(operand.strides)
            if step and self.axes[axis] is not None
        ]
        if operand.offset:
            terms.append(str(operand.offset))
        return " + ".join([*terms, *moves]) or "0"

    def store(self, number: int, place: str | None = None) -> None:
        """Write output `number` of this point, to where it belongs or to `place`."""
        position, operand = self.nest.outputs[number]
        value = self.value(position)
        if stored_type(operand.dtype) != type_of(operand.dtype):
            value = f"{value} ? 1 : 0"
        self.text.line(f"{place or f'out{number}[{self.address(operand)}]'} = {value};")
