"""Kernels in the making: the launches of a plan, their numbers and their places."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from ....compiler.launches import Call, Plan, Ref
from ..kernels import Kernel
from .contraction import Contraction, Digit
from .epilogue import Operation

FIRST, SECOND, RESULT = Ref("input", 0), Ref("input", 1), Ref("output", 0)
INT_MAX = 2**31 - 2**16  # of what is counted in ints, with room for a step past the end


class Unsupported(Exception):
    """There is no kernel for this; the planner answers None."""


class Draft:
    """A plan that is being written."""

    def __init__(self, op: str):
        self.op = op
        self._calls: list[Call] = []
        self._temporaries: list[int] = []

    def plan(self) -> Plan:
        return Plan(self.op, tuple(self._calls), tuple(self._temporaries))

    def temporary(self, size: int) -> Ref:
        """A new temporary of `size` bytes."""
        self._temporaries.append(size)
        return Ref("temporary", len(self._temporaries) - 1)

    def named(self, contraction: Contraction, operations: Sequence[Operation]) -> str:
        """A name for a kernel that is made for one shape: `conv_128x12x12x64_5x5x64x64_relu`."""
        shapes = ["x".join(map(str, x.shape)) for x in (contraction.a, contraction.b)]
        return "_".join([self.op, *shapes, *[operation.name for operation in operations]])

    def launch(
        self,
        source: Source,
        scalars: Scalars,
        buffers: Iterable[Ref],
        global_size: tuple[int, ...],
        local_size: tuple[int, ...] | None = None,
    ) -> None:
        """Append a launch."""
        scalars.check(source)
        values = tuple(scalars.values.values())
        kernel = Kernel(source.name, source.text, global_size, local_size, values)
        self._calls.append(Call(kernel, tuple(buffers)))


class Source:
    """The text of a kernel that serves many shapes, and the names of its scalars in order."""

    def __init__(self, name: str, text: str, scalars: Sequence[str]):
        self.name = name
        self.text = text
        self.scalars = tuple(scalars)


class Scalars:
    """What a kernel is told of the shapes: names and values, in the order of its parameters."""

    def __init__(self) -> None:
        self.values: dict[str, int] = {}

    def add(self, **values: int) -> None:
        for name, value in values.items():
            if not -INT_MAX <= value <= INT_MAX:
                raise Unsupported(f"{name} is {value}, which is no int")
            self.values[name] = value

    def add_digits(self, prefix: str, digits: Sequence[Digit], operands: str) -> None:
        """Sizes and strides: `row0`, `row0_a`, `row0_c`, ..."""
        for number, digit in enumerate(digits):
            self.add(**{f"{prefix}{number}": digit.size})
            self.add(**{f"{prefix}{number}_{name}": getattr(digit, name) for name in operands})

    def check(self, source: Source) -> None:
        if tuple(self.values) != source.scalars:
            raise AssertionError(f"{source.name}: {tuple(self.values)} for {source.scalars}")


def digit_names(prefix: str, count: int, operands: str) -> list[str]:
    """The names that `Scalars.add_digits` gives."""
    return [
        name
        for number in range(count)
        for name in (f"{prefix}{number}", *[f"{prefix}{number}_{o}" for o in operands])
    ]


class Counter:
    """A number that counts through digits, in C: variables `<name>0`, ... hold the digits of a
    number, whose sizes are `<sizes>0`, ..."""

    def __init__(self, name: str, sizes: str, count: int):
        self._name, self._sizes, self._count = name, sizes, count

    def begin(self, number: str) -> str:
        """Statements that declare the digits of `number`."""
        if self._count == 0:
            return ""
        name, lines = self._name, [f"int {self._name}{self._count - 1} = {number};"]
        for d in range(self._count - 1, 0, -1):
            size = f"{self._sizes}{d}"
            lines.append(f"int {name}{d - 1} = {name}{d} / {size}; {name}{d} %= {size};")
        return "\n".join(lines)

    def step(self) -> str:
        """A statement that counts on by one."""
        text = f"++{self._name}0;"
        for d in range(1, self._count):
            digit = f"{self._name}{d}"
            text = f"if (++{digit} == {self._sizes}{d}) {{ {digit} = 0; {text} }}"
        return text if self._count else ""

    def place(self, operand: str) -> str:
        """Where the digits lie in an operand: an expression of type `Index`."""
        terms = [f"(Index){self._name}{d} * {self._sizes}{d}_{operand}" for d in range(self._count)]
        return " + ".join(terms) or "0"


def kernel_text(
    name: str, parameters: Sequence[str], scalars: Sequence[str], body: str, comment: str
) -> str:
    """A __kernel function."""
    declared = [*parameters, *_in_lines([f"const int {s}" for s in scalars])]
    head = ",\n".join(f"    {line}" for line in declared)
    told = "\n".join(f"// {line}" for line in textwrap.wrap(comment, 90))
    lines = [line for line in indented(body).splitlines() if line.strip()]
    return "\n".join([told, f"__kernel void {name}(", f"{head}) {{", *lines, "}\n"])


def indented(text: str, by: int = 2) -> str:
    """A block of lines, moved in."""
    return textwrap.indent(text.strip("\n"), " " * by)


def _in_lines(parts: Sequence[str]) -> list[str]:
    """Parameters, five to a line."""
    return [", ".join(parts[i : i + 5]) for i in range(0, len(parts), 5)]


def total(*terms: str) -> str:
    """The sum of expressions, without those that are 0."""
    return " + ".join(term for term in terms if term != "0") or "0"


def index_type(elements: int) -> str:
    """The declaration of the type in which places are counted."""
    return f"typedef {'int' if elements <= INT_MAX else 'long'} Index;\n"
