"""Reductions of much into little, such as the sum of everything or batch normalization: the reduced
points are shared among threads as well.

A nest falls into stages. For each pass a first one folds parts of the reduced points into partial
results; a second one folds these and computes what follows from them. A last stage computes what
differs from point to point. The parts depend on the shape only, so that the result does not depend
on the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ....compiler.axes import Canonical, canonical
from ....compiler.loops import Nest, Operand, Output, Recorder, Scalar, row_major
from .plan import MOST_SIDE_BY_SIDE, Partition, Plan, estimate, make_plan

ENOUGH_UNITS = 16  # that threads can share without splitting
LEAST_NANOSECONDS = 16000.0  # that splitting must be worth
PART = 16384  # points in a part, at least
MOST_PARTS = 64
MOST_RESULTS = 1 << 15  # of all parts together: they lie on the stack


class Stage(NamedTuple):
    """A plan, and the buffers that it is given: numbers of the nest's own, then of temporaries."""

    plan: Plan
    buffers: tuple[int, ...]


class Stages(NamedTuple):
    """What runs one after the other, and the bytes of the temporaries in between."""

    stages: list[Stage]
    temporaries: list[int]


def make_stages(source: Canonical, register_bytes: int) -> Stages:
    """The plan of a nest, or those of its stages if it is to be split."""
    plan = make_plan(source, register_bytes)
    nest = source.nest
    whole = Stages([Stage(plan, tuple(range(len(nest.inputs) + len(nest.outputs))))], [])
    kept = math.prod(nest.shape[a] for a in range(len(nest.shape)) if a not in nest.reduced)
    folded = any(i.op == "reduce" for i in nest.body)
    if not folded or plan.units >= ENOUGH_UNITS or estimate(plan) < LEAST_NANOSECONDS:
        return whole
    # The first of equal maxima is in the first part only if parts come by the numbers of points.
    axis = max(nest.reduced, key=lambda a: (source.numbers[a], nest.shape[a]))
    parts = min(MOST_PARTS, math.prod(nest.shape) // PART, MOST_RESULTS // max(kept, 1))
    size = -(-nest.shape[axis] // max(parts, 1))
    if size > MOST_SIDE_BY_SIDE:
        size = -(-size // MOST_SIDE_BY_SIDE) * MOST_SIDE_BY_SIDE
    if parts < 2 or size >= nest.shape[axis]:
        return whole
    return _Splitter(source, register_bytes, Partition(axis + 1, size)).split()


class _Splitter:
    def __init__(self, source: Canonical, register_bytes: int, partition: Partition):
        self.nest, self.numbers = source
        self.register_bytes = register_bytes
        self.partition = partition
        self.plan = make_plan(source, register_bytes)
        shape = self.nest.shape
        kept = len(shape) - len(self.nest.reduced)
        self.kept_strides = row_major(shape[:kept])
        self.kept_shape = shape[:kept]
        self.points = math.prod(self.kept_shape)
        self.parts = -(-shape[partition.axis - 1] // partition.size)
        self.temporaries: list[int] = []
        self.states: dict[int, int] = {}  # values that a temporary holds, at each kept point
        self.stages: list[Stage] = []

    def split(self) -> Stages:
        """Make all stages."""
        depth, body = self.plan.depth, self.nest.body
        last = max(d for d, i in zip(depth, body, strict=True) if i.op == "reduce")
        for number in range(last):
            self._add_pass(number)
        written = self._inner_outputs(last)
        if written:
            self._add_points(written)
        return Stages(self.stages, self.temporaries)

    # ---- stages --------------------------------------------------------------------------

    def _add_pass(self, number: int) -> None:
        """Folds over the parts, then folds over their results."""
        depth, body = self.plan.depth, self.nest.body
        folds = [
            i
            for i, instruction in enumerate(body)
            if instruction.op == "reduce" and depth[instruction.args[0]] == number
        ]
        results: dict[int, tuple[int, ...]] = {}  # the temporaries of a fold
        for i in folds:
            element = body[body[i].args[0]].dtype
            kinds = [body[i].dtype] + ([element] if body[i].attribute == "argmax" else [])
            results[i] = tuple(self._temporary(k, self.parts * self.points) for k in kinds)
        self._add_parts(number, results)
        self._add_results(number, results)

    def _add_parts(self, number: int, results: dict[int, tuple[int, ...]]) -> None:
        """The stage whose first axis numbers the parts."""
        nest, recorder = self.nest, Recorder()
        still = (0,) * len(nest.reduced)
        copy = self._copier(recorder, shift=1)
        outputs: list[Output] = []
        for i in results:
            value = copy(nest.body[i].args[0])
            strides = (self.points, *self.kept_strides, *still)
            kinds = [nest.body[i].attribute] + ["max"] * (len(results[i]) - 1)
            for kind in kinds:
                dtype = nest.body[i].dtype if kind == nest.body[i].attribute else value.dtype
                folded = recorder.emit("reduce", (value,), dtype, kind)
                outputs.append(Output(folded.position, Operand(dtype, strides)))
        written = self._inner_outputs(number)
        for output in map(nest.outputs.__getitem__, written):
            operand = output.operand._replace(strides=(0, *output.operand.strides))
            outputs.append(Output(copy(output.value).position, operand))
        inputs = [
            *[o._replace(strides=(0, *o.strides)) for o in nest.inputs],
            *self._state_operands((0,), still),
        ]
        stage = Nest(
            (self.parts, *nest.shape),
            tuple(a + 1 for a in nest.reduced),
            tuple(inputs),
            tuple(recorder.body),
            tuple(outputs),
            nest.name,
        )
        plan = make_plan(Canonical(stage, (0, *self.numbers)), self.register_bytes, self.partition)
        made = [self._buffer(t) for i in results for t in results[i]]
        buffers = [*self._known(), *made, *self._places(written)]
        self.stages.append(Stage(plan, tuple(buffers)))

    def _add_results(self, number: int, results: dict[int, tuple[int, ...]]) -> None:
        """The stage that folds what the parts gave, and computes what follows from that alone."""
        nest, recorder, depth = self.nest, Recorder(), self.plan.depth
        rank = len(self.kept_shape)
        inputs = [
            *[o._replace(strides=(*o.strides[:rank], 0)) for o in nest.inputs],
            *self._state_operands((), (0,)),
        ]
        known = self._known()
        replaced: dict[int, Scalar] = {}

        def load(temporary: int, dtype: np.dtype[Any], stride: int) -> int:
            inputs.append(Operand(dtype, (*self.kept_strides, stride)))
            known.append(self._buffer(temporary))
            return len(inputs) - 1

        for i, temporaries in results.items():
            _, args, dtype, kind = nest.body[i]
            element = nest.body[args[0]].dtype
            if kind == "argmax":
                largest = load(temporaries[1], element, self.points)
                value = recorder.emit("load", (), element, largest)
                part = recorder.emit("reduce", (value,), dtype, kind)
                at = (load(temporaries[0], dtype, 0), (self.points,))
                replaced[i] = recorder.emit("gather", (part,), dtype, at)
            else:
                number_of_input = load(temporaries[0], dtype, self.points)
                value = recorder.emit("load", (), dtype, number_of_input)
                replaced[i] = recorder.emit("reduce", (value,), dtype, kind)
        copy = self._copier(recorder, replaced=replaced)
        states = [i for i in self._wanted_later() if depth[i] == number + 1]
        kept = [
            i
            for i, o in enumerate(nest.outputs)
            if not self.plan.is_inner_output(i) and max(depth[o.value], 1) == number + 1
        ]
        outputs = [
            Output(copy(i).position, Operand(nest.body[i].dtype, (*self.kept_strides, 0)))
            for i in states
        ]
        for output in map(nest.outputs.__getitem__, kept):
            strides = (*output.operand.strides[:rank], 0)
            operand = output.operand._replace(strides=strides)
            outputs.append(Output(copy(output.value).position, operand))
        own = [self._temporary(nest.body[i].dtype, self.points) for i in states]
        self.states.update(zip(states, own, strict=True))
        stage = Nest(
            (*self.kept_shape, self.parts),
            (rank,),
            tuple(inputs),
            tuple(recorder.body),
            tuple(outputs),
            nest.name,
        )
        if outputs:
            buffers = [*known, *map(self._buffer, own), *self._places(kept)]
            plan = make_plan(canonical(stage), self.register_bytes)
            self.stages.append(Stage(plan, tuple(buffers)))

    def _add_points(self, written: Sequence[int]) -> None:
        """The stage of what differs from point to point."""
        nest, recorder = self.nest, Recorder()
        copy = self._copier(recorder)
        chosen = [nest.outputs[i] for i in written]
        outputs = tuple(Output(copy(o.value).position, o.operand) for o in chosen)
        inputs = (*nest.inputs, *self._state_operands((), (0,) * len(nest.reduced)))
        stage = Nest(nest.shape, (), inputs, tuple(recorder.body), outputs, nest.name)
        plan = make_plan(canonical(stage), self.register_bytes)
        self.stages.append(Stage(plan, (*self._known(), *self._places(written))))

    # ---- values --------------------------------------------------------------------------

    def _copier(
        self, recorder: Recorder, shift: int = 0, replaced: dict[int, Scalar] | None = None
    ) -> Callable[[int], Scalar]:
        """A function that appends a value, and what it needs, to `recorder`. Values that a
        temporary holds are loaded. Axes are numbered `shift` higher."""
        nest = self.nest
        copies: dict[int, Scalar] = dict(replaced or {})

        def copy(position: int) -> Scalar:
            if position not in copies:
                op, args, dtype, attribute = nest.body[position]
                if position in self.states:
                    number = len(nest.inputs) + list(self.states).index(position)
                    op, args, attribute = "load", (), number
                elif op == "index":
                    attribute += shift
                copies[position] = recorder.emit(op, [copy(a) for a in args], dtype, attribute)
            return copies[position]

        return copy

    def _wanted_later(self) -> list[int]:
        """The values at kept points which a later stage than that which computes them needs."""
        nest, depth = self.nest, self.plan.depth
        wanted: set[int] = set()
        for i, instruction in enumerate(nest.body):
            for a in instruction.args:
                later = self.plan.is_inner(i) or depth[i] > depth[a] or instruction.op == "reduce"
                if depth[a] > 0 and not self.plan.is_inner(a) and later:
                    wanted.add(a)
        for value in (nest.outputs[i].value for i in self._inner_outputs()):
            if not self.plan.is_inner(value) and depth[value] > 0:
                wanted.add(value)
        return sorted(wanted)

    def _inner_outputs(self, number: int | None = None) -> list[int]:
        """Which outputs are written at each point, in a pass or in all of them."""
        return [
            i
            for i, o in enumerate(self.nest.outputs)
            if self.plan.is_inner_output(i) and number in (None, self.plan.depth[o.value])
        ]

    # ---- buffers -------------------------------------------------------------------------

    def _temporary(self, dtype: np.dtype[Any], count: int) -> int:
        self.temporaries.append(dtype.itemsize * count)
        return len(self.temporaries) - 1

    def _buffer(self, temporary: int) -> int:
        return len(self.nest.inputs) + len(self.nest.outputs) + temporary

    def _known(self) -> list[int]:
        """The buffers of the inputs, and those of the values known so far."""
        return [*range(len(self.nest.inputs)), *map(self._buffer, self.states.values())]

    def _state_operands(self, before: tuple[int, ...], after: tuple[int, ...]) -> list[Operand]:
        return [
            Operand(self.nest.body[i].dtype, (*before, *self.kept_strides, *after))
            for i in self.states
        ]

    def _places(self, outputs: Sequence[int]) -> list[int]:
        return [len(self.nest.inputs) + i for i in outputs]
