"""Pooling, softmax and standardization on oneDNN against the NumPy kernels and the compositions."""

from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

import tensorlite as tl
from tensorlite import dtypes, nn
from tensorlite.backends.cpu.onednn import plan, run
from tensorlite.core import Aval, Primitive
from tensorlite.ops.norm import standardize_p
from tensorlite.ops.pool import (
    max_pool_p,
    pool_argmax_p,
    pool_scatter_p,
    pool_spread_p,
    pool_sum_p,
)
from tensorlite.ops.softmax import log_softmax_p, softmax_p
from tensorlite.ops.window import Window
from tests.backends.onednn.cases import CHANNELS, DTYPES, FLOATS, aval, close, numbers


def planned(
    prim: Primitive, arrays: tuple[np.ndarray, ...], finite: bool = True, **params: Any
) -> list[np.ndarray] | None:
    out: Any = prim.abstract(*map(aval, arrays), **params)
    outs = [out] if isinstance(out, Aval) else list(out)
    found = plan(prim, [aval(a) for a in arrays], outs, params, assume_finite=finite)
    if found is None:
        return None
    results = [np.full(o.shape, 77, o.dtype) for o in outs]
    run(found, arrays, results)
    return results


@st.composite
def pools(draw: Any) -> tuple[np.ndarray, Window]:
    ndim = draw(st.sampled_from([1, 2, 2, 3]))
    sizes = tuple(draw(st.integers(1, 4)) for _ in range(ndim))
    strides = tuple(draw(st.integers(1, 3)) for _ in range(ndim))
    padding = tuple((draw(st.integers(0, n - 1)), draw(st.integers(0, n - 1))) for n in sizes)
    window = Window(sizes, strides, padding, (1,) * ndim)
    spatial = [
        draw(st.integers(max(1, n - lo - hi), n + 6))
        for n, (lo, hi) in zip(sizes, padding, strict=True)
    ]
    shape = (draw(st.integers(1, 3)), *spatial, draw(CHANNELS))
    return numbers(draw, shape, draw(DTYPES)), window


@given(pools())
@settings(max_examples=80)
def test_max_pooling_and_its_cells_equal_numpy(case: Any) -> None:
    x, window = case
    x = np.round(x.astype(np.float32)).astype(x.dtype)  # so that many are equal: the first wins
    values, cells = pool_argmax_p.numpy_rule(x, window=window)
    got = planned(pool_argmax_p, (x,), window=window)
    if got is not None:
        np.testing.assert_array_equal(got[0], values)
        np.testing.assert_array_equal(got[1], cells)
    only = planned(max_pool_p, (x,), window=window)
    if only is not None:
        np.testing.assert_array_equal(only[0], values)
    params = {"window": window, "spatial": x.shape[1:-1]}
    back = planned(pool_scatter_p, (values, cells), **params)
    if back is not None:
        close(back[0], pool_scatter_p.numpy_rule(values, cells, **params), 16, x.dtype)


@given(pools())
@settings(max_examples=60)
def test_sums_under_a_window_and_their_adjoint_equal_numpy(case: Any) -> None:
    x, window = case
    expected = pool_sum_p.numpy_rule(x, window=window)
    cells = math.prod(window.sizes)
    got = planned(pool_sum_p, (x,), window=window)
    if got is not None:
        close(got[0], expected, cells, x.dtype)
    params = {"window": window, "spatial": x.shape[1:-1]}
    back = planned(pool_spread_p, (expected,), **params)
    if back is not None:
        close(back[0], pool_spread_p.numpy_rule(expected, **params), cells**2, x.dtype)


@pytest.mark.parametrize("size", [3, 15, 16])
def test_the_usual_pooling_has_all_kernels(size: int) -> None:
    window = Window((size, size), (2, 2), ((0, 1), (1, 1)), (1, 1))
    x = np.random.default_rng(0).normal(size=(2, 20, 20, 24)).astype(np.float32)
    values, cells = pool_argmax_p.numpy_rule(x, window=window)
    params = {"window": window, "spatial": (20, 20)}
    assert planned(pool_argmax_p, (x,), window=window) is not None
    assert planned(pool_scatter_p, (values, cells), **params) is not None
    assert planned(pool_sum_p, (x,), window=window) is not None
    assert planned(pool_spread_p, (values,), **params) is not None


@pytest.mark.parametrize("dtype", [dtypes.float32, dtypes.bfloat16, dtypes.float16], ids=str)
def test_eager_max_pooling_shows_nan_and_minus_infinity(dtype: Any) -> None:
    x = np.zeros((1, 4, 4, 16), dtype)
    x[0, 0, 0] = np.nan
    x[0, 2:, 2:] = -np.inf
    expected = pool_argmax_p.numpy_rule(x, window=Window((2, 2), (2, 2), ((0, 0),) * 2, (1, 1)))[0]
    for run_eagerly in (nn.max_pool, tl.jit(nn.max_pool, static_argnums=1)):
        got = run_eagerly(tl.asarray(x), 2).numpy()
        np.testing.assert_array_equal(got.astype(np.float64), expected.astype(np.float64))
    _, pull = tl.vjp(lambda x: nn.max_pool(x, 2), tl.asarray(x))
    np.testing.assert_array_equal(pull(tl.ones(expected.shape, dtype=dtype))[0].numpy().sum(), 64)


def test_what_differs_on_nan_has_no_plan_unless_all_is_finite() -> None:
    x = np.zeros((2, 4, 16), np.float32)
    window = Window((2,), (1,), ((0, 0),), (1,))
    for prim, params in (
        (softmax_p, {"axis": 2}),
        (log_softmax_p, {"axis": 2}),
        (pool_argmax_p, {"window": window}),
    ):
        assert planned(prim, (x,), finite=False, **params) is None
        assert planned(prim, (x,), finite=True, **params) is not None


# ---- softmax and standardization -----------------------------------------------------

SHAPES = (
    st.lists(st.sampled_from([1, 2, 3, 5, 17, 40]), min_size=1, max_size=5)
    .map(tuple)
    .filter(lambda shape: math.prod(shape) < 5000)
)


def exact(function: Any, x: np.ndarray) -> np.ndarray:
    return function(tl.asarray(x.astype(np.float64)), axis=-1).numpy()


@given(SHAPES, DTYPES, st.booleans(), st.data())
@settings(max_examples=60)
def test_softmax_equals_the_composition(
    shape: tuple[int, ...], dtype: Any, is_log: bool, data: Any
) -> None:
    x = numbers(data.draw, shape, dtype)
    prim, function = (log_softmax_p, nn.log_softmax) if is_log else (softmax_p, nn.softmax)
    got = planned(prim, (x,), axis=x.ndim - 1)
    assert got is not None
    close(got[0], exact(function, x).astype(dtype), 64, dtype)


@given(SHAPES, DTYPES, st.booleans(), st.floats(-50, 50), st.data())
@settings(max_examples=60)
def test_standardize_equals_the_composition(
    shape: tuple[int, ...], dtype: Any, is_batch: bool, centre: float, data: Any
) -> None:
    x = (numbers(data.draw, shape, dtype).astype(np.float32) + np.float32(centre)).astype(dtype)
    axes = tuple(range(x.ndim - 1)) if is_batch and x.ndim > 1 else (x.ndim - 1,)
    got = planned(standardize_p, (x,), axes=axes, eps=1e-3)
    assert (got is not None) == (axes[-1] == x.ndim - 1 or x.shape[-1] >= 8)
    if got is None:
        return
    wide = x.astype(np.float64)
    mean, variance = wide.mean(axis=axes, keepdims=True), wide.var(axis=axes, keepdims=True)
    np.testing.assert_allclose(got[1], np.squeeze(mean, axes), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got[2], np.squeeze(variance, axes), rtol=1e-4, atol=1e-4)
    step = 2.0**-7 if dtype == dtypes.bfloat16 else 0
    expected = (wide - mean) / np.sqrt(variance + 1e-3)
    np.testing.assert_allclose(got[0].astype(np.float64), expected, rtol=step, atol=2e-3)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_eager_softmax_shows_nan_and_knows_masks(dtype: Any) -> None:
    x = np.array([[np.nan, 1, 2], [-np.inf, 0, 0], [np.inf, 1, 2], [0, 0, 0]], dtype)
    y = nn.softmax(tl.asarray(x)).numpy().astype(np.float64)
    assert np.isnan(y[[0, 2]]).all()
    np.testing.assert_allclose(y[[1, 3]], [[0, 0.5, 0.5], [1 / 3] * 3], rtol=1e-2)
    z = nn.log_softmax(tl.asarray(x)).numpy().astype(np.float64)
    assert np.isnan(z[[0, 2]]).all()
    assert z[1, 0] == -np.inf


def test_softmax_along_another_axis_is_left_to_numpy() -> None:
    assert planned(softmax_p, (np.zeros((2, 3), np.float32),), axis=0) is None


def test_standardize_over_other_axes_is_left_to_numpy() -> None:
    x = np.zeros((2, 3, 4), np.float32)
    assert planned(standardize_p, (x,), axes=(1,), eps=1e-5) is None
    assert planned(standardize_p, (x,), axes=(1, 2), eps=1e-5) is None
