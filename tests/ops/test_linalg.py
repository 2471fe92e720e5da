"""Matrix products against NumPy, their gradients, and what does not fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

import tensorlite as tl

MATMUL = np.matmul.signature


def normal(shape: Any) -> np.ndarray:
    return np.random.default_rng(len(shape)).normal(size=shape)


@given(hnp.mutually_broadcastable_shapes(signature=MATMUL, min_side=0, max_side=3, max_dims=2))
def test_matmul_is_numpys(shapes: Any) -> None:
    a, b = (normal(s) for s in shapes.input_shapes)
    result = tl.matmul(tl.asarray(a), tl.asarray(b))
    expected = np.matmul(a, b)
    assert result.shape == expected.shape
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose((tl.asarray(a) @ b).numpy(), expected, rtol=1e-12)


@given(hnp.mutually_broadcastable_shapes(signature=MATMUL, min_side=1, max_side=3, max_dims=2))
def test_gradients_of_matmul(shapes: Any) -> None:
    a, b = (normal(s) for s in shapes.input_shapes)
    g = normal(np.matmul(a, b).shape)

    def f(a: tl.Tensor, b: tl.Tensor) -> tl.Tensor:
        return tl.sum(tl.matmul(a, b) * tl.asarray(g))

    of_a, of_b = tl.grad(f, (0, 1))(tl.asarray(a), tl.asarray(b))
    # The product is linear in each factor, so the gradient is the value at each unit.
    for gradient, factor, value in (
        (of_a, a, lambda unit: np.sum(np.matmul(unit, b) * g)),
        (of_b, b, lambda unit: np.sum(np.matmul(a, unit) * g)),
    ):
        assert gradient.shape == factor.shape
        for index in np.ndindex(factor.shape):
            unit = np.zeros_like(factor)
            unit[index] = 1
            np.testing.assert_allclose(gradient.numpy()[index], value(unit), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [tl.float16, tl.bfloat16], ids=str)
def test_narrow_floats_accumulate_in_float32(dtype: Any) -> None:
    x = tl.ones((1, 4096), dtype=dtype)
    result = tl.matmul(x, x.mT)
    assert result.dtype == dtype
    assert result.item() == 4096
    assert tl.matmul(x[0], x[0]).item() == 4096


def test_operands_meet() -> None:
    assert tl.matmul(tl.ones((2, 2), dtype=tl.int32), tl.ones((2, 2))).dtype == tl.float32
    assert tl.matmul(tl.arange(3), tl.arange(3)).item() == 5
    assert tl.matmul([[1, 2]], [[3], [4]]).tolist() == [[11]]  # type: ignore[arg-type]


@given(st.data())
def test_tensordot_is_numpys(data: Any) -> None:
    common = data.draw(st.lists(st.integers(1, 3), max_size=2))
    left = data.draw(st.lists(st.integers(0, 3), max_size=2))
    right = data.draw(st.lists(st.integers(0, 3), max_size=2))
    a, b = normal((*left, *common)), normal((*common, *right))
    n = len(common)
    np.testing.assert_allclose(
        tl.tensordot(tl.asarray(a), tl.asarray(b), axes=n).numpy(),
        np.tensordot(a, b, n),
        rtol=1e-12,
    )
    order = data.draw(st.permutations(range(n)))
    axes = ([len(left) + i - a.ndim for i in order], list(order))
    np.testing.assert_allclose(
        tl.tensordot(tl.asarray(a), tl.asarray(b), axes=axes).numpy(),
        np.tensordot(a, b, axes),
        rtol=1e-12,
    )


def test_vecdot_and_outer() -> None:
    a, b = normal((2, 1, 3)), normal((4, 3))
    np.testing.assert_allclose(tl.vecdot(tl.asarray(a), tl.asarray(b)).numpy(), np.vecdot(a, b))
    np.testing.assert_allclose(
        tl.vecdot(tl.asarray(a), tl.asarray(a), axis=0).numpy(), (a * a).sum(0)
    )
    np.testing.assert_allclose(
        tl.outer(tl.asarray(b[0]), tl.asarray(b[1])).numpy(), np.outer(*b[:2])
    )
    assert tl.vecdot(tl.ones(3, dtype=tl.int8), tl.ones(3, dtype=tl.int8)).dtype == tl.int8


a, b = tl.zeros((2, 3)), tl.zeros((2, 3))


@pytest.mark.parametrize(
    ("action", "error", "message"),
    [
        (
            lambda: a @ b,
            ValueError,
            r"matmul: float32\[2,3\] and float32\[2,3\] do not fit: x.shape\[-1\] must equal",
        ),
        (lambda: tl.matmul(a, 2.0), ValueError, r"matmul: does not take scalars.*use \*"),
        (
            lambda: tl.matmul(tl.zeros((2, 1, 3)), tl.zeros((3, 3, 1))),
            ValueError,
            r"matmul: shapes \(2,\) and \(3,\) do not broadcast",
        ),
        (lambda: tl.matmul(a == 0, b.T == 0), TypeError, r"matmul: does not take booleans"),
        (lambda: tl.tensordot(a, b, axes=3), ValueError, r"tensordot: axes=3 does not fit"),
        (lambda: tl.tensordot(a, b, axes=1), ValueError, r"tensordot: axes .* differ in size"),
        (lambda: tl.tensordot(a, b, axes=([5], [0])), ValueError, r"tensordot: axis \[5\]|axis 5"),
        (lambda: tl.vecdot(a, b[:, :1]), ValueError, r"vecdot: axis -1 has size 3 .* and 1 in"),
        (lambda: tl.outer(a, b[0]), ValueError, r"outer: takes two vectors, got float32\[2,3\]"),
    ],
)
def test_bad_input_is_named(
    action: Callable[[], Any], error: type[Exception], message: str
) -> None:
    for run in (action, lambda: tl.jit(lambda: action())()):
        with pytest.raises(error, match=message):
            run()
