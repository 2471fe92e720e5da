"""From equations to the instructions of a nest.

A value is asked for at a place, given by what is known of its indices, and asks its operands for
theirs: so views (reshape, permute, slice, pad and their like) never move anything, they only change
the place. What is not computed in the nest is loaded; an index that is not affine in the axes of
the nest makes the load a gather.

Addresses of gathers are kept inside their buffer: an index that could leave it is clamped, after a
negative one has been counted from the end.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import dtypes
from ..core import Primitive, Tensor
from ..graph import Atom, Equation, Var
from .affine import ZERO, Affine, Axes, Split, flatten
from .loops import Recorder, Scalar

Index = Affine | Scalar
Rule = Callable[["Body", Equation, "Place", int], Scalar]

views: dict[Primitive, Rule] = {}  # they compute nothing, and are computed wherever they are read
points: dict[Primitive, Rule] = {}  # one point of the result from points of the arguments
folds: dict[Primitive, Fold] = {}  # over axes that the result lacks


class Fold:
    """How a reduction runs: `axes(eqn)` are the sizes of all axes of its loop, and which of them
    are folded; the others are those of its results, in order. `rule(body, eqn, loop, number)` gives
    result `number` at one kept point, `loop` being the position along each axis."""

    def __init__(
        self,
        axes: Callable[[Equation], tuple[tuple[int, ...], tuple[int, ...]]],
        rule: Callable[[Body, Equation, tuple[Affine, ...], int], Scalar],
    ):
        self.axes = axes
        self.rule = rule


class Place:
    """Where in a value of `shape`: by the index along each axis, or by the address alone."""

    __slots__ = ("_indices", "address", "shape")

    def __init__(
        self,
        shape: tuple[int, ...],
        indices: Sequence[Index] | None = None,
        address: Affine | Scalar | None = None,
    ):
        self.shape = shape
        self._indices = None if indices is None else tuple(indices)
        if address is None and self._indices is not None:
            affine = [i for i in self._indices if isinstance(i, Affine)]
            if len(affine) == len(self._indices):
                address = flatten(affine, shape)
        self.address = address

    @property
    def key(self) -> Any:
        if isinstance(self.address, Affine):
            return self.address
        if self.address is not None:
            return self.address.position
        assert self._indices is not None
        return tuple(i if isinstance(i, Affine) else i.position for i in self._indices)

    def indices(self, body: Body) -> tuple[Index, ...]:
        """The index along each axis.

        Raises:
            Split: it would be affine, if an axis were split.
        """
        if self._indices is None:
            assert self.address is not None
            rest, found = self.address, []
            for n in reversed(self.shape[1:]):
                rest, inner = body.divide(rest, n) if n > 1 else (rest, ZERO)
                found.append(inner)
            self._indices = (*([rest] if self.shape else []), *reversed(found))
        return self._indices

    def reshaped(self, body: Body, shape: tuple[int, ...]) -> Place:
        """The same place in the value reshaped to `shape`."""
        address = self.address
        if address is None:
            total, step = body.constant(0, dtypes.int64), 1
            for i, n in zip(reversed(self.indices(body)), reversed(self.shape), strict=True):
                total = body.apply("add", total, body.times(body.scalar(i), step))
                step *= n
            address = total
        return Place(shape, address=address)


class Body:
    """The instructions of a nest, and the loads that they make."""

    def __init__(
        self,
        axes: Axes,
        producers: dict[Var, tuple[int, int]],
        equations: Sequence[Equation],
        inside: Callable[[int], bool],
        loops: Callable[[int], tuple[Affine, ...]],
        *,
        may_split: bool = False,
        guards: bool = False,
    ):
        self.axes = axes
        self.recorder = Recorder()
        self.operands: list[tuple[Var, Affine]] = []  # input buffers, and the address of a point
        self.gathered: set[int] = set()  # those of them from which elements elsewhere are read
        self.computed: set[int] = set()  # the numbers of equations
        self._producers = producers
        self._equations = equations
        self._inside = inside
        self._loops = loops
        self._may_split = may_split
        self.guards = guards  # whether loads may be guarded
        self._guard: Scalar | None = None
        self._numbers: dict[Any, int] = {}
        self._values: dict[Any, Scalar] = {}
        self._affine: dict[int, Affine] = {}  # what instructions compute that hold an index
        self._spans: dict[int, tuple[float, float]] = {}  # of those that are not affine

    # ---- values ----------------------------------------------------------------------------------

    def value(self, atom: Atom, place: Place) -> Scalar:
        """`atom` at `place`."""
        if isinstance(atom, Tensor):  # of one element; larger ones are variables here
            return self.number(atom.numpy().reshape(()))
        number, output = self._producers.get(atom, (-1, 0))
        if number < 0 or not self._inside(number):
            return self.load(atom, place)
        key = atom, place.key, self._guard and self._guard.position
        if key not in self._values:
            self._values[key] = self.compute(number, output, place)
        return self._values[key]

    def compute(self, number: int, output: int, place: Place) -> Scalar:
        """Result `output` of equation `number` at `place`."""
        self.computed.add(number)
        eqn = self._equations[number]
        rule = views.get(eqn.prim) or points.get(eqn.prim)
        if rule is not None:
            result = rule(self, eqn, place, output)
        elif eqn.prim in folds:
            fold = folds[eqn.prim]
            loop = tuple(map(self.axes.resolve, self._loops(number)))
            kept = [i for axis, i in enumerate(loop) if axis not in fold.axes(eqn)[1]]
            assert Place(place.shape, kept).key == place.key, "a reduction of another nest"
            result = fold.rule(self, eqn, loop, output)
        else:
            scalar: Any = eqn.prim
            args = [self.value(a, broadcast(self, place, a.aval.shape)) for a in eqn.inputs]
            result = self.recorder.expression(scalar.scalar, args)
        return self.recorder.cast(result, eqn.outputs[output].aval.dtype)

    def load(self, atom: Var, place: Place) -> Scalar:
        """The element of a buffer at `place`."""
        dtype = atom.aval.dtype
        if isinstance(place.address, Affine):
            number = self._operand(atom, place.address)
            low, high = self.axes.span(place.address)
            if low >= 0 and high < atom.aval.size:
                return self.recorder.emit("load", (), dtype, number)
            assert self._guard is not None, "an address outside of the buffer"
            return self.recorder.emit("load", (self._guard,), dtype, number)
        base, args, strides = ZERO, [], []
        if place.address is not None:
            args, strides = [place.address], [1]
        else:
            step = 1
            for i, n in zip(reversed(place.indices(self)), reversed(place.shape), strict=True):
                if self._guard is not None:  # a gather has none, and may be anywhere
                    i = self.clamp(i, n)
                if isinstance(i, Affine):
                    base = base.plus(i.times(step))
                else:
                    args.insert(0, i)
                    strides.insert(0, step)
                step *= n
        number = self._operand(atom, base)
        self.gathered.add(number)
        return self.recorder.emit("gather", args, dtype, (number, tuple(strides)))

    def guarded(self, guard: Scalar | bool, atom: Atom, place: Place) -> Scalar:
        """`atom` at a place that may lie outside of it, unless `guard` holds; it is anything there.
        Loads are not done then, and give 0. Without guards the nearest element is read."""
        if not self.guards:
            indices = zip(place.indices(self), place.shape, strict=True)
            inner = [self.clamp(index, size) for index, size in indices]
            return self.value(atom, Place(place.shape, inner))
        outer = self._guard
        held = guard if outer is None else self.both(outer, guard)
        self._guard = held if isinstance(held, Scalar) else outer
        value = self.value(atom, place)
        self._guard = outer
        return value

    def _operand(self, atom: Var, address: Affine) -> int:
        number = self._numbers.setdefault((atom, address), len(self.operands))
        if number == len(self.operands):
            self.operands.append((atom, address))
        return number

    def number(self, value: np.ndarray) -> Scalar:
        """A constant."""
        if dtypes.is_float(value.dtype) and np.isnan(value):  # one that equals itself
            return self.recorder.emit("constant", (), value.dtype, math.nan)
        return self.recorder.constant(value, value.dtype)

    def constant(self, value: Any, dtype: np.dtype[Any]) -> Scalar:
        """A Python scalar as `dtype`."""
        with np.errstate(all="ignore"):
            return self.number(np.asarray(value).astype(dtype))

    def apply(self, op: str, *args: Scalar) -> Scalar:
        """A scalar operation on integers or booleans."""
        compares = op in ("less", "less_equal", "equal", "greater_equal")
        return self.recorder.emit(op, args, dtypes.bool_ if compares else args[-1].dtype)

    def choose(self, inside: Scalar | bool, value: Scalar, other: Scalar) -> Scalar:
        """`value` where `inside` holds, `other` elsewhere."""
        if isinstance(inside, bool):
            return value if inside else other
        return self.recorder.emit("where", (inside, value, other), value.dtype)

    # ---- indices ---------------------------------------------------------------------------------

    def scalar(self, index: Index) -> Scalar:
        """An index as an instruction, int64."""
        if isinstance(index, Scalar):
            return index
        total: Scalar | None = None
        for axis, c in index.terms:
            position = self.recorder.emit("index", (), dtypes.int64, axis)
            term = self.times(position, c)
            total = term if total is None else self.apply("add", total, term)
        if total is None:
            total = self.constant(index.const, dtypes.int64)
        elif index.const:
            total = self.apply("add", total, self.constant(index.const, dtypes.int64))
        self._affine[total.position] = index
        return total

    def as_index(self, value: Scalar) -> Index:
        """The index that an integer value is: affine, if that is known."""
        if value.position in self._affine:
            return self._affine[value.position]
        instruction = self.recorder.body[value.position]
        if instruction.op == "constant":
            return Affine((), int(instruction.attribute))
        return self.recorder.cast(value, dtypes.int64)

    def times(self, value: Scalar, factor: int) -> Scalar:
        if factor == 1:
            return value
        return self.apply("multiply", value, self.constant(factor, dtypes.int64))

    def plus(self, index: Index, offset: int) -> Index:
        if isinstance(index, Affine):
            return index.plus(offset)
        if offset == 0:
            return index
        least, most = self.span(index)
        result = self.apply("add", index, self.constant(offset, dtypes.int64))
        return self._known(result, least + offset, most + offset)

    def sum(self, first: Index, second: Index) -> Index:
        if isinstance(first, Affine) and isinstance(second, Affine):
            return first.plus(second)
        if isinstance(first, Affine):
            first, second = second, first
        if isinstance(second, Affine) and not second.terms:
            return self.plus(first, second.const)
        (least, most), (low, high) = self.span(first), self.span(second)
        result = self.apply("add", self.scalar(first), self.scalar(second))
        return self._known(result, least + low, most + high)

    def scaled(self, index: Index, factor: int) -> Index:
        if isinstance(index, Affine):
            return index.times(factor)
        ends = [end * factor for end in self.span(index)]
        return self._known(self.times(index, factor), min(ends), max(ends))

    def divide(self, index: Index, by: int) -> tuple[Index, Index]:
        """Quotient and remainder of an index that is not negative.

        Raises:
            Split: they would be affine, if an axis were split.
        """
        if self._may_split and isinstance(index, Affine):
            return self.axes.divide(index, by) or self.parts(index, by)
        return self.parts(index, by)

    def parts(self, index: Index, by: int) -> tuple[Index, Index]:
        """Quotient and remainder of an index that is not negative, without splitting axes."""
        if isinstance(index, Affine):
            with contextlib.suppress(Split):
                if parts := self.axes.divide(index, by):
                    return parts
        least, most = self.span(index)
        value, divisor = self.scalar(index), self.constant(by, dtypes.int64)
        if least < 0 and self._guard is not None:  # outside of what is read
            value, most = self.apply("max", value, self.constant(0, dtypes.int64)), max(most, 0)
        quotient = self.apply("floor_divide", value, divisor)
        remainder = self.apply("remainder", value, divisor)
        return (
            self._known(quotient, 0, most if math.isinf(most) else most // by),
            self._known(remainder, 0, min(by - 1, most)),
        )

    def _known(self, value: Scalar, least: float, most: float) -> Scalar:
        self._spans[value.position] = least, most
        return value

    def within(self, index: Index, low: float, high: int) -> Scalar | bool:
        """Whether low <= index < high."""
        checks: list[Scalar] = []
        least, most = self.span(index)
        if most < low or least >= high:
            return False
        value = self.scalar(index)
        if least < low:
            checks.append(self.apply("greater_equal", value, self.constant(low, dtypes.int64)))
        if most >= high:
            checks.append(self.apply("less", value, self.constant(high, dtypes.int64)))
        return self.both(*checks)

    def both(self, *conditions: Scalar | bool) -> Scalar | bool:
        """Whether all of the conditions hold."""
        result: Scalar | bool = True
        for condition in conditions:
            if condition is False or result is False:
                return False
            if result is True:
                result = condition
            elif condition is not True:
                result = self.apply("and", result, condition)
        return result

    def clamp(self, index: Index, size: int) -> Index:
        """The index, or the nearest one in [0, size)."""
        least, most = self.span(index)
        if least >= 0 and most < size:
            return index
        low, high = min(max(least, 0), size - 1), max(min(most, size - 1), 0)
        if low == high:
            return Affine((), int(low))
        value = self.scalar(index)
        if least < 0:
            value = self.apply("max", value, self.constant(0, dtypes.int64))
        if most >= size:
            value = self.apply("min", value, self.constant(size - 1, dtypes.int64))
        return self._known(value, low, high)

    def span(self, index: Index) -> tuple[float, float]:
        """The least and the largest value that the index may have."""
        if isinstance(index, Affine):
            return self.axes.span(index)
        return self._spans.get(index.position, (-math.inf, math.inf))


def broadcast(body: Body, place: Place, shape: tuple[int, ...]) -> Place:
    """The place in an operand of `shape` that is broadcast."""
    if shape == place.shape:
        return place
    if math.prod(shape) == 1:
        return Place(shape, address=ZERO)
    if math.prod(shape) == math.prod(place.shape):
        return Place(shape, address=place.reshaped(body, shape).address)
    last = place.indices(body)[len(place.shape) - len(shape) :]
    return Place(shape, [ZERO if n == 1 else i for n, i in zip(shape, last, strict=True)])
