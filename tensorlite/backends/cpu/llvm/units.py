"""The loops of a planned nest: the function that runs some units of its work."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from .fold import Folds
from .plan import Plan, side_by_side
from .text import Function, Module, register_type
from .values import Values, first_lanes

SUM_BLOCK = 64  # additions one after the other
BUFFER_BYTES = 1 << 16  # for values that stay between passes
UNROLLED = 1024  # instructions of a nest up to which short loops are written out

Bounds = dict[int, tuple[str, str]]


class Units(Values):
    """The function `name.units(buffers, begin, end)` of a plan. `streamed`: the outputs that it
    writes past the caches."""

    def __init__(self, module: Module, name: str, plan: Plan, streamed: Sequence[int] = ()):
        header = f"define internal void @{name}.units(ptr %buffers, i64 %begin, i64 %end)"
        super().__init__(Function(module, header), plan, streamed)
        self.level = [self._level(i) for i in range(len(self.nest.body))]
        self._choose_buffered()
        self.unrolled = self._short_axes()
        self.widths = [self._width(number) for number in range(plan.passes)]

    # ---- structure -----------------------------------------------------------------------

    def write(self) -> None:
        """Write the whole function."""
        function, plan = self.function, self.plan
        self._load_pointers()
        self._enter_level(-1)
        with function.loop("%begin", "%end") as unit:
            self.scopes.append({})
            bounds = self._decode(unit)
            self._outer_loops(list(plan.outer), bounds)
            self.scopes.pop()
        if self.streamed:  # what comes after the barrier of all threads sees what was written
            function.module.declare("void", "llvm.x86.sse.sfence", "")
            function.line("call void @llvm.x86.sse.sfence()")
        function.finish()

    def _load_pointers(self) -> None:
        for number, operand in enumerate(self.operands):
            at = self.function.value(f"getelementptr ptr, ptr %buffers, i64 {number}")
            self._set(("pointer", number), self.function.value(f"load ptr, ptr {at}"))
            self._set(("offset", number), str(operand.offset))
        self._set(("offset", "number"), "0")
        self._set(("offset", "row"), "0")

    def _decode(self, unit: str) -> Bounds:
        """The bounds of the axes that a unit runs over in part."""
        function, plan, shape = self.function, self.plan, self.nest.shape
        bounds: Bounds = {}
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

    def _outer_loops(self, axes: list[int], bounds: Bounds) -> None:
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
        moves += [("number", self.plan.numbers[axis]), ("row", self._row_stride(axis))]
        for number, stride in moves:
            if stride != 0:
                move = function.integer("mul", index, str(stride))
                before = self._get(("offset", number))
                self._set(("offset", number), function.integer("add", before, move))

    def _vector_loop(self, axis: int, low: str, high: str, body: Any) -> None:
        """Whole groups of copies, then what is left at the end of the axis."""
        plan, function = self.plan, self.function
        wide = self.widths[self.number] if axis in plan.inner else plan.copies
        extent, step = self.nest.shape[axis], plan.lanes * wide
        whole, rest = extent - extent % step, extent % step
        if whole:
            limit = high
            if rest:
                limit = str(whole) if high == str(extent) else self._smaller(high, str(whole))
            self.copies, self.mask = wide, None
            if axis in self.unrolled and (low, limit) == ("0", str(whole)):
                for position in range(0, whole, step):
                    self._at(axis, str(position), body)
            else:
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
        self.copies, self.mask = wide, None

    def _transposed_loop(self, axis: int, low: str, high: str, body: Any) -> None:
        """Blocks of as many points as vectors have lanes, and what is left at the end."""
        extent, lanes = self.nest.shape[axis], self.plan.lanes
        whole, rest = extent - extent % lanes, extent % lanes

        def block(start: str, count: int) -> None:
            self.scopes.append({})
            self._advance(axis, start)
            vectors = {n: self._transposed(n, count) for n in self.turned}
            self.scopes.pop()
            self.scopes.append(
                {("row", n, i): v for n in vectors for i, v in enumerate(vectors[n])}
            )
            for row in range(count):
                self.row = row
                self._at(axis, self.function.integer("add", start, str(row)), body)
            self.row = None
            self.scopes.pop()

        if whole:
            limit = high if not rest else self._smaller(high, str(whole))
            with self.function.loop(low, limit, lanes) as start:
                block(start, lanes)
        if rest:
            with self.function.when(self.function.value(f"icmp eq i64 {high}, {extent}")):
                block(str(whole), rest)

    # ---- passes --------------------------------------------------------------------------

    def _block(self, bounds: Bounds) -> None:
        """All passes at one point, or one group of vectors, of the kept axes."""
        plan = self.plan
        self.scopes.append({})
        for number in range(plan.passes):
            self.number = number
            self._kept_values(number)
            folded, outputs = self._roots(number)
            if folded or outputs:
                if plan.vector in plan.inner:
                    self.copies = self.widths[number]
                blocked = self._blocked_axis(folded)
                folds = Folds(self.function, plan, folded, self.copies, blocked is not None)
                self._inner_loops(bounds, folds, outputs, blocked)
                for position, values in folds.finish().items():
                    for copy, value in enumerate(values):
                        self._set((position, copy), value)
        self._kept_values(plan.passes)
        for i, output in enumerate(self.nest.outputs):
            if not plan.is_inner_output(i):
                self._store(len(self.nest.inputs) + i, output)
        self.scopes.pop()

    def _roots(self, number: int) -> tuple[list[int], list[int]]:
        """The reductions of a pass, and which outputs it writes at inner points."""
        body, depth = self.nest.body, self.plan.depth
        folded = [
            i
            for i, instruction in enumerate(body)
            if instruction.op == "reduce" and depth[instruction.args[0]] == number
        ]
        outputs = [
            i
            for i, o in enumerate(self.nest.outputs)
            if self.plan.is_inner_output(i) and depth[o.value] == number
        ]
        return folded, outputs

    def _kept_values(self, number: int) -> None:
        """What can be computed of the kept values when that many passes are done."""
        for i in range(len(self.nest.body)):
            known = self.nest.body[i].op == "reduce" or self.plan.is_inner(i)
            if not known and self.plan.depth[i] == number and number > 0:
                self._compute(i)

    def _blocked_axis(self, folded: Sequence[int]) -> int | None:
        """The inner axis along which sums of floats are added up in blocks of about SUM_BLOCK, the
        sums of which are then added: fewer roundings in a row."""
        plan, body = self.plan, self.nest.body
        if not any(body[i].attribute == "sum" and body[i].dtype.kind == "f" for i in folded):
            return None
        steps = []
        for axis in plan.inner:
            cut = plan.partition is not None and plan.partition.axis == axis
            extent = plan.partition.size if plan.partition and cut else self.nest.shape[axis]
            wide = plan.lanes * self.copies if axis == plan.vector else 1
            steps.append(-(-extent // wide))
        if math.prod(steps) <= 4 * SUM_BLOCK:
            return None
        inside = 1
        for axis, count in zip(reversed(plan.inner), reversed(steps), strict=True):
            inside *= count
            if inside >= SUM_BLOCK:
                return axis
        return None

    def _inner_loops(
        self, bounds: Bounds, folds: Folds, outputs: Sequence[int], blocked: int | None
    ) -> None:
        """One pass over the inner axes."""
        plan, function = self.plan, self.function
        wanted = self._wanted(folds.positions, outputs)
        folds.begin()

        def run(rest: Sequence[int]) -> None:
            if not rest:
                self._point(folds, outputs)
                return
            axis = rest[0]
            low, high = self._inner_bounds(axis, bounds)
            if axis != blocked:
                loop(axis, low, high, rest[1:])
                return
            size = SUM_BLOCK * (plan.lanes * self.copies if axis == plan.vector else 1)
            with function.loop(low, high, size) as start:
                end = self._smaller(function.integer("add", start, str(size)), high)
                loop(axis, start, end, rest[1:])
                folds.flush()

        def loop(axis: int, low: str, high: str, rest: Sequence[int]) -> None:
            def body() -> None:
                level = self.order.index(axis)
                for i in wanted:
                    if self.level[i] == level:
                        self._compute(i)
                run(rest)

            if axis == plan.vector:
                self._vector_loop(axis, low, high, body)
            elif self.turned:
                self._transposed_loop(axis, low, high, body)
            elif axis in self.unrolled and (low, high) == ("0", str(self.nest.shape[axis])):
                for position in range(self.nest.shape[axis]):
                    self._at(axis, str(position), body)
            else:
                with function.loop(low, high) as index:
                    self._at(axis, index, body)

        run(plan.inner)

    def _inner_bounds(self, axis: int, bounds: Bounds) -> tuple[str, str]:
        partition = self.plan.partition
        if partition is not None and partition.axis == axis:
            return self._block_bounds(self.indices[0], partition.size, self.nest.shape[axis])
        return bounds.get(axis, ("0", str(self.nest.shape[axis])))

    def _wanted(self, folded: Sequence[int], outputs: Sequence[int]) -> list[int]:
        """The values at inner points that folds and outputs of a pass need, in order."""
        nest = self.nest
        seen: set[int] = set()
        stack = [nest.body[i].args[0] for i in folded] + [nest.outputs[i].value for i in outputs]
        while stack:
            i = stack.pop()
            if i not in seen and self.plan.is_inner(i):
                seen.add(i)
                if not self._is_buffered(i):
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
                value = self._vector(argument, copy)
                folds.add(position, copy, value, mask, number)
        for i in outputs:
            self._store(len(self.nest.inputs) + i, self.nest.outputs[i])

    def _short_axes(self) -> set[int]:
        """The axes whose loops are written out, so that what depends on the index alone, such as
        the guards of loads, is known when the nest is compiled."""
        plan, nest = self.plan, self.nest
        found: set[int] = set()
        if plan.partition is not None or plan.vector in (-1, *plan.inner):
            return found
        size = len(nest.body) * plan.copies
        for axis in reversed(plan.inner):
            size *= nest.shape[axis]
            if size > UNROLLED:
                return found
            found.add(axis)
        groups = -(-nest.shape[plan.vector] // (plan.lanes * plan.copies))
        guards = [i.args[0] for i in nest.body if i.op == "load" and i.args]
        if any(map(plan.is_vector, guards)) and size * groups <= UNROLLED:
            found.add(plan.vector)
        return found

    # ---- values that stay for later passes -----------------------------------------------

    def _choose_buffered(self) -> None:
        """Find the values that a later pass should load from a buffer rather than compute again:
        those with much arithmetic, if what a thread runs through at a time stays in its cache."""
        plan = self.plan
        if plan.vector not in plan.inner:
            return
        wanted = []
        for number in range(plan.passes):
            wanted.append(set(self._wanted(*self._roots(number))))
            stack = [i for i in wanted[-1] if plan.depth[i] < number]
            for i in sorted(stack, reverse=True):
                computed = i in wanted[plan.depth[i]] and i in wanted[-1]
                if computed and self.nest.body[i].dtype.kind == "f" and self._cost(i) >= 8:
                    self.number = number
                    self.buffers[i] = ""
                    wanted[-1] = set(self._wanted(*self._roots(number)))
        size = math.prod(self._row_extents())
        if size * sum(self.nest.body[i].dtype.itemsize for i in self.buffers) > BUFFER_BYTES:
            self.buffers.clear()
        for i in self.buffers:
            self.buffers[i] = self.function.slot(register_type(self.nest.body[i].dtype), size, 64)

    def _width(self, number: int) -> int:
        """How many vectors a pass computes side by side, if vectors lie along an inner axis: as
        many as hide the latency of folding, yet fit the registers."""
        plan, body = self.plan, self.nest.body
        if plan.vector not in plan.inner:
            return plan.copies
        self.number = number
        folded, outputs = self._roots(number)
        work = [i for i in self._wanted(folded, outputs) if body[i].op not in ("constant", "index")]
        vectors = -(-self.nest.shape[plan.vector] // plan.lanes)
        return side_by_side(vectors, len(folded), len(work))

    def _cost(self, position: int) -> int:
        """How many instructions compute a value at an inner point."""
        seen: set[int] = set()
        stack = [position]
        while stack:
            i = stack.pop()
            if i not in seen and self.plan.is_inner(i):
                seen.add(i)
                stack.extend(self.nest.body[i].args)
        return len(seen)

    # ---- levels --------------------------------------------------------------------------

    def _level(self, position: int) -> int:
        """The loop in which a value is computed: the innermost along which it differs."""
        varies = self.plan.varies[position]
        return max((i for i, a in enumerate(self.order) if varies[a] != 0), default=-1)

    def _enter_level(self, level: int) -> None:
        """Compute the kept values that only the loop just opened, and those around it, change."""
        for i in range(len(self.nest.body)):
            if (
                self.level[i] == level
                and self.plan.depth[i] == 0
                and not self.plan.is_inner(i)
                and self.nest.body[i].op != "reduce"
            ):
                self._compute(i)
