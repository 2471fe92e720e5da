"""Simplification: fewer equations, the same results to the last bit."""

from __future__ import annotations

import random
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

import tensorlite as tl
from tensorlite.compiler.inline import inline
from tensorlite.compiler.simplify import FOLDED, simplify
from tensorlite.graph import Graph
from tests.compiler import nests, random_graphs

X = np.array([[0.0, -0.0, 1.5], [np.inf, np.nan, -2.0]], np.float32)
Y = np.arange(6, dtype=np.int32).reshape(2, 3)


def simplified(f: Any, *args: Any) -> Graph:
    """The simplified graph of f, which gives the same bits."""
    graph = inline(tl.make_graph(f)(*args), {})
    result = simplify(graph)
    for value, wanted in zip(
        nests.run_graph(result, *args), nests.run_graph(graph, *args), strict=True
    ):
        assert value.dtype == wanted.dtype
        np.testing.assert_array_equal(value, wanted)
        if wanted.dtype.kind == "f":
            signed = ~np.isnan(wanted)
            np.testing.assert_array_equal(np.signbit(value)[signed], np.signbit(wanted)[signed])
    return result


def names(f: Any, *args: Any) -> list[str]:
    return [eqn.prim.name for eqn in simplified(f, *args).equations]


@pytest.mark.parametrize(
    "f",
    [
        lambda x: x * 1,
        lambda x: x / 1,
        lambda x: x + -0.0,
        lambda x: x - 0.0,
        lambda x: tl.negative(-x),
        lambda x: tl.stop_gradient(x),
        lambda x: x.reshape(3, 2).reshape(6).reshape(2, 3),
        lambda x: x.T.T,
        lambda x: x[None][0].reshape(2, 3),
        lambda x: x.astype(tl.float64).astype(tl.float32),
        lambda x: tl.max(x[None], axis=0),
        lambda x: tl.broadcast_to(x, (1, 2, 3))[0],
        lambda x: x**1,
        lambda x: tl.concat([x, x[:0]], axis=0),
    ],
)
def test_what_changes_nothing_is_left_out(f: Any) -> None:
    assert set(names(f, X)) <= {"slice", "reshape"}  # a slice of everything is none of its business


@pytest.mark.parametrize(
    ("f", "expected"),
    [
        (lambda x: x + 0.0, ["add"]),  # -0.0 + 0.0 is 0.0
        (lambda x: x - -0.0, ["subtract"]),
        (lambda x: x * 0, ["multiply"]),  # NaN
        (lambda x: x.astype(tl.float16).astype(tl.float32), ["cast", "cast"]),
        (lambda x: x.astype(tl.int32).astype(tl.float32), ["cast", "cast"]),
        (lambda x: x / 3, ["divide"]),
        (lambda x: x / 4, ["multiply"]),
        (lambda x: x * -1, ["negative"]),
        (lambda x: x + -x, ["subtract"]),
        (lambda x: x - -x, ["add"]),
        (lambda x: x**2, ["square"]),
        (lambda x: x + np.zeros((3, 2, 3), np.float32) * -1, ["add"]),
    ],
)
def test_what_would_change_results_remains(f: Any, expected: list[str]) -> None:
    with np.errstate(all="ignore"):
        assert [n for n in names(f, X) if n != "negative" or "negative" in expected] == expected


def test_integers_are_exact() -> None:
    assert names(lambda y: (y + 0) * 1 - 0, Y) == []
    assert names(lambda y: y.astype(tl.int64).astype(tl.int32), Y) == []
    assert names(lambda y: y.astype(tl.int8).astype(tl.int32), Y) == ["cast", "cast"]
    assert names(lambda y: y.astype(tl.float32).astype(tl.int32), Y) == ["cast", "cast"]


def test_a_sum_of_one_element_is_that_element() -> None:
    graph = simplify(inline(tl.make_graph(lambda x: tl.sum(x[None], axis=0))(X), {}))
    assert {eqn.prim.name for eqn in graph.equations} <= {"reshape"}
    np.testing.assert_array_equal(nests.run_graph(graph, X)[0], X)


def test_constants_are_computed_unless_they_are_large() -> None:
    assert names(lambda x: x * tl.exp(tl.asarray(2.0)) + tl.arange(3).sum(), X) == [
        "multiply",
        "add",
    ]
    large = tl.ones(FOLDED)
    assert "exp" in names(lambda x: x[0, 0] + tl.exp(large), X)


def test_equal_equations_are_one_and_zeros_have_signs() -> None:
    assert names(lambda x: tl.exp(x + 1) - tl.exp(x + 1), X).count("exp") == 1
    assert names(lambda x: (x * 0.0, x * -0.0), X) == ["multiply", "multiply"]
    assert names(lambda x: (tl.sum(x, axis=0), tl.sum(x, axis=1)), X) == ["sum", "sum"]
    band = np.tri(64, dtype=np.float32)
    twice = names(lambda x: x @ tl.asarray(band) + x @ tl.asarray(band.copy()), np.ones((3, 64)))
    assert twice.count("matmul") == 1


def test_nothing_is_merged_across_a_barrier() -> None:
    def f(x: tl.Tensor) -> tl.Tensor:
        (same,) = tl.ops.control.optimization_barrier(x)
        (again,) = tl.ops.control.optimization_barrier(x)
        return tl.exp(x) + tl.exp(same) + tl.exp(again)

    assert names(f, X).count("exp") == 3


def test_products_take_transposed_matrices() -> None:
    a, b = np.ones((2, 3, 4)), np.full((2, 3, 5), 2.0)
    graph = simplified(lambda a, b: tl.matrix_transpose(a) @ b, a, b)
    (eqn,) = graph.equations
    assert eqn.prim.name == "matmul_t"
    assert eqn.params == {"transpose_a": True, "transpose_b": False}


def test_heads_of_attention_are_moved_once() -> None:
    def f(q: tl.Tensor, k: tl.Tensor) -> Any:
        q, k = (tl.permute_dims(t, (0, 2, 1, 3)) for t in (q, k))
        return q @ tl.matrix_transpose(k), k @ tl.matrix_transpose(q)

    q, k = np.ones((2, 5, 3, 4)), np.full((2, 5, 3, 4), 2.0)
    assert sorted(names(f, q, k)) == ["matmul_t", "matmul_t", "permute", "permute"]


def test_an_index_out_of_range_is_reported_by_whoever_runs_the_graph() -> None:
    graph = inline(tl.make_graph(lambda x: x + tl.arange(3)[tl.asarray([7])])(X), {})
    assert "gather" in [eqn.prim.name for eqn in simplify(graph).equations]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), steps=st.integers(1, 25))
def test_random_graphs_compute_the_same(seed: int, steps: int) -> None:
    args = random_graphs.arguments(random.Random(seed), 3)
    graph = inline(tl.make_graph(random_graphs.function(seed, steps))(*args), {})
    result = simplify(graph)
    assert len(result.equations) <= len(graph.equations)
    values = nests.run_graph(result, *args), nests.run_graph(graph, *args)
    for value, wanted in zip(*values, strict=True):
        np.testing.assert_allclose(value, wanted, rtol=1e-10, atol=1e-10)
