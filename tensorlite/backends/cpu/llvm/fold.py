"""Accumulators of the reductions of one pass.

Each copy of the vectors has accumulators of its own, which breaks the chain of dependent additions.
If the vector axis is reduced, the lanes are folded at the end, halves onto halves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .... import dtypes
from ....compiler.loops import identity
from .place import Place
from .plan import Plan
from .scalar import apply, cast, compare
from .text import Function, literal, register_type, vector

_OPERATIONS = {
    "sum": "add",
    "prod": "multiply",
    "max": "max",
    "min": "min",
    "any": "or",
    "all": "and",
}
_NUMBER = dtypes.int32  # of points, for argmax


class Folds:
    """The reductions at `positions`, all of one pass."""

    def __init__(
        self,
        function: Function,
        plan: Plan,
        positions: Sequence[int],
        copies: int,
        blocked: bool,
    ):
        self.function = function
        self.plan = plan
        # The largest value that argmax keeps at hand is the result of a max of the same values.
        searched = {self._argument(p): p for p in positions if self._kind(p) == "argmax"}
        self._shared = {
            p: searched[self._argument(p)]
            for p in positions
            if self._kind(p) == "max" and self._argument(p) in searched
        }
        self.positions = [p for p in positions if p not in self._shared]
        # The vector axis is inner: all lanes and copies are folded into one.
        self.across = plan.vector in plan.inner
        self.copies = copies
        self.lanes = plan.lanes
        self.numbered = any(self._kind(p) == "argmax" for p in self.positions)
        steps = [plan.numbers[axis] for axis in plan.inner]
        self.ordered = steps == sorted(steps, reverse=True)  # points come by their numbers
        self.blocked = blocked  # `flush` is called now and then
        self._slots: dict[tuple[int, int], str] = {}
        self._block_sums: dict[tuple[int, int], str] = {}
        self._number_slots: dict[tuple[int, int], str] = {}

    def _kind(self, position: int) -> str:
        return self.plan.nest.body[position].attribute

    def _argument(self, position: int) -> int:
        return self.plan.nest.body[position].args[0]

    def _dtype(self, position: int) -> np.dtype[Any]:
        return self.plan.nest.body[self.plan.nest.body[position].args[0]].dtype

    def begin(self) -> None:
        """Reserve the accumulators and set them to what changes nothing."""
        for position in self.positions:
            dtype = self._dtype(position)
            kind = register_type(dtype, self.lanes)
            start = literal(identity(self._kind(position), dtype), dtype, self.lanes)
            for copy in range(self.copies):
                slot = self.function.slot(kind)
                self._slots[position, copy] = slot
                self.function.line(f"store {kind} {start}, ptr {slot}")
                if self._is_blocked(position):
                    slot = self.function.slot(kind)
                    self._block_sums[position, copy] = slot
                    self.function.line(f"store {kind} {start}, ptr {slot}")
                if self._kind(position) == "argmax":
                    numbers = register_type(_NUMBER, self.lanes)
                    slot = self.function.slot(numbers)
                    self._number_slots[position, copy] = slot
                    zero = literal(0, _NUMBER, self.lanes)
                    self.function.line(f"store {numbers} {zero}, ptr {slot}")

    def add(
        self, position: int, copy: int, value: str, mask: str | None, number: str | None
    ) -> None:
        """Fold a value in. `mask`: the lanes that count. `number`: that of the first lane."""
        function, dtype, op = self.function, self._dtype(position), self._kind(position)
        kind, slot = register_type(dtype, self.lanes), self._slots[position, copy]
        place = Place(function, self.lanes)
        if mask is not None and self.across:
            value = place.select(mask, dtype, value, place.literal(identity(op, dtype), dtype))
        before = function.value(f"load {kind}, ptr {slot}")
        if op != "argmax":
            after = _combined(place, op, dtype, before, value)
            function.line(f"store {kind} {after}, ptr {slot}")
            return
        numbers, number_slot = (
            register_type(_NUMBER, self.lanes),
            self._number_slots[position, copy],
        )
        best = function.value(f"load {numbers}, ptr {number_slot}")
        here = self._lane_numbers(number or "0")
        wins = _wins(place, dtype, value, before)
        if not self.ordered:
            wins = _or_tied(place, dtype, wins, value, before, here, best)
        after = place.select(wins, dtype, value, before)
        best = place.select(wins, _NUMBER, here, best)
        function.line(f"store {kind} {after}, ptr {slot}")
        function.line(f"store {numbers} {best}, ptr {number_slot}")

    def _is_blocked(self, position: int) -> bool:
        return self.blocked and self._kind(position) == "sum" and self._dtype(position).kind == "f"

    def flush(self) -> None:
        """Add the sums of a block to those of all blocks."""
        for (position, copy), slot in self._block_sums.items():
            dtype = self._dtype(position)
            kind, block = register_type(dtype, self.lanes), self._slots[position, copy]
            total = self.function.value(f"load {kind}, ptr {slot}")
            part = self.function.value(f"load {kind}, ptr {block}")
            after = _combined(Place(self.function, self.lanes), "sum", dtype, total, part)
            zero = literal(0, dtype, self.lanes)
            self.function.line(f"store {kind} {after}, ptr {slot}")
            self.function.line(f"store {kind} {zero}, ptr {block}")

    def _lane_numbers(self, first: str) -> str:
        """The numbers of the points in the lanes."""
        if self.lanes == 1:
            return first
        wide = register_type(_NUMBER, self.lanes)
        step = self.plan.numbers[self.plan.vector]
        one = self.function.value(f"insertelement {wide} poison, i32 {first}, i64 0")
        splat = self.function.value(
            f"shufflevector {wide} {one}, {wide} poison, <{self.lanes} x i32> zeroinitializer"
        )
        if step == 0:
            return splat
        ramp = ", ".join(f"i32 {step * lane}" for lane in range(self.lanes))
        return self.function.value(f"add {wide} {splat}, <{ramp}>")

    def finish(self) -> dict[int, list[str]]:
        """The results: one value for each copy, or one alone if lanes were folded."""
        results: dict[int, list[str]] = {}
        for position in self.positions:
            values, numbers = self._accumulated(position)
            if self.across:
                values, numbers = self._folded(position, values, numbers)
            elif not self.plan.is_vector(position) and self.lanes > 1:
                values, numbers = self._first_lane(self._dtype(position), values[0], numbers)
            for largest, searched in self._shared.items():
                if searched == position:
                    results[largest] = values
            if numbers:
                place = Place(self.function, self.lanes if self._many(position) else 1)
                values = [cast(place, n, _NUMBER, dtypes.int64) for n in numbers]
            results[position] = values
        return results

    def _accumulated(self, position: int) -> tuple[list[str], list[str]]:
        """What the accumulators of each copy hold: values, and for argmax numbers of points."""

        def loaded(dtype: np.dtype[Any], slots: dict[tuple[int, int], str]) -> list[str]:
            kind = register_type(dtype, self.lanes)
            chosen = [slots[position, copy] for copy in range(self.copies)]
            return [self.function.value(f"load {kind}, ptr {slot}") for slot in chosen]

        slots = self._block_sums if self._is_blocked(position) else self._slots
        values = loaded(self._dtype(position), slots)
        if self._kind(position) != "argmax":
            return values, []
        return values, loaded(_NUMBER, self._number_slots)

    def _many(self, position: int) -> bool:
        return not self.across and self.plan.is_vector(position)

    def _first_lane(
        self, dtype: np.dtype[Any], value: str, numbers: list[str]
    ) -> tuple[list[str], list[str]]:
        def first(x: str, d: np.dtype[Any]) -> str:
            return self.function.value(f"extractelement {register_type(d, self.lanes)} {x}, i64 0")

        return [first(value, dtype)], [first(n, _NUMBER) for n in numbers[:1]]

    def _folded(
        self, position: int, values: list[str], numbers: list[str]
    ) -> tuple[list[str], list[str]]:
        """Copies onto copies, then halves of lanes onto halves."""
        op, dtype, lanes = self._kind(position), self._dtype(position), self.lanes
        if op in ("max", "min") and dtype.kind == "f":
            return [self._extremum(op, dtype, values)], []
        while len(values) > 1:
            half = (len(values) + 1) // 2
            for i in range(len(values) - half):
                values[i], numbers[i : i + 1] = self._pair(
                    op,
                    dtype,
                    lanes,
                    values[i],
                    values[half + i],
                    numbers[i : i + 1],
                    numbers[half + i : half + i + 1],
                )
            values, numbers = values[:half], numbers[:half]
        value, number = values[0], numbers[:1]
        while lanes > 1:
            low, high = (self._half(dtype, lanes, value, upper) for upper in (False, True))
            numbers_low = [self._half(_NUMBER, lanes, n, False) for n in number]
            numbers_high = [self._half(_NUMBER, lanes, n, True) for n in number]
            lanes //= 2
            value, number = self._pair(op, dtype, lanes, low, high, numbers_low, numbers_high)
        return [value], number

    def _extremum(self, op: str, dtype: np.dtype[Any], values: list[str]) -> str:
        """The largest or smallest of all lanes. Whether one is NaN is found beside it: to look at
        every step would make a long chain."""
        function, lanes = self.function, self.lanes
        place, mask = Place(function, lanes), vector("i1", lanes)
        unordered = ""
        for x, y in zip(values[::2], [*values[1::2], values[-1]], strict=False):
            found = function.value(f"fcmp uno {place.type(dtype)} {x}, {y}")
            unordered = function.value(f"or {mask} {unordered}, {found}") if unordered else found
        if lanes > 1:
            name = f"llvm.vector.reduce.or.v{lanes}i1"
            unordered = function.call("i1", name, (mask, unordered))
        better = "greater" if op == "max" else "less"

        def best(place: Place, x: str, y: str) -> str:
            return place.select(compare(place, better, dtype, x, y), dtype, x, y)

        while len(values) > 1:
            half = (len(values) + 1) // 2
            values = [
                *(best(place, *pair) for pair in zip(values, values[half:], strict=False)),
                *values[len(values) - half : half],
            ]
        value = values[0]
        while lanes > 1:
            low, high = (self._half(dtype, lanes, value, upper) for upper in (False, True))
            lanes //= 2
            value = best(Place(function, lanes), low, high)
        nan = literal(float("nan"), dtype)
        return Place(function, 1).select(unordered, dtype, nan, value)

    def _half(self, dtype: np.dtype[Any], lanes: int, value: str, upper: bool) -> str:
        wide, half = register_type(dtype, lanes), lanes // 2
        if half == 1:
            return self.function.value(f"extractelement {wide} {value}, i64 {int(upper)}")
        start = half if upper else 0
        chosen = ", ".join(f"i32 {start + i}" for i in range(half))
        return self.function.value(
            f"shufflevector {wide} {value}, {wide} poison, <{half} x i32> <{chosen}>"
        )

    def _pair(
        self,
        op: str,
        dtype: np.dtype[Any],
        lanes: int,
        x: str,
        y: str,
        x_numbers: list[str],
        y_numbers: list[str],
    ) -> tuple[str, list[str]]:
        place = Place(self.function, lanes)
        if op != "argmax":
            return _combined(place, op, dtype, x, y), []
        first, second = x_numbers[0], y_numbers[0]
        wins = _wins(place, dtype, y, x)
        chosen = _or_tied(place, dtype, wins, y, x, second, first)
        return place.select(chosen, dtype, y, x), [place.select(chosen, _NUMBER, second, first)]


def _combined(place: Place, op: str, dtype: np.dtype[Any], x: str, y: str) -> str:
    if op in ("any", "all") and dtype != dtypes.bool_:
        raise NotImplementedError(
            f"reduce {op!r} takes booleans, got {dtype}; compare with 0 first"
        )
    return apply(place, _OPERATIONS[op], None, dtype, [dtype, dtype], [x, y])


def _wins(place: Place, dtype: np.dtype[Any], x: str, best: str) -> str:
    """Whether `x` is larger than `best`, a NaN being larger than all numbers."""
    if dtype.kind != "f":
        return compare(place, "greater", dtype, x, best)
    kind = place.type(dtype)
    larger = place.value(f"fcmp ugt {kind} {x}, {best}")
    number = place.value(f"fcmp ord {kind} {best}, {best}")
    return place.value(f"and {vector('i1', place.lanes)} {larger}, {number}")


def _or_tied(
    place: Place, dtype: np.dtype[Any], wins: str, x: str, best: str, number: str, best_number: str
) -> str:
    """Whether `x` wins, or is as large as `best` and has the lower number."""
    mask = vector("i1", place.lanes)
    loses = _wins(place, dtype, best, x)
    tied = place.value(f"xor {mask} {loses}, {place.literal(True, dtypes.bool_)}")
    earlier = compare(place, "less", _NUMBER, number, best_number)
    tied = place.value(f"and {mask} {tied}, {earlier}")
    return place.value(f"or {mask} {wins}, {tied}")
