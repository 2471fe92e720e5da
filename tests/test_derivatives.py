"""jacrev, jacfwd, hessian and linearize."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tensorlite as tl
from tensorlite import nn

rng = np.random.default_rng(0)
A = tl.asarray(rng.normal(size=(4, 3)))
X = tl.asarray(rng.normal(size=3))
JACOBIANS = [tl.jacrev, tl.jacfwd, lambda f, *a, **k: tl.jit(tl.jacrev(f, *a, **k))]


def layer(x: tl.Tensor) -> tl.Tensor:
    return tl.tanh(A @ x)


def expected() -> np.ndarray:
    return (1 - np.tanh(A.numpy() @ X.numpy()) ** 2)[:, None] * A.numpy()


@pytest.mark.parametrize("jacobian", JACOBIANS)
def test_jacobian_of_a_vector(jacobian: Any) -> None:
    np.testing.assert_allclose(jacobian(layer)(X).numpy(), expected(), rtol=1e-10)


@pytest.mark.parametrize("jacobian", JACOBIANS)
def test_shapes_are_result_then_argument(jacobian: Any) -> None:
    x = tl.asarray(rng.normal(size=(2, 3)))
    result = jacobian(lambda x: tl.expand_dims(x * x, axis=0))(x)
    assert result.shape == (1, 2, 3, 2, 3)
    full = np.zeros((2, 3, 2, 3))
    for i in range(2):
        for j in range(3):
            full[i, j, i, j] = 2 * x.numpy()[i, j]
    np.testing.assert_allclose(result.numpy()[0], full)


@pytest.mark.parametrize("jacobian", JACOBIANS)
def test_trees_and_several_arguments(jacobian: Any) -> None:
    def f(d: dict[str, tl.Tensor], c: tl.Tensor) -> Any:
        return {"product": d["a"] * d["b"], "sum": tl.sum(c)}

    d = {"a": X, "b": X + 1}
    of_d, of_c = jacobian(f, (0, 1))(d, X)["product"]
    np.testing.assert_allclose(of_d["a"].numpy(), np.diag(d["b"].numpy()))
    np.testing.assert_allclose(of_d["b"].numpy(), np.diag(X.numpy()))
    assert not of_c.numpy().any()
    np.testing.assert_allclose(jacobian(f, 1)(d, X)["sum"].numpy(), np.ones(3))


@pytest.mark.parametrize("jacobian", JACOBIANS)
def test_aux(jacobian: Any) -> None:
    result, aux = jacobian(lambda x: (layer(x), {"n": tl.sum(x)}), has_aux=True)(X)
    np.testing.assert_allclose(result.numpy(), expected(), rtol=1e-10)
    assert float(aux["n"]) == pytest.approx(X.numpy().sum())


def test_hessian_of_a_quadratic_and_of_a_tree() -> None:
    m = tl.asarray(rng.normal(size=(3, 3)))
    h = tl.hessian(lambda x: x @ (m @ x))
    np.testing.assert_allclose(h(X).numpy(), m.numpy() + m.numpy().T)
    np.testing.assert_allclose(tl.jit(h)(X).numpy(), m.numpy() + m.numpy().T)
    tree = tl.hessian(lambda d: d["a"] * d["a"] * d["b"])({"a": 2.0, "b": 3.0})
    values = {k: {j: float(v) for j, v in row.items()} for k, row in tree.items()}
    assert values == {"a": {"a": 6.0, "b": 4.0}, "b": {"a": 4.0, "b": 0.0}}


def test_linearize_runs_the_function_once() -> None:
    runs = []

    def f(x: tl.Tensor) -> tl.Tensor:
        runs.append(1)
        return layer(x)

    value, push = tl.linearize(f, X)
    np.testing.assert_allclose(value.numpy(), layer(X).numpy())
    for direction in (X, X * 2, tl.ones(3, dtype=tl.float64)):
        np.testing.assert_allclose(push(direction).numpy(), expected() @ direction.numpy())
    assert len(runs) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tl.jacrev(layer)(tl.arange(3)), "only floating-point tensors have gradients"),
        (lambda: tl.jacfwd(layer)(tl.arange(3)), "only floating-point tensors have gradients"),
        (lambda: tl.jacrev(lambda x: x > 0)(X), "leaf of the result must be floating-point"),
        (lambda: tl.jacrev(layer, 2)(X), "argnums=2, but the function was called with 1"),
        (lambda: tl.linearize(layer, X)[1](tl.ones(2)), r"tangents are float32\[2\]"),
    ],
)
def test_messages(call: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        call()


class Counter(nn.Module):
    def __init__(self) -> None:
        self.w = X
        self.mean = nn.Buffer(tl.zeros(3, dtype=tl.float64))
        self.count = nn.Buffer(tl.asarray(0))

    def __call__(self, x: tl.Tensor) -> tl.Tensor:
        self.count = self.count + 1
        self.mean = self.mean + x
        return self.w * x + self.mean


@pytest.mark.parametrize("jacobian", JACOBIANS)
def test_arguments_are_taken_as_grad_takes_them(jacobian: Any) -> None:
    model = Counter()
    of_model = jacobian(lambda m, x: m(x))(model, X)
    np.testing.assert_allclose(of_model.w.numpy(), np.diag(X.numpy()))
    assert not of_model.mean.numpy().any() and of_model.count.shape == (3,)
    of_x = jacobian(lambda m, x: m(x), 1)(model, X)
    np.testing.assert_allclose(of_x.numpy(), np.diag(X.numpy() + 1))
    assert int(model.count) == 0, "the caller's module is left alone"
    with pytest.raises(ValueError, match="names an argument twice"):
        jacobian(lambda x: x, (0, 0))(X)
    with pytest.raises(TypeError, match="argnums is an int or a sequence of ints, got 'a'"):
        jacobian(lambda x: x, "a")
