"""The values of a nest while its function is written: what is known where, loads and stores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .... import dtypes
from ....compiler.axes import access_stride
from ....compiler.loops import Nest, Operand, Output
from .place import Place
from .plan import Plan
from .scalar import apply
from .text import Function, literal, memory_type, register_type, vector


class Values:
    """Values are known in scopes, one for each loop that is open: what does not change in a loop is
    computed before it. A value that differs along the vector axis exists once for each copy, as a
    vector, or, if it is an index, as the scalar of its first lane.
    """

    def __init__(self, function: Function, plan: Plan, streamed: Sequence[int] = ()):
        self.function = function
        self.plan = plan
        self.nest: Nest = plan.nest
        self.operands = [*self.nest.inputs, *[o.operand for o in self.nest.outputs]]
        self.streamed = {len(self.nest.inputs) + i for i in streamed}  # stored past the caches
        self.order = (*plan.outer, *plan.inner)
        self.scopes: list[dict[Any, str]] = [{}]
        self.copies = plan.copies  # of the loop over vectors that is open
        self.mask: str | None = None  # of the last copy
        self.indices: dict[int, str] = {}
        self.number = 0  # of the pass
        self.buffers: dict[int, str] = {}  # of values that stay for later passes
        self.row: int | None = None  # of the transposed block that is run through
        self.turned = set(plan.turned())

    # ---- values --------------------------------------------------------------------------

    def _compute(self, position: int) -> None:
        op, args, dtype, attribute = self.nest.body[position]
        plan = self.plan
        if self._is_buffered(position):
            for copy in range(self.copies):
                self._set((position, copy), self._from_buffer(position, copy))
            return
        if op == "constant":
            self._set((position, 0), literal(attribute, dtype))
            return
        if op == "index":
            for copy in range(self.copies if plan.is_vector(position) else 1):
                move = copy * plan.lanes if attribute == plan.vector else 0
                index = self.function.integer("add", self.indices[attribute], str(move))
                self._set((position, copy), self._narrowed(index, dtype))
            return
        if op in ("load", "gather"):
            for copy in range(self.copies if plan.is_vector(position) else 1):
                self._define(position, copy, self._load(position, copy))
            return
        operands = [self.nest.body[a].dtype for a in args]
        if not plan.is_vector(position) or self._is_affine(position):
            for copy in range(self.copies if plan.is_vector(position) else 1):
                scalars = [self._scalar(a, copy) for a in args]
                place = Place(self.function, 1)
                value = apply(place, op, attribute, dtype, operands, scalars)
                self._set((position, copy), value)
            return
        for copy in range(self.copies):
            vectors = [self._vector(a, copy) for a in args]
            place = Place(self.function, plan.lanes)
            self._define(position, copy, apply(place, op, attribute, dtype, operands, vectors))

    def _define(self, position: int, copy: int, value: str) -> None:
        """Make a computed value known, here and in later passes."""
        self._set((position, copy), value)
        if position in self.buffers:
            self._to_buffer(position, copy, value)

    def _narrowed(self, index: str, dtype: np.dtype[Any]) -> str:
        if dtype == dtypes.int64 or not index.startswith("%"):
            return index
        return self.function.value(f"trunc i64 {index} to {register_type(dtype)}")

    def _is_affine(self, position: int) -> bool:
        """Whether a value grows by a constant from lane to lane."""
        plan = self.plan
        return plan.is_vector(position) and plan.varies[position][plan.vector] is not None

    def _get(self, key: Any) -> str:
        for scope in reversed(self.scopes):
            if key in scope:
                return scope[key]
        raise KeyError(key)

    def _set(self, key: Any, value: str) -> None:
        self.scopes[-1][key] = value

    def _scalar(self, position: int, copy: int) -> str:
        """A value that is the same in all lanes, or the first lane of one that is affine."""
        return self._get((position, copy if self.plan.is_vector(position) else 0))

    def _vector(self, position: int, copy: int) -> str:
        """A value in all lanes."""
        plan, dtype = self.plan, self.nest.body[position].dtype
        if not plan.is_vector(position):
            if self.nest.body[position].op == "constant":
                return literal(self.nest.body[position].attribute, dtype, plan.lanes)
            return self._splat(self._scalar(position, 0), register_type(dtype))
        if not self._is_affine(position):
            return self._get((position, copy))
        first = self._splat(self._scalar(position, copy), register_type(dtype))
        step = plan.varies[position][plan.vector] or 0
        kind = register_type(dtype)
        ramp = ", ".join(f"{kind} {_wrapped(step * lane, dtype)}" for lane in range(plan.lanes))
        return self.function.value(f"add {vector(kind, plan.lanes)} {first}, <{ramp}>")

    def _splat(self, scalar: str, kind: str) -> str:
        key = ("splat", scalar, kind)
        for scope in reversed(self.scopes):
            if key in scope:
                return scope[key]
        lanes = self.plan.lanes
        if lanes == 1:
            return scalar
        wide = vector(kind, lanes)
        one = self.function.value(f"insertelement {wide} poison, {kind} {scalar}, i64 0")
        value = self.function.value(
            f"shufflevector {wide} {one}, {wide} poison, <{lanes} x i32> zeroinitializer"
        )
        self._set(key, value)
        return value

    # ---- memory --------------------------------------------------------------------------

    def _copied_offset(self, number: Any, copy: int) -> str:
        """The offset of a copy's first lane in an operand."""
        offset = self._get(("offset", number))
        vector_axis = self.plan.vector
        if vector_axis < 0:
            return offset
        if number == "row":
            stride = 1
        elif number == "number":
            stride = self.plan.numbers[vector_axis]
        else:
            stride = self.operands[number].strides[vector_axis]
        move = stride * copy * self.plan.lanes
        return self.function.integer("add", offset, str(move))

    def _row_extents(self) -> list[int]:
        """The inner axes, the vector axis filled up to whole vectors."""
        extents = [self.nest.shape[a] for a in self.plan.inner]
        if self.plan.vector in self.plan.inner:
            extents[-1] = -(-extents[-1] // self.plan.lanes) * self.plan.lanes
        return extents

    def _row_stride(self, axis: int) -> int:
        """How far apart neighbours along an axis are in buffers between passes."""
        if axis not in self.plan.inner or not self.buffers:
            return 0
        return math.prod(self._row_extents()[self.plan.inner.index(axis) + 1 :])

    def _is_buffered(self, position: int) -> bool:
        """Whether an earlier pass has left a value."""
        return position in self.buffers and self.plan.depth[position] < self.number

    def _buffer_place(self, position: int, copy: int) -> tuple[str, str, int]:
        """(type, pointer, alignment) of a vector in a buffer."""
        dtype = self.nest.body[position].dtype
        offset = self._copied_offset("row", copy)
        kind = register_type(dtype)
        slot = self.buffers[position]
        at = self.function.value(f"getelementptr {kind}, ptr {slot}, i64 {offset}")
        return register_type(dtype, self.plan.lanes), at, dtype.itemsize * self.plan.lanes

    def _to_buffer(self, position: int, copy: int, value: str) -> None:
        kind, at, alignment = self._buffer_place(position, copy)
        self.function.line(f"store {kind} {value}, ptr {at}, align {alignment}")

    def _from_buffer(self, position: int, copy: int) -> str:
        kind, at, alignment = self._buffer_place(position, copy)
        return self.function.value(f"load {kind}, ptr {at}, align {alignment}")

    def _pointer(self, number: int, offset: str) -> str:
        kind = memory_type(self.operands[number].dtype)
        base = self._get(("pointer", number))
        return self.function.value(f"getelementptr {kind}, ptr {base}, i64 {offset}")

    def _load(self, position: int, copy: int) -> str:
        op, args, dtype, attribute = self.nest.body[position]
        plan, function = self.plan, self.function
        if op == "load" and args:
            return self._guarded_load(position, copy)
        number, strides = (attribute, ()) if op == "load" else attribute
        if op == "load" and self.row is not None and number in self.turned:
            return self._from_memory(self._get(("row", number, self.row)), dtype, plan.lanes)
        offset = self._copied_offset(number, copy)
        scattered = []
        for argument, stride in zip(args, strides, strict=True):
            if plan.is_vector(argument) and not self._is_affine(argument):
                scattered.append((argument, stride))
                continue
            index = self._widened(self._scalar(argument, copy), argument, 1)
            offset = function.integer("add", offset, function.integer("mul", index, str(stride)))
        if not plan.is_vector(position):
            return self._load_scalar(number, offset)
        instruction = self.nest.body[position]
        step = access_stride(self.nest, instruction, plan.vector, plan.varies)
        mask = self.mask if copy == self.copies - 1 else None
        if step == 1:
            return self._load_vector(number, offset, mask)
        if step == 0:
            return self._splat(self._load_scalar(number, offset), register_type(dtype))
        if step is not None:
            return self._load_strided(number, offset, step, mask)
        offsets = self._lane_offsets(offset, number, args, strides, step)
        for argument, stride in scattered:
            index = self._widened(self._vector(argument, copy), argument, plan.lanes)
            kind = vector("i64", plan.lanes)
            scale = literal(stride, dtypes.int64, plan.lanes)
            moved = function.value(f"mul {kind} {index}, {scale}")
            offsets = function.value(f"add {kind} {offsets}, {moved}")
        return self._gather(number, offsets, mask)

    def _guarded_load(self, position: int, copy: int) -> str:
        """A load that reads nothing, and gives 0, where its argument is false."""
        _, (guard,), dtype, number = self.nest.body[position]
        plan, function = self.plan, self.function
        offset = self._copied_offset(number, copy)
        kind = register_type(dtype)
        step = 0 if plan.vector < 0 else self.operands[number].strides[plan.vector]
        if not plan.is_vector(guard) and (step == 0 or not plan.is_vector(position)):
            value = self._load_if(self._scalar(guard, copy), number, offset)
            return self._splat(value, kind) if plan.is_vector(position) else value
        mask, mask_kind = self._vector(guard, copy), vector("i1", plan.lanes)
        if not plan.is_vector(guard):
            # A masked load is slow where there is no memory, even if it reads nothing.
            held = self._scalar(guard, copy)
            offset = function.value(f"select i1 {held}, i64 {offset}, i64 0")
        tail = self.mask if copy == self.copies - 1 else None
        if tail is not None:
            mask = function.value(f"and {mask_kind} {mask}, {tail}")
        if step == 1:
            return self._load_vector(number, offset, mask)
        if step != 0:
            return self._gather(number, self._lane_offsets(offset, number, (), (), step), mask)
        name = f"llvm.vector.reduce.or.v{plan.lanes}i1"
        value = self._load_if(function.call("i1", name, (mask_kind, mask)), number, offset)
        wide = self._splat(value, kind)
        return Place(function, plan.lanes).select(mask, dtype, wide, literal(0, dtype, plan.lanes))

    def _transposed(self, number: int, columns: int) -> list[str]:
        """Vectors along the vector axis, the first of which begins at the offset of an operand that
        is contiguous along another axis, and the others next to it there."""
        function, lanes, dtype = self.function, self.plan.lanes, self.operands[number].dtype
        kind, element = memory_type(dtype, lanes), memory_type(dtype)
        first = self._pointer(number, self._get(("offset", number)))
        stride = self.operands[number].strides[self.plan.vector]
        mask = None if columns == lanes else first_lanes(lanes, columns)
        count = lanes if self.mask is None else self.mask.count("true")
        rows = ["poison"] * lanes
        for lane in range(count):
            at = function.value(f"getelementptr {element}, ptr {first}, i64 {lane * stride}")
            rows[lane] = self._load_memory(at, dtype, mask)
        # Each round interleaves the first half of the rows with the second.
        half = lanes // 2
        for _ in range(lanes.bit_length() - 1):
            mixed = []
            for one, other in zip(rows[:half], rows[half:], strict=True):
                for start in (0, half):
                    order = ", ".join(
                        f"i32 {start + i}, i32 {lanes + start + i}" for i in range(half)
                    )
                    mixed.append(
                        "poison"
                        if (one, other) == ("poison", "poison")
                        else function.value(
                            f"shufflevector {kind} {one}, {kind} {other}, <{lanes} x i32> <{order}>"
                        )
                    )
            rows = mixed
        return rows[:columns]

    def _load_if(self, held: str, number: int, offset: str) -> str:
        """An element where `held` is true, else 0. The first one is always there to be read."""
        dtype = self.operands[number].dtype
        safe = self.function.value(f"select i1 {held}, i64 {offset}, i64 0")
        value = self._load_scalar(number, safe)
        return Place(self.function, 1).select(held, dtype, value, literal(0, dtype))

    def _widened(self, value: str, position: int, lanes: int) -> str:
        dtype = self.nest.body[position].dtype
        if dtype == dtypes.int64 or not value.startswith("%"):
            return value
        op = "zext" if dtype in dtypes.UNSIGNED else "sext"
        source, target = register_type(dtype, lanes), vector("i64", lanes)
        return self.function.value(f"{op} {source} {value} to {target}")

    def _lane_offsets(
        self,
        offset: str,
        number: int,
        args: Sequence[int],
        strides: Sequence[int],
        step: int | None,
    ) -> str:
        """The offset of each lane, as far as it grows by a constant."""
        plan = self.plan
        if step is None:
            step = self.operands[number].strides[plan.vector]
            for argument, stride in zip(args, strides, strict=True):
                own = plan.varies[argument][plan.vector]
                step += 0 if own is None else own * stride
        ramp = ", ".join(f"i64 {step * lane}" for lane in range(plan.lanes))
        kind = vector("i64", plan.lanes)
        return self.function.value(f"add {kind} {self._splat(offset, 'i64')}, <{ramp}>")

    def _load_scalar(self, number: int, offset: str) -> str:
        dtype = self.operands[number].dtype
        at = self._pointer(number, offset)
        value = self.function.value(f"load {memory_type(dtype)}, ptr {at}, align {dtype.itemsize}")
        return self._from_memory(value, dtype, 1)

    def _load_vector(self, number: int, offset: str, mask: str | None) -> str:
        dtype = self.operands[number].dtype
        value = self._load_memory(self._pointer(number, offset), dtype, mask)
        return self._from_memory(value, dtype, self.plan.lanes)

    def _load_memory(self, at: str, dtype: np.dtype[Any], mask: str | None) -> str:
        lanes = self.plan.lanes
        kind = memory_type(dtype, lanes)
        if mask is None:
            return self.function.value(f"load {kind}, ptr {at}, align {dtype.itemsize}")
        return self.function.call(
            kind,
            f"llvm.masked.load.{_memory_suffix(dtype, lanes)}.p0",
            ("ptr", at),
            ("i32", str(dtype.itemsize)),
            (vector("i1", lanes), mask),
            (kind, "zeroinitializer"),
        )

    def _load_strided(self, number: int, offset: str, step: int, mask: str | None) -> str:
        """A vector from elements at equal distances: single loads are faster than a gather."""
        function, lanes, dtype = self.function, self.plan.lanes, self.operands[number].dtype
        kind, element = memory_type(dtype, lanes), memory_type(dtype)
        first = self._pointer(number, offset)
        value = "zeroinitializer"
        for lane in range(lanes if mask is None else mask.count("true")):
            at = function.value(f"getelementptr {element}, ptr {first}, i64 {lane * step}")
            loaded = function.value(f"load {element}, ptr {at}, align {dtype.itemsize}")
            value = function.value(f"insertelement {kind} {value}, {element} {loaded}, i64 {lane}")
        return self._from_memory(value, dtype, lanes)

    def _gather(self, number: int, offsets: str, mask: str | None) -> str:
        dtype, lanes = self.operands[number].dtype, self.plan.lanes
        kind = memory_type(dtype, lanes)
        value = self.function.call(
            kind,
            f"llvm.masked.gather.{_memory_suffix(dtype, lanes)}.v{lanes}p0",
            (vector("ptr", lanes), self._pointers(number, offsets)),
            ("i32", str(dtype.itemsize)),
            (vector("i1", lanes), mask or literal(True, dtypes.bool_, lanes)),
            (kind, "zeroinitializer"),
        )
        return self._from_memory(value, dtype, lanes)

    def _pointers(self, number: int, offsets: str) -> str:
        lanes = self.plan.lanes
        kind, base = memory_type(self.operands[number].dtype), self._get(("pointer", number))
        return self.function.value(
            f"getelementptr {kind}, ptr {base}, {vector('i64', lanes)} {offsets}"
        )

    def _from_memory(self, value: str, dtype: np.dtype[Any], lanes: int) -> str:
        if dtype != dtypes.bool_:
            return value
        return self.function.value(
            f"icmp ne {vector('i8', lanes)} {value}, {literal(0, dtypes.int8, lanes)}"
        )

    def _store(self, number: int, output: Output) -> None:
        operand, plan = output.operand, self.plan
        stride = 0 if plan.vector < 0 else operand.strides[plan.vector]
        if stride == 0:
            value = self._to_memory(self._scalar(output.value, 0), operand.dtype, 1)
            kind = memory_type(operand.dtype)
            at = self._pointer(number, self._get(("offset", number)))
            self.function.line(f"store {kind} {value}, ptr {at}, align {operand.dtype.itemsize}")
            return
        for copy in range(self.copies):
            mask = self.mask if copy == self.copies - 1 else None
            value = self._vector(output.value, copy)
            self._store_vector(number, operand, value, copy, stride, mask)

    def _store_vector(
        self, number: int, operand: Operand, value: str, copy: int, stride: int, mask: str | None
    ) -> None:
        function, lanes = self.function, self.plan.lanes
        dtype = operand.dtype
        kind = memory_type(dtype, lanes)
        value = self._to_memory(value, dtype, lanes)
        offset = self._copied_offset(number, copy)
        if stride == 1 and mask is None:
            at = self._pointer(number, offset)
            how = f"align {dtype.itemsize}"
            if number in self.streamed:
                function.module.define("nontemporal", "!0 = !{i32 1}")
                how = f"align {dtype.itemsize * lanes}, !nontemporal !0"
            function.line(f"store {kind} {value}, ptr {at}, {how}")
            return
        count = lanes if mask is None else mask.count("true")
        if stride != 1 or count == 1:
            # Single stores are faster than a scatter. (And LLVM 22 writes too much when it makes
            # one store of a narrowing conversion and a mask of one lane.)
            first, element = self._pointer(number, offset), memory_type(dtype)
            for lane in range(count):
                at = function.value(f"getelementptr {element}, ptr {first}, i64 {lane * stride}")
                one = function.value(f"extractelement {kind} {value}, i64 {lane}")
                function.line(f"store {element} {one}, ptr {at}, align {dtype.itemsize}")
            return
        at = self._pointer(number, offset)
        name = f"llvm.masked.store.{_memory_suffix(dtype, lanes)}.p0"
        mask_kind = vector("i1", lanes)
        function.module.declare("void", name, f"{kind}, ptr, i32, {mask_kind}")
        function.line(
            f"call void @{name}({kind} {value}, ptr {at}, i32 {dtype.itemsize}, {mask_kind} {mask})"
        )

    def _to_memory(self, value: str, dtype: np.dtype[Any], lanes: int) -> str:
        if dtype != dtypes.bool_:
            return value
        return self.function.value(f"zext {vector('i1', lanes)} {value} to {vector('i8', lanes)}")


def first_lanes(lanes: int, count: int) -> str:
    """The first `count` lanes."""
    return f"<{', '.join('i1 true' if i < count else 'i1 false' for i in range(lanes))}>"


def _wrapped(value: int, dtype: np.dtype[Any]) -> int:
    """As an integer of that dtype, which wraps around."""
    bits = 8 * dtype.itemsize
    return (value + (1 << (bits - 1))) % (1 << bits) - (1 << (bits - 1))


def _memory_suffix(dtype: np.dtype[Any], lanes: int) -> str:
    names = {dtypes.float16: "f16", dtypes.float32: "f32", dtypes.float64: "f64"}
    return f"v{lanes}{names.get(dtype) or f'i{8 * dtype.itemsize}'}"
