"""Normalization, softmax, cross-entropy: formulas in float64, extreme values, and errors."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

import tensorlite as tl
from tensorlite.nn import functional as nn
from tensorlite.ops.norm import lrn_p
from tests.ops.sampling import rngs, shapes

# ---- local response norm -------------------------------------------------------------


def lrn_formula(x: np.ndarray, size: int, alpha: float, beta: float, k: float) -> np.ndarray:
    y = np.empty_like(x)
    for c in range(x.shape[-1]):
        near = x[..., max(0, c - size // 2) : c + (size - 1) // 2 + 1]
        y[..., c] = x[..., c] / (k + alpha / size * np.sum(near**2, -1)) ** beta
    return y


@given(
    rngs(), shapes(min_dims=1, max_side=12), st.integers(1, 15), st.sampled_from([0.5, 0.75, 1.25])
)
def test_local_response_norm_against_the_formula(
    rng: Any, shape: Any, size: int, beta: float
) -> None:
    x = 3 * rng.normal(size=shape)
    y = nn.local_response_norm(tl.asarray(x), size, alpha=0.7, beta=beta, k=2.0)
    np.testing.assert_allclose(y.numpy(), lrn_formula(x, size, 0.7, beta, 2.0), rtol=1e-10)


def test_local_response_norm_in_tiles_is_its_body() -> None:
    rng = np.random.default_rng(0)
    x, g = rng.normal(size=(2, 50, 50, 7)), rng.normal(size=(2, 50, 50, 7))  # more than one tile

    def pulled(f: Any) -> Any:
        y, pull = tl.vjp(f, tl.asarray(x))
        return y.numpy(), pull(tl.asarray(g))[0].numpy()

    params = {"size": 3, "alpha": 0.9, "beta": 0.75, "k": 1.0}
    tiled = pulled(lambda x: nn.local_response_norm(x, **params))
    plain = pulled(lambda x: lrn_p.body(x, **params))
    for a, b in zip(tiled, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


# ---- batch norm and layer norm -------------------------------------------------------


def test_batch_norm_train_is_the_formula_and_batch_norm_with_its_statistics() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(2.0, 3.0, size=(4, 3, 3, 5))
    scale, offset = rng.normal(size=5), rng.normal(size=5)
    arrays = [tl.asarray(a) for a in (x, scale, offset)]
    y, mean, variance = nn.batch_norm_train(*arrays, eps=0.1)
    axes = (0, 1, 2)
    np.testing.assert_allclose(mean.numpy(), x.mean(axes), rtol=1e-12)
    np.testing.assert_allclose(variance.numpy(), x.var(axes), rtol=1e-12)
    expected = (x - x.mean(axes)) / np.sqrt(x.var(axes) + 0.1) * scale + offset
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-10, atol=1e-12)
    again = nn.batch_norm(*arrays, mean, variance, eps=0.1)
    np.testing.assert_allclose(again.numpy(), y.numpy(), rtol=1e-10, atol=1e-12)


def test_gradient_of_batch_norm_train_against_finite_differences() -> None:
    rng = np.random.default_rng(2)
    point = [rng.normal(size=(6, 2, 3)), rng.normal(size=3), rng.normal(size=3)]
    weights = [tl.asarray(rng.normal(size=s)) for s in ((6, 2, 3), (3,), (3,))]

    def loss(*args: tl.Tensor) -> tl.Tensor:
        outputs = nn.batch_norm_train(*args, eps=0.3)
        return sum(tl.sum(o * o * w) for o, w in zip(outputs, weights, strict=True))

    gradients = tl.grad(loss, (0, 1, 2))(*map(tl.asarray, point))
    for i, gradient in enumerate(gradients):
        for place in np.ndindex(*point[i].shape):
            step = np.zeros_like(point[i])
            step[place] = 1e-5
            above = loss(*[tl.asarray(p + step if j == i else p) for j, p in enumerate(point)])
            below = loss(*[tl.asarray(p - step if j == i else p) for j, p in enumerate(point)])
            assert np.isclose(gradient.numpy()[place], (above - below).item() / 2e-5, rtol=1e-5)


def test_batch_norm_does_not_cancel_far_from_zero() -> None:
    x = np.random.default_rng(3).normal(1e4, 1.0, size=(512, 1)).astype(np.float32)
    ones, zeros = tl.ones(1), tl.zeros(1)
    y, mean, variance = nn.batch_norm_train(tl.asarray(x), ones, zeros, eps=1e-5)
    wide = x.astype(np.float64)
    expected = (wide - wide.mean()) / wide.std()
    np.testing.assert_allclose(y.numpy(), expected, atol=2e-3)
    assert abs(variance.item() - wide.var()) < 1e-3
    np.testing.assert_allclose(
        nn.batch_norm(tl.asarray(x), ones, zeros, mean, variance).numpy(), y.numpy(), atol=1e-4
    )


@pytest.mark.parametrize("dtype", [tl.float16, tl.bfloat16], ids=str)
def test_half_precision_has_statistics_in_float32(dtype: np.dtype) -> None:
    x = np.random.default_rng(4).normal(8.0, 1.0, size=(4096, 2)).astype(dtype)
    y, mean, variance = nn.batch_norm_train(tl.asarray(x), tl.ones(2), tl.zeros(2))
    assert (y.dtype, mean.dtype, variance.dtype) == (dtype, tl.float32, tl.float32)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(mean.numpy(), wide.mean(0), rtol=1e-5)
    np.testing.assert_allclose(variance.numpy(), wide.var(0), rtol=1e-3)


@pytest.mark.parametrize("axis", [-1, 1, (1, 2), (2, 1), (-1, 0)])
def test_layer_norm_against_the_formula(axis: Any) -> None:
    rng = np.random.default_rng(5)
    x = rng.normal(size=(3, 4, 5))
    axes = tuple(sorted(a % 3 for a in np.atleast_1d(axis)))
    shape = tuple(x.shape[a] for a in axes)
    scale, offset = rng.normal(size=shape), rng.normal(size=shape)
    y = nn.layer_norm(tl.asarray(x), tl.asarray(scale), tl.asarray(offset), eps=0.2, axis=axis)
    aligned = tuple(n if i in axes else 1 for i, n in enumerate(x.shape))
    unit = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 0.2)
    expected = unit * scale.reshape(aligned) + offset.reshape(aligned)
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-10, atol=1e-12)
    plain = nn.layer_norm(tl.asarray(x), eps=0.2, axis=axis)
    np.testing.assert_allclose(plain.numpy(), unit, rtol=1e-10, atol=1e-12)


# ---- softmax and cross-entropy -------------------------------------------------------


def log_softmax_formula(x: np.ndarray) -> np.ndarray:
    wide = x.astype(np.float64)
    shifted = wide - wide.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


@pytest.mark.parametrize("scale", [1.0, 100.0, 1e4, 1e30])
@pytest.mark.parametrize("dtype", [tl.float32, tl.float64], ids=str)
def test_cross_entropy_against_float64(scale: float, dtype: np.dtype) -> None:
    rng = np.random.default_rng(6)
    logits = (scale * rng.normal(size=(32, 10))).astype(dtype)
    labels = rng.integers(0, 10, 32)
    reference = log_softmax_formula(logits)
    expected = -np.take_along_axis(reference, labels[:, None], -1)[:, 0]
    rtol = 64 * float(np.finfo(dtype).eps)

    def losses(x: tl.Tensor) -> tl.Tensor:
        return nn.softmax_cross_entropy(x, tl.asarray(labels))

    value, pull = tl.vjp(losses, tl.asarray(logits))
    np.testing.assert_allclose(value.numpy(), expected, rtol=rtol, atol=rtol)
    gradient = pull(tl.ones(32, dtype=dtype))[0].numpy()
    hot = np.eye(10)[labels]
    np.testing.assert_allclose(gradient, np.exp(reference) - hot, rtol=1e-4, atol=1e-6)
    probabilities = nn.softmax_cross_entropy(tl.asarray(logits), tl.asarray(hot.astype(dtype)))
    np.testing.assert_allclose(probabilities.numpy(), expected, rtol=rtol, atol=rtol)


def test_softmax_of_extremes() -> None:
    x = tl.asarray([[1e4, -1e4, 0.0], [-np.inf, 0.0, 0.0]])
    np.testing.assert_array_equal(nn.softmax(x).numpy(), [[1, 0, 0], [0, 0.5, 0.5]])
    np.testing.assert_allclose(
        nn.log_softmax(x).numpy(), [[0, -2e4, -1e4], [-np.inf, np.log(0.5), np.log(0.5)]]
    )
    np.testing.assert_allclose(nn.softmax(tl.asarray(np.eye(3)), axis=0).numpy().sum(0), 1)


def test_probabilities_as_labels_and_their_gradient() -> None:
    rng = np.random.default_rng(7)
    logits, labels = rng.normal(size=(4, 3)), rng.dirichlet(np.ones(3), 4)
    expected = -np.sum(labels * log_softmax_formula(logits), -1)
    loss = nn.softmax_cross_entropy(tl.asarray(logits), tl.asarray(labels))
    np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-12)
    gradient = tl.grad(lambda p: tl.sum(nn.softmax_cross_entropy(tl.asarray(logits), p)))
    np.testing.assert_allclose(gradient(tl.asarray(labels)).numpy(), -log_softmax_formula(logits))


@pytest.mark.parametrize("bad", [-1, 3, 250])
def test_a_label_out_of_range(bad: int) -> None:
    logits, labels = tl.zeros((2, 3)), tl.asarray(np.array([1, bad], np.int16))
    message = rf"softmax_cross_entropy: label {bad} at 1 is out of range for 3 classes.* 0 to 2"
    with pytest.raises(ValueError, match=message):
        nn.softmax_cross_entropy(logits, labels)
    for traced in (tl.jit(nn.softmax_cross_entropy), tl.vmap(nn.softmax_cross_entropy)):
        loss = traced(logits, labels).numpy()
        assert np.isclose(loss[0], np.log(3))
        assert np.isnan(loss[1])
    gradient = tl.grad(tl.jit(lambda x, y: tl.sum(nn.softmax_cross_entropy(x, y))))
    assert np.isnan(gradient(logits, labels).numpy()).tolist() == [[False] * 3, [True] * 3]


def test_where_a_bad_label_is() -> None:
    labels = tl.asarray(np.array([[0, 1], [2, 9]]))
    with pytest.raises(ValueError, match=r"label 9 at \(1, 1\) is out of range for 3 classes"):
        nn.softmax_cross_entropy(tl.zeros((2, 2, 3)), labels)
    with pytest.raises(ValueError, match=r"label 9 is out of range for 3 classes"):
        nn.softmax_cross_entropy(tl.zeros(3), tl.asarray(9))


# ---- what does not fit ---------------------------------------------------------------

LOGITS = (4, 3)


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (
            tl.zeros((3,), dtype=tl.int32),
            ValueError,
            r"integer labels have shape \(4,\), got int32\[3\]",
        ),
        (tl.zeros((4, 3), dtype=tl.int32), ValueError, r"integer labels have shape \(4,\)"),
        (
            tl.zeros((4,)),
            ValueError,
            r"floating-point labels are probabilities.*astype\(tl.int32\)",
        ),
        (
            tl.zeros((4,), dtype=tl.bool),
            TypeError,
            r"integer class numbers or probabilities, got bool",
        ),
    ],
)
def test_labels_that_do_not_fit(labels: tl.Tensor, error: type, message: str) -> None:
    with pytest.raises(error, match=f"softmax_cross_entropy: .*{message}"):
        nn.softmax_cross_entropy(tl.zeros(LOGITS), labels)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: nn.softmax_cross_entropy(tl.zeros((), dtype=tl.float32), tl.asarray(0)),
            ValueError,
            r"softmax_cross_entropy: logits are \(..., classes\)",
        ),
        (
            lambda: nn.softmax_cross_entropy(tl.zeros(LOGITS, dtype=tl.int32), tl.asarray(0)),
            TypeError,
            r"softmax_cross_entropy: logits is floating-point, got int32\[4,3\]",
        ),
        (
            lambda: nn.softmax(tl.zeros(3, dtype=tl.int32)),
            TypeError,
            r"softmax: x is floating-point",
        ),
        (
            lambda: nn.log_softmax(tl.zeros(3), axis=1),
            ValueError,
            r"log_softmax: axis 1 is out of range",
        ),
        (
            lambda: nn.local_response_norm(tl.zeros(3), 0),
            ValueError,
            r"size is a positive number of channels, got 0",
        ),
        (
            lambda: nn.local_response_norm(tl.zeros(3), 3, k=0.0),
            ValueError,
            r"k must be positive.*got 0.0",
        ),
        (
            lambda: nn.local_response_norm(tl.zeros(3, dtype=tl.int8), 3),
            TypeError,
            r"local_response_norm: takes floating",
        ),
        (
            lambda: nn.batch_norm_train(tl.zeros((0, 3)), tl.ones(3), tl.ones(3)),
            ValueError,
            r"batch_norm_train: float32\[0,3\] has no elements along axes \(0,\)",
        ),
        (
            lambda: nn.batch_norm_train(tl.zeros((2, 3)), tl.ones(2), tl.ones(3)),
            ValueError,
            r"batch_norm_train: scale has shape \(2,\), but x of float32\[2,3\] takes \(3,\)",
        ),
        (
            lambda: nn.batch_norm_train(tl.zeros((2, 3)), tl.ones(3), tl.ones(3, dtype=tl.float64)),
            TypeError,
            r"batch_norm_train: offset is float64\[3\], but x is float32\[2,3\]",
        ),
        (
            lambda: nn.batch_norm(tl.zeros((2, 3)), tl.ones(3), tl.ones(3), tl.ones(3), tl.ones(1)),
            ValueError,
            r"batch_norm: variance has shape \(1,\)",
        ),
        (
            lambda: nn.layer_norm(tl.zeros((2, 3)), tl.ones(2)),
            ValueError,
            r"layer_norm: scale has shape \(2,\)",
        ),
        (
            lambda: nn.layer_norm(tl.zeros((2, 0))),
            ValueError,
            r"layer_norm: float32\[2,0\] has no elements",
        ),
        (
            lambda: nn.layer_norm(tl.zeros(())),
            ValueError,
            r"layer_norm: x needs at least the axis of channels",
        ),
    ],
)
def test_arguments_that_do_not_fit(call: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        call()
