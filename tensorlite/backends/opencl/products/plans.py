"""From an operation at given shapes to a plan: which kernels run it, and on what grids."""

from __future__ import annotations

import functools

from .... import dtypes
from ....compiler.launches import Plan
from ....ops.window import Window
from ..runtime import Traits, find_all, runtime
from . import conv, matmul, points
from .blocks import Block, plan_blocks
from .choices import default, known, wish
from .contraction import Contraction
from .draft import INT_MAX, Draft, Unsupported
from .epilogue import resolve
from .problem import Problem
from .tiles import Tile, plan_tiles
from .types import SUPPORTED


def plan(traits: Traits, problem: Problem) -> Plan | None:
    """How a device computes a problem, with the tiles that were tuned for such, else sane ones.

    Returns:
        None if there is no kernel for it: arrays without elements, float64 on a device that has
        none, an operand of the epilogue that broadcasts otherwise than along the last axis.
    """
    if not _has_kernels(traits, problem):
        return None
    first = contractions(problem)[0]
    choice = known(traits, problem, first)
    if choice is None and wish() == "1":
        choice = _tuned(traits, problem)
    return plan_with(traits, problem, choice or default(traits, first))


def _tuned(traits: Traits, problem: Problem) -> Tile | Block | None:
    """What a search finds for a problem now, if the device is one of this machine's."""
    from .tune import tune  # which plans, too

    name = next((found.name for found in find_all() if found.traits == traits), None)
    if name is None:
        return None
    return next((found.choice for found in tune(runtime(name), [problem])), None)


def _has_kernels(traits: Traits, problem: Problem) -> bool:
    avals = (*problem.inputs, problem.out)
    if any(aval.size == 0 or aval.dtype not in SUPPORTED for aval in avals):
        return False
    return traits.float64 or all(aval.dtype != dtypes.float64 for aval in avals)


@functools.lru_cache(maxsize=4096)
def plan_with(traits: Traits, problem: Problem, choice: Tile | Block) -> Plan | None:
    """The same with given tiles: a `Tile` makes kernels for CPUs, a `Block` for GPUs."""
    if not _has_kernels(traits, problem):
        return None
    steps = resolve(problem.epilogue, problem.inputs, problem.out)
    if steps is None:
        return None
    draft = Draft(problem.op)
    try:
        products = contractions(problem)
        is_whole = len(products) == 1
        for contraction in products:
            if max(map(contraction.count, ("row", "column", "batch", "sum"))) > INT_MAX:
                raise Unsupported("kernels count each of these in ints")
            if isinstance(choice, Tile):
                plan_tiles(draft, traits, contraction, steps, choice, is_whole)
            elif points.suits(contraction):
                points.plan_points(draft, traits, contraction, steps, is_whole)
            else:
                plan_blocks(draft, traits, contraction, steps, choice, is_whole)
    except Unsupported:
        return None
    return draft.plan()


def contractions(problem: Problem) -> list[Contraction]:
    """The products that an operation consists of."""
    (first, second), out, options = problem.inputs[:2], problem.out, problem.options
    if not isinstance(options, Window):
        return [matmul.matmul(first, second, out, *options)]
    if problem.op == "conv_input_grad":
        return conv.conv_input_grad(first, second, out, options)
    make = conv.conv if problem.op == "conv" else conv.conv_weight_grad
    return [make(first, second, out, options)]
