"""Fusion: nests compute what the equations did, there are few of them, and they move few bytes."""

from __future__ import annotations

import os
import pathlib
import random
import subprocess
import sys
from typing import Any

import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings

import tensorlite as tl
from tensorlite import dtypes, nn, optim
from tensorlite.compiler.bands import slide
from tensorlite.compiler.body import folds, points, views
from tensorlite.compiler.fuse import fuse, nest_p
from tensorlite.compiler.inline import inline
from tensorlite.compiler.simplify import simplify
from tensorlite.core import Primitive, bind, primitives
from tensorlite.graph import Graph
from tensorlite.ops.broadcasting import Elementwise
from tensorlite.ops.norm import batch_norm_train
from tests.compiler import nests, random_graphs
from tests.ops.sampling import strategy_of

ROOT = pathlib.Path(__file__).parent.parent.parent


def fused(f: Any, *args: Any) -> Graph:
    return fuse(simplify(inline(tl.make_graph(f)(*args), {})))


def leaves(args: Any) -> list[tl.Tensor]:
    return [tl.asarray(x) for x in tl.tree.leaves(args)]


def assert_same(f: Any, *args: Any, rtol: float = 1e-10, guards: bool = False) -> Graph:
    """The fused graph of `f` computes what NumPy does, equation by equation."""
    graph = inline(tl.make_graph(f)(*args), {})
    result = fuse(simplify(graph), guards=guards)
    expected = nests.run_graph(graph, *leaves(args))
    for value, wanted in zip(nests.run_graph(result, *leaves(args)), expected, strict=True):
        assert value.dtype == wanted.dtype and value.shape == wanted.shape
        if wanted.dtype.kind in "biu":
            np.testing.assert_array_equal(value, wanted)
        else:
            value, wanted = value.astype(np.float64), wanted.astype(np.float64)
            np.testing.assert_allclose(value, wanted, rtol=rtol, atol=rtol)
    return result


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), steps=st.integers(1, 25), guards=st.booleans())
def test_random_graphs_compute_the_same(seed: int, steps: int, guards: bool) -> None:
    args = random_graphs.arguments(random.Random(seed), 3)
    assert_same(random_graphs.function(seed, steps), *args, guards=guards)


# ---- every primitive, and what is made of them ---------------------------------------------------

FUSIBLE = sorted(
    name
    for name, prim in primitives.items()
    if isinstance(prim, Elementwise) or prim in views | points | folds
)


@pytest.mark.parametrize("name", sorted(set(FUSIBLE) - {"checkpoint_name"}))
@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_every_fusible_primitive_computes_the_same(name: str, data: Any) -> None:
    sample = data.draw(strategy_of(name))
    narrow = data.draw(st.sampled_from([np.float64, np.float32, np.float16, ml_dtypes.bfloat16]))
    given_ = [np.asarray(x) for x in sample.args]
    args = [x.astype(narrow) if x.dtype == np.float64 else x for x in given_]
    rtol = {np.float64: 1e-9, np.float32: 1e-4, np.float16: 0.02}.get(narrow, 0.1)
    prim = primitives[name]
    # Beside its own result, one of which it is an operand, so that it stands within a nest, too.
    assert_same(lambda *xs: bind(prim, *xs, **sample.params), *args, rtol=rtol)
    if narrow is np.float64:
        assert_same(lambda *xs: _surrounded(prim, xs, sample.params), *args, rtol=1e-8)


def _surrounded(prim: Primitive, xs: Any, params: Any) -> Any:
    moved = [tl.flip(x + x) - tl.flip(x) if x.dtype == tl.float64 else x for x in xs]
    moved = [tl.flip(x) if x.dtype == tl.float64 else x for x in moved]
    results = bind(prim, *moved, **params)
    return [r + r for r in tl.tree.leaves(results) if r.dtype in dtypes.FLOATS | dtypes.INTEGERS]


def test_walk_sees_what_fusion_is_for() -> None:
    assert {"add", "where", "sum", "argmax", "gather", "pool_scatter", "concat"} <= set(FUSIBLE)


X = np.random.default_rng(0).normal(size=(64, 96)).astype(np.float32)
ROW = np.random.default_rng(1).normal(size=96).astype(np.float32)
IMAGES = np.random.default_rng(2).normal(size=(8, 12, 12, 32)).astype(np.float32)
CHANNELS = np.random.default_rng(3).normal(size=32).astype(np.float32)
LABELS = np.random.default_rng(4).integers(0, 96, 64)


def count(graph: Graph) -> int:
    """Equations that do something: a reshape moves nothing."""
    return sum(eqn.prim.name != "reshape" for eqn in graph.equations)


def normalize(x: tl.Tensor, scale: tl.Tensor, offset: tl.Tensor) -> tl.Tensor:
    return batch_norm_train(x, scale, offset)[0]


def cross_entropy(logits: tl.Tensor, labels: tl.Tensor) -> tl.Tensor:
    return tl.mean(nn.softmax_cross_entropy(logits, labels))


def pulled(f: Any) -> Any:
    """The cotangents of the arguments of f; the last argument is that of the result."""
    return lambda *args: tl.vjp(f, *args[:-1])[1](args[-1])


@pytest.mark.parametrize(
    ("f", "args", "nests_wanted"),
    [
        (nn.softmax, (X,), 1),
        (nn.log_softmax, (X,), 1),
        (nn.gelu, (X,), 1),
        (nn.layer_norm, (X, ROW, ROW), 1),
        (batch_norm_train, (IMAGES, CHANNELS, CHANNELS), 1),
        (pulled(nn.softmax), (X, X), 1),
        (pulled(nn.gelu), (X, X), 1),
        (pulled(nn.layer_norm), (X, ROW, ROW, X), 2),
        (pulled(normalize), (IMAGES, CHANNELS, CHANNELS, IMAGES), 1),
        (tl.value_and_grad(cross_entropy), (X, LABELS), 2),
        (tl.std, (X,), 3),
        (lambda x: nn.max_pool(nn.relu(x), 2), (IMAGES,), 1),
        (lambda x: nn.avg_pool(x, 3, stride=2, padding="same"), (IMAGES,), 1),
        (lambda x: tl.sum(x * x, axis=0) + tl.sum(x, axis=0), (X,), 1),
    ],
)
def test_a_formula_is_few_nests(f: Any, args: Any, nests_wanted: int) -> None:
    graph = assert_same(f, *args, rtol=2e-4)
    assert count(graph) <= nests_wanted, graph
    assert all(eqn.prim is nest_p or eqn.prim.name == "reshape" for eqn in graph.equations)


@pytest.mark.parametrize(
    "optimizer", [optim.sgd(0.1, momentum=0.9), optim.adam(1e-3), optim.adamw(1e-3)]
)
def test_an_update_is_one_nest_for_each_parameter(optimizer: Any) -> None:
    model = {"w": tl.asarray(X), "b": tl.asarray(ROW), "v": tl.asarray(X[:7])}

    def update(grads: Any, state: Any, model: Any) -> Any:
        updates, state = optimizer.update(grads, state, model)
        return optim.apply_updates(model, updates), state

    graph = assert_same(update, model, optimizer.init(model), model, rtol=1e-5)
    assert count(graph) <= 4  # one of scalars


@pytest.mark.parametrize("size", [2, 5, 9])
def test_local_response_norm_reads_and_writes_images_only(size: int) -> None:
    def f(x: tl.Tensor, g: tl.Tensor) -> Any:
        y, pull = tl.vjp(lambda x: nn.local_response_norm(x, size, alpha=0.1), x)
        return y, pull(g)

    x, g = X.reshape(8, 2, 4, 96), X[::-1].reshape(8, 2, 4, 96)
    graph = inline(tl.make_graph(f)(x, g))
    result = fuse(slide(simplify(graph)), guards=True)
    assert [eqn.prim for eqn in result.equations] == [nest_p, nest_p]
    assert sum(len(e.inputs) + len(e.outputs) for e in result.equations) <= 10
    values = nests.run_graph(result, x, g), nests.run_graph(graph, x, g)
    for value, wanted in zip(*values, strict=True):
        np.testing.assert_allclose(value, wanted, rtol=1e-4, atol=1e-5)


def test_only_narrow_bands_of_ones_slide() -> None:
    x = np.ones((4, 32), np.float32)
    ahead = np.arange(32)[:, None] - np.arange(32)
    band = (abs(ahead) < 3).astype(np.float32)
    broken = band.copy()
    broken[5, 5] = 0
    wide = (abs(ahead) < 12).astype(np.float32)
    for matrix, prims in ((band, ["reshape", "pool_sum", "reshape"]), (broken, ["matmul"])):
        graph = slide(tl.make_graph(lambda x, m=matrix: x @ tl.asarray(m))(x))
        assert [eqn.prim.name for eqn in graph.equations] == prims
        np.testing.assert_array_equal(nests.run_graph(graph, x)[0], x @ matrix)
    for matrix in (2 * band, wide, band[:, :31], np.zeros((32, 32), np.float32)):
        graph = slide(tl.make_graph(lambda x, m=matrix: x @ tl.asarray(m))(x))
        assert [eqn.prim.name for eqn in graph.equations] == ["matmul"]


def test_a_global_norm_is_not_waited_for_inside_a_nest() -> None:
    def clipped(x: tl.Tensor) -> tl.Tensor:
        return x / tl.sqrt(tl.sum(x * x))

    large = np.ones((512, 512), np.float32)
    assert count(assert_same(clipped, large)) == 2
    assert count(assert_same(clipped, np.ones((8, 8), np.float32), rtol=1e-6)) == 1


def test_nothing_is_computed_twice_where_reading_it_is_cheaper() -> None:
    def f(a: tl.Tensor, b: tl.Tensor, c: tl.Tensor) -> Any:
        x = a + b + c
        return x, normalize(x, tl.ones(32), tl.zeros(32))

    wide = np.broadcast_to(IMAGES[:1], (2000, 12, 12, 32)).copy()
    graph = fused(f, wide, wide, wide)
    assert count(graph) == 2, graph


def test_the_gradients_of_parts_are_put_together_without_gathers() -> None:
    x = np.ones((4, 6, 30))

    def unstacked(x: tl.Tensor) -> tl.Tensor:
        heads = tl.permute_dims(x.reshape(4, 6, 3, 2, 5), (2, 0, 3, 1, 4))
        return tl.sum(tl.multiply(*tl.unstack(heads, axis=0)[:2]))

    def sliced(x: tl.Tensor) -> tl.Tensor:
        parts = [x[..., first : first + 10].reshape(4, 6, 2, 5) for first in (0, 10, 20)]
        return tl.sum(parts[0] * parts[1] * parts[2])

    for f in (unstacked, sliced):
        result = assert_same(tl.grad(f), x, guards=True)
        written = [eqn.params["nest"] for eqn in result.equations if eqn.prim is nest_p]
        assert written and not any(i.op == "gather" for nest in written for i in nest.body)


def test_a_checkpoint_still_computes_a_second_time() -> None:
    def f(x: tl.Tensor) -> tl.Tensor:
        return tl.sum(tl.checkpoint(lambda x: tl.exp(tl.sin(x)))(x) ** 2)

    graph = assert_same(tl.value_and_grad(f), X, rtol=1e-5)
    bodies = [i.op for e in graph.equations if e.prim is nest_p for i in e.params["nest"].body]
    assert bodies.count("sin") == 2
    assert any(eqn.prim.name == "optimization_barrier" for eqn in graph.equations)


def test_a_gather_takes_the_nearest_element_where_an_index_is_out_of_range() -> None:
    graph = fused(lambda x, i: x[i] * 2, ROW, np.asarray([-97, -96, -1, 95, 96, 1000]))
    (result,) = nests.run_graph(graph, ROW, np.asarray([-97, -96, -1, 95, 96, 1000]))
    np.testing.assert_array_equal(result, 2 * ROW[[0, 0, 95, 95, 95, 95]])


def test_views_of_views_do_not_grow_without_end() -> None:
    def f(x: tl.Tensor) -> tl.Tensor:
        for shift in range(1, 13):
            x = tl.roll(x, shift, axis=0)
        return x * 2

    graph = assert_same(f, X)
    assert max(len(e.params["nest"].body) for e in graph.equations) < 200
    assert count(graph) <= 12


def test_names_say_where_and_what() -> None:
    def f(x: tl.Tensor) -> tl.Tensor:
        with tl.named_scope("conv1"):
            return nn.relu(x + 1)

    (eqn,) = fused(f, X).equations
    assert eqn.params["nest"].name == "conv1/add_relu"


def test_what_a_backend_keeps_stays() -> None:
    graph = fuse(simplify(inline(tl.make_graph(lambda x: tl.exp(x) + 1)(X), {})), {tl.exp.prim})
    assert [eqn.prim.name for eqn in graph.equations] == ["exp", "nest"]


def test_the_same_graph_gives_the_same_nests_in_every_process() -> None:
    code = (
        "import tests.compiler.test_fuse as t\n"
        "g = t.fused(t.random_graphs.function(7, 40), *t.random_graphs.arguments("
        "t.random.Random(7), 3))\n"
        "h = t.fused(t.tl.value_and_grad(t.cross_entropy), t.X, t.LABELS)\n"
        "for e in (*g.equations, *h.equations):\n"
        "    print(e.prim, e.params.get('nest'), e.params.get('avals'))\n"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1
    assert printed.pop().count("nest") > 4
