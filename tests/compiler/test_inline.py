"""Inlining: what is left of a graph after calls and composites have become their equations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tensorlite as tl
from tensorlite.compiler.inline import inline
from tensorlite.composite import Composite
from tensorlite.core import primitives
from tensorlite.graph import Graph


@pytest.fixture
def halved() -> Any:
    prim = Composite("halved", lambda x: (x / 2, x))
    yield prim
    del primitives["halved"]


def names(graph: Graph) -> list[str]:
    return [eqn.prim.name for eqn in graph.equations]


def test_calls_checkpoints_and_composites_become_their_equations(halved: Any) -> None:
    inner = tl.jit(lambda x: tl.exp(x) + 1)

    def f(x: tl.Tensor) -> tl.Tensor:
        half, _ = halved(tl.jit(lambda y: inner(y) * 2)(x))
        return tl.checkpoint(lambda y: tl.sin(y) - half)(half)

    x = tl.asarray([0.5, 2.0])
    graph = tl.make_graph(f)(x)
    assert names(graph) == ["call", "halved", "checkpoint"]
    flat = inline(graph, {})
    assert names(flat) == ["exp", "add", "multiply", "divide", "sin", "subtract"]
    np.testing.assert_allclose(flat.run(x)[0].numpy(), graph.run(x)[0].numpy(), rtol=1e-6)
    assert flat.in_avals == graph.in_avals
    assert flat.out_avals == graph.out_avals


def test_a_composite_that_the_backend_lowers_stays_whole(halved: Any) -> None:
    graph = tl.make_graph(lambda x: halved(x)[0])(tl.ones(2))
    assert names(inline(graph, {halved: None})) == ["halved"]
    assert names(inline(graph, {})) == ["divide"]


def test_results_that_are_arguments_or_constants_pass_through() -> None:
    constant = tl.asarray([3.0])
    inner = tl.jit(lambda x, y: (y, x, constant))
    graph = tl.make_graph(lambda x, y: inner(*inner(x, y)[:2]))(tl.ones(1), tl.zeros(2))
    flat = inline(graph, {})
    assert names(flat) == []
    assert all(o is i for o, i in zip(flat.outputs, (*flat.inputs, constant), strict=True))


def test_what_an_inner_graph_computes_in_vain_is_dropped() -> None:
    inner = tl.jit(lambda x: (tl.exp(x), tl.sin(x)))
    graph = tl.make_graph(lambda x: inner(x)[1])(tl.ones(2))
    assert names(inline(graph, {})) == ["sin"]


def test_one_graph_called_twice_gets_its_own_variables() -> None:
    inner = tl.jit(lambda x: tl.exp(x) * x)
    graph = inline(tl.make_graph(lambda x: inner(inner(x)))(tl.ones(2)), {})
    outputs = [v for eqn in graph.equations for v in eqn.outputs]
    assert len(outputs) == len(set(outputs)) == 4
    x = tl.asarray([0.1, 0.2])
    np.testing.assert_allclose(graph.run(x)[0].numpy(), inner(inner(x)).numpy(), rtol=1e-6)
