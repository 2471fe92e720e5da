"""Functions rendered as arithmetic: their error over the whole range of floats, and special
values."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tensorlite.compiler.loops import Nest, Operand, Output, Recorder, Scalars
from tensorlite.ops import special

llvm = pytest.importorskip("tensorlite.backends.cpu.llvm")
pytestmark = pytest.mark.skipif(not llvm.available(), reason="nests cannot be compiled here")

Array = np.ndarray


def apply(op: str, *args: Array) -> Array:
    """A scalar operation of arrays of one dtype, as a nest."""
    (size,) = args[0].shape
    dtype = args[0].dtype
    recorder = Recorder()
    values = [recorder.emit("load", (), dtype, i) for i in range(len(args))]
    y = getattr(Scalars(recorder), op)(*values)
    operand = Operand(dtype, (1,))
    nest = Nest(
        (size,), (), (operand,) * len(args), tuple(recorder.body), (Output(y.position, operand),)
    )
    result = np.empty(size, dtype)
    llvm.run_nest(nest, args, [result])
    return result


def floats(dtype: Any, count: int = 200_000) -> Array:
    """Numbers of all magnitudes and both signs, and those of everyday size."""
    rng = np.random.default_rng(0)
    info = np.finfo(dtype)
    low, high = math.log2(info.smallest_subnormal), math.log2(info.max)
    spread = 2.0 ** rng.uniform(low, high - 1e-6, count)
    every_day = rng.uniform(0, 12, count)
    near = 1 + rng.normal(size=count) * 2.0 ** rng.uniform(-20, 0, count)
    values = np.concatenate([spread, every_day, near]).astype(dtype)
    return np.concatenate([values, -values])


SPECIAL = (0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan)

# A reference in wider arithmetic, and the error allowed in units in the last place: of float32, and
# of float64 against the same in extended precision.
FUNCTIONS: dict[str, tuple[Callable[..., Array], float, float]] = {
    "exp": (np.exp, 2, 2),
    "expm1": (np.expm1, 2, 2),
    "log": (np.log, 2, 2),
    "log1p": (np.log1p, 2, 2),
    "log2": (np.log2, 2, 2),
    "log10": (np.log10, 2, 2),
    "sin": (np.sin, 2, 2),
    "cos": (np.cos, 2, 2),
    "sinh": (np.sinh, 3, 4),
    "cosh": (np.cosh, 3, 4),
    "tanh": (np.tanh, 2, 3),
    "rsqrt": (lambda x: 1 / np.sqrt(x), 2, 2),
    "tan": (np.tan, 2, 2),
    "asin": (np.arcsin, 2, 2),
    "acos": (np.arccos, 2, 2),
    "atan": (np.arctan, 2, 2),
    "asinh": (np.arcsinh, 2, 2),
    "acosh": (np.arccosh, 2, 2),
    "atanh": (np.arctanh, 2, 2),
}


def units(got: Array, want: Array, dtype: Any) -> Array:
    """The error in units in the last place of what was wanted, 0 where both are the same special
    value; of subnormal numbers in those of the smallest normal one."""
    with np.errstate(all="ignore"):
        rounded = want.astype(dtype)
        spacing = np.spacing(np.maximum(np.abs(rounded), np.finfo(dtype).smallest_normal))
        wide = np.longdouble
        error = np.abs(got.astype(wide) - want.astype(wide)) / spacing.astype(wide)
        same = (got == rounded) | (np.isnan(got) & np.isnan(rounded))
        return np.where(same, 0, np.where(np.isfinite(error), error, np.inf)).astype(np.float64)


def reference(f: Callable[..., Array], *args: Array) -> Array:
    wide = np.float64 if args[0].dtype == np.float32 else np.longdouble
    with np.errstate(all="ignore"):
        return f(*[a.astype(wide) for a in args])


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("op", FUNCTIONS)
def test_accuracy(op: str, dtype: Any) -> None:
    f, *bounds = FUNCTIONS[op]
    x = floats(dtype)
    error = units(apply(op, x), reference(f, x), dtype)
    worst = int(np.argmax(error))
    bound = bounds[dtype == np.float64]
    assert error[worst] <= bound, f"{op}({x[worst]!r}) is off by {error[worst]:.3g} units"
