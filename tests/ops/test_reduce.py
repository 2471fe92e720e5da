"""Reductions against NumPy: values, dtypes, narrow floats, gradients at ties, empty axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings

import tensorlite as tl

arrays = st.builds(
    np.ndarray.astype,
    hnp.arrays(
        np.int64, hnp.array_shapes(min_dims=0, max_dims=3, max_side=3), elements=st.integers(0, 2)
    ),
    st.sampled_from([np.float64, np.int32, np.uint8, np.bool_]),
)


def some_axis(data: Any, ndim: int) -> Any:
    one = st.integers(-ndim, ndim - 1)
    several = st.sets(st.integers(0, ndim - 1)).map(lambda s: tuple(sorted(s)))
    return data.draw(st.none() | several | one if ndim else st.sampled_from([None, ()]))


@pytest.mark.parametrize("name", ["sum", "prod", "max", "min", "mean", "all", "any", "var", "std"])
@settings(max_examples=25)
@given(data=st.data())
def test_reductions_are_numpys(name: str, data: Any) -> None:
    a = data.draw(arrays)
    axis, keepdims = some_axis(data, a.ndim), data.draw(st.booleans())
    expected = getattr(np, name)(a, axis=axis, keepdims=keepdims)
    result = getattr(tl, name)(tl.asarray(a), axis=axis, keepdims=keepdims)
    assert result.shape == np.shape(expected)
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-6)
    method = getattr(tl.asarray(a), name)(axis, keepdims=keepdims)
    np.testing.assert_array_equal(method.numpy(), result.numpy())


@pytest.mark.parametrize("name", ["argmax", "argmin"])
@given(data=st.data())
def test_positions_are_numpys(name: str, data: Any) -> None:
    a = data.draw(arrays)
    axis = data.draw(st.none() | st.integers(-a.ndim, a.ndim - 1) if a.ndim else st.none())
    keepdims = data.draw(st.booleans())
    expected = getattr(np, name)(a, axis=axis, keepdims=keepdims)
    result = getattr(tl, name)(tl.asarray(a), axis=axis, keepdims=keepdims)
    assert result.dtype == tl.int64
    np.testing.assert_array_equal(result.numpy(), expected)
    assert result.shape == np.shape(expected)


@given(data=st.data())
def test_cumulative_sum_is_numpys(data: Any) -> None:
    a = data.draw(arrays.filter(lambda a: a.ndim > 0))
    axis = data.draw(st.integers(-a.ndim, a.ndim - 1))
    expected = np.cumsum(a, axis=axis)
    np.testing.assert_array_equal(tl.cumulative_sum(tl.asarray(a), axis=axis).numpy(), expected)
    with_zero = tl.cumulative_sum(tl.asarray(a), axis=axis, include_initial=True)
    np.testing.assert_array_equal(
        with_zero.numpy(), np.concatenate([0 * np.take(expected, [0], axis), expected], axis)
    )


@pytest.mark.parametrize(
    ("source", "summed"),
    [
        (tl.bool, tl.int64),
        (tl.int8, tl.int64),
        (tl.uint8, tl.uint64),
        (tl.float16, tl.float16),
        (tl.bfloat16, tl.bfloat16),
        (tl.float64, tl.float64),
    ],
)
def test_dtypes_of_results(source: Any, summed: Any) -> None:
    x = tl.ones((2, 2), dtype=source)
    for f in (tl.sum, tl.prod, lambda x: tl.cumulative_sum(x, axis=0)):
        assert f(x).dtype == tl.jit(f)(x).dtype == summed
    assert tl.max(x).dtype == source
    floating = summed if summed.kind not in "iu" else tl.float32
    for f in (tl.mean, tl.var, tl.std, tl.logsumexp):
        assert f(x).dtype == tl.jit(f)(x).dtype == floating
    assert tl.sum(x, dtype=tl.float64).dtype == tl.float64


@pytest.mark.parametrize("dtype", [tl.float16, tl.bfloat16], ids=str)
def test_narrow_floats_are_summed_in_float32(dtype: Any) -> None:
    many = tl.ones(4096, dtype=dtype)
    assert tl.sum(many).item() == 4096  # in bfloat16 itself the sum stops at 256
    assert tl.cumulative_sum(many)[-1].item() == 4096
    assert tl.mean(tl.full((100_000,), 3, dtype=dtype)).item() == 3  # the sum does not fit float16
    spread = tl.concat([many * 200, many * -200])
    assert tl.var(spread).item() == 40_000 if dtype == tl.float16 else 39_936
    gradient = tl.grad(lambda x: tl.mean(x))(many)
    assert gradient.dtype == dtype
    assert gradient[0].item() == 1 / 4096


def test_corrections_and_empty_axes() -> None:
    a = np.array([[1.0, 2.0], [4.0, 9.0]])
    for correction in (0, 1, 1.5):
        np.testing.assert_allclose(
            tl.var(tl.asarray(a), axis=0, correction=correction).numpy(),
            np.var(a, axis=0, ddof=correction),
        )
    assert np.isinf(tl.var(tl.asarray(a), correction=9).item())
    empty = tl.zeros((0, 2))
    assert tl.sum(empty, axis=0).tolist() == [0, 0]
    assert tl.prod(empty, axis=0).tolist() == [1, 1]
    assert np.isnan(tl.mean(empty).item())
    assert (tl.all(empty).item(), tl.any(empty).item()) == (True, False)
    assert tl.max(empty, axis=1).shape == (0,)


def test_nan_and_infinity() -> None:
    x = tl.asarray([1.0, np.nan, np.inf])
    assert np.isnan([tl.max(x).item(), tl.min(x).item(), tl.sum(x).item()]).all()
    assert tl.argmax(x).item() == 1
    assert tl.logsumexp(tl.asarray([-np.inf, -np.inf])).item() == -np.inf
    assert tl.logsumexp(tl.asarray([np.inf, 0.0])).item() == np.inf


@given(
    hnp.arrays(np.float64, (3, 4), elements=st.floats(-1e4, 1e4)),
    st.sampled_from([None, 0, 1, (0, 1)]),
    st.booleans(),
)
def test_logsumexp_against_scipy(a: np.ndarray, axis: Any, keepdims: bool) -> None:
    result = tl.logsumexp(tl.asarray(a), axis=axis, keepdims=keepdims)
    expected = scipy.special.logsumexp(a, axis=axis, keepdims=keepdims)
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-14, atol=1e-12)
    gradient = tl.grad(lambda x: tl.sum(tl.logsumexp(x, axis=axis)))(tl.asarray(a))
    np.testing.assert_allclose(gradient.numpy(), scipy.special.softmax(a, axis=axis), atol=1e-12)


def test_equal_extrema_share_the_gradient() -> None:
    x = tl.asarray([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]])
    gradient = tl.grad(lambda x: tl.sum(tl.max(x, axis=1)))(x)
    np.testing.assert_allclose(gradient.numpy(), [[0, 0.5, 0.5], [1 / 3] * 3], rtol=1e-6)
    assert tl.grad(tl.min)(tl.asarray([2.0, 1.0])).tolist() == [0, 1]


def test_gradients_of_products_with_zeros() -> None:
    for values in ([2.0, 0.0, 3.0], [0.0, 0.0, 3.0], [5.0], [1.0, 2.0, 3.0, 4.0, 5.0]):
        a = np.asarray(values)
        expected = [np.prod(np.delete(a, i)) for i in range(len(a))]
        assert tl.grad(tl.prod)(tl.asarray(a)).tolist() == expected


x = tl.zeros((2, 3))


@pytest.mark.parametrize(
    ("action", "error", "message"),
    [
        (lambda: tl.sum(x, axis=2), ValueError, r"sum: axis 2 is out of range for 2 dimensions"),
        (lambda: tl.mean(x, axis=(0, -2)), ValueError, r"mean: axis \(0, -2\) names an axis twice"),
        (lambda: tl.max(x[:0]), ValueError, r"reduce_max: float32\[0,3\] has no elements"),
        (lambda: tl.argmin(x[:0], axis=0), ValueError, r"argmin: .* no elements along axis 0"),
        (lambda: tl.argmax(x, axis=5), ValueError, r"argmax: axis 5 is out of range"),
        (lambda: tl.cumulative_sum(x), ValueError, r"cumulative_sum: needs an axis for shape"),
        (lambda: tl.sum(x, axis=1.0), TypeError, r"sum: axis is an int, .* or None, got 1.0"),
        (lambda: tl.sum(x, axis={0}), TypeError, r"sum: axis is an int, .* or None, got \{0\}"),
        (lambda: x.sum(3), ValueError, r"sum: axis 3 is out of range"),
    ],
)
def test_bad_input_is_named(
    action: Callable[[], Any], error: type[Exception], message: str
) -> None:
    for run in (action, lambda: tl.jit(lambda: action())()):
        with pytest.raises(error, match=message):
            run()
