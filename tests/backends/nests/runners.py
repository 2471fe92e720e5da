"""What runs a loop nest: the CPU's code generator, and OpenCL's as it writes for CPUs and GPUs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

import tensorlite as tl
from tensorlite.compiler.loops import Nest

Run = Callable[[Nest, Sequence[np.ndarray], Sequence[np.ndarray]], None]


def in_llvm(nest: Nest, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> None:
    from tensorlite.backends.cpu import llvm

    llvm.run_nest(nest, inputs, outputs)


def in_opencl(**changes: Any) -> Run:
    def run(nest: Nest, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> None:
        from tensorlite.backends.opencl.render import plan_nest
        from tensorlite.backends.opencl.runtime import runtime
        from tests.backends.opencl.plans import run_plan

        plan = plan_nest(runtime("opencl:0").traits._replace(**changes), nest)
        run_plan(plan, inputs, outputs)

    return run


needs_llvm = pytest.mark.skipif(not find_spec("llvmlite"), reason="llvmlite is not installed")
needs_opencl = pytest.mark.skipif(len(tl.devices()) == 1, reason="there is no OpenCL device here")


RUNNERS = [
    pytest.param(in_llvm, id="llvm", marks=needs_llvm),
    pytest.param(in_opencl(), id="opencl", marks=needs_opencl),
    pytest.param(
        in_opencl(kind="gpu", vector=1, max_work_group=64),
        id="opencl-gpu",
        marks=needs_opencl,
    ),
]
each = pytest.mark.parametrize("run_nest", RUNNERS)
