"""Control flow on OpenCL devices: the host launches compiled bodies. A condition is waited for, a
scan is not."""

from __future__ import annotations

from typing import Any

from ...control_flow import cond_p, while_p
from ...device import get_device, lowering
from ...graph import Graph
from ...scan import Layout, scan_p
from . import memory
from .backend import executable
from .memory import Buffer
from .runtime import Runtime
from .runtime import runtime as runtime_of


def _run(graph: Graph, buffers: tuple[Buffer, ...], runtime: Runtime) -> tuple[Buffer, ...]:
    return executable(graph, get_device(runtime.name))(*buffers)


@lowering(cond_p, "opencl")
def _(predicate: Buffer, *args: Buffer, true: Graph, false: Graph) -> tuple[Buffer, ...]:
    chosen = true if memory.to_numpy(predicate) else false
    return _run(chosen, args, predicate.runtime)


@lowering(while_p, "opencl")
def _(*args: Buffer, test: Graph, step: Graph, counts: tuple[int, int]) -> tuple[Buffer, ...]:
    for_test, for_step = args[: counts[0]], args[counts[0] : sum(counts)]
    state = args[sum(counts) :]
    runtime = args[0].runtime
    while memory.to_numpy(_run(test, (*for_test, *state), runtime)[0]):
        state = _run(step, (*for_step, *state), runtime)
    return state


@lowering(scan_p, "opencl")
def _(*args: Buffer, body: Graph, layout: Layout, device: Any = None) -> tuple[Buffer, ...]:
    consts, carry = args[: layout.consts], args[layout.consts : layout.consts + layout.carries]
    xs = args[layout.consts + layout.carries :]
    runtime = args[0].runtime if args else runtime_of(device.name)
    label = f"steps of {body.name}"
    ys = [
        memory.empty(runtime, (layout.length, *aval.shape), aval.dtype, label)
        for aval in body.out_avals[layout.carries :]
    ]
    steps = range(layout.length)
    for i in reversed(steps) if layout.reverse else steps:
        rows = [memory.empty(runtime, x.shape[1:], x.dtype, label) for x in xs]
        for row, x in zip(rows, xs, strict=True):
            memory.copy(row, x, source_start=i * row.nbytes, size=row.nbytes)
        out = _run(body, (*consts, *carry, *rows), runtime)
        carry = out[: layout.carries]
        for stacked, y in zip(ys, out[layout.carries :], strict=True):
            memory.copy(stacked, y, target_start=i * y.nbytes, size=y.nbytes)
    return (*carry, *ys)
