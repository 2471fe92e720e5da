"""What the forms of a kernel are chosen by."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ....compiler.loops import Nest, Output


def kept_axes(nest: Nest) -> int:
    """How many axes are kept; in a canonical nest they are the first ones."""
    return len(nest.shape) - len(nest.reduced)


def levels_of(nest: Nest) -> dict[int, int]:
    """How many reductions, one after the other, each reduction ends."""
    depth: list[int] = []
    for instruction in nest.body:
        below = max((depth[a] for a in instruction.args), default=0)
        depth.append(below + (instruction.op == "reduce"))
    return {p: depth[p] for p, i in enumerate(nest.body) if i.op == "reduce"}


def is_along_memory(nest: Nest) -> bool:
    """Whether the last reduced axis, rather than the last kept one, has neighbours in memory."""
    kept = kept_axes(nest)
    if not kept:
        return True

    def near(axis: int) -> int:
        loads = [i.attribute for i in nest.body if i.op == "load"]
        operands = [nest.inputs[n] for n in loads] + [o.operand for o in nest.outputs]
        return sum(abs(o.strides[axis]) == 1 for o in operands)

    return near(len(nest.shape) - 1) >= near(kept - 1)


def written_once(nest: Nest) -> list[bool]:
    """For each output, whether a kept point writes one element of it, rather than one for each of
    its reduced points. A value that is the same at all of these may be wanted at each."""
    stays = nest.kept()
    return [
        stays[output.value]
        and not any(output.operand.strides[a] for a in nest.reduced if nest.shape[a] > 1)
        for output in nest.outputs
    ]


def factors_of(nest: Nest) -> frozenset[int]:
    """The products of floats that nothing reads but one sum or difference, once."""
    readers: dict[int, list[str]] = {output.value: ["output"] for output in nest.outputs}
    for instruction in nest.body:
        is_sum = instruction.op == "reduce" and instruction.attribute == "sum"
        for argument in instruction.args:
            readers.setdefault(argument, []).append("add" if is_sum else instruction.op)
    return frozenset(
        position
        for position, instruction in enumerate(nest.body)
        if instruction.op == "multiply"
        and instruction.dtype.kind == "f"
        and readers.get(position) in (["add"], ["subtract"])
    )


def used(nest: Nest, positions: Sequence[int]) -> set[int]:
    """The values that those at `positions` are computed from, and these."""
    found = set(positions)
    for i in range(len(nest.body) - 1, -1, -1):
        if i in found:
            found.update(nest.body[i].args)
    return found


def fits_int(nest: Nest, sizes: Sequence[int] | None) -> bool:
    """Whether all addresses and counts fit 31 bits; `sizes` are those of the inputs, which matter
    where gathers reach anywhere."""
    operands = [*nest.inputs, *[o.operand for o in nest.outputs]]
    extents = [
        abs(o.offset)
        + sum(abs(s) * max(n - 1, 0) for s, n in zip(o.strides, nest.shape, strict=True))
        for o in operands
    ]
    if any(i.op == "gather" for i in nest.body):
        extents += sizes or [2**31]
    return max([*extents, math.prod(nest.shape)], default=0) < 2**31 - 2**16


STREAMED = 1 << 24  # bytes of an output that caches should not hold


def streamed_outputs(nest: Nest) -> list[int]:
    """The outputs that a CPU better writes past its caches, in which they would displace all else
    and be read before they are written: those that are large and lie in order."""
    if nest.reduced or len(nest.shape) != 1:
        return []

    def fits(output: Output) -> bool:
        strides, dtype = output.operand.strides, output.operand.dtype
        whole = strides == (1,) and output.operand.offset == 0
        return whole and nest.shape[0] * dtype.itemsize >= STREAMED

    return [number for number, output in enumerate(nest.outputs) if fits(output)]
