"""Every elementwise primitive: its scalar expression as code against its NumPy rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tensorlite import dtypes
from tensorlite.compiler.loops import Nest, Operand, Output, Recorder
from tensorlite.core import primitives
from tensorlite.ops.broadcasting import Elementwise
from tests.backends.nests.runners import RUNNERS, Run

TABLE = {n: p for n, p in primitives.items() if isinstance(p, Elementwise)}
CASES = [
    (name, dtype)
    for name, prim in TABLE.items()
    for dtype in sorted(prim.kinds, key=lambda d: d.name)
]
HALVES = (dtypes.float16, dtypes.bfloat16)
SIZE = 67  # several vectors and a rest
# Relative to the result, or to 1 where that is smaller: one rounding of the dtype, a few for those
# that take several operations.
TOLERANCE = {"float16": 2e-3, "bfloat16": 1.6e-2, "float32": 3e-6, "float64": 1e-14}


def arguments(name: str, count: int, dtype: np.dtype[Any]) -> list[np.ndarray]:
    """Ordinary numbers of both signs, zeros, equal ones, and what is special in the dtype."""
    rng = np.random.default_rng(len(name))
    result = []
    for i in range(count):
        if (name == "where" and i == 0) or dtype == dtypes.bool_:
            result.append(rng.random(SIZE) < 0.5)
        elif dtype in dtypes.INTEGERS:
            limits = np.iinfo(dtype)
            x = rng.integers(max(limits.min, -9), 10, SIZE).astype(dtype)
            x[-2:] = limits.min, limits.max
            result.append(x)
        else:
            x = rng.uniform(-3, 3, SIZE).astype(dtype)
            x[:8] = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 2.0]
            result.append(np.roll(x, 3 * i))
    return result


def run(run_nest: Run, prim: Elementwise, args: list[np.ndarray]) -> np.ndarray:
    recorder = Recorder()
    values = [recorder.emit("load", (), a.dtype, i) for i, a in enumerate(args)]
    y = recorder.expression(prim.scalar, values)
    dtype = prim.result or args[-1].dtype
    nest = Nest(
        (SIZE,),
        (),
        tuple(Operand(a.dtype, (1,)) for a in args),
        tuple(recorder.body),
        (Output(y.position, Operand(dtype, (1,))),),
    )
    result = np.empty(SIZE, dtype)
    run_nest(nest, args, [result])
    return result


# What is done at a point is the same in both forms of OpenCL.
@pytest.mark.parametrize("run_nest", RUNNERS[:2])
@pytest.mark.parametrize(("name", "dtype"), CASES, ids=[f"{n}-{d.name}" for n, d in CASES])
def test_like_the_numpy_rule(run_nest: Run, name: str, dtype: np.dtype[Any]) -> None:
    prim = TABLE[name]
    count = prim.scalar.__code__.co_argcount - 1
    args = arguments(name, count, dtype)
    got = run(run_nest, prim, args)
    with np.errstate(all="ignore"):
        want = np.asarray(prim.numpy_rule(*args))
    assert got.dtype == want.dtype
    if want.dtype not in dtypes.FLOATS:
        np.testing.assert_array_equal(got, want)
        return
    tolerance = TOLERANCE[dtype.name]
    wide = np.float32 if dtype in HALVES else dtype
    np.testing.assert_allclose(got.astype(wide), want.astype(wide), rtol=tolerance, atol=tolerance)
