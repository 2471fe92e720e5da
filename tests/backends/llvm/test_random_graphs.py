"""Compiled programs of random graphs against NumPy, equation by equation: all passes, the rendered
nests, and the memory that results share."""

from __future__ import annotations

import random

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import example, given, settings

import tensorlite as tl
from tensorlite.compiler.inline import inline
from tests.compiler import nests, random_graphs

llvm = pytest.importorskip("tensorlite.backends.cpu.llvm")
pytestmark = pytest.mark.skipif(not llvm.available(), reason="nests cannot be compiled here")


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), steps=st.integers(1, 25))
@example(seed=344, steps=15)  # argmax over axes that lie in memory in another order
@example(seed=69, steps=4)  # a gather whose values a later pass reads again
def test_programs_compute_what_the_graph_does(seed: int, steps: int) -> None:
    function = random_graphs.function(seed, steps)
    args = [tl.asarray(x) for x in random_graphs.arguments(random.Random(seed), 3)]
    graph = inline(tl.make_graph(function)(*args), {})
    expected = nests.run_graph(graph, *args)
    for result, wanted in zip(tl.jit(function)(*args), expected, strict=True):
        got = np.asarray(result)
        assert got.dtype == wanted.dtype and got.shape == wanted.shape
        if wanted.dtype.kind in "biu":
            np.testing.assert_array_equal(got, wanted)
        else:
            np.testing.assert_allclose(got, wanted, rtol=1e-10, atol=1e-10)
