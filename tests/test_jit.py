"""jit: a trace for every signature and never a stale one; static and donated arguments; errors."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from typing import Any

import cloudpickle
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

import tensorlite as tl
from tensorlite import tree
from tensorlite.graph import Graph
from tensorlite.halves import differentiate, split

Pair = namedtuple("Pair", ["left", "right"])


def numbers(value: Any) -> list[Any]:
    return [tl.asarray(leaf).tolist() for leaf in tree.leaves(value)]


def avals(value: Any) -> list[Any]:
    return [tl.asarray(leaf).aval for leaf in tree.leaves(value)]


# ---- signatures ----------------------------------------------------------------------------------

DTYPES = [tl.float16, tl.bfloat16, tl.float32, tl.int8, tl.int64, tl.bool]
arrays = st.builds(
    lambda shape, dtype, fill: np.full(shape, fill, dtype),
    st.sampled_from([(), (2,), (1, 2)]),
    st.sampled_from(DTYPES),
    st.sampled_from([0, 1]),
)
scalars = st.sampled_from([True, False, 0, 1, 3, 0.0, 0.5, 1.0])
operands = arrays | arrays.map(tl.asarray) | scalars
arguments = st.recursive(
    operands,
    lambda inner: (
        st.lists(inner, min_size=1, max_size=2)
        | st.tuples(inner, st.none())
        | st.fixed_dictionaries({"b": inner}, optional={"a": inner})
        | st.builds(Pair, inner, inner)
    ),
    max_leaves=4,
)
statics = st.sampled_from([0, 1, True, False, 0.0, -0.0, 1.0, (1,), (1.0,), (True,), "a", None])


def kind(value: Any) -> Any:
    return [kind(v) for v in value] if isinstance(value, tuple) else repr(value)


def of_numpy(leaf: Any) -> Any:
    return tl.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf


def mixed(argument: Any, other: Any, mode: Any) -> Any:
    """Depends on everything that a signature holds: structure, shapes, dtypes, the kinds of
    scalars, the static value."""
    argument, other = tree.map(of_numpy, (argument, other))
    leaves = [leaf * 2 + other for leaf in tree.leaves(argument)]
    described = sum(ord(c) for c in f"{tree.structure(argument)} {kind(mode)}")
    return leaves, {"sum": sum(tl.sum(leaf) for leaf in leaves), "described": described}


@settings(max_examples=60)
@given(st.lists(st.tuples(arguments, operands, statics), min_size=1, max_size=6))
def test_a_sequence_of_calls_never_gets_a_stale_result(calls: list[Any]) -> None:
    f = tl.jit(mixed, static_argnums=2)
    for argument, other, mode in [*calls, *calls]:
        before = f.cache_info()
        result, expected = f(argument, other, mode), mixed(argument, other, mode)
        assert tree.structure(result) == tree.structure(expected)
        assert numbers(result) == numbers(expected)
        assert avals(result) == avals(expected)
        after = f.cache_info()
        assert after.traces + after.hits == before.traces + before.hits + 1
    traces = f.cache_info().traces
    for argument, other, mode in calls:
        f(argument, other, mode)
    assert f.cache_info().traces == traces, "retraced for a signature that it knew"


x = tl.arange(3.0)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (x, x[:2]),
        (x, tl.zeros((3, 1))),
        (x, x.astype(tl.float64)),
        (1, 1.0),
        (1, True),
        (1.0, tl.asarray(1.0)),
        (1.0, np.float32(1.0)),
        ([x], (x,)),
        ({"a": x}, {"b": x}),
        ({"a": x}, {"a": x, "b": None}),
        ((x, None), (None, x)),
    ],
)
def test_a_new_signature_is_traced_anew(first: Any, second: Any) -> None:
    seen: list[Any] = []
    f = tl.jit(lambda t: (seen.append(t), tree.leaves(t)[0])[1])
    for argument in (first, second, first, second):
        f(argument)
    assert len(seen) == 2
    assert f.cache_info() == (2, 2)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (1.0, np.float64(2.0)),  # NumPy's float64 is a Python float
        (x, x + 1),
        (x, np.zeros(3, np.float32)),
        (1, 2),
        (0.5, 7.0),
        ({"a": x, "b": 1}, {"b": 2, "a": x}),
    ],
)
def test_the_same_signature_is_not(first: Any, second: Any) -> None:
    f = tl.jit(lambda t: t)
    f(first)
    assert numbers(f(second)) == numbers(second)
    assert f.cache_info() == (1, 1)
    f.clear_cache()
    f(first)
    assert f.cache_info().traces == 2


@pytest.mark.parametrize(
    "values", [(1, 1.0, True), (0.0, -0.0), ((1,), (1.0,), (True,)), (((0,),), ((False,),))]
)
def test_static_values_that_are_equal_but_differ_have_their_own_traces(values: Any) -> None:
    f = tl.jit(lambda x, s: (f.seen.append(s), x)[1], static_argnums=-1)
    f.seen = []
    for value in (*values, *values):
        f(x, value)
    assert list(map(repr, f.seen)) == list(map(repr, values))


def test_the_device_is_part_of_the_signature() -> None:
    f = tl.jit(lambda: tl.zeros(2))
    assert f().device == "cpu"
    f()
    assert f.cache_info() == (1, 1)


# ---- Python scalars ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [tl.float16, tl.bfloat16, tl.float32, tl.int8], ids=str)
@pytest.mark.parametrize("scalar", [2, 0.5, True])
@pytest.mark.parametrize(
    "f",
    [
        lambda x, s: x * s,
        lambda x, s: s - x,
        lambda x, s: x * (s * 2 + 1),
        lambda x, s: x * (1 / (s + 1)),
        lambda x, s: x * -s + abs(s),
        lambda x, s: x * (s**2) // 3,
        lambda x, s: tl.maximum(x, s),
        lambda x, s: tl.where(x > s, x, s),
        lambda x, s: tl.sqrt(s) * x,
        lambda x, s: tl.add(s, 1.0) * x,
        lambda x, s: tl.vmap(lambda y: y * s)(x),
        lambda x, s: tl.vmap(lambda y, s: y * s, (0, None))(x, s),
        lambda x, s: tl.checkpoint(lambda y, s: y * s)(x, s),
        lambda x, s: tl.jit(lambda y, s: y * (s + s))(x, s),
        lambda x, s: x.at[0].set(x[1] * s),
    ],
)
def test_python_scalars_count_as_in_eager_mode(f: Any, scalar: Any, dtype: Any) -> None:
    x = tl.asarray([1, 2], dtype=dtype)
    try:
        expected = f(x, scalar)
    except TypeError:
        with pytest.raises(TypeError):
            tl.jit(f)(x, scalar)
        return
    result = tl.jit(f)(x, scalar)
    assert result.aval == expected.aval
    np.testing.assert_allclose(
        result.numpy().astype(np.float64), expected.numpy().astype(np.float64), rtol=0.01
    )


# ---- what functions may look like ----------------------------------------------------------------


def test_no_arguments_constants_and_outputs_that_are_inputs() -> None:
    assert tl.jit(lambda: {"a": tl.ones(2), "b": None})()["a"].tolist() == [1, 1]
    assert tl.jit(lambda: ())() == ()
    y, z = tl.jit(lambda x: (x, x))(x)
    assert y.tolist() == z.tolist() == [0, 1, 2]
    constant = tl.asarray([1.0, 2.0, 3.0])
    assert tl.jit(lambda x: (constant, x + constant))(x)[1].tolist() == [1, 3, 5]


def test_numbers_and_none_may_be_returned() -> None:
    result = tl.jit(lambda x: {"loss": 1.5, "n": 2, "ok": True, "none": None, "np": np.ones(1)})(x)
    assert [result[k].dtype for k in ("loss", "n", "ok", "np")] == [
        tl.float32,
        tl.int64,
        tl.bool,
        tl.float64,
    ]
    assert result["none"] is None


def test_keyword_arguments() -> None:
    f = tl.jit(lambda x, *, scale, shift=0.0: x * scale + shift)
    assert f(x, scale=2.0).tolist() == [0, 2, 4]
    assert f(x, shift=1.0, scale=2.0).tolist() == [1, 3, 5]
    assert f(x, scale=3.0, shift=1.0).tolist() == [1, 4, 7]
    assert f.cache_info() == (2, 1)


def test_methods_and_decorators() -> None:
    class Scaler(tl.nn.Module):
        def __init__(self) -> None:
            self.scale = tl.asarray(2.0)

        @tl.jit
        def __call__(self, x: tl.Tensor) -> tl.Tensor:
            """Scaled."""
            return self.scale * x

        @tl.jit(static_argnums=1)
        def repeat(self, n: int) -> tl.Tensor:
            return tl.stack([self.scale] * n)

    model = Scaler()
    assert model(x).tolist() == [0, 2, 4]
    assert model.repeat(3).tolist() == [2, 2, 2]
    assert Scaler.__call__.__doc__ == "Scaled."
    gradient = tl.grad(lambda m: tl.sum(m(x)))(model)
    assert gradient.scale.item() == 3.0


def test_nested_jit_becomes_one_graph() -> None:
    inner = tl.jit(lambda x: x * 2)
    outer = tl.jit(lambda x: inner(x) + inner(x + 1))
    assert outer(x).tolist() == [2, 6, 10]
    assert inner.cache_info() == (1, 1)
    assert outer(x).tolist() == [2, 6, 10]
    assert inner.cache_info() == (1, 1)


def test_closures_over_traced_values_are_not_cached() -> None:
    seen: list[float] = []

    def f(a: tl.Tensor) -> tl.Tensor:
        inner = tl.jit(lambda x: a * x)
        first, second = inner(x), inner(x)
        seen.append(inner.cache_info().traces)
        return tl.sum(first + second)

    assert tl.grad(f)(2.0).item() == 6
    assert tl.vmap(f)(tl.asarray([1.0, 2.0])).tolist() == [6, 12]
    assert tl.jit(f)(2.0).item() == 12
    assert seen == [2, 2, 2]
    assert f(tl.asarray(2.0)).item() == 12
    assert seen[-1] == 1


def test_random_keys_and_indices_are_ordinary_arguments() -> None:
    f = tl.jit(lambda key, i: tl.random.normal(key, (4,))[i])
    for seed in range(2):
        key = tl.random.key(seed)
        eager = tl.random.normal(key, (4,))[seed].item()
        assert f(key, tl.asarray(seed)).item() == pytest.approx(eager, rel=1e-6)
    assert f.cache_info() == (1, 1)


def test_a_jitted_function_travels_without_its_traces() -> None:
    f = tl.jit(lambda x, n: x * n, static_argnums=1)
    f(x, 2)
    again = cloudpickle.loads(cloudpickle.dumps(f))
    assert again.cache_info() == (0, 0)
    assert again(x, 2).tolist() == [0, 2, 4]
    assert f.cache_info() == (1, 0)


# ---- donation ------------------------------------------------------------------------------------


def test_donated_arguments_cannot_be_used_again() -> None:
    state, y = {"a": tl.ones(2), "b": [tl.zeros(1)]}, tl.ones(2)
    f = tl.jit(lambda state, y: tree.map(lambda s: s + y[0], state), donate_argnums=0)
    result = f(state, y)
    assert result["a"].tolist() == [2, 2]
    for leaf in tree.leaves(state):
        with pytest.raises(RuntimeError, match="donated"):
            leaf + 1
    assert y.tolist() == [1, 1]
    with pytest.raises(RuntimeError, match="donated"):
        f(state, y)


def test_donation_keeps_what_is_passed_through_and_what_is_traced() -> None:
    f = tl.jit(lambda x: (x, x * 2), donate_argnums=(0,))
    same, double = f(tl.ones(2))
    assert (same + double).tolist() == [3, 3]
    y = tl.ones(2)
    assert tl.grad(lambda y: tl.sum(f(y)[1]) + tl.sum(y))(y).tolist() == [3, 3]
    assert tl.jit(lambda y: f(y)[1] + y)(y).tolist() == [3, 3]
    assert y.tolist() == [1, 1]


def test_nothing_is_donated_when_the_call_fails() -> None:
    def fails(x: tl.Tensor) -> tl.Tensor:
        raise RuntimeError("inside")

    y = tl.ones(2)
    with pytest.raises(RuntimeError, match="inside"):
        tl.jit(fails, donate_argnums=0)(y)
    assert y.tolist() == [1, 1]


def test_what_is_donated_by_position_is_donated_by_keyword_too() -> None:
    def f(x: tl.Tensor, *, state: tl.Tensor) -> tl.Tensor:
        return x + state

    for options, donated in (({"donate_argnums": 0}, "x"), ({"donate_argnames": "state"}, "state")):
        given = {"x": tl.ones(2), "state": tl.ones(2)}
        assert tl.jit(f, **options)(**given).tolist() == [2, 2]
        for name, tensor in given.items():
            if name == donated:
                with pytest.raises(RuntimeError, match="donated"):
                    tensor.numpy()
            else:
                assert tensor.tolist() == [1, 1]


# ---- choosing arguments --------------------------------------------------------------------------


def scaled(x: Any, n: int = 2, *, mode: str = "up") -> Any:
    return x * n if mode == "up" else x / n


@pytest.mark.parametrize(
    "options",
    [
        {"static_argnums": 1, "static_argnames": "mode"},
        {"static_argnames": ("n", "mode")},
        {"static_argnums": (-1,), "static_argnames": ["mode"]},
    ],
)
def test_static_arguments_are_static_however_they_are_passed(options: Any) -> None:
    f = tl.jit(scaled, **options)
    assert f(x, 3).tolist() == f(x, n=3).tolist() == f(n=3, x=x).tolist() == [0, 3, 6]
    assert f(x, 4, mode="down").tolist() == [0, 0.25, 0.5]
    assert f(x).tolist() == [0, 2, 4]
    assert f.cache_info().hits == 0
    f(x, 3), f(x, n=3), f(x, 4, mode="down"), f(x)
    assert f.cache_info().hits == 4
    again = cloudpickle.loads(cloudpickle.dumps(f))
    assert again(x, n=5, mode="up").tolist() == [0, 5, 10]


def test_static_arguments_of_methods_and_of_functions_of_anything() -> None:
    class Scale:
        @tl.jit(static_argnames="n")
        def __call__(self, x: tl.Tensor, n: str) -> tl.Tensor:
            return x * len(n)

    tree.register(Scale, lambda obj: ((), None, ()), lambda _, children: Scale())
    assert Scale.__call__(Scale(), x, n="ab").tolist() == [0, 2, 4]
    assert Scale.__call__(Scale(), x, "abc").tolist() == [0, 3, 6]
    f = tl.jit(lambda *args, **kwargs: args[0] * len(kwargs["n"]), static_argnames="n")
    assert f(x, n="abc").tolist() == [0, 3, 6]
    last = tl.jit(lambda *args: args[0] * len(args[-1]), static_argnums=-1)
    assert last(x, "ab").tolist() == last(x, x, "ab").tolist() == [0, 2, 4]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: tl.jit(3),
            TypeError,
            r"jit: takes a function .* got 3 of type int; .*jit\(f\)\(x\)",
        ),
        (lambda: tl.jit(static_argnums=0)(3), TypeError, "jit: takes a function"),
        (lambda: tl.vmap(3), TypeError, "vmap: takes a function"),
        (
            lambda: tl.jit(scaled, static_argnums=2),
            ValueError,
            "static_argnums names position 2, but scaled has 2 positional parameters: x, n",
        ),
        (
            lambda: tl.jit(scaled, donate_argnums=(0, -3)),
            ValueError,
            "donate_argnums names position -3, but scaled has 2",
        ),
        (
            lambda: tl.jit(scaled, static_argnames="m"),
            ValueError,
            "static_argnames names 'm', but scaled has no .* it has x, n, mode",
        ),
        (lambda: tl.jit(scaled, static_argnums="n"), TypeError, "static_argnums is an int .*'n'"),
        (lambda: tl.jit(scaled, static_argnums=1.0), TypeError, "static_argnums is an int .*1.0"),
        (lambda: tl.jit(scaled, static_argnums=True), TypeError, "static_argnums is .*True"),
        (lambda: tl.jit(scaled, static_argnames=1), TypeError, "static_argnames is a string .*1"),
        (
            lambda: tl.jit(scaled, static_argnums=1, donate_argnames="n"),
            ValueError,
            "1, n is both static and donated",
        ),
        (
            lambda: tl.jit(scaled, static_argnames="n")(x, n=[1]),
            TypeError,
            "static argument 'n' of scaled is a list, which is not hashable",
        ),
        (
            lambda: tl.jit(scaled)(x, mode="up"),
            TypeError,
            "argument 'mode' of scaled is a str.*static_argnames",
        ),
    ],
)
def test_mistakes_in_options_are_named(call: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        call()


# ---- the two halves of a derivative --------------------------------------------------------------


def count(graph: Graph, name: str) -> int:
    inner = [v for eqn in graph.equations for v in eqn.params.values() if isinstance(v, Graph)]
    own = sum(eqn.prim.name == name for eqn in graph.equations)
    return own + sum(count(g, name) for g in inner)


def test_no_heavy_work_is_done_twice() -> None:
    w1, w2 = tl.ones((3, 4)), tl.ones((4, 2))

    def model(w1: tl.Tensor, w2: tl.Tensor) -> tl.Tensor:
        return tl.sum(tl.tanh(tl.matmul(tl.exp(tl.matmul(tl.ones((5, 3)), w1)), w2)))

    graph = tl.make_graph(model)(w1, w2)
    halves = differentiate(graph, (True, True), w1.device)
    assert count(halves.forward, "matmul") == 2
    assert count(halves.backward, "matmul") == 3  # two weights, and the hidden layer once
    for name in ("exp", "tanh"):
        assert (count(halves.forward, name), count(halves.backward, name)) == (1, 0)
    n = len(graph.outputs)
    assert halves.forward.out_avals[n:] == halves.backward.in_avals[: -len(graph.outputs)]


def test_a_half_that_nothing_needs_is_left_out() -> None:
    graph = tl.make_graph(lambda a, b: a * tl.exp(b))(x, x)
    halves = differentiate(graph, (True, False), x.device)
    assert len(halves.backward.outputs) == 1
    assert count(halves.backward, "multiply") == 1
    linear = tl.make_graph(lambda a: a + a)(x)
    halves = differentiate(linear, (True,), x.device)
    assert len(halves.forward.outputs) == 1, "a linear function keeps nothing"


def test_splitting_puts_constants_into_both_halves() -> None:
    joint = tl.make_graph(lambda a, ct: (a * tl.ones(3), ct * tl.ones(3)))(x, x)
    halves = split(joint, 1, 1)
    assert len(halves.forward.outputs) == 1
    assert count(halves.backward, "full") >= 1
    assert halves.backward.run(x)[0].tolist() == [0, 1, 2]


# ---- errors --------------------------------------------------------------------------------------


def f_of_config(x: Any, config: Any, n: Any = 0) -> Any:
    return x


@pytest.mark.parametrize(
    ("action", "error", "message"),
    [
        (
            lambda: tl.jit(f_of_config)(x, {"mode": ["fast"]}),
            TypeError,
            r"jit: argument '1.mode.0' of f_of_config is a str.*static_argnums",
        ),
        (
            lambda: tl.jit(f_of_config, static_argnums=0)((1,), {"mode": "fast"}),
            TypeError,
            r"argument '1.mode' of f_of_config is a str",
        ),
        (
            lambda: tl.jit(f_of_config)(x, config="a"),
            TypeError,
            r"argument 'config' of f_of_config",
        ),
        (lambda: tl.jit(f_of_config)(x, object()), TypeError, r"argument '1' .* is a object"),
        (lambda: tl.jit(f_of_config)(x, 1j), TypeError, r"argument '1' .* is a complex"),
        (
            lambda: tl.jit(f_of_config, static_argnums=(1, 2))(x, 1, [1]),
            TypeError,
            r"static argument 2 of f_of_config is a list, which is not hashable.*tuple",
        ),
        (
            lambda: tl.jit(f_of_config, static_argnums=1)(x, x),
            TypeError,
            r"static argument 1 of f_of_config is a Tensor, which is not hashable",
        ),
        (
            lambda: tl.jit(lambda x: {"loss": [x, "text"]})(x),
            TypeError,
            r"tl.jit of <lambda>: the function returned a str at 'loss.1'; it may return tensors",
        ),
        (lambda: tl.jit(lambda x: "text")(x), TypeError, r"the function returned a str; it may"),
        (
            lambda: tl.jit(lambda x: x if x[0] > 0 else -x)(x),
            tl.TracerError,
            r"bool\(\) needs a concrete value.*tl.jit of <lambda>.*bool\[\].*static_argnums",
        ),
        (
            lambda: tl.jit(lambda x, y: x + y)(x, tl.zeros(2)),
            ValueError,
            r"add: shapes \(3,\) and \(2,\) do not broadcast together",
        ),
        (
            lambda: tl.jit(tl.matmul)(tl.zeros((2, 3)), tl.zeros((2, 3))),
            ValueError,
            r"matmul: float32\[2,3\] and float32\[2,3\] do not fit",
        ),
    ],
)
def test_bad_input_is_named(
    action: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        action()


def test_compiled_code_takes_the_nearest_element_for_an_index_out_of_bounds() -> None:
    x, i = tl.arange(3), tl.asarray([3, -4, -1])
    assert tl.jit(lambda x, i: x[i])(x, i).tolist() == [2, 0, 2]
    with pytest.raises(IndexError, match=r"gather: index 3 is out of bounds for axis 0 with size"):
        x[i]
    with pytest.raises(IndexError, match="out of bounds"), tl.debug_nans():
        tl.jit(lambda x, i: x[i])(x, i)


def test_a_failed_trace_is_not_kept() -> None:
    broken = True

    @tl.jit
    def f(x: tl.Tensor) -> tl.Tensor:
        if broken:
            raise ValueError("not yet")
        return x

    with pytest.raises(ValueError, match="not yet"):
        f(x)
    broken = False
    assert f(x).tolist() == [0, 1, 2]


def test_a_python_float_keeps_its_precision_until_it_meets_a_tensor() -> None:
    def f(x: tl.Tensor, rate: Any) -> tl.Tensor:
        return x * (rate * 2 + 1) - abs(-rate)

    x = tl.asarray(np.linspace(0, 1, 5))
    assert x.dtype == tl.float64
    np.testing.assert_array_equal(tl.jit(f)(x, 0.1).numpy(), f(x, 0.1).numpy())
    np.testing.assert_array_equal(tl.jit(tl.jit(f))(x, 0.1).numpy(), f(x, 0.1).numpy())
    for alone in (lambda a: a, tl.exp, lambda a: tl.where(a > 0, a, 1.0), lambda a: tl.add(a, a)):
        assert tl.jit(alone)(0.1).dtype == tl.float32
