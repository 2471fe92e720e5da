"""Graphs: how they are traced, what is left out of them, and how they print."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
import pytest

import tensorlite as tl
from tensorlite.composite import composite
from tensorlite.graph import Graph, Var, trace_graph


def text(graph: Graph, golden: str) -> None:
    assert str(graph) == textwrap.dedent(golden).strip()


def test_a_graph_prints_one_equation_a_line() -> None:
    def loss(params: dict[str, tl.Tensor], x: tl.Tensor) -> tl.Tensor:
        return tl.mean(tl.tanh(tl.matmul(x, params["w"]) + params["b"]))

    graph = tl.make_graph(loss)({"w": tl.ones((3, 2)), "b": tl.ones(2)}, tl.ones((4, 3)))
    text(
        graph,
        """
        loss(a: float32[2], b: float32[3,2], c: float32[4,3]):
          d: float32[4,2] = matmul c b
          e: float32[4,2] = add d a
          f: float32[4,2] = tanh e
          g: float32[] = sum[axes=(0, 1)] f
          h: float32[] = divide g 8.0
          return h
        """,
    )


def test_constants_and_inner_graphs_print() -> None:
    table = tl.asarray([1.0, 2.0])
    inner = tl.jit(lambda x: x * table)

    def outer(x: tl.Tensor) -> Any:
        return inner(x), tl.zeros(2), tl.checkpoint(lambda y: y + x)(x)

    text(
        tl.make_graph(outer)(tl.ones(2)),
        """
        outer(a: float32[2]):
          b: float32[2] = call a
            <lambda>(a: float32[2]):
              b: float32[2] = multiply a const float32[2]
              return b
          c: float32[2] = full[shape=(2,), dtype=float32, value=0, device=cpu]
          d: float32[2] = checkpoint[policy=save_nothing] a a
            <lambda>(a: float32[2], b: float32[2]):
              c: float32[2] = add b a
              return c
          return b, c, d
        """,
    )


def test_printing_does_not_depend_on_the_run() -> None:
    f = tl.grad(lambda x: tl.sum(tl.exp(x) * tl.sin(x)))
    assert str(tl.make_graph(f)(tl.ones(3))) == str(tl.make_graph(f)(tl.ones(3)))


def test_names_go_on_after_z() -> None:
    def many(x: tl.Tensor) -> tl.Tensor:
        for _ in range(30):
            x = x + 1
        return x

    lines = str(tl.make_graph(many)(tl.ones(()))).splitlines()
    assert lines[26].startswith("  aa: float32[] = add z 1.0")
    assert lines[-1] == "  return ae"


def test_what_no_result_needs_is_left_out() -> None:
    def f(x: tl.Tensor) -> tl.Tensor:
        unused = tl.exp(x)
        _ = tl.sum(unused)
        return x * 2

    assert [eqn.prim.name for eqn in tl.make_graph(f)(tl.ones(2)).equations] == ["multiply"]


def test_the_first_sweep_of_forward_mode_is_dead_code() -> None:
    graph = tl.make_graph(lambda x, v: tl.jvp(tl.sin, (x,), (v,))[1])(tl.ones(2), tl.ones(2))
    assert [eqn.prim.name for eqn in graph.equations] == ["cos", "multiply"]


def test_running_a_graph_is_running_the_function() -> None:
    def f(x: tl.Tensor, n: tl.Tensor) -> Any:
        return {"a": x**2, "b": [n + 1, x]}

    x, n = tl.asarray([1.0, 2.0]), tl.asarray(3)
    graph = tl.make_graph(f)(x, n)
    assert [o.tolist() for o in graph.run(x, n)] == [[1, 4], 4, [1, 2]]
    assert graph.in_avals == (x.aval, n.aval)
    assert graph.out_avals == (x.aval, n.aval, x.aval)
    gradient = tl.grad(lambda x: tl.sum(graph.run(x, n)[0]))(x)
    assert gradient.tolist() == [2, 4]


def test_graphs_are_traced_without_values() -> None:
    seen: list[tl.Tensor] = []
    tl.make_graph(lambda x: (seen.append(x), x)[1])(np.ones((2, 3), np.int8))
    assert repr(seen[0]) == "Traced(int8[2,3], tl.make_graph of <lambda>)"
    assert str(seen[0]) == f"{seen[0]}" == repr(seen[0])


def test_python_scalars_are_arguments_as_for_jit() -> None:
    half = tl.ones(2, dtype=tl.float16)
    graph = tl.make_graph(lambda x, lr: x * (lr * 2))(half, 0.5)
    assert graph.in_avals[1].dtype == tl.float64  # with Python's own precision
    assert graph.out_avals[0].dtype == tl.float16


def test_what_a_traced_function_closes_over_becomes_its_first_inputs() -> None:
    captured: list[Any] = []

    def f(a: tl.Tensor) -> tl.Tensor:
        traced = trace_graph(lambda x: (a * x + a, a), [a.aval], name="inner")
        captured.append(traced)
        return tl.sum(traced.graph.run(*traced.captured, a)[0])

    assert tl.grad(f)(tl.asarray([1.0, 2.0])).tolist() == [3, 5]
    assert len(captured[0].captured) == 1
    assert len(captured[0].graph.inputs) == 2


def test_composites_trace_as_one_equation() -> None:
    @composite
    def twice_and_sum(x: tl.Tensor, *, scale: float) -> tuple[tl.Tensor, tl.Tensor]:
        return x * scale, tl.sum(x)

    text(
        tl.make_graph(lambda x: twice_and_sum(x, scale=3.0))(tl.ones(2)),
        """
        <lambda>(a: float32[2]):
          b: float32[2], c: float32[] = twice_and_sum[scale=3.0] a
          return b, c
        """,
    )


@pytest.mark.parametrize("bad", ["text", object(), {"a": 1j}])
def test_results_that_are_no_tensors_are_named(bad: Any) -> None:
    with pytest.raises(TypeError, match=r"tl.make_graph of <lambda>: the function returned a"):
        tl.make_graph(lambda x: bad)(tl.ones(2))


def test_only_functions_have_graphs() -> None:
    with pytest.raises(TypeError, match="make_graph: takes a function and returns one, got 3"):
        tl.make_graph(3)  # type: ignore[arg-type]


def test_variables_are_known_by_identity() -> None:
    aval = tl.ones(2).aval
    assert Var(aval) != Var(aval)
