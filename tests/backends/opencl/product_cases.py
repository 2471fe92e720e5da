"""Runs plans of products on an OpenCL device and compares them with the NumPy rules."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tensorlite import dtypes
from tensorlite.backends.opencl import products
from tensorlite.backends.opencl.runtime import Traits
from tensorlite.compiler.launches import Plan
from tensorlite.core import Aval
from tests.backends.opencl.plans import run_plan

# The rounding of one operation, relative.
STEP = {
    dtypes.float64: 2.0**-53,
    dtypes.float32: 2.0**-24,
    dtypes.float16: 2.0**-11,
    dtypes.bfloat16: 2.0**-8,
}

CPU = Traits(
    kind="cpu",
    units=2,
    local_memory=1 << 15,
    dedicated_local=False,
    max_work_group=256,
    vector=8,
    float64=True,
    float16=False,
    address_bits=64,
    alignment=128,
    max_allocation=1 << 32,
    key="a CPU",
)
GPU = CPU._replace(kind="gpu", dedicated_local=True, vector=1, units=4, key="a GPU")


def aval(array: np.ndarray) -> Aval:
    return Aval(array.shape, array.dtype)


def numbers(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Floats of size one, or any integers."""
    dtype = np.dtype(dtype)
    if dtype in dtypes.FLOATS:
        return rng.normal(size=shape).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, shape, dtype, endpoint=True)


def planned(
    traits: Traits,
    prim: Any,
    inputs: tuple[Aval, ...],
    out: Aval,
    params: dict[str, Any],
    epilogue: Any = (),
) -> Plan | None:
    """How a device with these traits computes `prim`."""
    problem = products.problem_for(prim, inputs, out, params, epilogue)
    assert problem is not None
    return products.plan(traits, problem)


def computed(
    traits: Traits,
    prim: Any,
    arrays: tuple[np.ndarray, ...],
    params: dict[str, Any],
    epilogue: Any = (),
    device: str = "opencl:0",
) -> np.ndarray | None:
    """What the plan for `prim` gives for the first two arrays; None without a plan."""
    out: Any = prim.abstract(*map(aval, arrays[:2]), **params)
    plan = planned(traits, prim, tuple(map(aval, arrays)), out, params, epilogue)
    if plan is None:
        return None
    result = np.full(out.size * out.dtype.itemsize, 0xA5, np.uint8).view(out.dtype)
    result = result.reshape(out.shape)  # a pattern, to tell what is not written
    run_plan(plan, arrays, [result], device)
    return result


def reference(
    prim: Any, arrays: tuple[np.ndarray, ...], params: dict[str, Any], epilogue: Any = ()
) -> np.ndarray:
    """What NumPy gives in float64, before it is rounded to the dtype of the result."""
    is_float = arrays[0].dtype in dtypes.FLOATS
    wide = [a.astype(np.float64) if is_float else a for a in arrays]
    value = np.asarray(prim.numpy_rule(*wide[:2], **params))
    for name, *operands in epilogue:
        if name in ("bias", "add"):
            value = value + wide[operands[0]]
        elif name == "mul":
            value = value * wide[operands[0]]
        elif name == "relu":
            value = np.maximum(value, 0)
        elif name == "sigmoid":
            value = 1 / (1 + np.exp(-value))
        elif name == "tanh":
            value = np.tanh(value)
        else:
            raise AssertionError(f"no reference for {name}")
    return value


def close(got: np.ndarray | None, expected: np.ndarray, terms: int) -> None:
    """Equal up to the rounding of a sum of `terms` products of numbers of size one; integers are
    equal."""
    assert got is not None
    assert got.shape == expected.shape
    if got.dtype not in dtypes.FLOATS:
        np.testing.assert_array_equal(got, expected.astype(got.dtype))
        return
    exact = expected.astype(np.float64)
    scale = math.sqrt(terms) + float(np.abs(exact).max(initial=0))
    summed = STEP[got.dtype] if got.dtype == dtypes.float64 else STEP[dtypes.float32]
    tolerance = scale * (2 * STEP[got.dtype] + 4 * math.sqrt(terms) * summed)
    np.testing.assert_allclose(got.astype(np.float64), exact, rtol=0, atol=tolerance)
