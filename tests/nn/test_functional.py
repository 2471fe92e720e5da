"""Activations, dropout, embedding, attention and l2_loss: values, derivatives at kinks, errors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import tensorlite as tl
from tensorlite import random
from tensorlite.nn import functional as nn

POINTS = np.array([-1000.0, -3.0, -1.0, -0.1, 0.0, 0.1, 1.0, 3.0, 6.5, 1000.0])


def test_everything_named_is_there() -> None:
    assert all(callable(getattr(nn, name)) for name in nn.__all__)
    assert all(getattr(nn, name).__doc__ for name in nn.__all__)


# ---- activations ---------------------------------------------------------------------


def derivative(f: Any, x: Any) -> np.ndarray:
    x = tl.asarray(x)
    return tl.grad(lambda x: tl.sum(f(x)))(x).numpy()


@pytest.mark.parametrize(
    ("f", "formula"),
    [
        (nn.relu, lambda x: max(x, 0.0)),
        (nn.relu6, lambda x: min(max(x, 0.0), 6.0)),
        (nn.leaky_relu, lambda x: x if x > 0 else 0.01 * x),
        (lambda x: nn.leaky_relu(x, 0.3), lambda x: x if x > 0 else 0.3 * x),
        (nn.elu, lambda x: x if x > 0 else math.expm1(x)),
        (lambda x: nn.elu(x, 2.0), lambda x: x if x > 0 else 2 * math.expm1(x)),
        (nn.silu, lambda x: x / (1 + math.exp(-x)) if x > -700 else 0.0),
        (lambda x: nn.gelu(x, approximate=False), lambda x: 0.5 * x * math.erfc(-x / 2**0.5)),
    ],
)
def test_activations_against_their_formulas(f: Any, formula: Any) -> None:
    expected = [formula(float(x)) for x in POINTS]
    np.testing.assert_allclose(f(tl.asarray(POINTS)).numpy(), expected, rtol=1e-12, atol=1e-14)
    assert np.isfinite(derivative(f, POINTS)).all()
    assert np.isnan(f(tl.asarray(math.nan)).item())


def test_gelu_in_its_tanh_form_is_close_to_the_exact_one() -> None:
    x = tl.linspace(-6, 6, 1001, dtype=tl.float64)
    difference = nn.gelu(x).numpy() - nn.gelu(x, approximate=False).numpy()
    assert 1e-5 < np.abs(difference).max() < 5e-4


def test_derivatives_at_kinks() -> None:
    assert derivative(nn.relu, [0.0, -0.0]).tolist() == [0, 0]
    assert derivative(nn.relu6, [0.0, 6.0, 3.0]).tolist() == [0, 0, 1]
    assert derivative(nn.leaky_relu, [0.0]).tolist() == pytest.approx([0.01])
    assert derivative(nn.elu, [0.0]).tolist() == [1]


@pytest.mark.parametrize("dtype", [tl.float16, tl.bfloat16, tl.float32, tl.float64], ids=str)
def test_relu_passes_any_gradient_where_it_is_active_and_none_elsewhere(dtype: np.dtype) -> None:
    x = tl.asarray(np.array([1.0, 2, 3, -1, -2, -3], dtype))
    g = np.array([np.inf, np.nan, -0.5, np.inf, np.nan, -0.5], dtype)
    pulled = tl.vjp(nn.relu, x)[1](tl.asarray(g))[0].numpy()
    np.testing.assert_array_equal(pulled.astype(float), [np.inf, np.nan, -0.5, 0, 0, 0])


@pytest.mark.parametrize("name", ["leaky_relu", "elu", "silu", "gelu"])
def test_activations_take_floats(name: str) -> None:
    with pytest.raises(TypeError, match=rf"{name}: takes floating-point tensors, got int32\[2\]"):
        getattr(nn, name)(tl.ones(2, dtype=tl.int32))


def test_relu_of_integers() -> None:
    x = tl.asarray(np.array([-2, 0, 3], np.int8))
    assert nn.relu(x).tolist() == [0, 0, 3]
    assert nn.relu(x).dtype == tl.int8


# ---- dropout -------------------------------------------------------------------------


def test_dropout_keeps_the_mean() -> None:
    x = tl.ones((100, 200))
    y = nn.dropout(x, 0.25, random.key(1)).numpy()
    assert set(np.unique(y)) == {np.float32(0), np.float32(1) / np.float32(0.75)}
    assert abs((y == 0).mean() - 0.25) < 0.02
    assert (y == nn.dropout(x, 0.25, random.key(1)).numpy()).all()
    assert (y != nn.dropout(x, 0.25, random.key(2)).numpy()).any()


def test_dropout_wants_a_number() -> None:
    with pytest.raises(TypeError, match="dropout: rate is a Python number in .*, got 'half'"):
        nn.dropout(tl.ones(2), "half", random.key(0))


def test_dropout_has_the_gradient_of_its_mask_and_drops_nan() -> None:
    x = tl.asarray(np.linspace(1.0, 2.0, 64))
    y = nn.dropout(x, 0.5, random.key(0)).numpy()
    gradient = derivative(lambda x: nn.dropout(x, 0.5, random.key(0)), x)
    np.testing.assert_allclose(gradient, y / x.numpy())
    wild = nn.dropout(tl.full(64, math.nan), 0.5, random.key(0)).numpy()
    np.testing.assert_array_equal(np.isnan(wild), y != 0)


def test_dropout_with_rate_zero_is_the_identity() -> None:
    x = tl.ones(3)
    assert nn.dropout(x, 0.0, random.key(0)) is x


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1, 2.5, math.nan])
def test_dropout_refuses_rates_outside_its_range(rate: float) -> None:
    with pytest.raises(ValueError, match=r"dropout: rate is the probability.* in \[0, 1\), got"):
        nn.dropout(tl.ones(3), rate, random.key(0))


def test_dropout_takes_floats() -> None:
    with pytest.raises(TypeError, match=r"dropout: x is floating-point, got int64\[3\]"):
        nn.dropout(tl.asarray([1, 2, 3]), 0.5, random.key(0))


# ---- embedding, one_hot, l2_loss -----------------------------------------------------


def test_embedding_reads_rows_and_its_gradient_adds_to_them() -> None:
    table = tl.asarray(np.arange(12.0).reshape(4, 3))
    ids = tl.asarray([[0, 3], [3, 1]])
    y = nn.embedding(table, ids)
    np.testing.assert_array_equal(y.numpy(), table.numpy()[ids.numpy()])
    gradient = derivative(lambda t: nn.embedding(t, ids), table)
    np.testing.assert_array_equal(gradient, np.repeat([[1.0], [1], [0], [2]], 3, axis=1))


@pytest.mark.parametrize("bad", [-1, 4])
def test_embedding_names_the_id_that_is_out_of_range(bad: int) -> None:
    with pytest.raises(ValueError, match=rf"embedding: id {bad} at 2 is out of range for 4 rows"):
        nn.embedding(tl.ones((4, 3)), tl.asarray([0, 1, bad, 9]))


def test_embedding_takes_integer_ids() -> None:
    with pytest.raises(
        TypeError, match=r"embedding: ids are integer row numbers, got float32\[1\]"
    ):
        nn.embedding(tl.ones((4, 3)), tl.asarray([0.0]))
    with pytest.raises(ValueError, match=r"embedding: the table is \(rows, \*features\)"):
        nn.embedding(tl.ones(()), tl.asarray([0]))


def test_one_hot() -> None:
    rows = nn.one_hot(tl.asarray([2, 0]), 3)
    assert rows.tolist() == [[0, 0, 1], [1, 0, 0]]


def test_l2_loss_has_the_weights_for_its_gradient() -> None:
    w = np.random.default_rng(0).normal(size=(3, 4))
    assert nn.l2_loss(tl.asarray(w)).item() == pytest.approx((w**2).sum() / 2)
    np.testing.assert_allclose(derivative(nn.l2_loss, w), w)


# ---- attention -----------------------------------------------------------------------


def attention_formula(q: Any, k: Any, v: Any, allowed: np.ndarray) -> np.ndarray:
    scores = q @ np.swapaxes(k, -1, -2) / math.sqrt(q.shape[-1])
    weights = np.where(allowed, np.exp(scores), 0)
    total = weights.sum(-1, keepdims=True)
    return weights / np.where(total == 0, 1, total) @ v


def heads() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    return rng.normal(size=(2, 4, 3, 8)), rng.normal(size=(2, 1, 5, 8)), rng.normal(size=(4, 5, 6))


def test_attention_against_the_formula() -> None:
    arrays = heads()
    tensors = [tl.asarray(a) for a in arrays]
    everything = np.ones((3, 5), bool)
    np.testing.assert_allclose(
        nn.attention(*tensors).numpy(), attention_formula(*arrays, everything), rtol=1e-10
    )
    causal = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]], bool)
    np.testing.assert_allclose(
        nn.attention(*tensors, causal=True).numpy(), attention_formula(*arrays, causal), rtol=1e-10
    )
    mask = np.array([[1, 0, 1, 0, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], bool)
    for extra, allowed in (({}, mask), ({"causal": True}, mask & causal)):
        y = nn.attention(*tensors, mask=tl.asarray(mask), **extra).numpy()
        np.testing.assert_allclose(y, attention_formula(*arrays, allowed), rtol=1e-10)
        assert not y[..., 1, :].any()  # a query without keys


def test_attention_without_keys_has_no_nan_in_its_gradient() -> None:
    q, k, v = (tl.asarray(a) for a in heads())
    mask = tl.zeros((3, 5), dtype=tl.bool)
    gradients = tl.grad(lambda *a: tl.sum(nn.attention(*a, mask=mask)), (0, 1, 2))(q, k, v)
    assert not any(g.numpy().any() for g in gradients)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"k": tl.ones((5, 7))}, ValueError, r"expects q \(..., T, d\), k \(..., S, d\)"),
        (
            {"v": tl.ones((4, 6))},
            ValueError,
            r"expects q .* got q float32\[3,8\], k float32\[5,8\]",
        ),
        ({"q": tl.ones(8)}, ValueError, r"expects q"),
        ({"q": tl.ones((3, 8), dtype=tl.float64)}, TypeError, r"dtypes differ: q float64\[3,8\]"),
        ({"v": tl.ones((5, 6), dtype=tl.int32)}, TypeError, r"v is floating-point, got int32"),
        ({"mask": tl.ones((3, 5))}, TypeError, r"the mask is boolean.*got float32\[3,5\]"),
        ({"mask": tl.ones((3, 4), dtype=tl.bool)}, ValueError, r"do not broadcast"),
        (
            {"mask": tl.ones((2, 3, 5), dtype=tl.bool)},
            ValueError,
            r"does not broadcast to the scores",
        ),
    ],
)
def test_attention_says_what_does_not_fit(change: Any, error: type, message: str) -> None:
    arguments = {"q": tl.ones((3, 8)), "k": tl.ones((5, 8)), "v": tl.ones((5, 6)), **change}
    with pytest.raises(error, match=f"attention.*{message}"):
        nn.attention(**arguments)
