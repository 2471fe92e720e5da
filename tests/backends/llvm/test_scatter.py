"""Scatters as machine code: those of the primitive, bit for bit and for any number of threads."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tensorlite as tl
from tensorlite import dtypes, nn, threads
from tensorlite.backends.cpu import openmp
from tensorlite.ops.index import scatter_p

llvm = pytest.importorskip("tensorlite.backends.cpu.llvm")
pytestmark = pytest.mark.skipif(not llvm.available(), reason="nests cannot be compiled here")

MODES = ["add", "multiply", "min", "max", "set"]
DTYPES = [
    *(dtypes.float32, dtypes.float64, dtypes.float16, dtypes.bfloat16, dtypes.int8, dtypes.int32),
    *(dtypes.uint16, dtypes.int64, dtypes.bool_),
]


def scattered(
    base: np.ndarray, updates: np.ndarray, *indices: np.ndarray, mode: str, fill: Any = None
) -> np.ndarray:
    code = llvm.Scatter(
        base.shape, base.dtype, tuple(i.dtype for i in indices), indices[0].size, mode, fill
    )
    result = np.empty_like(base)
    arrays = [*([base] if fill is None else []), updates, *indices, result]
    pointers = (ctypes.c_void_p * len(arrays))(*[a.ctypes.data for a in arrays])
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(llvm.compile_scatter(code))(pointers)
    return result


def values(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    if dtype == dtypes.bool_:
        return rng.random(shape) < 0.5
    if dtype in dtypes.INTEGERS:
        return rng.integers(0, 7, shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.sampled_from([(5,), (4, 3), (7, 16), (3, 33), (2, 5, 20), (3, 2, 300), (2, 1000)]),
    axes=st.integers(1, 2),
    count=st.sampled_from([1, 3, 40]),
    dtype=st.sampled_from(DTYPES),
    index_dtype=st.sampled_from([dtypes.int32, dtypes.int64, dtypes.uint8, dtypes.int8]),
    mode=st.sampled_from(MODES),
    seed=st.integers(0, 99),
)
def test_the_same_as_the_primitive(
    shape: tuple[int, ...],
    axes: int,
    count: int,
    dtype: np.dtype[Any],
    index_dtype: np.dtype[Any],
    mode: str,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    axes = min(axes, len(shape))
    base = values(rng, shape, dtype)
    updates = values(rng, (count, *shape[axes:]), dtype)
    indices = []
    for size in shape[:axes]:
        low = 0 if index_dtype in dtypes.UNSIGNED else -size
        indices.append(rng.integers(low, size, count).astype(index_dtype))
    assert scatter_p.numpy_rule is not None
    want = scatter_p.numpy_rule(base, updates, *indices, mode=mode)
    got = scattered(base, updates, *indices, mode=mode)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("dtype", [dtypes.float32, dtypes.bool_, dtypes.bfloat16])
@pytest.mark.parametrize("size", [1, 16, 40_000])
def test_an_array_of_one_value_is_no_input(size: int, dtype: np.dtype[Any]) -> None:
    updates, index = np.zeros(2, dtype), np.array([0, size - 1])
    got = scattered(np.empty(size, dtype), updates, index, mode="set", fill=True)
    want = np.ones(size, dtype)
    want[index] = 0
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    "index", [np.array([-9, -1, 0, 3, 9]), np.array([0, 3, 2**64 - 1, 2**63, 4], np.uint64)]
)
def test_an_index_out_of_bounds_takes_the_nearest_element(index: np.ndarray) -> None:
    size = 4
    nearest = [min(max(i + size if i < 0 else i, 0), size - 1) for i in index.tolist()]
    want = np.bincount(nearest, minlength=size).astype(np.float32)
    base, ones = np.zeros(size, np.float32), np.ones(len(index), np.float32)
    np.testing.assert_array_equal(scattered(base, ones, index, mode="add"), want)


@pytest.mark.parametrize(("rows", "columns"), [(500, 1), (3000, 64), (40, 300), (3, 5000)])
def test_equal_for_any_number_of_threads(rows: int, columns: int) -> None:
    rng = np.random.default_rng(0)
    count = 200_000 // columns
    base = rng.standard_normal((rows, columns), dtype=np.float32)
    updates = rng.standard_normal((count, columns), dtype=np.float32)
    index = rng.integers(-rows, rows, count)
    assert scatter_p.numpy_rule is not None
    want = scatter_p.numpy_rule(base, updates, index, mode="add")
    before = threads.get_num_threads()
    try:
        for number in (1, 2, 3, 7):
            threads.set_num_threads(number)
            openmp.num_threads()  # which tells OpenMP
            np.testing.assert_array_equal(scattered(base, updates, index, mode="add"), want)
    finally:
        threads.set_num_threads(before)


def test_gradients_of_an_embedding_run_natively() -> None:
    rng = np.random.default_rng(0)
    table = tl.asarray(rng.standard_normal((50, 24), dtype=np.float32))
    ids = tl.asarray(rng.integers(0, 50, (8, 5)))

    def loss(table: tl.Tensor) -> tl.Tensor:
        return tl.sum(nn.embedding(table, ids) ** 2)

    gradient = tl.jit(tl.grad(loss))
    want = np.zeros((50, 24), np.float32)
    np.add.at(want, ids.numpy(), 2 * table.numpy()[ids.numpy()])
    np.testing.assert_allclose(gradient(table).numpy(), want, rtol=1e-6)
    assert python_steps(tl.grad(loss), table) == 0


def test_updates_at_arrays_run_natively() -> None:
    x, index = tl.zeros((6, 3)), tl.asarray([1, 1, -1])
    for mode in ("add", "multiply", "min", "max", "set"):

        def update(x: tl.Tensor, values: tl.Tensor, mode: str = mode) -> tl.Tensor:
            return getattr(x.at[index], mode)(values)

        new = tl.ones((3, 3))
        np.testing.assert_array_equal(tl.jit(update)(x, new).numpy(), update(x, new).numpy())
        assert python_steps(update, x, new) == 0


def test_nothing_scattered_and_into_nothing() -> None:
    def update(x: tl.Tensor, index: tl.Tensor, values: tl.Tensor) -> tl.Tensor:
        return x.at[index].add(values)

    none = tl.zeros(0, dtype=tl.int64)
    x = tl.ones((3, 2))
    np.testing.assert_array_equal(tl.jit(update)(x, none, tl.ones((0, 2))).numpy(), x.numpy())
    nothing = tl.zeros((3, 0))
    at = tl.asarray([0, 1])
    assert tl.jit(update)(nothing, at, tl.ones((2, 0))).shape == (3, 0)


def python_steps(f: Any, *args: tl.Tensor) -> int:
    from tensorlite.backends.cpu.compile import compile_program

    graph = tl.make_graph(f)(*args)
    return len(compile_program(graph, {}).python_sections())
