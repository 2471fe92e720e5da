"""Runs the plans of code generators on NumPy arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tensorlite.backends.opencl import memory
from tensorlite.backends.opencl.runtime import runtime
from tensorlite.compiler.launches import Plan


def run_plan(
    plan: Plan,
    inputs: Sequence[np.ndarray],
    outputs: Sequence[np.ndarray],
    device: str = "opencl:0",
) -> None:
    """Carry out `plan`, whose kernels start from the values that `outputs` have, and overwrite
    these."""
    at = runtime(device)
    sources = [memory.from_numpy(at, np.array(a)) for a in inputs]
    targets = [memory.from_numpy(at, np.array(a)) for a in outputs]
    byte = np.dtype(np.uint8)
    temporaries = [memory.empty(at, (size,), byte, "temporary") for size in plan.temporaries]
    places = {"input": sources, "output": targets, "temporary": temporaries}
    for code, refs in plan.calls:
        kernel = at.programs.kernel(code)
        buffers = [places[ref.kind][ref.place].memory for ref in refs]
        kernel.set_args(*buffers, *[np.int32(s) for s in code.scalars])
        at.enqueue(kernel, code.global_size, code.local_size, code.name)
    for array, target in zip(outputs, targets, strict=True):
        array[...] = memory.to_numpy(target)
