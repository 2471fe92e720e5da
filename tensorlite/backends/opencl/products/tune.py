"""A search for the tiles that are fastest on a device, by trying them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from ....compiler.launches import Plan
from .. import memory
from ..runtime import Runtime
from .choices import Choice, class_of, default, keep
from .plans import contractions, plan_with
from .problem import Problem
from .tiles import Tile

_ROUNDS = 8
_GAIN = 0.95  # of the time so far: less may be noise

# One after the other, each from the best so far.
_TILES: tuple[tuple[dict[str, Any], ...], ...] = (
    tuple(
        {"rows": rows, "vectors": vectors}
        for rows, vectors in [
            (5, 2),
            (3, 3),
            (4, 3),
            (6, 2),
            (4, 2),
            (4, 4),
            (8, 3),
            (6, 1),
            (8, 1),
        ]
    ),
    ({"depth": 128}, {"depth": 512}, {"depth": 1024}),
    ({"packed": False},),
    ({"block": 64}, {"block": 128}, {"block": 512}),
    ({"columns": 64}, {"columns": 128}, {"columns": 512}),
)
_BLOCKS: tuple[tuple[dict[str, Any], ...], ...] = (
    tuple(
        {"rows": rows, "columns": columns, "item_rows": item_rows, "item_columns": item_columns}
        for rows, columns, item_rows, item_columns in [
            (128, 128, 8, 8), (128, 64, 8, 4), (64, 128, 4, 8), (64, 64, 4, 4), (64, 64, 8, 8),
            (64, 32, 4, 4), (32, 32, 4, 4), (256, 64, 8, 8),
        ]
    ),
    ({"depth": 8}, {"depth": 32}),
)  # fmt: skip


class Operands(NamedTuple):
    """Memory for the arrays of a problem, shared by its trials."""

    inputs: list[Any]
    out: Any

    @staticmethod
    def of(at: Runtime, problem: Problem) -> Operands:
        """Inputs with numbers in them."""
        rng = np.random.default_rng(0)
        inputs = [
            memory.from_numpy(at, rng.uniform(-1, 1, v.shape).astype(v.dtype))
            for v in problem.inputs
        ]
        return Operands(inputs, memory.empty(at, *problem.out, "a trial"))


class Trial:
    """The launches of a plan, ready to be timed."""

    def __init__(self, at: Runtime, plan: Plan, operands: Operands):
        byte = np.dtype(np.uint8)
        self._at = at
        self._places: dict[str, list[Any]] = {
            "input": operands.inputs,
            "output": [operands.out],
            "temporary": [memory.empty(at, (n,), byte, "a trial") for n in plan.temporaries],
        }
        self.launches = []
        for code, refs in plan.calls:
            kernel = at.programs.kernel(code)
            buffers = [self._places[ref.kind][ref.place].memory for ref in refs]
            kernel.set_args(*buffers, *[np.int32(s) for s in code.scalars])
            self.launches.append((kernel, code.global_size, code.local_size, code.name))

    def seconds(self, rounds: int, only: int | None = None) -> float:
        """The best time from an idle queue to an idle queue, of all launches or of one; of one run
        more than `rounds`."""
        chosen = self.launches if only is None else [self.launches[only]]
        best = math.inf
        for _ in range(rounds + 1):
            self._at.finish()
            begin = time.perf_counter()
            for launch in chosen:
                self._at.enqueue(*launch)
            self._at.finish()
            best = min(best, time.perf_counter() - begin)
        return best


class Tuned(NamedTuple):
    """What was found for a class of problems. Both times are of one contest."""

    name: str  # of the class
    default: Choice
    choice: Choice
    before: float  # seconds of the problem it was tried with, with the default
    after: float  # and with the choice

    def __str__(self) -> str:
        """`conv float32 2^15 x 2^7 x 2^11: 12.30 ms, tuned 10.90 ms with rows 6, vectors 3`"""
        changed = [
            f"{name} {value}"
            for name, value in self.choice._asdict().items()
            if value != getattr(self.default, name)
        ]
        if not changed:
            return f"{self.name}: {self.before * 1e3:.2f} ms, nothing faster than the default"
        times = f"{self.before * 1e3:.2f} ms, tuned {self.after * 1e3:.2f} ms"
        return f"{self.name}: {times} with {', '.join(changed)}"


def tune(
    at: Runtime, problems: Iterable[Problem], report: Callable[[Tuned], Any] | None = None
) -> list[Tuned]:
    """Try tiles for each problem on a device, and keep the fastest for problems of its class.

    Takes some ten kernels for each class: seconds on a CPU. What is compiled afterwards uses what
    was found, in this process and in others.

    Args:
        report: is given what was found for a class, which is kept by then.

    Returns:
        What was found for each class; classes without kernels are left out.
    """
    found: dict[str, Tuned] = {}
    for problem in problems:
        first = contractions(problem)[0]
        name = class_of(problem, first)
        start = default(at.traits, first)
        if name in found or plan_with(at.traits, problem, start) is None:
            continue
        found[name] = Tuned(name, start, *_best(at, problem, start))
        keep(at.traits, {name: found[name].choice})
        if report is not None:
            report(found[name])
    return list(found.values())


def _best(at: Runtime, problem: Problem, first: Choice) -> tuple[Choice, float, float]:
    """The fastest choice, and in a contest of both the times of the first one and of that."""
    operands, choice = Operands.of(at, problem), first
    for stage in _TILES if isinstance(first, Tile) else _BLOCKS:
        candidates = [choice, *[choice._replace(**changes) for changes in stage]]
        choice = _winner(_times(at, problem, candidates, operands), choice)
    times = _times(at, problem, [first, choice], operands)
    choice = _winner(times, first)
    return choice, times[first], times[choice]


def _winner(times: dict[Choice, float], champion: Choice) -> Choice:
    """The fastest, if it is clearly faster than the champion."""
    fastest = min(times, key=lambda choice: times[choice])
    return fastest if times[fastest] < times[champion] * _GAIN else champion


def _times(
    at: Runtime, problem: Problem, candidates: list[Choice], operands: Operands
) -> dict[Choice, float]:
    """The best times of these choices, of those that make the same plan only the first. They take
    turns, so that whatever else the machine does falls on all."""
    trials: dict[Plan, tuple[Choice, Trial]] = {}
    for choice in candidates:
        plan = plan_with(at.traits, problem, choice)
        if plan is None or plan in trials:
            continue
        try:
            trial = Trial(at, plan, operands)
            trial.seconds(0)
        except RuntimeError:  # too many registers or too much local memory
            continue
        trials[plan] = choice, trial
    times = {choice: math.inf for choice, _ in trials.values()}
    for _ in range(_ROUNDS):
        for choice, trial in trials.values():
            times[choice] = min(times[choice], trial.seconds(0))
    return times
