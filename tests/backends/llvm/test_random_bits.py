"""Random bits from machine code are those of the primitive."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorlite.ops.random import bits_p

llvm = pytest.importorskip("tensorlite.backends.cpu.llvm")
pytestmark = pytest.mark.skipif(not llvm.available(), reason="nests cannot be compiled here")

WORDS = st.integers(0, 2**32 - 1)


def drawn(key: np.ndarray, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    keys = key.reshape(-1, 4)
    result = np.zeros((*key.shape[:-1], *shape), dtype)
    address = llvm.compile_random_bits(len(keys), shape, dtype)
    pointers = (ctypes.c_void_p * 2)(key.ctypes.data, result.ctypes.data)
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)(pointers)
    return result


@settings(max_examples=25, deadline=None)
@given(
    key=st.tuples(WORDS, WORDS),
    shard=st.sampled_from([(0, 0), (3, 5), (1, 7), (2**31, 2**10), (5, 1)]),
    keys=st.integers(1, 3),
    count=st.sampled_from([0, 1, 3, 4, 31, 32, 33, 35, 70, 1000, 20480]),
    wide=st.booleans(),
)
def test_the_same_bits(
    key: tuple[int, int], shard: tuple[int, int], keys: int, count: int, wide: bool
) -> None:
    dtype = np.dtype(np.uint64 if wide else np.uint32)
    rows = [((key[0] + i) % 2**32, key[1], *shard) for i in range(keys)]
    key_array = np.array(rows, np.uint32)
    want = bits_p.numpy_rule(key_array, shape=(count,), dtype=dtype)
    np.testing.assert_array_equal(drawn(key_array, (count,), dtype), want)
