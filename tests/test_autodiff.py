"""Reverse and forward mode: every order of transforms, higher derivatives, and what is refused."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import weakref
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tensorlite as tl
from tensorlite import nn, tree

Pair = namedtuple("Pair", ["left", "right"])
Function = Callable[[Any], Any]


@dataclasses.dataclass
class Point:
    x: Any
    y: Any


def float64(value: Any) -> tl.Tensor:
    return tl.asarray(np.asarray(value, np.float64))


def numbers(value: Any) -> np.ndarray:
    """All leaves of a tree in one vector."""
    return np.concatenate([np.ravel(leaf.numpy()) for leaf in tree.leaves(value)])


def dot(a: Any, b: Any) -> tl.Tensor:
    terms = tree.leaves(tree.map(lambda x, y: tl.sum(x * y), a, b))
    return sum(terms[1:], terms[0])


def shifted(point: Any, direction: Any, step: float) -> Any:
    return tree.map(lambda x, d: x + step * d, point, direction)


# ---- every order of transforms -------------------------------------------------------------------

# Functions of pytrees whose values have the structure of their arguments.


def of_vector(x: tl.Tensor) -> tl.Tensor:
    mixed = tl.matmul(float64([[0.2, -0.7], [0.5, 0.3]]), x)
    return tl.tanh(mixed) * x[::-1] + tl.exp(-x * x).at[0].add(tl.sin(x[1]))


def of_containers(t: dict[str, Any]) -> dict[str, Any]:
    a, pair, point = t["a"][0], t["pair"], t["point"]
    norm = tl.sqrt(1 + tl.sum(a * a)) + tl.logsumexp(pair.left)
    return {
        "a": [tl.where(a > 0.2, a * norm, tl.sin(a))],
        "nothing": None,
        "pair": Pair(pair.left * point.x, (pair.right[0] / norm,)),
        "point": Point(tl.max(a) * tl.sum(point.y), tl.cumulative_sum(point.y) * point.x),
    }


VECTOR = float64([0.4, -0.3])
CONTAINERS: dict[str, Any] = {
    "a": [float64([0.5, 0.1])],
    "nothing": None,
    "pair": Pair(float64([0.2, 0.3]), (float64(0.7),)),
    "point": Point(float64(1.1), float64([0.6])),
}
CASES: dict[str, tuple[Function, Any]] = {
    "vector": (of_vector, VECTOR),
    "containers": (of_containers, CONTAINERS),
}


def weights_like(point: Any, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return tree.map(lambda x: tl.asarray(rng.normal(size=x.shape)), point)


def scalar_of(g: Function) -> Function:
    return lambda t: dot(g(t), weights_like(t, 1))


def through_vmap(g: Function) -> Function:
    def batched(t: Any) -> Any:
        two = tree.map(lambda x: tl.stack([0 * x, x]), t)
        return tree.map(lambda x: x[1], tl.vmap(g)(two))

    return batched


def through_custom_vjp(g: Function) -> Function:
    f = tl.custom_vjp(g)
    f.defvjp(lambda t: (g(t), t), lambda t, ct: tl.vjp(g, t)[1](ct))
    return f


def through_stop_gradient(g: Function) -> Function:
    def shifted_and_back(t: Any) -> Any:
        return tree.map(lambda x, c: x + c - c, g(t), tl.stop_gradient(g(t)))

    return shifted_and_back


# What leaves the function as it is, and what makes its derivative, another such function.
SAME: dict[str, Callable[[Function], Function]] = {
    "jit": tl.jit,
    "vmap": through_vmap,
    "checkpoint": tl.checkpoint,
    "custom_vjp": through_custom_vjp,
    "stop_gradient": through_stop_gradient,
}
DERIVATIVE: dict[str, Callable[[Function], Function]] = {
    "grad": lambda g: tl.grad(scalar_of(g)),
    "value_and_grad": lambda g: lambda t: tl.value_and_grad(scalar_of(g))(t)[1],
    "vjp": lambda g: lambda t: tl.vjp(g, t)[1](weights_like(t, 1))[0],
    "jvp": lambda g: lambda t: tl.jvp(g, (t,), (weights_like(t, 2),))[1],
}
WORDS = [w for n in (1, 2, 3) for w in itertools.product([*SAME, *DERIVATIVE], repeat=n)]


def apply(word: tuple[str, ...], g: Function) -> Function:
    """The transforms of `word` around `g`, the last one outermost."""
    for name in word:
        g = {**SAME, **DERIVATIVE}[name](g)
    return g


def finite_differences(name: str, g: Function, point: Any) -> np.ndarray:
    """What the derivative called `name` is of `g`, whose value has the structure of `point`."""
    h = 1e-5

    def along(direction: Any) -> np.ndarray:
        above, below = g(shifted(point, direction, h)), g(shifted(point, direction, -h))
        return (numbers(above) - numbers(below)) / (2 * h)

    if name == "jvp":
        return along(weights_like(point, 2))
    leaves, treedef = tree.flatten(point)
    weights = numbers(weights_like(point, 1))
    result = []
    for i, leaf in enumerate(leaves):
        for j in range(leaf.size):
            unit = [np.zeros(x.shape) for x in leaves]
            unit[i].reshape(-1)[j] = 1
            result.append(weights @ along(tree.unflatten(treedef, map(tl.asarray, unit))))
    return np.asarray(result)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("outermost", [*SAME, *DERIVATIVE])
def test_transforms_compose_in_every_order(case: str, outermost: str) -> None:
    g, point = CASES[case]
    expected: dict[tuple[str, ...], np.ndarray] = {}
    for word in (w for w in WORDS if w[-1] == outermost):
        plain = tuple(name for name in word if name in DERIVATIVE)
        if plain not in expected:
            expected[plain] = numbers(apply(plain, g)(point))
        result = apply(word, g)(point)
        assert tree.structure(result) == tree.structure(point)
        np.testing.assert_allclose(numbers(result), expected[plain], rtol=1e-9, err_msg=str(word))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("word", [w for w in WORDS if set(w) <= set(DERIVATIVE)], ids="-".join)
def test_derivatives_against_finite_differences(case: str, word: tuple[str, ...]) -> None:
    g, point = CASES[case]
    *inner, name = word
    numeric = finite_differences(name, apply(tuple(inner), g), point)
    np.testing.assert_allclose(numbers(apply(word, g)(point)), numeric, rtol=1e-6, atol=1e-7)


class Net(nn.Module):
    """A module is a pytree like any other."""

    def __init__(self, weight: tl.Tensor):
        self.inner = [nn.Linear(2, 2, key=tl.random.key(0))]
        self.weight = weight

    def __call__(self, x: tl.Tensor) -> tl.Tensor:
        return tl.tanh(self.inner[0](x)) * self.weight


def test_transforms_over_modules() -> None:
    net, x = Net(tl.asarray([0.5, -2.0])), tl.asarray([0.3, 0.9])

    def loss(net: Net) -> tl.Tensor:
        return tl.sum(tl.square(net(x)))

    reference = numbers(tl.grad(loss)(net))
    for f in (tl.jit(tl.grad(loss)), tl.grad(tl.jit(loss)), tl.grad(tl.checkpoint(loss))):
        gradient = f(net)
        assert isinstance(gradient, Net)
        np.testing.assert_allclose(numbers(gradient), reference, rtol=1e-5)
    two = tree.map(lambda leaf: tl.stack([leaf, leaf]), net)
    np.testing.assert_allclose(numbers(tl.vmap(loss)(two)), [loss(net).item()] * 2, rtol=1e-5)


# ---- higher derivatives and nesting --------------------------------------------------------------


def test_third_and_fourth_derivatives() -> None:
    def f(x: tl.Tensor) -> tl.Tensor:
        return x**5 + tl.sin(x)

    x = float64(0.7)
    third = tl.grad(tl.grad(tl.grad(f)))
    for g in (third, tl.jit(third), tl.grad(tl.jit(tl.grad(tl.jit(tl.grad(f)))))):
        assert g(x).item() == pytest.approx(60 * 0.7**2 - np.cos(0.7), rel=1e-12)
    fourth = tl.vmap(tl.grad(third))(tl.stack([x, x]))
    np.testing.assert_allclose(fourth.numpy(), [120 * 0.7 + np.sin(0.7)] * 2, rtol=1e-12)


@pytest.mark.parametrize("wrap", [lambda f: f, tl.jit, tl.checkpoint], ids=["eager", "jit", "ckpt"])
def test_nested_derivatives_are_not_confused(wrap: Any) -> None:
    def by_grad(x: tl.Tensor) -> tl.Tensor:
        return x * tl.grad(wrap(lambda y: x + y))(tl.ones_like(x))

    def by_jvp(x: tl.Tensor) -> tl.Tensor:
        return x * tl.jvp(wrap(lambda y: x + y), (tl.ones_like(x),), (tl.ones_like(x),))[1]

    def deeper(x: tl.Tensor) -> tl.Tensor:
        return tl.grad(wrap(lambda y: y * tl.grad(wrap(lambda z: x * y * z))(x)))(x)  # 2 x y at y=x

    assert tl.grad(by_grad)(float64(1.0)).item() == 1.0
    assert tl.grad(by_jvp)(float64(1.0)).item() == 1.0
    assert tl.jvp(by_grad, (float64(1.0),), (float64(1.0),))[1].item() == 1.0
    assert tl.grad(deeper)(float64(3.0)).item() == pytest.approx(12.0)


def test_closures_over_values_of_outer_transforms() -> None:
    def f(a: tl.Tensor, x: tl.Tensor) -> tl.Tensor:
        inner = tl.jit(lambda x: a * x**2)
        batched = tl.vmap(lambda x: a * inner(x))
        again = tl.checkpoint(lambda x: tl.sum(a * batched(x)))
        return again(x)

    a, x = float64(2.0), float64([1.0, 3.0])
    reference = tl.grad(lambda a, x: tl.sum(a**3 * x**2), (0, 1))(a, x)
    for g in (tl.grad(f, (0, 1)), tl.jit(tl.grad(f, (0, 1))), tl.grad(tl.jit(f), (0, 1))):
        np.testing.assert_allclose(numbers(g(a, x)), numbers(reference), rtol=1e-12)
    mapped = tl.vmap(tl.grad(f), (0, None))(tl.stack([a, 2 * a]), x)
    np.testing.assert_allclose(mapped.numpy(), [120, 480], rtol=1e-12)


def test_python_control_flow_on_values() -> None:
    def power(x: tl.Tensor) -> tl.Tensor:
        result = tl.ones_like(x)
        while result < 100:
            result = result * x
        return result if result < 1000 else -result

    assert tl.grad(power)(float64(3.0)).item() == pytest.approx(5 * 3**4)
    assert tl.grad(tl.grad(power))(float64(3.0)).item() == pytest.approx(20 * 3**3)


# ---- the pullback --------------------------------------------------------------------------------


def test_a_pullback_may_be_called_again_and_transformed() -> None:
    x = float64([1.0, 2.0])
    value, pull = tl.vjp(lambda x: (x * x, tl.sum(x)), x)
    first = pull((tl.ones_like(x), float64(1.0)))[0]
    assert pull((tl.ones_like(x), float64(1.0)))[0].tolist() == first.tolist() == [3, 5]
    rows = tl.vmap(pull)((float64(np.eye(2)), float64([0.0, 0.0])))[0]
    assert rows.tolist() == [[2, 0], [0, 4]]
    assert tl.jit(pull)((tl.ones_like(x), float64(0.0)))[0].tolist() == [2, 4]
    linear = tl.grad(lambda ct: tl.sum(pull((ct, float64(0.0)))[0]))(x)
    assert linear.tolist() == [2, 4]
    assert value[1].item() == 3


def test_integers_and_unused_arguments_have_zero_cotangents() -> None:
    n, x, unused = tl.asarray([2, 3]), float64([1.0, 2.0]), float64([[5.0]])
    value, pull = tl.vjp(lambda n, x, unused: (x * n, n + 1), n, x, unused)
    cts = pull((tl.ones_like(x), tl.zeros_like(n)))
    assert [ct.aval for ct in cts] == [n.aval, x.aval, unused.aval]
    assert [ct.tolist() for ct in cts] == [[0, 0], [2, 3], [[0]]]
    assert value[1].tolist() == [3, 4]
    value, tangent = tl.jvp(lambda n, x: (x * n, n), (n, x), (n, tl.ones_like(x)))
    assert tangent[0].tolist() == [2, 3]
    assert tangent[1].tolist() == [0, 0]


def test_what_returns_its_argument_or_a_constant() -> None:
    x = float64([1.0, 2.0])
    value, pull = tl.vjp(lambda x: (x, x, float64(3.0)), x)
    assert value[0] is x
    assert pull((x, x, float64(1.0)))[0].tolist() == [2, 4]
    assert tl.grad(lambda x: float64(3.0))(x).tolist() == [0, 0]
    assert tl.jvp(lambda x: float64(3.0), (x,), (x,))[1].item() == 0
    assert tl.vjp(lambda: 3.0)[1](1.0) == ()


def test_vjp_with_aux() -> None:
    value, pull, aux = tl.vjp(lambda x: (x * x, {"seen": x, "n": 3}), float64(2.0), has_aux=True)
    assert (value.item(), pull(float64(1.0))[0].item()) == (4.0, 4.0)
    assert aux["seen"].trace is None
    assert aux["n"] == 3


def test_has_aux_and_argnums() -> None:
    def f(a: tl.Tensor, b: dict[str, tl.Tensor], c: Any, *, scale: float = 1.0) -> Any:
        return scale * tl.sum(a * b["x"]), {"a": a * 2, "c": c}

    a, b = float64([1.0, 2.0]), {"x": float64([3.0, 4.0])}
    (value, aux), gradient = tl.value_and_grad(f, has_aux=True)(a, b, "text", scale=2.0)
    assert value.item() == 22
    assert aux["a"].trace is None
    assert aux["c"] == "text"
    assert gradient.tolist() == [6, 8]
    gradients, aux = tl.grad(f, argnums=(1, 0), has_aux=True)(a, b, None)
    assert gradients[0]["x"].tolist() == [1, 2]
    assert gradients[1].tolist() == [3, 4]
    assert tl.grad(f, argnums=-2, has_aux=True)(a, b, None)[0]["x"].tolist() == [1, 2]
    assert tl.grad(f, argnums=[0], has_aux=True)(a, b, None)[0][0].tolist() == [3, 4]


def test_a_module_that_is_changed_inside_keeps_no_boxes() -> None:
    net = Net(tl.asarray([1.0, 1.0]))

    def loss(net: Net) -> Any:
        net.weight = net.weight * 2
        return tl.sum(net.weight), net

    (_, changed), _ = tl.value_and_grad(loss, has_aux=True)(net)
    assert changed.weight.tolist() == [2, 2]
    assert changed.weight.trace is None
    assert net.weight.tolist() == [1, 1]


# ---- size and memory -----------------------------------------------------------------------------


def test_deep_graphs_need_no_recursion() -> None:
    def deep(x: tl.Tensor) -> tl.Tensor:
        y = x
        for _ in range(3_000):  # Python recurses a thousand times
            y = y + x
        return y

    assert tl.grad(deep)(float64(1.0)).item() == 3_001
    value, pull = tl.vjp(tl.jit(deep), float64(1.0))
    assert pull(value)[0].item() == 3_001**2
    assert tl.grad(tl.checkpoint(deep))(float64(1.0)).item() == 3_001


def test_the_tape_is_freed_with_the_pullback() -> None:
    kept: list[weakref.ref[tl.Tensor]] = []

    def f(x: tl.Tensor) -> tl.Tensor:
        y = tl.exp(x)
        kept.append(weakref.ref(y.value))  # type: ignore[attr-defined]
        return tl.sum(y * y)

    gc.disable()
    try:
        value, pull = tl.vjp(f, float64([1.0]))
        assert kept[0]() is not None
        del value, pull
        assert kept[0]() is None, "kept alive by a cycle"
    finally:
        gc.enable()


def test_stop_gradient_over_pytrees() -> None:
    def f(x: tl.Tensor) -> tl.Tensor:
        held = tl.stop_gradient({"x": [x * x, None, 2.0]})
        return held["x"][0] * x * held["x"][2]

    assert tl.grad(f)(float64(3.0)).item() == 18
    assert tl.jvp(f, (float64(3.0),), (float64(1.0),))[1].item() == 18
    assert tl.grad(tl.grad(f))(float64(3.0)).item() == 0


# ---- what is refused -----------------------------------------------------------------------------

x = tl.arange(3.0)
i = tl.arange(3)


@pytest.mark.parametrize(
    ("action", "error", "message"),
    [
        (lambda: tl.grad(lambda x: x)(x), TypeError, r"grad: .*scalar, got float32\[3\].*tl.mean"),
        (lambda: tl.grad(lambda x: (tl.sum(x), x))(x), TypeError, r"got tuple.*has_aux=True"),
        (lambda: tl.grad(lambda x: tl.sum(i))(x), TypeError, r"scalar, got int64\[\]"),
        (lambda: tl.grad(lambda x: None)(x), TypeError, r"scalar, got NoneType"),
        (
            lambda: tl.grad(lambda x: tl.sum(x), has_aux=True)(x),
            TypeError,
            r"grad: with has_aux=True the function returns \(value, aux\), got Box",
        ),
        (lambda: tl.grad(tl.sum)(i), TypeError, r"grad: argument 0 is int64\[3\].*argnums"),
        (
            lambda: tl.grad(lambda a, p: tl.sum(p["w"][0]), 1)(x, {"w": [x], "n": {"k": i}}),
            TypeError,
            r"grad: argument 1, leaf 'n.k' is int64\[3\]",
        ),
        (lambda: tl.grad(tl.sum, 2)(x), TypeError, r"argnums=2.*called with 1 positional"),
        (lambda: tl.grad(tl.sum, (0, -2))(x), TypeError, "argnums=-2.*called with 1"),
        (lambda: tl.grad(tl.add, (0, -2))(x, x), ValueError, r"names an argument twice"),
        (lambda: tl.grad(tl.sum, "x"), TypeError, r"argnums is an int or .* ints, got 'x'"),
        (lambda: tl.grad(tl.sum, 1.0), TypeError, r"argnums is an int or .* ints, got 1.0"),
        (
            lambda: tl.vjp(lambda x: x, x)[1](tl.ones(2)),
            ValueError,
            r"a cotangent is float32\[2\], but the function's value there is float32\[3\]",
        ),
        (
            lambda: tl.vjp(lambda x: x, x)[1](tl.ones(3, dtype=tl.float64)),
            ValueError,
            r"a cotangent is float64\[3\]",
        ),
        (
            lambda: tl.vjp(lambda x: {"y": x}, x)[1](x),
            ValueError,
            r"vjp: the cotangent does not have .* the function's value: it is a single value, not",
        ),
        (
            lambda: tl.jvp(tl.exp, (x,), (x, x)),
            ValueError,
            r"jvp: the tangents do not .*: it has 2 .* not 1",
        ),
        (
            lambda: tl.jvp(tl.exp, x, x),
            TypeError,
            r"are sequences.*got float32\[3\].*\(x,\), \(v,\)",
        ),
        (lambda: tl.jvp(tl.exp, (x,), 1.0), TypeError, r"are sequences, .* got float; write jvp"),
        (lambda: tl.jvp(3, (x,), (x,)), TypeError, r"jvp: takes a function, .* got 3"),
        (lambda: tl.vjp(x, x), TypeError, r"vjp: takes a function and the point"),
        (lambda: tl.grad(3), TypeError, r"grad: takes a function .* got 3"),
        (lambda: tl.value_and_grad(x), TypeError, r"value_and_grad: takes a function"),
        (
            lambda: tl.jvp(tl.exp, (x,), (tl.ones(2),)),
            ValueError,
            r"jvp: a tangent is float32\[2\], its primal float32\[3\]",
        ),
    ],
)
def test_bad_input_is_named(
    action: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        action()
