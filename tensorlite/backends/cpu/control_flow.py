"""Control flow on the CPU: loops in Python around compiled bodies."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...control_flow import cond_p, while_p
from ...device import lowering
from ...graph import Graph
from ...scan import Layout, scan_p
from .executor import executable


@lowering(cond_p, "cpu")
def _(predicate: np.ndarray, *args: np.ndarray, true: Graph, false: Graph) -> tuple[Any, ...]:
    return executable(true if predicate else false)(*args)


@lowering(while_p, "cpu")
def _(
    *args: np.ndarray, test: Graph, step: Graph, counts: tuple[int, int]
) -> tuple[np.ndarray, ...]:
    for_test, for_step = args[: counts[0]], args[counts[0] : sum(counts)]
    state = args[sum(counts) :]
    run_test, run_step = executable(test), executable(step)
    while run_test(*for_test, *state)[0]:
        state = run_step(*for_step, *state)
    return state


@lowering(scan_p, "cpu")
def _(*args: np.ndarray, body: Graph, layout: Layout, device: Any = None) -> tuple[np.ndarray, ...]:
    consts, carry = args[: layout.consts], args[layout.consts : layout.consts + layout.carries]
    xs = args[layout.consts + layout.carries :]
    run = executable(body)
    ys = [
        np.empty((layout.length, *aval.shape), aval.dtype)
        for aval in body.out_avals[layout.carries :]
    ]
    steps = range(layout.length)
    for i in reversed(steps) if layout.reverse else steps:
        out = run(*consts, *carry, *[x[i] for x in xs])
        carry = out[: layout.carries]
        for stacked, y in zip(ys, out[layout.carries :], strict=True):
            stacked[i] = y
    return (*carry, *ys)
