"""Functions rendered as arithmetic: their error over the whole range of floats, and special
values."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tensorlite.compiler.loops import Nest, Operand, Output, Recorder, Scalars

llvm = pytest.importorskip("tensorlite.backends.cpu.llvm")
pytestmark = pytest.mark.skipif(not llvm.available(), reason="nests cannot be compiled here")

Array = np.ndarray


def apply(op: str, *args: Array, constant: float | None = None) -> Array:
    """A scalar operation of arrays of one dtype, and of a last argument that is the same for all
    elements, as a nest."""
    (size,) = args[0].shape
    dtype = args[0].dtype
    recorder = Recorder()
    values = [recorder.emit("load", (), dtype, i) for i in range(len(args))]
    if constant is not None:
        values.append(recorder.constant(constant, dtype))
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
    "log2": (np.log2, 2, 3),
    "log10": (np.log10, 2, 3),
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
    "acosh": (np.arccosh, 2, 3),
    "atanh": (np.arctanh, 2, 2),
    # The C library's are good to a unit in float64, so that is what the bound allows for.
    "erf": (np.vectorize(math.erf, otypes=[np.float64]), 2, 4),
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


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("op", FUNCTIONS)
def test_special_values(op: str, dtype: Any) -> None:
    info = np.finfo(dtype)
    x = np.array([*SPECIAL, info.max, -info.max, info.smallest_subnormal, 2.0], dtype)
    got = apply(op, x)
    with np.errstate(all="ignore"):
        want = reference(FUNCTIONS[op][0], x).astype(dtype)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    zero = want == 0
    np.testing.assert_array_equal(got[zero], want[zero])
    np.testing.assert_array_equal(np.signbit(got[zero]), np.signbit(want[zero]))
    np.testing.assert_array_equal(np.isinf(got), np.isinf(want))
    infinite = np.isinf(want)
    np.testing.assert_array_equal(got[infinite], want[infinite])


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_one_plus_tanh_is_accurate_where_tanh_is_nearly_minus_one(dtype: Any) -> None:
    x = floats(dtype)
    x = x[x > (-44 if dtype == np.float32 else -354)]  # below, it may be 0
    recorder = Recorder()
    loaded = recorder.emit("load", (), x.dtype, 0)
    y = Scalars(recorder).tanh(loaded) + 1
    operand = Operand(x.dtype, (1,))
    nest = Nest(x.shape, (), (operand,), tuple(recorder.body), (Output(y.position, operand),))
    got = np.empty_like(x)
    llvm.run_nest(nest, [x], [got])
    wide = x.astype(np.float64 if dtype == np.float32 else np.longdouble)
    with np.errstate(over="ignore"):
        error = units(got, 2 / (1 + np.exp(-2 * wide)), dtype)
    assert error.max() <= 3


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_pow(dtype: Any) -> None:
    rng = np.random.default_rng(1)
    count = 100_000
    low, high = (-149, 128) if dtype == np.float32 else (-1000, 1000)
    near = 1 + rng.normal(size=count) * 2.0 ** rng.uniform(-20, -2, count)
    for base, exponent in (
        (np.exp(rng.uniform(-20, 20, count)), rng.uniform(-3, 3, count)),
        (2.0 ** rng.uniform(low, high, count), rng.uniform(-8, 8, count)),
        (rng.uniform(0.5, 2, count), rng.uniform(-130, 130, count)),
        (near, rng.uniform(-1, 1, count) * 2.0 ** rng.uniform(0, 24, count)),
    ):
        x, y = base.astype(dtype), exponent.astype(dtype)
        error = units(apply("pow", x, y), reference(np.power, x, y), dtype)
        assert error.max() <= 2
    info = np.finfo(dtype)
    extremes = [info.max, -info.max, info.smallest_subnormal, 1 + info.eps, 1 - info.eps]
    cases = [*SPECIAL, *extremes, 2.0, -2.0, 3.0, -3.0, 0.5, -0.5]
    a, b = (np.ravel(m).astype(dtype) for m in np.meshgrid(cases, cases))
    with np.errstate(all="ignore"):
        want = np.power(a, b)
    got = apply("pow", a, b)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    np.testing.assert_allclose(got, want, rtol=1e-6)
    np.testing.assert_array_equal(np.signbit(got[want == 0]), np.signbit(want[want == 0]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(
    "exponent", [0, 1, 2, 3, 4, -1, -2, -3, 0.5, 0.25, 0.75, 1.5, 2.75, -0.5, -0.75, -1.5, 0.3]
)
def test_powers_known_in_advance(exponent: float, dtype: Any) -> None:
    x = np.concatenate([floats(dtype), np.array(SPECIAL, dtype)])
    got = apply("pow", x, constant=exponent)
    # NumPy's power of one exponent for all elements may be a square root.
    want = reference(lambda v: np.power(v, np.full_like(v, dtype(exponent))), x)
    error = units(got, want, dtype)
    worst = int(np.argmax(error))
    assert error[worst] <= 4, f"pow({x[worst]!r}, {exponent}) is off by {error[worst]:.3g} units"
    zero = got == 0
    np.testing.assert_array_equal(np.signbit(got[zero]), np.signbit(want[zero]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_erfinv(dtype: Any) -> None:
    """Its error is that of its result, whose erf is known: the slope tells one from the other."""
    rng = np.random.default_rng(2)
    x = np.concatenate([rng.uniform(-1, 1, 20_000), 10.0 ** rng.uniform(-20, 0, 20_000)])
    x = x.astype(dtype)
    x = x[np.abs(x) < 1]
    y = apply("erfinv", x)
    wide = y.astype(np.float64)
    tail = np.array([math.erfc(abs(v)) for v in wide]) - (1 - np.abs(x.astype(np.float64)))
    body = x - np.array([math.erf(v) for v in wide])
    residual = np.where(np.abs(x) > 0.5, np.copysign(tail, x), body)
    error = np.abs(residual) / (2 / math.sqrt(math.pi) * np.exp(-wide * wide))
    bound = 4 if dtype == np.float32 else 8
    assert (error / np.spacing(np.abs(y)) <= bound).all()
    edges = apply("erfinv", np.array([1, -1, 1.5, -2, np.nan, 0.0, -0.0], dtype))
    np.testing.assert_array_equal(edges[:2], [np.inf, -np.inf])
    assert np.isnan(edges[2:5]).all() and (edges[5:] == 0).all() and np.signbit(edges[6])
