"""Scatters into an array of one value make that array themselves."""

from __future__ import annotations

import numpy as np

import tensorlite as tl
from tensorlite.compiler.inline import inline
from tensorlite.compiler.scatters import fill_scatters, filled_scatter_p
from tensorlite.compiler.simplify import simplify
from tensorlite.graph import Graph
from tensorlite.ops.creation import full_p
from tests.compiler.nests import run_graph


def filled(f: object, *args: tl.Tensor) -> Graph:
    return fill_scatters(simplify(inline(tl.make_graph(f)(*args), ())))


def names(graph: Graph) -> list[str]:
    return [eqn.prim.name for eqn in graph.equations]


def test_the_gradient_of_a_lookup() -> None:
    table, ids = tl.ones((300, 64)), tl.asarray([3, 3, 299])
    g = tl.asarray(np.random.default_rng(0).standard_normal((3, 64), dtype=np.float32))

    def pull(table: tl.Tensor, g: tl.Tensor) -> tl.Tensor:
        return tl.vjp(lambda t: t[ids], table)[1](g)[0]

    graph = filled(pull, table, g)
    assert filled_scatter_p.name in names(graph)
    assert full_p.name not in names(graph)
    (got,) = run_graph(graph, table, g)
    want = np.zeros((300, 64), np.float32)
    np.add.at(want, ids.numpy(), g.numpy())
    np.testing.assert_array_equal(got, want)


def test_an_array_that_is_needed_elsewhere_is_made() -> None:
    def f(g: tl.Tensor) -> tuple[tl.Tensor, tl.Tensor]:
        base = tl.full((200, 100), 2.0)
        return base.at[tl.asarray([1, 1])].multiply(g), base

    g = tl.full((2, 100), 3.0)
    graph = filled(f, g)
    assert filled_scatter_p.name in names(graph)
    product, base = run_graph(graph, g)
    assert (product[1] == 18).all() and (product[0] == 2).all() and (base == 2).all()


def test_a_base_with_values_of_its_own_is_left_alone() -> None:
    graph = filled(lambda x, g: x.at[tl.asarray([1, 0])].add(g), tl.ones((9, 9)), tl.ones((2, 9)))
    assert filled_scatter_p.name not in names(graph) and "scatter" in names(graph)
