"""The axes of a nest: brought into a few long ones, and how values vary along each.

`canonical` orders and merges axes, so that later steps see as few loops as the strides allow.
`variation` says of each value along each axis whether it stays, grows by a constant, or neither,
from which vector loads, hoisted scalars and index arithmetic follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from .. import dtypes
from .loops import Instruction, Nest, Operand, Output

# Along an axis: 0 where a value stays, a number where an integer grows by it, None for the rest.
Variation = tuple[int | None, ...]


class Canonical(NamedTuple):
    """A nest whose kept axes come first. `numbers` are strides with which a position along the
    reduced axes becomes its row-major number in the original nest, for argmax (all 0 without)."""

    nest: Nest
    numbers: tuple[int, ...]


def canonical(nest: Nest) -> Canonical:
    """The same nest over fewer axes: none of one point; kept before reduced ones; each group from
    large strides to small ones; neighbours merged where one stride serves both."""
    numbers = _row_major_numbers(nest)
    operands = [*nest.inputs, *[o.operand for o in nest.outputs]]
    indexed = {i.attribute for i in nest.body if i.op == "index"}
    groups: list[list[int]] = []
    order = _order(nest, operands)
    for axis in order:
        strides = [o.strides for o in operands] + [numbers]
        last = groups[-1][-1] if groups else None
        if (
            last is not None
            and (last in nest.reduced) == (axis in nest.reduced)
            and not {last, axis} & indexed
            and all(s[last] == s[axis] * nest.shape[axis] for s in strides)
        ):
            groups[-1].append(axis)
        else:
            groups.append([axis])
    shape = tuple(_product(nest.shape[a] for a in group) for group in groups)
    lasts = [group[-1] for group in groups]
    place = {group[0]: i for i, group in enumerate(groups)}
    kept = sum(group[0] not in nest.reduced for group in groups)

    def moved(operand: Operand) -> Operand:
        return operand._replace(strides=tuple(operand.strides[a] for a in lasts))

    body = tuple(
        _moved_index(i, place.get(i.attribute))
        if i.op == "index"
        else _of_one_point(i)
        if i.op == "reduce" and kept == len(shape)
        else i
        for i in nest.body
    )
    result = nest._replace(
        shape=shape,
        reduced=tuple(range(kept, len(shape))),
        inputs=tuple(map(moved, nest.inputs)),
        body=body,
        outputs=tuple(Output(o.value, moved(o.operand)) for o in nest.outputs),
    )
    return Canonical(result, tuple(numbers[a] for a in lasts))


def _row_major_numbers(nest: Nest) -> list[int]:
    numbers, step = [0] * len(nest.shape), 1
    for axis in reversed(nest.reduced):
        numbers[axis] = step
        step *= nest.shape[axis]
    return numbers if any(i.attribute == "argmax" for i in nest.body) else [0] * len(nest.shape)


def _order(nest: Nest, operands: Sequence[Operand]) -> list[int]:
    """The axes of more than one point, kept ones first, those with the largest strides outermost.
    Outputs decide first, since partly written cache lines cost most."""
    outputs = [o.operand for o in nest.outputs]

    def rank(axis: int) -> tuple[Any, ...]:
        def total(chosen: Sequence[Operand]) -> int:
            return sum(abs(o.strides[axis]) * o.dtype.itemsize for o in chosen)

        return (axis in nest.reduced, -total(outputs), -total(operands), axis)

    return sorted((a for a, n in enumerate(nest.shape) if n != 1), key=rank)


def _moved_index(instruction: Instruction, axis: int | None) -> Instruction:
    if axis is None:  # an axis of one point
        return Instruction("constant", (), instruction.dtype, 0)
    return instruction._replace(attribute=axis)


def _of_one_point(reduction: Instruction) -> Instruction:
    """What a reduction is where there is one point to fold."""
    if reduction.attribute == "argmax":
        return Instruction("constant", (), reduction.dtype, 0)
    return Instruction("cast", reduction.args, reduction.dtype)


def _product(sizes: Any) -> int:
    result = 1
    for n in sizes:
        result *= n
    return result


# ---- variation -----------------------------------------------------------------------------------


def variation(nest: Nest, inner: Sequence[int]) -> list[Variation]:
    """How each value of the body varies along each axis; `reduce` folds the axes `inner`."""
    result: list[Variation] = []
    rank = len(nest.shape)
    for instruction in nest.body:
        args = [result[a] for a in instruction.args]
        result.append(
            tuple(_along(nest, instruction, axis, args, axis in inner) for axis in range(rank))
        )
    return result


def _along(
    nest: Nest, instruction: Instruction, axis: int, args: list[Variation], inner: bool
) -> int | None:
    op, positions, dtype, attribute = instruction
    steps = [a[axis] for a in args]
    still = all(s == 0 for s in steps)
    if op == "index":
        return int(attribute == axis)
    if op in ("load", "gather"):
        number = attribute if op == "load" else attribute[0]
        return 0 if still and nest.inputs[number].strides[axis] == 0 else None
    if still or (op == "reduce" and inner):
        return 0
    if None in steps or dtype not in dtypes.SIGNED:
        return None
    if op == "cast":  # a narrower integer may have wrapped before it is widened
        narrows = dtype.itemsize <= nest.body[positions[0]].dtype.itemsize
        return steps[0] if narrows and nest.body[positions[0]].dtype in dtypes.SIGNED else None
    if op == "add":
        return _sum(steps)
    if op == "subtract":
        return _sum([steps[0], _scaled(steps[1], -1)])
    if op == "negative":
        return _scaled(steps[0], -1)
    if op == "multiply":
        for one, other in ((0, 1), (1, 0)):
            factor = nest.body[positions[one]]
            if factor.op == "constant":
                return _scaled(steps[other], factor.attribute)
    return None


def _sum(steps: Sequence[int | None]) -> int | None:
    return None if None in steps else sum(s for s in steps if s is not None)


def _scaled(step: int | None, factor: int) -> int | None:
    return None if step is None else step * factor


def access_stride(
    nest: Nest, instruction: Instruction, axis: int, varies: Sequence[Variation]
) -> int | None:
    """How far apart, in elements, a load or gather reads at neighbours along an axis; None if that
    differs from point to point."""
    if instruction.op == "load":
        return nest.inputs[instruction.attribute].strides[axis]
    number, strides = instruction.attribute
    steps = [varies[a][axis] for a in instruction.args]
    moves = [_scaled(step, s) for step, s in zip(steps, strides, strict=True)]
    return _sum([nest.inputs[number].strides[axis], *moves])
