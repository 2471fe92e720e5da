"""A loop nest as kernels.

What a kernel looks like follows from the device and from which axis lies along memory:

- `points`: no reductions. On a GPU each work-item computes one point; on a CPU each runs a long
  loop along the last axis, which compilers turn into vector code.
- `rows`: the reduced axis lies along memory, as in softmax. On a CPU a work-item takes row after
  row, with an accumulator for each of 16 lanes; on a GPU a work-group shares a row, and folds in
  local memory.
- `columns`: a kept axis lies along memory, as in the gradient of a bias. Neighbouring points are
  neighbouring lanes of a work-item of a CPU. On a GPU a work-group has as many of them as it can,
  and several members for each if they are few.

If the kept points are too few to keep the device busy, the reductions are split: each of some
work-items (or work-groups) folds a share of the reduced space into a temporary, a second kernel
folds the shares, and later reductions and outputs read the result. All of this depends on shapes
and on the device only, so that results are the same from run to run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from ....compiler.axes import Canonical, canonical
from ....compiler.launches import Call, Plan, Ref
from ....compiler.loops import Instruction, Nest, Operand, Output, row_major
from ....compiler.lower import lower
from ..kernels import Kernel
from ..runtime import Traits
from .analysis import fits_int, is_along_memory, kept_axes, levels_of, written_once
from .kernel import BLOCK, ENOUGH, Body
from .reduce import Accumulator
from .scalar import helpers_for, stored_type
from .teams import Team, in_columns, shares_of, team_of
from .text import Text

SHARES = 32  # work-items of a CPU that split a reduction


def plan_nest(traits: Traits, nest: Nest, sizes: Sequence[int] | None = None) -> Plan:
    """The kernels that compute `nest` on a device, from buffers of its inputs to its outputs.

    Args:
        sizes: the numbers of elements of the inputs, from which the type of indices follows where
            gathers reach anywhere. None: they may be large.
    """
    flat = canonical(lower(nest, traits.float64))
    name = _identifier(nest.name)
    if math.prod(flat.nest.shape[: kept_axes(flat.nest)]) == 0:
        return Plan(nest.name, ())
    index = "int" if fits_int(flat.nest, sizes) else "long"
    return _Planner(traits, flat, name, index).plan()


def may_share(nest: Nest, output: int, source: int) -> bool:
    """Whether an output may be written to the very buffer of an input: each element is read for
    the last time by the work-item that writes it, just before. No other input may lie there."""
    target, operand = nest.outputs[output].operand, nest.inputs[source]
    gathered = any(i.op == "gather" and i.attribute[0] == source for i in nest.body)
    if target != operand or gathered or 0 in nest.shape or nest.reduced:
        return False
    return 0 not in [s for s, n in zip(target.strides, nest.shape, strict=True) if n > 1]


def _identifier(name: str) -> str:
    clean = re.sub(r"\W+", "_", name, flags=re.ASCII)[:60].strip("_")
    return clean if clean[:1].isalpha() else f"nest_{clean}"


class _Planner:
    """Kernels of one nest, and the temporaries between them."""

    def __init__(self, traits: Traits, flat: Canonical, name: str, index: str):
        self.traits = traits
        self.on_cpu = traits.kind == "cpu"
        self.nest, self.numbers = flat
        self.name = name
        self.index = index
        self.calls: list[Call] = []
        self.temporaries: list[int] = []
        # Where the buffers of the nest come from: its own inputs, then temporaries.
        self.sources = [Ref("input", i) for i in range(len(self.nest.inputs))]
        self.targets = [Ref("output", i) for i in range(len(self.nest.outputs))]

    def plan(self) -> Plan:
        levels = levels_of(self.nest)
        if levels and (shares := self._shares()) > 1:
            for number in range(1, max(levels.values()) + 1):
                at_level = [p for p, level in levels.items() if level == number]
                self._fold_in_shares(at_level, number, shares)
            self._without_idle_axes()
        self._emit(Body(self.traits, self.nest, self.numbers, self.index))
        return Plan(self.name, tuple(self.calls), tuple(self.temporaries))

    def _shares(self) -> int:
        """In how many shares reductions are split; 1 if they are not."""
        nest, kept = self.nest, kept_axes(self.nest)
        if not nest.reduced or math.prod(nest.shape) < ENOUGH:
            return 1
        if not self.on_cpu:
            return shares_of(self.traits, nest, team_of(self.traits, nest))
        points = math.prod(nest.shape[:kept])
        width = 1 if is_along_memory(nest) or not kept else min(nest.shape[kept - 1], BLOCK)
        is_few = points // width < 4 * self.traits.units
        return min(nest.shape[kept], SHARES) if is_few else 1

    def _fold_in_shares(self, positions: Sequence[int], level: int, shares: int) -> None:
        """Kernels that compute the reductions at `positions`, which become loads."""
        nest, kept = self.nest, kept_axes(self.nest)
        points = math.prod(nest.shape[:kept])
        stores: list[tuple[str, np.dtype[Any]]] = []
        accumulators = [Accumulator(nest, p) for p in positions]
        for accumulator in accumulators:
            stores += [(accumulator.name, accumulator.dtype)]
            if accumulator.numbered:
                stores.append((accumulator.number, accumulator.number_dtype))
        shared = [self._temporary(shares * points * dtype.itemsize) for _, dtype in stores]
        partial = Body(self.traits, nest._replace(outputs=()), self.numbers, self.index)
        partial.fold_shares(accumulators, shares)
        self._emit(partial, f"_share{level}", shared, [d for _, d in stores])
        folded = [self._temporary(points * a.result.itemsize) for a in accumulators]
        self.calls.append(
            _combining(self.name, level, accumulators, shares, points, shared, folded, self.traits)
        )
        strides = (*row_major(nest.shape[:kept]), *([0] * len(nest.reduced)))
        body = list(nest.body)
        inputs = list(nest.inputs)
        for accumulator, ref in zip(accumulators, folded, strict=True):
            body[accumulator.position] = Instruction("load", (), accumulator.result, len(inputs))
            inputs.append(Operand(accumulator.result, strides))
            self.sources.append(ref)
        self.nest = nest._replace(body=tuple(body), inputs=tuple(inputs))

    def _without_idle_axes(self) -> None:
        """Where reductions are done, reduced axes are axes like others, if an output has them."""
        nest, kept = self.nest, kept_axes(self.nest)
        is_once = written_once(nest)
        if all(is_once):

            def cut(operand: Operand) -> Operand:
                return operand._replace(strides=operand.strides[:kept])

            self.nest = Nest(
                nest.shape[:kept],
                (),
                tuple(map(cut, nest.inputs)),
                nest.body,
                tuple(Output(o.value, cut(o.operand)) for o in nest.outputs),
                nest.name,
            )
            self.numbers = self.numbers[:kept]
            return
        once = [i for i, written in enumerate(is_once) if written]
        if once:
            # Outputs of both kinds: those of kept points are written by a kernel of their own.
            part = nest._replace(outputs=tuple(nest.outputs[i] for i in once))
            other = nest._replace(
                outputs=tuple(o for i, o in enumerate(nest.outputs) if i not in once)
            )
            whole, targets = self.nest, self.targets
            self.nest, self.targets = part, [targets[i] for i in once]
            self._without_idle_axes()
            self._emit(Body(self.traits, self.nest, self.numbers, self.index), "_kept")
            self.nest = other
            self.targets = [t for i, t in enumerate(targets) if i not in once]
            self.numbers = (0,) * len(whole.shape)
        # What was an order of loops for folding is none for writing.
        self.nest, self.numbers = canonical(self.nest._replace(reduced=()))

    def _temporary(self, size: int) -> Ref:
        self.temporaries.append(max(size, 1))
        return Ref("temporary", len(self.temporaries) - 1)

    def _emit(
        self,
        kernel: Body,
        suffix: str = "",
        extra: Sequence[Ref] = (),
        extra_dtypes: Sequence[np.dtype[Any]] = (),
    ) -> None:
        if not extra:
            kernel.compute()
        name = f"{self.name}_{'x'.join(map(str, kernel.nest.shape)) or '1'}{suffix}"
        read = [i for i in range(len(kernel.nest.inputs)) if kernel.reads(i)]
        parameters = [
            f"__global const {stored_type(kernel.nest.inputs[i].dtype)} *in{i}" for i in read
        ]
        parameters += [
            f"__global {stored_type(o.operand.dtype)} *out{i}"
            for i, o in enumerate(kernel.nest.outputs)
        ]
        parameters += [
            f"__global {stored_type(dtype)} *part{i}" for i, dtype in enumerate(extra_dtypes)
        ]
        source = _program(self.traits, name, parameters, str(kernel.text))
        arguments = [self.sources[i] for i in read]
        arguments += extra or self.targets
        code = Kernel(name, source, kernel.global_size, kernel.local_size)
        self.calls.append(Call(code, tuple(arguments)))


def _program(traits: Traits, name: str, parameters: Sequence[str], body: str) -> str:
    head = "#pragma OPENCL EXTENSION cl_khr_fp64 : enable\n" if re.search("double", body) else ""
    separator = ",\n" + " " * len(f"__kernel void {name}(")
    helpers = helpers_for(body)
    return (
        f"{head}{helpers}{chr(10) if helpers else ''}"
        f"__kernel void {name}({separator.join(parameters)}) {{\n{body}\n}}\n"
    )


def _combining(
    name: str,
    level: int,
    accumulators: Sequence[Accumulator],
    shares: int,
    points: int,
    parts: Sequence[Ref],
    folded: Sequence[Ref],
    traits: Traits,
) -> Call:
    """A kernel that folds the shares of each point, in order."""
    text = Text()
    team = Team(1, 1, points) if traits.kind == "cpu" else in_columns(traits, points, shares)
    team.begin(text, "int")
    parameters: list[str] = []
    for a in accumulators:
        a.declare(text)
        a.reset(text, "")
    with text.block(f"for (int share = member; share < {shares}; share += {team.members})"):
        for a in accumulators:
            first = len(parameters)
            for dtype in [a.dtype, a.number_dtype] if a.numbered else [a.dtype]:
                parameters.append(f"__global const {stored_type(dtype)} *part{len(parameters)}")
            a.add_parts(text, *[f"part{first + n}[share * {points} + point]" for n in (0, 1)])
    team.merge(text, accumulators)
    with text.block(team.leads):
        for i, a in enumerate(accumulators):
            text.line(f"folded{i}[point] = {a.outcome};")
    parameters += [
        f"__global {stored_type(a.result)} *folded{i}" for i, a in enumerate(accumulators)
    ]
    title = f"{name}_{points}_fold{level}"
    source = _program(traits, title, parameters, str(text))
    code = Kernel(title, source, (team.groups * team.size,), (team.size,))
    return Call(code, (*parts, *folded))
