"""Epilogues: what stands behind a convolution or a product moves into it, and nothing else does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import tensorlite as tl
from tensorlite import nn
from tensorlite.compiler.absorb import absorb, absorbed_p
from tensorlite.graph import Equation, Graph
from tensorlite.ops.conv import conv_p
from tensorlite.ops.linalg import matmul_p

IMAGES, KERNEL, BIAS = tl.ones((2, 6, 6, 3)), tl.ones((3, 3, 3, 4)), tl.ones(4)


def absorbed(f: Callable[..., Any], *args: Any, accepts: Any = lambda eqn: True) -> Graph:
    return absorb(tl.make_graph(f)(*args), {conv_p, matmul_p}, accepts)


def names(graph: Graph) -> list[str]:
    return [eqn.prim.name for eqn in graph.equations]


def epilogues(graph: Graph) -> list[Any]:
    return [e.params["epilogue"] for e in graph.equations if e.prim is absorbed_p]


def test_bias_and_relu_behind_a_convolution() -> None:
    graph = absorbed(lambda x, w, b: nn.relu(nn.conv(x, w) + b), IMAGES, KERNEL, BIAS)
    assert names(graph) == ["absorbed"]
    (eqn,) = graph.equations
    assert eqn.params["eqn"].prim is conv_p
    assert eqn.params["epilogue"] == (("bias", 2), ("relu",))
    assert eqn.inputs == graph.inputs
    assert [str(aval) for aval in graph.out_avals] == ["float32[2,6,6,4]"]


def test_a_residual_that_is_computed_later_comes_first() -> None:
    def f(x: tl.Tensor, w: tl.Tensor) -> tl.Tensor:
        y = x @ w
        return tl.tanh(y + tl.exp(x))

    graph = absorbed(f, tl.ones((3, 3)), tl.ones((3, 3)))
    assert names(graph) == ["exp", "absorbed"]
    assert epilogues(graph) == [(("add", 2), ("tanh",))]


def test_a_term_that_a_nest_computes_on_the_way_stays_there() -> None:
    def f(x: tl.Tensor, w: tl.Tensor, v: tl.Tensor) -> tl.Tensor:
        return w - (0.9 * v + x @ x)

    graph = absorbed(f, tl.ones((3, 3)), tl.ones((3, 3)), tl.ones((3, 3)))
    assert names(graph) == ["multiply", "matmul", "add", "subtract"]
    kept = absorbed(lambda x, v: nn.relu(0.9 * v + x @ x), tl.ones((3, 3)), tl.ones((3, 3)))
    assert epilogues(kept) == [(("add", 2), ("relu",))]


def test_a_sum_of_two_products_goes_into_one_of_them() -> None:
    graph = absorbed(lambda x, y: x @ y + y @ x, tl.ones((3, 3)), tl.ones((3, 3)))
    assert sorted(names(graph)) == ["absorbed", "matmul"]
    assert epilogues(graph) == [(("add", 2),)]


def test_a_value_that_others_read_is_kept() -> None:
    def f(x: tl.Tensor, w: tl.Tensor, b: tl.Tensor) -> tuple[tl.Tensor, tl.Tensor]:
        y = nn.conv(x, w) + b
        return nn.relu(y), y * 2

    graph = absorbed(f, IMAGES, KERNEL, BIAS)
    assert names(graph) == ["absorbed", "relu", "multiply"]
    assert epilogues(graph) == [(("bias", 2),)]
    both = absorbed(lambda x, w: [nn.conv(x, w), nn.relu(nn.conv(x, w))], IMAGES, KERNEL)
    assert names(both) == ["conv", "absorbed"]


@pytest.mark.parametrize(
    "f",
    [
        lambda x, w, b: (x @ w) * (x @ w),
        lambda x, w, b: tl.exp(x @ w),
        lambda x, w, b: (x @ w) + tl.ones((2, 3, 3)),
        lambda x, w, b: (x @ w) + tl.reshape(b, (3, 1)),
        lambda x, w, b: x @ w,
    ],
)
def test_what_does_not_fit_stays(f: Any) -> None:
    graph = absorbed(f, tl.ones((3, 3)), tl.ones((3, 3)), tl.ones(3))
    assert "absorbed" not in names(graph)


def test_as_much_as_the_backend_accepts() -> None:
    asked = []

    def only_bias(eqn: Equation) -> bool:
        asked.append(eqn.params["epilogue"])
        return len(eqn.params["epilogue"]) == 1

    graph = absorbed(
        lambda x, w, b: nn.relu(nn.conv(x, w) + b), IMAGES, KERNEL, BIAS, accepts=only_bias
    )
    assert names(graph) == ["absorbed", "relu"]
    assert asked == [(("bias", 2), ("relu",)), (("bias", 2),)]
    none = absorbed(lambda x, w: nn.relu(nn.conv(x, w)), IMAGES, KERNEL, accepts=lambda eqn: False)
    assert names(none) == ["conv", "relu"]
