"""cond and while_loop: Python on concrete values, one primitive where the predicate is traced."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tensorlite as tl

X = tl.asarray(1.3, dtype=tl.float64)
SCALE = tl.asarray(0.7, dtype=tl.float64)


def choose(p: Any, x: tl.Tensor) -> tl.Tensor:
    return tl.cond(p, lambda x: tl.sin(x) * SCALE, lambda x: x * x, x)


def value(p: bool) -> float:
    return float(np.sin(1.3) * 0.7 if p else 1.3 * 1.3)


def slope(p: bool) -> float:
    return float(np.cos(1.3) * 0.7 if p else 2 * 1.3)


def curvature(p: bool) -> float:
    return float(-np.sin(1.3) * 0.7 if p else 2.0)


@pytest.mark.parametrize("p", [True, False])
def test_cond_under_every_transform(p: bool) -> None:
    predicate = tl.asarray(p)
    gradient = tl.grad(choose, 1)
    for function, expected in (
        (choose, value),
        (gradient, slope),
        (tl.grad(gradient, 1), curvature),
        (lambda p, x: tl.jvp(lambda x: choose(p, x), (x,), (X * 0 + 1,))[1], slope),
    ):
        for run in (function, tl.jit(function), tl.jit(tl.jit(function))):
            assert float(run(predicate, X)) == pytest.approx(expected(p), rel=1e-12)
    assert float(tl.grad(tl.jit(choose), 1)(predicate, X)) == pytest.approx(slope(p), rel=1e-12)


def test_cond_over_a_batch_of_predicates() -> None:
    p = [True, False, True]
    for run in (tl.vmap(choose), tl.jit(tl.vmap(choose)), tl.vmap(tl.jit(choose))):
        result = run(tl.asarray(p), tl.ones(3, dtype=tl.float64) * X)
        np.testing.assert_allclose(result.numpy(), [value(q) for q in p])
    slopes = tl.jit(tl.vmap(tl.grad(choose, 1)))(tl.asarray(p), tl.ones(3, dtype=tl.float64) * X)
    np.testing.assert_allclose(slopes.numpy(), [slope(q) for q in p])


def test_cond_with_one_predicate_for_a_batch_runs_one_branch() -> None:
    batched = tl.vmap(choose, (None, 0))
    xs = tl.ones(3, dtype=tl.float64) * X
    graph = tl.make_graph(batched)(tl.asarray(True), xs)
    assert [eqn.prim.name for eqn in graph.equations] == ["cond"]
    np.testing.assert_allclose(tl.jit(batched)(tl.asarray(False), xs).numpy(), [value(False)] * 3)


def test_cond_on_a_concrete_predicate_runs_one_branch_only() -> None:
    def fails(x: tl.Tensor) -> tl.Tensor:
        raise AssertionError("the other branch")

    assert float(tl.cond(True, lambda x: x, fails, X)) == pytest.approx(1.3)
    assert float(tl.grad(lambda x: tl.cond(x > 0, lambda x: x * 3, fails, x))(X)) == 3


def test_branches_may_close_over_traced_values() -> None:
    def f(p: tl.Tensor, a: tl.Tensor, b: tl.Tensor) -> tl.Tensor:
        return tl.cond(p, lambda: a * b, lambda: a - b)

    for p, expected in ((True, (3.0, 2.0)), (False, (1.0, -1.0))):
        got = tl.jit(tl.grad(f, (1, 2)))(tl.asarray(p), 2.0, 3.0)
        assert tuple(map(float, got)) == expected


def test_nan_in_the_branch_not_taken_has_no_gradient() -> None:
    f = tl.jit(lambda x: tl.cond(x > 0, tl.sqrt, lambda x: x * 0, x))
    assert float(tl.grad(f)(tl.asarray(-1.0))) == 0.0


def grow(x: Any) -> Any:
    return tl.while_loop(lambda s: s[0] < 100, lambda s: (s[0] * 1.5, s[1] + 1), (x, 0))


def test_while_loop_eager_jit_and_vmap() -> None:
    starts = [2.0, 50.0, 1000.0]
    expected = []
    for x in starts:
        count = 0
        while x < 100:
            x, count = x * 1.5, count + 1
        expected.append((np.float32(x), count))
    for run in (grow, tl.jit(grow)):
        for start, (x, count) in zip(starts, expected, strict=True):
            got, steps = run(start)
            assert float(got) == pytest.approx(float(x), rel=1e-6) and int(steps) == count
    for run in (tl.vmap(grow), tl.jit(tl.vmap(grow)), tl.vmap(tl.jit(grow))):
        got, steps = run(tl.asarray(starts))
        np.testing.assert_allclose(got.numpy(), [x for x, _ in expected], rtol=1e-6)
        assert steps.tolist() == [count for _, count in expected]


def test_while_loop_closes_over_a_batch() -> None:
    def steps_to(limit: tl.Tensor) -> tl.Tensor:
        return tl.while_loop(lambda n: n * n < limit, lambda n: n + 1, 0)

    assert tl.vmap(steps_to)(tl.asarray([0, 10, 17])).tolist() == [0, 4, 5]


def test_while_loop_has_a_gradient_on_concrete_values_only() -> None:
    assert float(tl.grad(lambda x: grow(x)[0])(2.0)) == pytest.approx(1.5**10)
    with pytest.raises(TypeError, match=r"use tl\.scan"):
        tl.jit(tl.grad(lambda x: grow(x)[0]))(2.0)


def going(state: dict[str, tl.Tensor]) -> tl.Tensor:
    return state["i"] < 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tl.cond(1, lambda: 1, lambda: 2), "predicate is a boolean scalar, got int64"),
        (lambda: tl.cond(True, 1, 2), r"cond: takes two functions .*\(tl.where .*, got 1"),
        (lambda: tl.while_loop(going, 1, 2), "while_loop: test and step are functions .*, got 1"),
        (
            lambda: tl.while_loop(lambda s: s, lambda s: s, 1.0),
            r"test must return one boolean scalar, got float32\[\]",
        ),
        (lambda: tl.cond(tl.ones(2) > 0, lambda: 1, lambda: 2), r"got bool\[2\]"),
        (
            lambda: tl.jit(lambda p: tl.cond(p, lambda: 1.0, lambda: (1.0, 2.0)))(True),
            "true_function and false_function .* it is a tuple, not a single value",
        ),
        (
            lambda: tl.jit(lambda p: tl.cond(p, lambda: 1.0, lambda: 1))(True),
            r"result 0 of true_function is float32\[\], that of false_function is int64\[\]",
        ),
        (
            lambda: tl.jit(lambda x: tl.while_loop(lambda s: s, lambda s: s, x))(1.0),
            r"test must return one boolean scalar, got float32\[\]",
        ),
        (
            lambda: tl.jit(lambda x: tl.while_loop(lambda s: s > 0, lambda s: (s, s), x))(1.0),
            "step must return a state of the structure .* it is a tuple, not a single value",
        ),
        (
            lambda: tl.while_loop(lambda s: tl.all(s[0] > 0), lambda s: s[0], (X,)),
            "step must return a state of the structure .* it is a single value, not a tuple",
        ),
        *[
            (
                lambda run=run, step=step: run(lambda s: tl.while_loop(going, step, s))(
                    {"i": 0, "x": X}
                ),
                message,
            )
            for run in (tl.jit, lambda f: f)
            for step, message in (
                (lambda s: {"i": s["i"] + 1}, "it lacks 'x'"),
                (lambda s: {**s, "i": s["i"] + 1.0}, r"leaf 'i' .* as int64\[\] .* as float32\[\]"),
                (lambda s: {"i": s["i"] + 1, "x": s["x"][None]}, r"leaf 'x' .*\[\] .*\[1\]"),
            )
        ],
    ],
)
def test_messages(call: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        call()
