"""Samples of the random primitives. Keys are ordinary or sharded, so that a batch of keys mixes
both.
"""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np

import tensorlite as tl
from tensorlite.ops.random import FOLD, SPLIT
from tests.ops.sampling import Sample, rngs, samples, shapes


def random_key(draw: Any) -> np.ndarray:
    words = draw(rngs()).integers(0, 2**32, size=2)
    rows = draw(st.sampled_from([0, 1, 2, 3]))
    first_row = draw(st.integers(0, 9)) if rows else 0
    return np.array([*words, first_row, rows], np.uint32)


@samples("random_bits", floats=False)
def random_bits(draw: Any, name: str) -> Sample:
    dtype = draw(st.sampled_from([tl.uint32, tl.uint64]))
    return Sample((random_key(draw),), {"shape": draw(shapes()), "dtype": dtype})


@samples("random_fold", floats=False)
def random_fold(draw: Any, name: str) -> Sample:
    data = draw(rngs()).integers(-(2**63), 2**63 - 1, size=draw(shapes(max_dims=2)))
    return Sample(
        (random_key(draw), np.asarray(data)), {"stream": draw(st.sampled_from([SPLIT, FOLD]))}
    )


@samples("random_permutation", floats=False)
def random_permutation(draw: Any, name: str) -> Sample:
    return Sample((random_key(draw),), {"n": draw(st.integers(0, 9))})
