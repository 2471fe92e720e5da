"""Operands read where they lie, for GPUs: places and bounds computed from counters, in C.

GPUs have arithmetic to spare and little patience for copies, so an image is not padded: each load
asks whether its coordinates lie inside. Sizes and strides are written into the text, since a GPU
divides by constants much faster than by numbers that it is given.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from .contraction import Contraction, Index, digits, overhang
from .draft import INT_MAX, total


class Digit(NamedTuple):
    """An index by its strides in elements, and its steps along the axes of `a` that are bounded."""

    size: int
    a: int
    b: int
    c: int
    steps: tuple[int, ...]


class Bounds(NamedTuple):
    """The axes of `a` that indices run over the edges of: their sizes, and where they start."""

    axes: tuple[int, ...]
    sizes: tuple[int, ...]
    origins: tuple[int, ...]


def bounds(contraction: Contraction) -> Bounds:
    """What loads from `a` have to check."""
    axes = tuple(axis for axis, pair in enumerate(overhang(contraction)) if any(pair))
    a = contraction.a
    return Bounds(axes, tuple(a.shape[i] for i in axes), tuple(a.origin[i] for i in axes))


def counters(
    contraction: Contraction, indices: Iterable[Index], checked: Bounds
) -> tuple[Digit, ...]:
    """Indices as digits; neighbours that are one run through all operands are one digit. Of an
    empty sum there are none."""
    result: list[Digit] = []
    chosen = tuple(indices)
    if any(index.size == 0 for index in chosen):
        return ()
    for index, plain in zip(chosen, digits(contraction, chosen), strict=True):
        steps = tuple(
            index.a.step if index.a is not None and index.a.axis == axis else 0
            for axis in checked.axes
        )
        digit = Digit(plain.size, plain.a, plain.b, plain.c, steps)
        if result and not any(steps) and not any(result[-1].steps):
            last = result[-1]
            if (last.a, last.b, last.c) == tuple(digit.size * n for n in digit[1:4]):
                digit = digit._replace(size=digit.size * result.pop().size)
        result.append(digit)
    return tuple(result)


def split_up(name: str, number: str, sizes: Iterable[int], kind: str = "int") -> list[str]:
    """Statements that declare the digits `<name>0`, ... of `number`, of type `kind`."""
    found = list(sizes)
    lines = []
    for d in range(len(found) - 1, -1, -1):
        if d == 0:
            lines.append(f"const {kind} {name}0 = {number};")
        else:
            lines.append(f"const {kind} {name}{d} = {number} % {found[d]};")
            number = f"{number} / {found[d]}"
    return lines


def place(name: str, found: Iterable[Digit], operand: str) -> str:
    """An expression for where the digits lie in an operand."""
    terms = []
    for d, digit in enumerate(found):
        stride = getattr(digit, operand)
        if stride:
            terms.append(f"(Index){name}{d}" if stride == 1 else f"(Index){name}{d} * {stride}")
    return total(*terms)


def coordinate(name: str, found: Iterable[Digit], axis: int) -> str:
    """An expression for how far the digits move along a bounded axis."""
    terms = []
    for d, digit in enumerate(found):
        step = digit.steps[axis]
        if step:
            terms.append(f"{name}{d}" if step == 1 else f"{name}{d} * {step}")
    return total(*terms)


def fits(numbers: Iterable[int]) -> bool:
    """Whether all of these can be written into a text as ints."""
    return all(-INT_MAX <= number <= INT_MAX for number in numbers)
