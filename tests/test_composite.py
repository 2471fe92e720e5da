"""Composites, custom derivatives and checkpoints."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tensorlite as tl
from tensorlite import tree
from tensorlite.composite import Composite, composite
from tensorlite.core import primitives
from tensorlite.graph import Graph
from tensorlite.halves import differentiate


def float64(value: Any) -> tl.Tensor:
    return tl.asarray(np.asarray(value, np.float64))


def count(graph: Graph, name: str) -> int:
    inner = [v for eqn in graph.equations for v in eqn.params.values() if isinstance(v, Graph)]
    own = sum(eqn.prim.name == name for eqn in graph.equations)
    return own + sum(count(g, name) for g in inner)


# ---- composites ----------------------------------------------------------------------------------


@composite
def _scaled_softmax(x: tl.Tensor, *, scale: float = 1.0) -> tl.Tensor:
    z = tl.exp(x * scale - tl.max(x * scale))
    return z / tl.sum(z)


del primitives[_scaled_softmax.name]  # the walk over the registry is for the project's own


def test_a_composite_inherits_every_rule_from_its_body() -> None:
    f, body = _scaled_softmax, _scaled_softmax.body
    x = float64([0.1, 0.7, -0.3])
    w = float64([1.0, 2.0, 3.0])
    for transform in (
        lambda g: g,
        tl.jit,
        lambda g: tl.grad(lambda x: tl.sum(g(x) * w)),
        lambda g: tl.jit(tl.grad(lambda x: tl.sum(g(x) * w))),
        lambda g: lambda x: tl.jvp(g, (x,), (w,))[1],
        lambda g: lambda x: tl.vmap(g)(tl.stack([x, w])),
        lambda g: lambda x: tl.jit(tl.vmap(tl.grad(lambda x: tl.sum(g(x) * w))))(tl.stack([x, w])),
    ):
        result, expected = transform(f)(x), transform(body)(x)
        np.testing.assert_allclose(result.numpy(), expected.numpy(), rtol=1e-12)
    assert f.name == "scaled_softmax"
    assert f.abstract(x.aval) == x.aval


def test_the_graph_of_a_composite_is_traced_once_for_each_kind_of_call() -> None:
    traces: list[Any] = []
    prim = Composite("counted", lambda x, *, n: (traces.append(n), x * n)[1])
    try:
        x = tl.ones(2)
        for n in (2, 2, True, 2.0, 1, 1.0, 2):
            _, single = prim.graph(x.aval, n=n)
            assert single
        assert traces == [2, True, 2.0, 1, 1.0]
    finally:
        del primitives["counted"]


def test_a_composite_must_be_self_contained() -> None:
    def f(a: tl.Tensor) -> tl.Tensor:
        prim = Composite("closing", lambda x: x * a)
        del primitives["closing"]
        return tl.sum(prim(tl.ones(2)))

    assert tl.grad(f)(2.0).item() == 2  # in eager mode there is nothing to hide behind
    with pytest.raises(TypeError, match=r"closing: the function closes over .*float64\[\].*tl.jit"):
        tl.jit(f)(2.0)


# ---- custom_vjp ----------------------------------------------------------------------------------


def clipped_exp() -> Any:
    @tl.custom_vjp
    def f(x: tl.Tensor) -> tl.Tensor:
        """exp, whose gradient is at most 2."""
        return tl.exp(x)

    f.defvjp(lambda x: (f.f(x), tl.exp(x)), lambda y, ct: (ct * tl.minimum(y, 2.0),))
    return f


@pytest.mark.parametrize(
    "transform",
    [
        lambda f: tl.grad(f),
        lambda f: tl.jit(tl.grad(f)),
        lambda f: tl.grad(tl.jit(f)),
        lambda f: tl.grad(tl.checkpoint(f)),
        lambda f: lambda x: tl.vmap(tl.grad(f))(tl.stack([x, x]))[1],
        lambda f: lambda x: tl.grad(lambda x: tl.sum(tl.vmap(f)(tl.stack([x, x]))))(x) / 2,
        lambda f: lambda x: tl.jvp(f, (x,), (tl.ones_like(x),))[1],
        lambda f: lambda x: tl.jit(tl.vmap(lambda y: tl.jvp(f, (y,), (y * 0 + 1,))[1]))(x[None])[0],
    ],
)
@pytest.mark.parametrize("point", [0.5, 3.0])
def test_the_given_derivative_is_used_everywhere(transform: Any, point: float) -> None:
    f = clipped_exp()
    assert f(float64(point)).item() == pytest.approx(np.exp(point))
    result = transform(f)(float64(point)).item()
    assert result == pytest.approx(min(np.exp(point), 2.0))


def test_second_derivatives_differentiate_the_backward_function() -> None:
    f = clipped_exp()
    assert tl.grad(tl.grad(f))(float64(0.5)).item() == pytest.approx(np.exp(0.5))
    assert tl.grad(tl.grad(f))(float64(3.0)).item() == 0


def test_custom_vjp_over_pytrees_with_static_arguments() -> None:
    def f(mode: str, params: dict[str, Any], x: tl.Tensor) -> Any:
        assert mode == "mode"
        return {"y": params["w"] * x, "n": tl.asarray(3)}

    def forward(mode: str, params: dict[str, Any], x: tl.Tensor) -> Any:
        return f(mode, params, x), (params, x)

    def backward(mode: str, residuals: Any, ct: Any) -> Any:
        params, x = residuals
        assert mode == "mode"
        unused = tl.zeros_like(params["unused"])
        return {"w": 10 * ct["y"] * x, "unused": unused}, ct["y"] * params["w"]

    g = tl.custom_vjp(f, nondiff_argnums=(0,))
    g.defvjp(forward, backward)
    assert g.__name__ == "f"
    params = {"w": float64(2.0), "unused": float64([1.0])}

    def loss(params: Any, x: tl.Tensor) -> tl.Tensor:
        return g("mode", params, x)["y"]

    for function in (tl.grad(loss, (0, 1)), tl.jit(tl.grad(loss, (0, 1)))):
        of_params, of_x = function(params, float64(5.0))
        assert (of_params["w"].item(), of_x.item()) == (50, 2)
        assert of_params["unused"].tolist() == [0]


def cubed(x: Any, weight: Any = 2.0, *, mode: str = "sum") -> Any:
    return weight * x**3


@pytest.mark.parametrize("wrap", [lambda f: f, tl.jit])
def test_arguments_of_custom_vjp_by_keyword_and_by_default(wrap: Any) -> None:
    f = tl.custom_vjp(cubed)
    f.defvjp(
        lambda x, weight: (cubed(x, weight), (x, weight)),
        # Not the true derivative, to tell whose it is.
        lambda saved, ct: (ct * 10 * saved[1], ct * saved[0]),
    )
    x, weight = float64(2.0), float64(3.0)
    for call in (
        lambda x, weight: f(x, weight),
        lambda x, weight: f(x, weight=weight),
        lambda x, weight: f(weight=weight, x=x),
    ):
        assert wrap(call)(x, weight).item() == 24
        assert [g.item() for g in wrap(tl.grad(call, argnums=(0, 1)))(x, weight)] == [30, 2]
    assert wrap(f)(x).item() == 16 and wrap(tl.grad(f))(x).item() == 20
    assert wrap(tl.vmap(lambda x: f(x=x)))(tl.stack([x, x])).tolist() == [16, 16]


def test_static_arguments_of_custom_vjp_by_keyword() -> None:
    f = tl.custom_vjp(lambda x, mode="up": x * len(mode), nondiff_argnums=-1)
    f.defvjp(lambda x, mode: (x, ()), lambda mode, saved, ct: (ct * len(mode) * 10,))
    assert tl.grad(f)(1.0).item() == 20
    assert tl.grad(lambda x: f(x, mode="long"))(1.0).item() == 40
    assert tl.grad(lambda x: f(mode="a", x=x))(1.0).item() == 10


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f: f(1.0, mode="mean"), TypeError, "by position, so mode cannot be keyword-only"),
        (lambda f: f(), TypeError, "cubed: missing a required argument: 'x'"),
        (lambda f: f(1.0, y=2.0), TypeError, "cubed: got an unexpected keyword argument 'y'"),
        (lambda f: f("x"), TypeError, "argument 0 of cubed is 'x', .* nondiff_argnums"),
        (
            lambda f: tl.grad(f)({"a": 1.0}),
            ValueError,
            "backward function of cubed .* unlike its argument: it is a single value, not a dict",
        ),
        (lambda f: tl.custom_vjp(3), TypeError, "custom_vjp: takes a function"),
        (lambda f: tl.custom_vjp(cubed, "weight"), TypeError, "nondiff_argnums is an int"),
        (lambda f: tl.custom_vjp(cubed, 2), ValueError, "position 2, but .* has 2 positional"),
        (lambda f: tl.checkpoint(3), TypeError, "checkpoint: takes a function"),
        (lambda f: tl.jacrev(3), TypeError, "jacrev: takes a function"),
        (lambda f: tl.jacfwd(3), TypeError, "jacfwd: takes a function"),
        (lambda f: tl.hessian(3), TypeError, "hessian: takes a function"),
    ],
)
def test_mistakes_around_custom_vjp_are_named(call: Any, error: Any, message: str) -> None:
    f = tl.custom_vjp(cubed)
    f.defvjp(lambda x, weight: (tree.leaves(x)[0], ()), lambda saved, ct: (ct, ct))
    with pytest.raises(error, match=message):
        call(f)


def test_none_is_a_zero_cotangent_and_no_arguments_are_fine() -> None:
    f = tl.custom_vjp(lambda x, y: x["a"] * y)
    f.defvjp(lambda x, y: (x["a"] * y, y), lambda y, ct: (None, ct * 7))
    gradient = tl.grad(lambda x, y: f(x, y), (0, 1))({"a": float64(2.0)}, float64(3.0))
    assert (gradient[0]["a"].item(), gradient[1].item()) == (0, 7)
    g = tl.custom_vjp(lambda: tl.ones(2))
    g.defvjp(lambda: (tl.ones(2), None), lambda r, ct: ())
    assert g().tolist() == tl.jit(lambda: g())().tolist() == [1, 1]


def test_the_gradient_of_an_unmapped_argument_is_summed() -> None:
    f = tl.custom_vjp(lambda w, x: w * x)
    f.defvjp(lambda w, x: (w * x, (w, x)), lambda r, ct: (ct * r[1], ct * r[0]))

    def loss(w: tl.Tensor, xs: tl.Tensor) -> tl.Tensor:
        return tl.sum(tl.vmap(f, (None, 0))(w, xs))

    assert tl.grad(loss)(float64(2.0), float64([1.0, 2.0, 3.0])).item() == 6
    assert tl.jit(tl.grad(loss, 1))(float64(2.0), float64([1.0, 2.0])).tolist() == [2, 2]


def test_a_function_may_be_called_like_a_primitive() -> None:
    @tl.custom_vjp
    def exp(x: tl.Tensor) -> tl.Tensor:
        return tl.exp(x)

    exp.defvjp(lambda x: (tl.exp(x), None), lambda _, ct: (ct * 3,))
    assert tl.grad(exp)(float64(1.0)).item() == 3
    assert primitives["exp"] is tl.exp.prim
    with pytest.raises(ValueError, match="there is already a primitive named 'exp'"):
        Composite("exp", tl.exp)


def broken(forward: Any, backward: Any) -> Callable[[], Any]:
    def run() -> Any:
        f = tl.custom_vjp(scale_it)
        f.defvjp(forward, backward)
        return tl.grad(lambda x: tl.sum(f(x)))(tl.ones(3))

    return run


def scale_it(x: tl.Tensor) -> tl.Tensor:
    return x * 2


@pytest.mark.parametrize(
    ("action", "error", "message"),
    [
        (
            lambda: tl.custom_vjp(scale_it)(tl.ones(2)),
            TypeError,
            r"custom_vjp: scale_it has no derivative yet; call scale_it.defvjp",
        ),
        (
            broken(lambda x: x, lambda r, ct: (ct,)),
            TypeError,
            r"forward function of scale_it returns \(value, residuals\), got Tensor",
        ),
        (
            broken(lambda x: (x, None), lambda r, ct: ct),
            TypeError,
            r"backward function of scale_it returns a tuple .* 1 arguments, got Tensor",
        ),
        (
            broken(lambda x: (x, None), lambda r, ct: (ct, ct)),
            TypeError,
            r"of its 1 arguments, got tuple of 2",
        ),
        (
            broken(lambda x: (x, None), lambda r, ct: (ct[:2],)),
            ValueError,
            r"scale_it gave a cotangent of float32\[2\] for an argument of float32\[3\]",
        ),
    ],
)
def test_bad_rules_are_named(
    action: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        action()


@pytest.mark.parametrize(
    ("transform", "name"),
    [
        (lambda f: tl.grad(f, (0, 1)), "tl.grad"),
        (lambda f: tl.jit(f), "tl.jit of outer"),
        (lambda f: lambda a, x: tl.vmap(f, (0, None))(a[None], x), "tl.vmap"),
    ],
)
def test_closing_over_a_traced_value_is_refused(transform: Any, name: str) -> None:
    def outer(a: tl.Tensor, x: tl.Tensor) -> tl.Tensor:
        def closing(x: tl.Tensor) -> tl.Tensor:
            return a * x

        f = tl.custom_vjp(closing)
        f.defvjp(lambda x: (a * x, a), lambda a, ct: (a * ct,))
        return tl.sum(f(x * a))

    with pytest.raises(TypeError, match=rf"closing: the function closes over .*{name}.*argument"):
        transform(outer)(tl.ones(()), tl.ones(2))


# ---- checkpoint ----------------------------------------------------------------------------------


def block(x: tl.Tensor, w: tl.Tensor) -> tl.Tensor:
    return tl.tanh(tl.matmul(tl.exp(tl.matmul(x, w)), w))


def test_checkpoint_runs_its_function_again_and_keeps_no_residuals() -> None:
    x, w = tl.ones((2, 3)), tl.ones((3, 3))
    plain = differentiate(tl.make_graph(block)(x, w), (True, True), x.device)
    saved = differentiate(tl.make_graph(tl.checkpoint(block))(x, w), (True, True), x.device)
    assert (count(plain.forward, "exp"), count(plain.backward, "exp")) == (1, 0)
    assert (count(saved.forward, "exp"), count(saved.backward, "exp")) == (1, 1)
    assert count(saved.backward, "matmul") == count(plain.backward, "matmul") + 2
    residuals = saved.forward.outputs[1:]
    assert set(residuals) <= set(saved.forward.inputs), "only arguments are kept"
    assert not set(plain.forward.outputs[1:]) <= set(plain.forward.inputs)


def test_checkpoint_keeps_only_arguments_in_eager_mode() -> None:
    made: list[weakref.ref[Any]] = []
    exp = tl.exp.prim.numpy_rule

    def spy(x: Any) -> Any:
        result = np.array(exp(x))
        made.append(weakref.ref(result))
        return result

    tl.exp.prim.numpy_rule = spy
    gc.disable()
    try:
        x = float64([1.0, 2.0])
        value, pull = tl.vjp(tl.checkpoint(lambda x: tl.exp(x) * tl.exp(x)), x)
        assert [ref() for ref in made] == [None, None]
        gradient = pull(tl.ones_like(value))[0]
        assert len(made) == 4
    finally:
        tl.exp.prim.numpy_rule = exp
        gc.enable()
    np.testing.assert_allclose(gradient.numpy(), 2 * np.exp([2.0, 4.0]))


@pytest.mark.parametrize("order", [1, 2])
def test_checkpoint_changes_nodifferentiate(order: int) -> None:
    x, w = float64(np.full((2, 3), 0.1)), float64(np.eye(3) * 0.3)

    def chain(wrap: Any) -> Any:
        def f(w: tl.Tensor) -> tl.Tensor:
            y = x
            for _ in range(3):
                y = wrap(block)(y, w)
            return tl.sum(y)

        gradient = tl.grad(f)
        return f if order == 1 else lambda w: tl.sum(gradient(w) ** 2)

    expected = tl.grad(chain(lambda f: f))(w).numpy()
    for wrap in (tl.checkpoint, lambda f: tl.checkpoint(tl.checkpoint(f))):
        for g in (tl.grad(chain(wrap)), tl.jit(tl.grad(chain(wrap))), tl.grad(tl.jit(chain(wrap)))):
            np.testing.assert_allclose(g(w).numpy(), expected, rtol=1e-10)


def test_checkpoint_takes_flags_keywords_and_pytrees() -> None:
    @tl.checkpoint
    def f(params: dict[str, tl.Tensor], x: Any, mode: str, *, training: bool, scale: float) -> Any:
        if training and mode == "double":
            return {"y": params["w"] * x * scale, "none": None}, 3
        return {"y": x, "none": None}, 4

    params = {"w": tl.asarray(2.0, dtype=tl.float16)}
    out, number = f(params, np.float32(3.0), "double", training=True, scale=2.0)
    assert (out["y"].item(), out["none"], number.item()) == (12, None, 3)
    assert f(params, tl.ones(()), "", training=True, scale=1.0)[1].item() == 4

    def loss(params: Any) -> tl.Tensor:
        return f(params, tl.ones(()), "double", training=True, scale=5.0)[0]["y"]

    assert tree.map(lambda g: g.item(), tl.grad(loss)(params)) == {"w": 5}
    assert tl.checkpoint(lambda: tl.ones(2))().tolist() == [1, 1]


def test_checkpoint_needs_no_values() -> None:
    with pytest.raises(tl.TracerError, match=r"while tl.checkpoint of <lambda> traces"):
        tl.checkpoint(lambda x: x if x > 0 else -x)(tl.ones(()))


# ---- policies ------------------------------------------------------------------------------------


def named_block(x: tl.Tensor, w: tl.Tensor) -> tl.Tensor:
    h = tl.checkpoint_name(tl.exp(tl.matmul(x, w)), "hidden")
    return tl.tanh(tl.matmul(tl.sin(h), w))


def saved_by(policy: Any) -> tuple[list[tuple[int, ...]], Graph, Graph]:
    """The shapes that the policy keeps besides the arguments, and the halves of the derivative."""
    x, w = tl.ones((5, 3)), tl.ones((3, 3))
    graph = tl.make_graph(tl.checkpoint(named_block, policy=policy) if policy else named_block)(
        x, w
    )
    forward, backward = differentiate(graph, (True, True), x.device)
    kept = [v for v in forward.outputs[1:] if v not in forward.inputs]
    return [v.aval.shape for v in kept], forward, backward


def test_save_nothing_is_what_a_checkpoint_does() -> None:
    kept, _, backward = saved_by(tl.checkpoint_policies.save_nothing)
    assert kept == []
    assert (count(backward, "exp"), count(backward, "tanh")) == (1, 1)
    assert str(backward) == str(saved_by_default())


def saved_by_default() -> Graph:
    x, w = tl.ones((5, 3)), tl.ones((3, 3))
    graph = tl.make_graph(tl.checkpoint(named_block))(x, w)
    return differentiate(graph, (True, True), x.device).backward


def test_save_everything_runs_nothing_again() -> None:
    plain, _, plain_backward = saved_by(None)
    kept, _, backward = saved_by(tl.checkpoint_policies.save_everything)
    assert sum(np.prod(s) for s in kept) <= sum(np.prod(s) for s in plain)
    for name in ("matmul", "exp", "sin", "tanh"):
        assert count(backward, name) == count(plain_backward, name), name


def test_save_names_keeps_those_and_runs_the_rest_again() -> None:
    kept, forward, backward = saved_by(tl.checkpoint_policies.save_names("hidden"))
    assert kept == [(5, 3)], "one value, though exp's derivative and sin both read it"
    assert count(forward, "exp") == 1
    assert count(backward, "exp") == 0, "the named value is there, and so is what it names"
    assert (count(backward, "sin"), count(backward, "tanh")) == (1, 1)
    _, _, again = saved_by(None)
    assert count(backward, "matmul") == count(again, "matmul") + 1, "the second product only"
    kept, _, backward = saved_by(tl.checkpoint_policies.save_names("other", "names"))
    assert kept == []
    assert count(backward, "exp") == 1


def test_save_matmuls_keeps_products_and_convolutions() -> None:
    kept, _, backward = saved_by(tl.checkpoint_policies.save_matmuls)
    _, _, plain = saved_by(None)
    assert kept == [(5, 3), (5, 3)]
    assert count(backward, "matmul") == count(plain, "matmul")
    assert (count(backward, "exp"), count(backward, "tanh")) == (1, 1)
    x, w = tl.ones((1, 4, 4, 2)), tl.ones((3, 3, 2, 2))
    f = tl.checkpoint(
        lambda x, w: tl.exp(tl.nn.conv(x, w)), policy=tl.checkpoint_policies.save_matmuls
    )
    halves = differentiate(tl.make_graph(f)(x, w), (True, True), x.device)
    assert count(halves.backward, "conv") == 0
    assert count(halves.backward, "exp") == 1


def only_exp(eqn: Any) -> bool:
    return eqn.prim.name == "exp"


POLICIES = [
    tl.checkpoint_policies.save_nothing,
    tl.checkpoint_policies.save_everything,
    tl.checkpoint_policies.save_matmuls,
    tl.checkpoint_policies.save_names("hidden"),
    only_exp,
]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: getattr(p, "__name__", str(p)))
def test_no_policy_changes_a_derivative(policy: Any) -> None:
    x, w = float64(np.linspace(-1, 1, 6).reshape(2, 3)), float64(np.eye(3) * 0.3 + 0.1)

    def total(f: Any) -> Any:
        return lambda w: tl.sum(f(f(x, w), w) * tl.sum(f(x, w)))

    f = tl.checkpoint(policy=policy)(named_block)
    plain, saving = total(named_block), total(f)
    first = tl.grad(plain)(w).numpy()
    second = tl.grad(lambda w: tl.sum(tl.grad(plain)(w) ** 2))(w).numpy()
    batch = tl.stack([w, w * 2])
    mapped = tl.vmap(tl.grad(plain))(batch).numpy()
    for gradient in (tl.grad(saving), tl.jit(tl.grad(saving)), tl.grad(tl.jit(saving))):
        np.testing.assert_allclose(gradient(w).numpy(), first, rtol=1e-10)
    for wrap in (lambda g: g, tl.jit):
        again = wrap(tl.grad(lambda w: tl.sum(tl.grad(saving)(w) ** 2)))(w)
        np.testing.assert_allclose(again.numpy(), second, rtol=1e-10)
        each = wrap(tl.vmap(tl.grad(saving)))(batch)
        np.testing.assert_allclose(each.numpy(), mapped, rtol=1e-10)
    both = tl.grad(lambda b: tl.sum(tl.vmap(saving)(b)))(batch)
    np.testing.assert_allclose(both.numpy(), mapped, rtol=1e-10)
    tangent = tl.jvp(saving, (w,), (w,))[1].numpy()
    np.testing.assert_allclose(tangent, tl.jvp(plain, (w,), (w,))[1].numpy(), rtol=1e-10)


def test_a_checkpoint_survives_vmap() -> None:
    f = tl.checkpoint(named_block, policy=tl.checkpoint_policies.save_names("hidden"))
    x, w = tl.ones((4, 5, 3)), tl.ones((3, 3))
    graph = tl.make_graph(tl.vmap(f, (0, None)))(x, w)
    assert count(graph, "checkpoint") == 1
    forward, backward = differentiate(graph, (True, True), x.device)
    kept = [v.aval.shape for v in forward.outputs[1:] if v not in forward.inputs]
    assert kept == [(4, 5, 3)]
    assert count(backward, "exp") == 0


def test_results_that_are_named_arguments_or_constants_need_no_saving() -> None:
    policy = tl.checkpoint_policies.save_names("a")

    @tl.checkpoint(policy=policy)
    def f(x: tl.Tensor) -> Any:
        once = tl.checkpoint_name(x, "a")
        return tl.checkpoint_name(once, "a") * 2, tl.checkpoint_name(tl.ones(2), "a")

    assert tl.grad(lambda x: tl.sum(f(x)[0]) + tl.sum(f(x)[1]))(tl.ones(2)).tolist() == [2, 2]


def test_operations_with_several_results_and_rules_of_their_own_can_be_saved() -> None:
    x = float64(np.random.default_rng(0).normal(size=(1, 4, 4, 2)))

    def f(x: tl.Tensor) -> tl.Tensor:
        y = tl.nn.max_pool(tl.nn.relu(x), 2)
        return tl.sum(tl.jit(lambda y: tl.exp(y) * y)(tl.nn.softmax(y)))

    saving = tl.checkpoint(f, policy=tl.checkpoint_policies.save_everything)
    expected = tl.grad(f)(x).numpy()
    for gradient in (tl.grad(saving), tl.jit(tl.grad(saving))):
        np.testing.assert_allclose(gradient(x).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda: tl.checkpoint(block, policy=["a"]), r"checkpoint: policy is a hashable function"),
        (
            lambda: tl.checkpoint(block, policy=tl.checkpoint_policies.save_names),
            r"save_names is called with names",
        ),
        (lambda: tl.checkpoint_policies.save_names(), r"save_names: takes one name or more"),
        (lambda: tl.checkpoint_policies.save_names(3), r"all strings, got \(3,\)"),
        (lambda: tl.checkpoint_name(tl.ones(2), 3), r"checkpoint_name: the name is a string"),
    ],
)
def test_bad_policies_are_refused(action: Callable[[], Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        action()
