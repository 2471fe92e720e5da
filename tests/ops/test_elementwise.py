"""Elementwise operations: each line's scalar expression against its NumPy twin, values where
functions have edges, dtypes, and what is refused."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings

import tensorlite as tl
from tensorlite import dtypes
from tensorlite.core import bind, primitives
from tensorlite.ops import elementwise, special
from tensorlite.ops.broadcasting import Elementwise

TABLE = {name: p for name, p in primitives.items() if isinstance(p, Elementwise)}
ARITY = {name: p.scalar.__code__.co_argcount - 1 for name, p in TABLE.items()}
ALL_DTYPES = sorted(dtypes.ALL, key=str)


# ---- the scalar expression -----------------------------------------------------------------------


class Builder:
    """The functions that scalar expressions may use, as NumPy computes them: what a backend has to
    render."""

    abs, sign, sqrt, exp, expm1, log, log1p = (
        np.abs,
        np.sign,
        np.sqrt,
        np.exp,
        np.expm1,
        np.log,
        np.log1p,
    )
    log2, log10, sin, cos, tan = np.log2, np.log10, np.sin, np.cos, np.tan
    asin, acos, atan, atan2 = np.arcsin, np.arccos, np.arctan, np.arctan2
    sinh, cosh, tanh, asinh, acosh, atanh = (
        np.sinh,
        np.cosh,
        np.tanh,
        np.arcsinh,
        np.arccosh,
        np.arctanh,
    )
    hypot, max, min, pow, where = np.hypot, np.maximum, np.minimum, special.power, np.where
    floor, ceil, trunc, rint = np.floor, np.ceil, np.trunc, np.rint
    isnan, isinf, isfinite, logical_not = np.isnan, np.isinf, np.isfinite, np.logical_not
    floor_divide, remainder = special.floor_divide, special.remainder
    erf, erfinv = special.erf, special.erfinv
    copysign, nextafter, signbit = np.copysign, np.nextafter, np.signbit

    @staticmethod
    def rsqrt(x: Any) -> Any:
        return 1 / np.sqrt(x)


TINY, HUGE = 5e-324, 1.7e308
EDGES = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 2.5, -3.5, 1e-8, 20.0, -20.0, 800.0, -800.0, 1e300]
EDGES += [TINY, -TINY, HUGE, -HUGE, np.inf, -np.inf, np.nan]


def grid(name: str, values: list[Any], dtype: Any) -> list[np.ndarray]:
    """Every combination of the values, one argument along each axis."""
    arrays = list(np.meshgrid(*[np.asarray(values, dtype)] * ARITY[name], indexing="ij"))
    if name == "where":
        arrays[0] = arrays[0] > 0
    return arrays


def evaluate(name: str, arrays: list[np.ndarray]) -> np.ndarray:
    with np.errstate(all="ignore"):
        return TABLE[name].scalar(Builder, *arrays)


@pytest.mark.parametrize("name", [n for n, p in TABLE.items() if p.kinds & dtypes.FLOATS])
def test_scalar_expression_equals_the_numpy_twin_on_floats(name: str) -> None:
    arrays = grid(name, EDGES, np.float64)
    result, expected = evaluate(name, arrays), bind(TABLE[name], *map(tl.asarray, arrays)).numpy()
    assert result.dtype == expected.dtype
    np.testing.assert_allclose(result, expected, rtol=1e-13, atol=1e-300)
    if np.issubdtype(expected.dtype, np.floating):
        zeros = (expected == 0) & (result == 0)
        np.testing.assert_array_equal(np.signbit(result)[zeros], np.signbit(expected)[zeros])


@pytest.mark.parametrize("name", [n for n, p in TABLE.items() if p.kinds & dtypes.INTEGERS])
@pytest.mark.parametrize("dtype", [tl.int8, tl.int64, tl.uint8], ids=str)
def test_scalar_expression_equals_the_numpy_twin_on_integers(name: str, dtype: Any) -> None:
    if dtype not in TABLE[name].kinds:
        pytest.skip(f"{name} does not take {dtype}")
    low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    values = [0, 1, 2, 3, 5] if "shift" in name else [0, 1, 2, 3, high, low, high - 1]
    arrays = grid(name, values, dtype)
    if name in {"floor_divide", "remainder"}:
        arrays[1] = np.where(arrays[1] == 0, 1, arrays[1]).astype(dtype)
    if name == "pow":
        arrays[1] = arrays[1] % 5
    expected = bind(TABLE[name], *map(tl.asarray, arrays)).numpy()
    np.testing.assert_array_equal(evaluate(name, arrays), expected)


@pytest.mark.parametrize("name", [n for n, p in TABLE.items() if dtypes.bool_ in p.kinds])
def test_scalar_expression_equals_the_numpy_twin_on_booleans(name: str) -> None:
    arrays = grid(name, [False, True], bool)
    expected = bind(TABLE[name], *map(tl.asarray, arrays)).numpy()
    np.testing.assert_array_equal(evaluate(name, arrays), expected)


# ---- public functions ----------------------------------------------------------------------------

FUNCTIONS = {n: getattr(elementwise, n) for n in TABLE if hasattr(elementwise, n) and n != "where"}
NUMPY_NAMES = {
    "pow": "power",
    "round": "rint",
    "bitwise_invert": "invert",
    "bitwise_left_shift": "left_shift",
    "bitwise_right_shift": "right_shift",
    **{f"a{f}": f"arc{f}" for f in ("sin", "cos", "tan", "tan2", "sinh", "cosh", "tanh")},
}


@pytest.mark.parametrize("name", [n for n in FUNCTIONS if hasattr(np, NUMPY_NAMES.get(n, n))])
@settings(max_examples=10)
@given(data=st.data())
def test_functions_equal_numpys_with_broadcasting(name: str, data: Any) -> None:
    shapes = data.draw(hnp.mutually_broadcastable_shapes(num_shapes=ARITY[name], min_side=0))
    kinds = TABLE[name].kinds
    dtype = np.float64 if dtypes.float64 in kinds else np.int64 if dtypes.int64 in kinds else bool
    low, high = (0.1, 0.9) if dtype == np.float64 else (0, 2)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    shift = 1 if name == "acosh" else 0
    arrays = [(rng.uniform(low, high, s) + shift).astype(dtype) for s in shapes.input_shapes]
    result = FUNCTIONS[name](*map(tl.asarray, arrays))
    expected = getattr(np, NUMPY_NAMES.get(name, name))(*arrays)
    assert result.shape == expected.shape == shapes.result_shape
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-14)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_every_dtype_gives_the_same_eager_jitted_and_batched_or_is_refused(
    name: str, dtype: Any
) -> None:
    f, args = FUNCTIONS[name], [tl.ones(2, dtype=dtype)] * ARITY[name]
    # Integers become floats where only floats are taken, booleans integers where these are.
    kinds = TABLE[name].kinds
    if dtype in kinds or (kinds == dtypes.FLOATS) or (dtype == tl.bool and tl.int64 in kinds):
        eager = f(*args)
        assert tl.jit(f)(*args).aval == eager.aval == tl.vmap(f)(*args).aval
        computed = dtype if dtype in kinds else tl.float32 if kinds == dtypes.FLOATS else tl.int64
        assert eager.dtype == (TABLE[name].result or computed)
    else:
        for g in (f, tl.jit(f), tl.vmap(f)):
            with pytest.raises(TypeError, match=rf"{name}: .*{dtype}"):
                g(*args)


def test_functions_take_what_asarray_takes() -> None:
    assert tl.add([1, 2], 3).tolist() == [4, 5]
    assert tl.exp(0).item() == 1
    assert tl.maximum(np.array([1.0, 5.0]), [3, 4]).tolist() == [3, 5]
    assert tl.hypot(3, 4).item() == 5


def test_zero_dimensions_and_no_elements() -> None:
    assert tl.add(tl.asarray(1.0), tl.asarray(2.0)).shape == ()
    assert tl.add(tl.zeros((0, 3)), tl.zeros(3)).shape == (0, 3)
    assert tl.exp(tl.zeros((2, 0))).shape == (2, 0)


@pytest.mark.parametrize("dtype", [tl.float16, tl.bfloat16], ids=str)
def test_narrow_floats_round_like_float32_rounded(dtype: Any) -> None:
    x = tl.asarray(np.linspace(0.1, 3, 57), dtype=dtype)
    for name in ("exp", "log", "tanh", "sigmoid", "softplus", "erf", "rsqrt"):
        result = FUNCTIONS[name](x).astype(tl.float64).numpy()
        exact = FUNCTIONS[name](x.astype(tl.float64)).numpy()
        eps = 2.0**-7 if dtype == tl.bfloat16 else 2.0**-10
        np.testing.assert_allclose(result, exact, rtol=2 * eps)


# ---- special functions ---------------------------------------------------------------------------


def test_erf_is_exact_to_double_precision() -> None:
    x = np.concatenate([np.linspace(-7, 7, 4001), np.geomspace(1e-300, 1, 200), [0.0, -0.0]])
    expected = [math.erf(v) for v in x]
    np.testing.assert_allclose(special.erf(x), expected, rtol=5e-16, atol=1e-323)
    assert special.erf(np.array([np.inf, -np.inf])).tolist() == [1, -1]
    assert np.isnan(special.erf(np.array([np.nan]))).all()


def test_erfinv_against_scipy() -> None:
    x = np.concatenate([np.linspace(-0.999, 0.999, 2001), np.geomspace(1e-300, 0.1, 200)])
    np.testing.assert_allclose(special.erfinv(x), scipy.special.erfinv(x), rtol=1e-13)
    tails = 1 - np.geomspace(1e-15, 1e-3, 100)
    np.testing.assert_allclose(special.erfinv(tails), scipy.special.erfinv(tails), rtol=1e-12)
    narrow = np.linspace(-0.9999, 0.9999, 999).astype(np.float32)
    np.testing.assert_allclose(special.erfinv(narrow), scipy.special.erfinv(narrow), rtol=1e-6)
    assert special.erfinv(np.array([1.0, -1.0])).tolist() == [np.inf, -np.inf]
    assert np.isnan(special.erfinv(np.array([1.1, -2.0, np.nan]))).all()


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (special.sigmoid, scipy.special.expit),
        (special.softplus, lambda x: np.logaddexp(0, x)),
        (special.erf, scipy.special.erf),
    ],
)
def test_stable_functions_against_scipy(ours: Any, theirs: Any) -> None:
    x = np.concatenate([np.linspace(-700, 700, 1001), np.linspace(-3, 3, 101)])
    np.testing.assert_allclose(ours(x), theirs(x), rtol=1e-14)


def test_division_and_remainder_by_the_standard() -> None:
    values = np.array([5.5, -5.5, 0.0, np.inf, -np.inf, 1.0])
    by = np.array([2.0, -2.0, 0.1])
    x, y = np.meshgrid(values, by)
    q, r = tl.floor_divide(x, y).numpy(), tl.remainder(x, y).numpy()
    finite = np.isfinite(x)
    np.testing.assert_array_equal(q[finite], np.floor_divide(x[finite], y[finite]))
    np.testing.assert_allclose((q * y + r)[finite], x[finite], rtol=1e-15)
    assert tl.floor_divide(
        tl.asarray([np.inf, -np.inf, 1.0]), tl.asarray([2.0, 2.0, 0.0])
    ).tolist() == [
        np.inf,
        -np.inf,
        np.inf,
    ]
    ints = tl.asarray([7, -7, 7, -7]), tl.asarray([3, 3, -3, -3])
    assert tl.floor_divide(*ints).tolist() == [2, -3, -3, 2]
    assert tl.remainder(*ints).tolist() == [1, 2, -2, -1]


def test_powers() -> None:
    assert (tl.asarray([2, 3, -1, 1, 0]) ** tl.asarray([-1, -2, -3, -5, 0])).tolist() == [
        0,
        0,
        -1,
        1,
        1,
    ]
    assert (tl.asarray([2.0, -3.0]) ** 2).tolist() == [4, 9]
    assert (tl.asarray([4.0, 9.0]) ** 0.5).tolist() == [2, 3]
    assert (tl.asarray([2, 3]) ** 2).dtype == tl.int64
    assert (tl.asarray([2, 3]) ** 2.0).dtype == tl.float32
    assert (2 ** tl.asarray([1.0, 3.0])).tolist() == [2, 8]
    assert (tl.asarray([True, False]) ** 2).dtype == tl.int64


@pytest.mark.parametrize("dtype", [tl.float16, tl.bfloat16, tl.float32, tl.float64], ids=str)
@pytest.mark.parametrize("power", [lambda x: x**0.5, lambda x: tl.pow(x, 0.5)], ids=["**", "pow"])
def test_the_power_of_one_half_is_no_square_root_of_minus_infinity(power: Any, dtype: Any) -> None:
    x = tl.asarray([-np.inf, -0.0, 0.0, 4.0, np.inf, np.nan, -1.0], dtype=dtype)
    for run in (power, tl.jit(power)):
        root = np.asarray(run(x)).astype(np.float64)
        np.testing.assert_array_equal(root, [np.inf, 0, 0, 2, np.inf, np.nan, np.nan])
        assert not np.signbit(root[:5]).any()
        one = [float(np.asarray(run(x[i]))) for i in range(5)]
        assert one == root[:5].tolist() and not np.signbit(one).any()
    slopes = np.asarray(tl.grad(lambda x: tl.sum(power(x)))(x[:5])).astype(np.float64)
    np.testing.assert_array_equal(slopes, [0, np.inf, np.inf, 0.25, 0])
    assert power(tl.zeros((0, 2), dtype=dtype)).shape == (0, 2)


# ---- derivatives at edges ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("f", "point", "expected"),
    [
        (lambda x: x**0, 0.0, 0.0),
        (lambda x: x**2, 0.0, 0.0),
        (lambda x: x**3.0, -2.0, 12.0),
        (lambda x: 0.0**x, 2.0, 0.0),
        (tl.abs, 0.0, 0.0),
        (lambda x: tl.maximum(x, 1.0), 1.0, 0.5),
        (lambda x: tl.maximum(x, x), 1.0, 1.0),
        (lambda x: tl.minimum(1.0, x), 2.0, 0.0),
        (lambda x: tl.clip(x, 0.0, 2.0), 3.0, 0.0),
        (lambda x: tl.clip(x, 0.0, 2.0), 1.0, 1.0),
        (lambda x: tl.where(x > 0, x, 1 / tl.where(x > 0, 1.0, x)), 2.0, 1.0),
        (lambda x: tl.where(x > 1, tl.sqrt(tl.where(x > 1, x, 1.0)), 0.0), 0.0, 0.0),
        (tl.floor, 1.5, 0.0),
        (tl.sign, 2.0, 0.0),
        (tl.sigmoid, 800.0, 0.0),
        (tl.sigmoid, -800.0, 0.0),
        (elementwise.softplus, -800.0, 0.0),
        (lambda x: tl.logaddexp(x, -np.inf), 3.0, 1.0),
        (lambda x: tl.remainder(x, 3.0), 7.5, 1.0),
        (lambda x: tl.remainder(7.5, x), 3.0, -2.0),
    ],
)
def test_gradients_at_edges(f: Callable[..., Any], point: float, expected: float) -> None:
    x = tl.asarray(point, dtype=tl.float64)
    for gradient in (tl.grad(f), tl.jit(tl.grad(f))):
        assert gradient(x).item() == expected


# ---- where, clip and positive --------------------------------------------------------------------


def test_where_broadcasts_and_meets() -> None:
    result = tl.where(tl.asarray([[True], [False]]), tl.asarray([1, 2]), 0.5)
    assert result.dtype == tl.float32
    assert result.tolist() == [[1, 2], [0.5, 0.5]]
    assert tl.where(True, 1, 2).item() == 1


def test_clip_keeps_the_dtype() -> None:
    x = tl.asarray([-5, 0, 5], dtype=tl.int8)
    assert tl.clip(x, -1, 3).tolist() == [-1, 0, 3]
    assert tl.clip(x, max=1).dtype == tl.int8
    assert tl.clip(x) is x
    assert tl.clip(tl.asarray([1.0, 5.0]), tl.asarray([2.0, 2.0])).tolist() == [2, 5]


@pytest.mark.parametrize(
    ("action", "error", "message"),
    [
        (
            lambda: tl.zeros((2, 3)) + tl.zeros((3, 2)),
            ValueError,
            r"add: shapes \(2, 3\) and \(3, 2\) do not broadcast together",
        ),
        (lambda: tl.logical_and(1, 2), TypeError, r"logical_and: takes booleans, got int64.*!= 0"),
        (lambda: tl.bitwise_and(1.0, 2.0), TypeError, r"bitwise_and: does not take dtype float32"),
        (lambda: ~tl.zeros(2), TypeError, r"bitwise_invert: does not take dtype float32"),
        (lambda: tl.abs("a"), TypeError, r"asarray: cannot make a tensor of str"),
        (
            lambda: tl.where(tl.zeros(2), 1.0, 2.0),
            TypeError,
            r"where: the condition is boolean, got float32; compare with != 0",
        ),
        (
            lambda: tl.where(tl.ones(2, dtype=tl.bool), tl.zeros(3), 0.0),
            ValueError,
            r"where: shapes \(2,\) and \(3,\) and \(\) do not broadcast",
        ),
        (
            lambda: bind(primitives["add"], tl.zeros(2), tl.zeros(3, dtype=tl.int8)),
            TypeError,
            r"add: dtypes float32 and int8 differ; convert one with astype",
        ),
    ],
)
def test_bad_input_is_named(
    action: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        action()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_edges_raise_no_warnings(name: str) -> None:
    kinds = TABLE[name].kinds
    values = [1, 0] if dtypes.float32 not in kinds else [0.0, -1.0, 1e38, np.inf, np.nan]
    dtype = tl.float32 if dtypes.float32 in kinds else tl.bool if kinds == {tl.bool} else tl.int8
    args = [tl.asarray(a, dtype=dtype) for a in grid(name, values, np.float64)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FUNCTIONS[name](*args).numpy()
        tl.jit(FUNCTIONS[name])(*args).numpy()
        if TABLE[name].differentiable:
            _, pull = tl.vjp(FUNCTIONS[name], *args)
            pull(tl.ones(args[0].shape))


def test_equal_python_scalars_of_other_kinds_or_signs_stay_apart() -> None:
    x = tl.asarray([1.0, -1.0])
    for _ in range(2):  # the second time from what is remembered of the first
        assert np.signbit((x * 0.0).numpy()).tolist() == [False, True]
        assert np.signbit((x * -0.0).numpy()).tolist() == [True, False]
        assert tl.copysign(x, -0.0).tolist() == [-1.0, -1.0]
        assert tl.copysign(x, 0.0).tolist() == [1.0, 1.0]
        assert (tl.asarray([True]) & True).dtype == tl.bool
        assert (tl.asarray([3]) & 1).tolist() == [1]
    for _ in range(2):
        with pytest.raises(OverflowError, match="add: the number 300 does not fit uint8"):
            tl.add(tl.ones(1, dtype=tl.uint8), 300)
