"""How a nest is to run: which axis becomes vectors, what threads share, which passes there are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from .... import dtypes
from ....compiler.axes import Canonical, Variation, access_stride, variation
from ....compiler.loops import Instruction, Nest, Output

UNIT = 4096  # points that a thread takes at a time, or a little more
TILE = 16  # points along the second axis of a tile, when axes are permuted
MOST_SIDE_BY_SIDE = 512  # points, a multiple of all numbers of lanes and copies
_HARD = 10.0  # cost of an access that is no vector load, in vector loads
_TURNED = 3.0  # that of a load from a block that is transposed in registers
LINE = 64  # bytes that a cache moves at a time
STREAMED = 1 << 25  # bytes of an output that is larger than caches are
MOST_TURNED = 32  # lanes: a block of as many vectors has to fit the registers


class Partition(NamedTuple):
    """The first axis numbers parts of an axis that is reduced: part i runs over
    [i * size, (i + 1) * size) there."""

    axis: int
    size: int


class Plan(NamedTuple):
    """The loops of a nest, from the outside in: `outer`, among them `vector` as the last if values
    of many points along a kept axis are computed at once; then `inner`, which every pass runs
    through, `vector` being the last of these otherwise."""

    nest: Nest
    numbers: tuple[int, ...]  # see `Canonical`
    varies: list[Variation]
    outer: tuple[int, ...]
    inner: tuple[int, ...]
    vector: int  # -1 where there is none
    lanes: int
    copies: int  # vectors along a kept axis that are computed side by side
    shared: int | None  # the axis of which threads take blocks; those before it they take whole
    block: int
    partition: Partition | None
    depth: list[int]  # of each value: the first pass that can compute it
    passes: int

    @property
    def units(self) -> int:
        """Into how many parts the work falls."""
        if self.shared is None:
            return 1
        shape = self.nest.shape
        before = self.unit_axes()
        return math.prod(shape[a] for a in before) * -(-shape[self.shared] // self.block)

    def unit_axes(self) -> tuple[int, ...]:
        """The axes that are outside of the shared one."""
        if self.shared is None:
            return ()
        if self.shared in self.inner:
            return tuple(a for a in self.outer if a != self.vector)
        return self.outer[: self.outer.index(self.shared)]

    def is_inner(self, position: int) -> bool:
        """Whether a value differs along the inner loops."""
        return any(self.varies[position][axis] != 0 for axis in self.inner)

    def is_vector(self, position: int) -> bool:
        """Whether a value differs along the vector axis."""
        return self.vector >= 0 and self.varies[position][self.vector] != 0

    def turned(self) -> list[int]:
        """The inputs that are contiguous along the axis of a tile, rather than that of vectors, and
        are transposed in registers, block by block."""
        if self.nest.reduced or self.shared not in self.inner or self.lanes > MOST_TURNED:
            return []
        axes = (self.shared, self.vector)
        loads = [i for i in self.nest.body if i.op == "load" and not i.args]
        strides = {i.attribute: self.nest.inputs[i.attribute].strides for i in loads}
        return [n for n, s in strides.items() if s[axes[0]] == 1 and s[axes[1]] not in (0, 1)]

    def is_inner_output(self, number: int) -> bool:
        """Whether an output is written at each point of the inner loops."""
        output = self.nest.outputs[number]
        strides = output.operand.strides
        return self.is_inner(output.value) or any(strides[a] != 0 for a in self.inner)


def make_plan(source: Canonical, register_bytes: int, partition: Partition | None = None) -> Plan:
    """Choose how to run a lowered nest on a machine with vector registers of that size."""
    nest, numbers = source
    rank = len(nest.shape)
    reduced = nest.reduced
    varies = variation(nest, reduced)
    lanes = register_bytes // _itemsize(nest, varies)
    fixed: set[int] = set()
    if partition is not None:
        fixed = {0} if partition.size % MOST_SIDE_BY_SIDE == 0 else {0, partition.axis}
    candidates = [a for a in range(rank) if a not in fixed and nest.shape[a] > 1]
    vector = min(candidates, key=lambda a: (_cost(nest, varies, a, lanes), -a), default=-1)
    kept = [a for a in range(rank) if a not in reduced]
    inner = [a for a in reduced if a != vector]
    outer = [a for a in kept if a != vector]
    tile: int | None = None
    if vector in reduced:
        inner.append(vector)
    elif vector >= 0:
        if not reduced:
            tile = _tile_axis(nest, varies, vector, outer)
        if tile is not None:
            outer.remove(tile)
            inner = [tile]
        outer.append(vector)
    depth, passes = _depths(nest, varies, inner, reduced)
    copies = 1 if vector < 0 else _copies(nest, vector, inner, lanes)
    shared, block = _share(nest, outer, inner, tile, vector, lanes * copies)
    if partition is not None:
        shared, block = 0, 1
    return Plan(
        nest,
        numbers,
        varies,
        tuple(outer),
        tuple(inner),
        vector,
        1 if vector < 0 else lanes,
        copies,
        shared,
        block,
        partition,
        depth,
        passes,
    )


def _itemsize(nest: Nest, varies: Sequence[Variation]) -> int:
    """Of the widest elements that are read or written; 4 if there is arithmetic on floats."""
    sizes = [o.operand.dtype.itemsize for o in nest.outputs]
    sizes += [
        i.dtype.itemsize
        for i, v in zip(nest.body, varies, strict=True)
        if i.op in ("load", "gather") and any(step is None for step in v)
    ]
    if any(i.dtype == dtypes.float32 or i.attribute == "argmax" for i in nest.body):
        sizes.append(4)
    return max(sizes, default=4)


def _cost(nest: Nest, varies: Sequence[Variation], axis: int, lanes: int) -> float:
    """An estimate of the time per point if `axis` became vectors."""
    total = 0.2 * len(nest.body)
    for instruction in nest.body:
        if instruction.op in ("load", "gather"):
            cost = _access_cost(access_stride(nest, instruction, axis, varies))
            total += min(cost, _TURNED) if _can_turn(nest, instruction, axis) else cost
    for output in nest.outputs:
        stride = output.operand.strides[axis]
        if axis not in nest.reduced or stride != 0:
            total += _access_cost(stride if stride != 0 else None)
    extent = nest.shape[axis]
    total *= -(-extent // lanes) * lanes / extent
    if axis in nest.reduced:
        folds = sum(i.op == "reduce" for i in nest.body)
        points = math.prod(nest.shape[a] for a in nest.reduced)
        total += folds * 20 * lanes / points
    return total


def _can_turn(nest: Nest, instruction: Instruction, axis: int) -> bool:
    """Whether a load of vectors along an axis may come from a transposed block."""
    if nest.reduced or instruction.op != "load" or instruction.args:
        return False
    strides = nest.inputs[instruction.attribute].strides
    return strides[axis] not in (0, 1) and 1 in strides


def _access_cost(stride: int | None) -> float:
    if stride is None:
        return _HARD
    return {0: 0.1, 1: 1.0}.get(stride, _HARD)


def _tile_axis(
    nest: Nest, varies: Sequence[Variation], vector: int, outer: Sequence[int]
) -> int | None:
    """The axis along which a permuted input is contiguous, which is to be run through in blocks
    inside of the loop over vectors, so that its cache lines are used while they are there."""
    for instruction in nest.body:
        if instruction.op not in ("load", "gather"):
            continue
        if access_stride(nest, instruction, vector, varies) in (0, 1):
            continue
        for axis in outer:
            if access_stride(nest, instruction, axis, varies) == 1:
                return axis
    return None


def _depths(
    nest: Nest, varies: Sequence[Variation], inner: Sequence[int], reduced: Sequence[int]
) -> tuple[list[int], int]:
    """The pass in which each value can be computed (a reduction is known in the one after), and the
    number of passes."""
    depth: list[int] = []
    for instruction in nest.body:
        first = max((depth[a] for a in instruction.args), default=0)
        depth.append(first + (instruction.op == "reduce"))
    passes = max((d for d, i in zip(depth, nest.body, strict=True) if i.op == "reduce"), default=0)
    for output in nest.outputs:
        varied = any(varies[output.value][a] != 0 for a in inner)
        if varied or any(output.operand.strides[a] != 0 for a in inner):
            passes = max(passes, depth[output.value] + 1)
    return depth, passes


def _copies(nest: Nest, vector: int, inner: Sequence[int], lanes: int) -> int:
    """How many vectors along a kept axis are computed side by side."""
    folds = sum(i.op == "reduce" for i in nest.body)
    work = sum(i.op not in ("constant", "index", "reduce") for i in nest.body)
    return side_by_side(-(-nest.shape[vector] // lanes), folds, work) if folds else 1


def side_by_side(vectors: int, folds: int, work: int) -> int:
    """As many vectors as hide the latency of folding, yet fit the registers, where so many
    instructions compute one."""
    return _power_of_two(min(vectors, 8 // max(folds, 2), 64 // max(work, 1)))


def _power_of_two(limit: int) -> int:
    """The largest power of two that is not above `limit`, and 1 at least."""
    return 1 << max(limit.bit_length() - 1, 0) if limit > 0 else 1


def _share(
    nest: Nest,
    outer: Sequence[int],
    inner: Sequence[int],
    tile: int | None,
    vector: int,
    step: int,
) -> tuple[int | None, int]:
    """Of which axis threads take blocks, and of how many points."""
    if tile is not None:
        return tile, max(TILE, step)
    inside = math.prod(nest.shape[a] for a in (*outer, *inner))
    for axis in outer:
        inside //= nest.shape[axis]
        if inside < UNIT or axis == outer[-1]:
            block = -(-UNIT // max(inside, 1))
            if axis == vector:
                block = -(-block // step) * step
            return axis, min(block, nest.shape[axis]) if axis != vector else block
    return None, 1


def streamed_outputs(plan: Plan) -> list[int]:
    """The outputs that are better written past the caches, in which they would displace all else,
    and be read before they are written: those that are large and written cache line by cache line.
    (Rows that are reduced first are written in bursts, for which that is slower.)"""
    nest = plan.nest
    if plan.vector < 0 or plan.inner or nest.reduced:
        return []

    def fits(output: Output) -> bool:
        strides, size = output.operand.strides, output.operand.dtype.itemsize
        points = math.prod(n for n, s in zip(nest.shape, strides, strict=True) if s != 0)
        others = [s for axis, s in enumerate(strides) if axis != plan.vector]
        starts = [s * size % LINE for s in (*others, output.operand.offset)]
        whole = plan.block * size % LINE == 0 or plan.shared != plan.vector
        vectors = plan.lanes * size >= 16 and strides[plan.vector] == 1
        return points * size >= STREAMED and vectors and whole and not any(starts)

    return [i for i, output in enumerate(nest.outputs) if fits(output)]


def estimate(plan: Plan) -> float:
    """Nanoseconds that the nest takes on one thread, roughly."""
    points = math.prod(plan.nest.shape)
    if plan.partition is not None:
        points //= plan.nest.shape[0]
    work = len(plan.nest.body) * max(plan.passes, 1) / max(plan.lanes, 1)
    nest = plan.nest
    operands = [*nest.inputs, *[o.operand for o in nest.outputs]]
    moved = sum(o.dtype.itemsize for o in operands if any(o.strides))
    return points * (0.4 * work + 0.02 * moved) + 10
