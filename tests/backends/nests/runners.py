"""What runs a loop nest: the CPU's code generator, and OpenCL's as it writes for CPUs and GPUs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

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


def _needs(module: str) -> Any:
    try:
        __import__(module)
    except ImportError:
        return pytest.mark.skip(reason=f"{module} is not installed")
    return ()


RUNNERS = [
    pytest.param(in_llvm, id="llvm", marks=_needs("llvmlite")),
    pytest.param(in_opencl(), id="opencl", marks=_needs("pyopencl")),
    pytest.param(
        in_opencl(kind="gpu", vector=1, max_work_group=64),
        id="opencl-gpu",
        marks=_needs("pyopencl"),
    ),
]
each = pytest.mark.parametrize("run_nest", RUNNERS)
