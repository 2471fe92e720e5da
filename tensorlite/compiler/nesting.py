"""The last step of fusion: from a body written in terms of axes to a `Nest` with as few of them as
possible, in the order in which memory lies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..graph import Var
from .affine import Affine, Axes
from .body import Body
from .loops import Instruction, Nest, Operand, Output, Scalar

Stored = tuple[Scalar, np.dtype[Any], Affine]


def make_nest(
    axes: Axes,
    used: set[int],
    folded: set[int],
    order: Affine | None,
    body: Body,
    stored: Sequence[Stored],
    name: str,
) -> tuple[Nest, tuple[Var, ...]]:
    """A nest over the axes `used`, and its inputs.

    Args:
        folded: those that reductions fold.
        order: the number of a folded point, if their order matters.
        stored: values with their dtypes and the addresses where they go.
    """
    addresses = [a for _, _, a in stored] + [a for _, a in body.operands]
    arranged = _arranged(axes, used, folded, addresses)
    if order is not None:
        rank = {axis: -c for axis, c in order.terms}
        sequence = iter(sorted(folded, key=lambda a: rank[a]))
        arranged = [next(sequence) if a in folded else a for a in arranged]
    instructions, positions, operands = live(body, [v.position for v, _, _ in stored])
    indexed = {i.attribute for i in instructions if i.op == "index"}
    kept_operands = [body.operands[n] for n in operands]
    groups = _merged(
        axes, arranged, folded, indexed, [a for _, a in kept_operands] + [a for _, _, a in stored]
    )
    place = {group[-1]: i for i, group in enumerate(groups)}

    def strides(address: Affine) -> tuple[int, ...]:
        terms = dict(address.terms)
        return tuple(terms.get(group[-1], 0) for group in groups)

    def renamed(instruction: Instruction) -> Instruction:
        if instruction.op == "index":
            return instruction._replace(attribute=place[instruction.attribute])
        return instruction

    nest = Nest(
        tuple(math.prod(axes.sizes[axis] for axis in group) for group in groups),
        tuple(i for i, group in enumerate(groups) if group[-1] in folded),
        tuple(Operand(v.aval.dtype, strides(a), a.const) for v, a in kept_operands),
        tuple(map(renamed, instructions)),
        tuple(
            Output(positions[value.position], Operand(dtype, strides(a), a.const))
            for value, dtype, a in stored
        ),
        name,
    )
    return nest, tuple(v for v, _ in kept_operands)


def _arranged(
    axes: Axes, used: set[int], folded: set[int], addresses: Sequence[Affine]
) -> list[int]:
    """The axes from the outermost to the innermost: as the buffer that has most of them lies in
    memory. Those it lacks come before the last of its axes, so that this one stays innermost."""
    result: list[int] = []
    ranked = sorted(
        range(len(addresses)),
        key=lambda i: (-sum(axes.sizes[a] > 1 for a, _ in addresses[i].terms), i),
    )
    for i in ranked:
        terms = sorted(addresses[i].terms, key=lambda t: (-abs(t[1]), t[0]))
        new = [a for a, _ in terms if a not in result]
        result[max(len(result) - 1, 0) : max(len(result) - 1, 0)] = new if result else []
        result = result or new
    new = sorted(used - set(result))
    place = max(len(result) - 1, 0)
    return [*result[:place], *new, *result[place:]]


def live(body: Body, wanted: Sequence[int]) -> tuple[list[Instruction], dict[int, int], list[int]]:
    """The instructions that are needed, their new positions by the old ones, and the operands that
    they read."""
    all_instructions = body.recorder.body
    needed = set(wanted)
    for position in reversed(range(len(all_instructions))):
        if position in needed:
            needed.update(all_instructions[position].args)
    positions = {old: new for new, old in enumerate(sorted(needed))}
    operands: list[int] = []
    result = []
    for old in sorted(needed):
        op, args, dtype, attribute = all_instructions[old]
        if op in ("load", "gather"):
            number = attribute if op == "load" else attribute[0]
            if number not in operands:
                operands.append(number)
            number = operands.index(number)
            attribute = number if op == "load" else (number, attribute[1])
        args = tuple(positions[a] for a in args)
        result.append(Instruction(op, args, dtype, attribute))
    return result, positions, operands


def _merged(
    axes: Axes,
    arranged: Sequence[int],
    folded: set[int],
    indexed: set[int],
    addresses: Sequence[Affine],
) -> list[list[int]]:
    """Neighbouring axes that every buffer passes as if they were one."""
    terms = [dict(a.terms) for a in addresses]
    groups: list[list[int]] = []
    for axis in arranged:
        if groups:
            outer = groups[-1][-1]
            alike = (outer in folded) == (axis in folded)
            apart = {outer, axis} & indexed
            if (
                alike
                and not apart
                and all(t.get(outer, 0) == t.get(axis, 0) * axes.sizes[axis] for t in terms)
            ):
                groups[-1].append(axis)
                continue
        groups.append([axis])
    return groups
