"""Products as sums over indices: the one form in which every kernel generator is given its work.

    c[...] = sum of a[...] * b[...]

Each index runs from 0 to its size and moves along one axis of the operands that it touches. Which
of them it touches makes its role:

    row     a and c     examples and positions of a convolution
    column  b and c     output channels
    sum     a and b     cells of the window, input channels
    batch   all three   groups; matrices of a batch

A convolution is such a product as it stands: the coordinate of `a` along a spatial axis is moved by
two indices at once, position * stride + cell * dilation, and starts at minus the padding. What lies
outside `a` counts as zero, and nothing is copied to columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from ....dtypes import DType

Sizes = tuple[int, ...]


class Move(NamedTuple):
    """How an index moves in an operand: by `step` elements along `axis`."""

    axis: int
    step: int


class Index(NamedTuple):
    """A counter, and how it moves in each operand; None where it does not."""

    size: int
    a: Move | None = None
    b: Move | None = None
    c: Move | None = None

    @property
    def role(self) -> str:
        if self.c is None:
            return "sum"
        if self.b is None:
            return "row"
        return "column" if self.a is None else "batch"


class Operand(NamedTuple):
    """A C-contiguous array; `origin` are the coordinates at which all indices are 0."""

    shape: Sizes
    dtype: DType
    origin: Sizes

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class Contraction(NamedTuple):
    """`indices` are in the order in which they are to run, the last the fastest."""

    a: Operand
    b: Operand
    c: Operand
    indices: tuple[Index, ...]

    def of_role(self, role: str) -> tuple[Index, ...]:
        """The indices of this role, without those of size 1, which move nothing."""
        return tuple(i for i in self.indices if i.role == role and i.size != 1)

    def count(self, role: str) -> int:
        """How many values the indices of this role take together."""
        return math.prod(i.size for i in self.of_role(role))


class Digit(NamedTuple):
    """An index by its strides, in elements; 0 in operands that it does not touch. An index that
    runs through several axes in one is one digit."""

    size: int
    a: int = 0
    b: int = 0
    c: int = 0


def strides(shape: Sizes) -> Sizes:
    """Of a C-contiguous array, in elements."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def start(operand: Operand) -> int:
    """Where the element at the origin lies."""
    return sum(o * s for o, s in zip(operand.origin, strides(operand.shape), strict=True))


def digits(contraction: Contraction, indices: Iterable[Index]) -> tuple[Digit, ...]:
    """Indices as digits, none merged."""
    along = {name: strides(getattr(contraction, name).shape) for name in "abc"}

    def stride(index: Index, name: str) -> int:
        move = getattr(index, name)
        return 0 if move is None else move.step * along[name][move.axis]

    return tuple(Digit(i.size, *[stride(i, name) for name in "abc"]) for i in indices)


def merged(found: Iterable[Digit], operands: str) -> tuple[Digit, ...]:
    """Fewer digits that take the same places in the operands named, in the same order; what they
    say of other operands is lost."""
    result: list[Digit] = []
    for digit in found:
        if result and all(
            getattr(result[-1], name) == digit.size * getattr(digit, name) for name in operands
        ):
            digit = digit._replace(size=digit.size * result.pop().size)
        result.append(digit)
    return tuple(result)


def overhang(contraction: Contraction) -> tuple[tuple[int, int], ...]:
    """By how much indices run over the edges of `a`, before and behind, along each axis."""
    a = contraction.a
    low, high = list(a.origin), list(a.origin)
    for index in contraction.indices:
        if index.a is not None and index.size > 0:
            reach = index.a.step * (index.size - 1)
            low[index.a.axis] += min(reach, 0)
            high[index.a.axis] += max(reach, 0)
    return tuple(
        (max(-lo, 0), max(hi + 1 - n, 0)) for lo, hi, n in zip(low, high, a.shape, strict=True)
    )


def padded(contraction: Contraction, pads: Iterable[tuple[int, int]]) -> Contraction:
    """The same product of an `a` that has been copied into zeros."""
    a, pads = contraction.a, tuple(pads)
    shape = tuple(lo + n + hi for n, (lo, hi) in zip(a.shape, pads, strict=True))
    origin = tuple(o + lo for o, (lo, _) in zip(a.origin, pads, strict=True))
    return contraction._replace(a=a._replace(shape=shape, origin=origin))
