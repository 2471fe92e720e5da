"""A planned nest as LLVM functions.

`name(buffers)` is what is called; it asks the OpenMP runtime to run `name.thread` on all threads,
which take equal shares of the units of work and run `name.units` on theirs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from ....compiler.loops import Nest
from .fold import Folds
from .plan import Plan, estimate
from .text import Function, Module
from .values import Values, first_lanes

# Nanoseconds of work below which a second thread costs more than it saves.
PARALLEL_NANOSECONDS = 8000.0


def render(module: Module, name: str, plan: Plan) -> None:
    """Add the functions of a plan to a module, the one to call as `name`."""
    _Units(module, name, plan).write()
    units = plan.units
    if units == 1 or estimate(plan) < PARALLEL_NANOSECONDS:
        function = Function(module, f"define void @{name}(ptr %buffers)")
        function.line(f"call void @{name}.units(ptr %buffers, i64 0, i64 {units})")
        function.finish()
        return
    write_parallel(module, name, units)


def write_parallel(module: Module, name: str, units: int) -> None:
    """Add `name(buffers)`, which shares `name.units(buffers, begin, end)` among all threads."""
    module.declare("void", "GOMP_parallel", "ptr, ptr, i32, i32")
    thread = Function(module, f"define internal void @{name}.thread(ptr %buffers)")
    number = thread.call("i32", "omp_get_thread_num")
    count = thread.call("i32", "omp_get_num_threads")
    number, count = (thread.value(f"sext i32 {v} to i64") for v in (number, count))
    following = thread.integer("add", number, "1")
    begin, end = (
        thread.value(f"sdiv i64 {thread.integer('mul', v, str(units))}, {count}")
        for v in (number, following)
    )
    thread.line(f"call void @{name}.units(ptr %buffers, i64 {begin}, i64 {end})")
    thread.finish()
    function = Function(module, f"define void @{name}(ptr %buffers)")
    function.line(f"call void @GOMP_parallel(ptr @{name}.thread, ptr %buffers, i32 0, i32 0)")
    function.finish()


class _Units(Values):
    """The function that runs some units of a plan."""

    def __init__(self, module: Module, name: str, plan: Plan):
        header = f"define internal void @{name}.units(ptr %buffers, i64 %begin, i64 %end)"
        super().__init__(Function(module, header), plan)
        self.live = _live(self.nest)
        self.level = [self._level(i) for i in range(len(self.nest.body))]

    # ---- structure -----------------------------------------------------------------------

    def write(self) -> None:
        """Write the whole function."""
        function, plan, shape = self.function, self.plan, self.nest.shape
        if math.prod(shape[a] for a in plan.outer) == 0:
            function.finish()
            return
        self._load_pointers()
        self._enter_level(-1)
        with function.loop("%begin", "%end") as unit:
            self.scopes.append({})
            bounds = self._decode(unit)
            self._outer_loops(list(plan.outer), bounds)
            self.scopes.pop()
        function.finish()

    def _load_pointers(self) -> None:
        for number, operand in enumerate(self.operands):
            at = self.function.value(f"getelementptr ptr, ptr %buffers, i64 {number}")
            self._set(("pointer", number), self.function.value(f"load ptr, ptr {at}"))
            self._set(("offset", number), str(operand.offset))
        self._set(("offset", "number"), "0")

    def _decode(self, unit: str) -> dict[int, tuple[str, str]]:
        """The bounds of the axes that a unit runs over in part."""
        function, plan, shape = self.function, self.plan, self.nest.shape
        bounds: dict[int, tuple[str, str]] = {}
        rest = unit
        if plan.shared is not None:
            blocks = -(-shape[plan.shared] // plan.block)
            part = rest if not plan.unit_axes() else function.value(f"urem i64 {rest}, {blocks}")
            rest = function.value(f"udiv i64 {rest}, {blocks}") if plan.unit_axes() else "0"
            bounds[plan.shared] = self._block_bounds(part, plan.block, shape[plan.shared])
            for axis in reversed(plan.unit_axes()):
                index = function.value(f"urem i64 {rest}, {shape[axis]}")
                rest = function.value(f"udiv i64 {rest}, {shape[axis]}")
                bounds[axis] = (index, function.integer("add", index, "1"))
        return bounds

    def _block_bounds(self, part: str, block: int, extent: int) -> tuple[str, str]:
        function = self.function
        low = function.integer("mul", part, str(block))
        end = function.integer("add", low, str(block))
        if extent % block == 0:
            return low, end
        return low, self._smaller(end, str(extent))

    def _smaller(self, x: str, y: str) -> str:
        return self.function.call("i64", "llvm.smin.i64", ("i64", x), ("i64", y))

    def _outer_loops(self, axes: list[int], bounds: dict[int, tuple[str, str]]) -> None:
        if not axes:
            self._block(bounds)
            return
        axis, rest = axes[0], axes[1:]
        low, high = bounds.get(axis, ("0", str(self.nest.shape[axis])))
        whole_units = axis in self.plan.unit_axes()
        if axis == self.plan.vector:
            self._vector_loop(axis, low, high, lambda: self._block(bounds))
        elif whole_units:
            self._at(axis, low, lambda: self._outer_loops(rest, bounds))
        else:
            with self.function.loop(low, high) as index:
                self._at(axis, index, lambda: self._outer_loops(rest, bounds))

    def _at(self, axis: int, index: str, body: Any) -> None:
        """Write `body` for one position along an axis."""
        self.scopes.append({})
        self.indices[axis] = index
        self._advance(axis, index)
        self._enter_level(self.order.index(axis))
        body()
        self.scopes.pop()

    def _advance(self, axis: int, index: str) -> None:
        """Add a position to what is known of the addresses of all operands."""
        function = self.function
        moves: list[tuple[Any, int]] = [(n, o.strides[axis]) for n, o in enumerate(self.operands)]
        for number, stride in [*moves, ("number", self.plan.numbers[axis])]:
            if stride != 0:
                move = function.integer("mul", index, str(stride))
                before = self._get(("offset", number))
                self._set(("offset", number), function.integer("add", before, move))

    def _vector_loop(self, axis: int, low: str, high: str, body: Any) -> None:
        """Whole groups of copies, then what is left at the end of the axis."""
        plan, function = self.plan, self.function
        extent, step = self.nest.shape[axis], plan.lanes * plan.copies
        whole, rest = extent - extent % step, extent % step
        if whole:
            limit = high
            if rest:
                limit = str(whole) if high == str(extent) else self._smaller(high, str(whole))
            self.copies, self.mask = plan.copies, None
            with function.loop(low, limit, step) as index:
                self._at(axis, index, body)
        if rest:
            with ExitStack() as stack:
                if high != str(extent):
                    last = function.value(f"icmp eq i64 {high}, {extent}")
                    stack.enter_context(function.when(last))
                self.copies = -(-rest // plan.lanes)
                left = rest - (self.copies - 1) * plan.lanes
                self.mask = None if left == plan.lanes else first_lanes(plan.lanes, left)
                self._at(axis, str(whole), body)
        self.copies, self.mask = plan.copies, None

    # ---- passes --------------------------------------------------------------------------

    def _block(self, bounds: dict[int, tuple[str, str]]) -> None:
        """All passes at one point, or one group of vectors, of the kept axes."""
        plan = self.plan
        self.scopes.append({})
        for number in range(plan.passes):
            self._kept_values(number)
            folds = self._folds(number)
            outputs = [
                i
                for i, o in enumerate(self.nest.outputs)
                if plan.is_inner_output(i) and plan.depth[o.value] == number
            ]
            if folds.positions or outputs:
                folds.begin()
                self._inner_loops(list(plan.inner), bounds, number, folds, outputs)
                for position, values in folds.finish().items():
                    for copy, value in enumerate(values):
                        self._set((position, copy), value)
        self._kept_values(plan.passes)
        for i, output in enumerate(self.nest.outputs):
            if not plan.is_inner_output(i):
                self._store(len(self.nest.inputs) + i, output)
        self.scopes.pop()

    def _folds(self, number: int) -> Folds:
        nest, plan = self.nest, self.plan
        positions = [
            i
            for i in self.live
            if nest.body[i].op == "reduce" and plan.depth[nest.body[i].args[0]] == number
        ]
        return Folds(self.function, plan, positions, self.copies)

    def _kept_values(self, number: int) -> None:
        """What can be computed of the kept values when that many passes are done."""
        for i in self.live:
            known = self.nest.body[i].op == "reduce" or self.plan.is_inner(i)
            if not known and self.plan.depth[i] == number and number > 0:
                self._compute(i)

    def _inner_loops(
        self,
        axes: list[int],
        bounds: dict[int, tuple[str, str]],
        number: int,
        folds: Folds,
        outputs: Sequence[int],
    ) -> None:
        wanted = self._wanted(folds.positions, outputs)
        partition = self.plan.partition

        def run(rest: list[int]) -> None:
            if not rest:
                self._point(folds, outputs)
                return
            axis = rest[0]
            low, high = bounds.get(axis, ("0", str(self.nest.shape[axis])))
            if partition is not None and partition.axis == axis:
                part = self.indices[0]
                low, high = self._block_bounds(part, partition.size, self.nest.shape[axis])

            def body() -> None:
                level = self.order.index(axis)
                for i in wanted:
                    if self.level[i] == level:
                        self._compute(i)
                run(rest[1:])

            if axis == self.plan.vector:
                self._vector_loop(axis, low, high, body)
                return
            with self.function.loop(low, high) as index:
                self._at(axis, index, body)

        run(axes)

    def _wanted(self, folded: Sequence[int], outputs: Sequence[int]) -> list[int]:
        """The values at inner points that folds and outputs of a pass need, in order."""
        nest = self.nest
        seen: set[int] = set()
        stack = [nest.body[i].args[0] for i in folded] + [nest.outputs[i].value for i in outputs]
        while stack:
            i = stack.pop()
            if i not in seen and self.plan.is_inner(i):
                seen.add(i)
                stack.extend(nest.body[i].args)
        return sorted(seen)

    def _point(self, folds: Folds, outputs: Sequence[int]) -> None:
        """Fold and store at one inner point, or one group of vectors."""
        for copy in range(self.copies):
            mask = self.mask if copy == self.copies - 1 else None
            number = None
            if folds.numbered:
                number = self.function.value(
                    f"trunc i64 {self._copied_offset('number', copy)} to i32"
                )
            for position in folds.positions:
                argument = self.nest.body[position].args[0]
                if folds.lanes == 1:
                    value = self._scalar(argument, copy)
                else:
                    value = self._vector(argument, copy)
                folds.add(position, copy, value, mask, number)
        for i in outputs:
            self._store(len(self.nest.inputs) + i, self.nest.outputs[i])

    def _level(self, position: int) -> int:
        """The loop in which a value is computed: the innermost along which it differs."""
        varies = self.plan.varies[position]
        return max((i for i, a in enumerate(self.order) if varies[a] != 0), default=-1)

    def _enter_level(self, level: int) -> None:
        """Compute the kept values that only the loop just opened, and those around it, change."""
        for i in self.live:
            if (
                self.level[i] == level
                and self.plan.depth[i] == 0
                and not self.plan.is_inner(i)
                and self.nest.body[i].op != "reduce"
            ):
                self._compute(i)


def _live(nest: Nest) -> list[int]:
    """The values that outputs need, in order."""
    seen: set[int] = set()
    stack = [o.value for o in nest.outputs]
    while stack:
        i = stack.pop()
        if i not in seen:
            seen.add(i)
            stack.extend(nest.body[i].args)
    return sorted(seen)
