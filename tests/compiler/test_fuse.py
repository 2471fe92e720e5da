"""Fusion: nests compute what the equations did, there are few of them, and they move few bytes."""

from __future__ import annotations

import random
from typing import Any

import hypothesis.strategies as st
import numpy as np
from hypothesis import given, settings

import tensorlite as tl
from tensorlite.compiler.fuse import fuse
from tensorlite.compiler.inline import inline
from tensorlite.compiler.simplify import simplify
from tensorlite.graph import Graph
from tests.compiler import nests, random_graphs


def fused(f: Any, *args: Any) -> Graph:
    return fuse(simplify(inline(tl.make_graph(f)(*args), {})))


def leaves(args: Any) -> list[tl.Tensor]:
    return [tl.asarray(x) for x in tl.tree.leaves(args)]


def assert_same(f: Any, *args: Any, rtol: float = 1e-10) -> Graph:
    """The fused graph of `f` computes what NumPy does, equation by equation."""
    graph = inline(tl.make_graph(f)(*args), {})
    result = fuse(simplify(graph))
    expected = nests.run_graph(graph, *leaves(args))
    for value, wanted in zip(nests.run_graph(result, *leaves(args)), expected, strict=True):
        assert value.dtype == wanted.dtype and value.shape == wanted.shape
        if wanted.dtype.kind in "biu":
            np.testing.assert_array_equal(value, wanted)
        else:
            value, wanted = value.astype(np.float64), wanted.astype(np.float64)
            np.testing.assert_allclose(value, wanted, rtol=rtol, atol=rtol)
    return result


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), steps=st.integers(1, 25))
def test_random_graphs_compute_the_same(seed: int, steps: int) -> None:
    args = random_graphs.arguments(random.Random(seed), 3)
    assert_same(random_graphs.function(seed, steps), *args)
