"""Tensors among NumPy arrays and in plain Python: conversion, operators, printing, pickling,
DLPack."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import hypothesis.extra.numpy as hnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given

import tensorlite as tl

REAL = (
    hnp.integer_dtypes(endianness="=")
    | hnp.unsigned_integer_dtypes(endianness="=")
    | hnp.floating_dtypes(endianness="=", sizes=(16, 32, 64))
    | hnp.boolean_dtypes()
)
ARRAYS = hnp.arrays(REAL, hnp.array_shapes(min_dims=0, min_side=0))


# ---- to NumPy and back ---------------------------------------------------------------------------


@given(ARRAYS)
def test_there_and_back(array: np.ndarray) -> None:
    back = np.asarray(tl.asarray(array))
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


def test_conversion_is_read_only_or_a_copy() -> None:
    x = tl.asarray([1.0, 2.0])
    view, copied = np.asarray(x), np.array(x)
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 5
    copied[0] = 5
    assert x.tolist() == [1.0, 2.0]
    assert np.asarray(x, dtype=np.float64).dtype == np.float64
    with pytest.raises(ValueError, match="needs a copy"):
        np.asarray(x, dtype=np.int32, copy=False)


@pytest.mark.parametrize("symbol", ["+", "-", "*", "/", "@", "<", "=="])
def test_operators_with_arrays_give_tensors(symbol: str) -> None:
    a = np.asarray([[1.0, 2.0], [3.0, 5.0]])
    for left, right in ((tl.asarray(a), a), (a, tl.asarray(a))):
        result = eval(f"x {symbol} y", {"x": left, "y": right})
        assert isinstance(result, tl.Tensor)
        np.testing.assert_array_equal(result.numpy(), eval(f"x {symbol} y", {"x": a, "y": a}))


def test_functions_of_numpy_see_and_return_arrays() -> None:
    x = tl.asarray([[1.0, 2.0], [3.0, 5.0]])
    for result, expected in (
        (np.sum(x), 11.0),
        (np.mean(x, axis=0), [2.0, 3.5]),
        (np.max(x, 1), [2.0, 5.0]),
        (np.concatenate([x, np.ones((1, 2))]), [[1, 2], [3, 5], [1, 1]]),
        (np.linalg.norm(x), np.sqrt(39)),
    ):
        assert isinstance(result, np.ndarray | np.generic)
        np.testing.assert_allclose(result, expected, rtol=1e-6)
    assert np.allclose(x, x) and np.array_equal(x, x.numpy())


@pytest.mark.parametrize("transform", [tl.jit, tl.vmap, tl.grad])
def test_functions_of_numpy_refuse_what_is_traced(transform: Any) -> None:
    with pytest.raises(tl.TracerError, match="conversion to NumPy"):
        transform(lambda x: tl.asarray(np.sum(x)))(tl.ones(3))


def test_universal_functions_of_numpy_are_refused() -> None:
    # An operator between an array and a tensor must be the tensor's, so NumPy's are switched off.
    with pytest.raises(TypeError, match="does not support ufuncs"):
        np.exp(tl.ones(2))


# ---- plain Python --------------------------------------------------------------------------------


def test_scalars() -> None:
    one = tl.asarray(1.5)
    assert (float(one), int(one), bool(one), complex(one)) == (1.5, 1, True, 1.5 + 0j)
    assert [10, 20, 30][tl.asarray(2)] == 30 and f"{one:.2f}" == "1.50"
    assert round(float(tl.asarray([2.0])), 1) == 2.0
    for convert in (float, int, bool, complex):
        with pytest.raises(TypeError, match="only a tensor with one element"):
            convert(tl.ones(2))
    with pytest.raises(TypeError, match="float32 is no index"):
        [10, 20][one]


def test_length_and_iteration() -> None:
    x = tl.asarray([[1, 2], [3, 4], [5, 6]])
    assert len(x) == 3 and [row.tolist() for row in x] == x.tolist()
    first, *_, last = x
    assert first.tolist() == [1, 2] and last.tolist() == [5, 6]
    assert all(isinstance(row, tl.Tensor) for row in reversed(list(x)))
    for use in (len, iter):
        with pytest.raises(TypeError, match="0-d tensor"):
            use(tl.ones(()))


def test_printing_shows_values_dtype_and_device() -> None:
    x = tl.asarray([[1.0, 2.5]])
    assert repr(x) == "Tensor([[1. , 2.5]], dtype=float32, device=cpu)"
    assert str(x) == "[[1.  2.5]]"
    long = repr(tl.zeros(5000))
    assert "..." in long and len(long) < 200
    assert repr(tl.ones(2, dtype=tl.bfloat16)).endswith("dtype=bfloat16, device=cpu)")


@given(ARRAYS)
def test_pickling_and_copying(array: np.ndarray) -> None:
    x = tl.asarray(array)
    for again in (pickle.loads(pickle.dumps(x)), copy.copy(x), copy.deepcopy(x)):
        assert again.aval == x.aval and again.device == x.device
        np.testing.assert_array_equal(again.numpy(), array)


def test_hashing_and_writing_are_refused() -> None:
    x = tl.ones(3)
    with pytest.raises(TypeError, match="not hashable"):
        hash(x)
    with pytest.raises(TypeError, match=r"immutable.*x\.at\[i\]\.set"):
        x[0] = 2.0
    assert x.at[0].set(2.0).tolist() == [2.0, 1.0, 1.0]


# ---- DLPack --------------------------------------------------------------------------------------


def test_dlpack_shares_memory_both_ways() -> None:
    array = np.arange(6.0)
    x = tl.from_dlpack(array)
    assert np.shares_memory(x.numpy(), array) and x.__dlpack_device__() == (1, 0)
    again = np.from_dlpack(x)
    assert np.shares_memory(again, array) and not again.flags.writeable
    assert np.shares_memory(tl.from_dlpack(x).numpy(), array)
    assert not np.shares_memory(tl.from_dlpack(array, copy=True).numpy(), array)


@given(ARRAYS)
def test_dlpack_keeps_values(array: np.ndarray) -> None:
    result = np.from_dlpack(tl.from_dlpack(array))
    assert result.dtype == array.dtype
    np.testing.assert_array_equal(result, array)


def test_dlpack_options() -> None:
    x = tl.asarray(np.arange(3.0))
    for version in (None, (0, 8), (1, 0)):
        for copied in (None, True, False):
            x.__dlpack__(max_version=version, dl_device=(1, 0), copy=copied)
    with pytest.raises(ValueError, match="no streams"):
        x.__dlpack__(stream=1)
    with pytest.raises(BufferError):
        tl.ones(2, dtype=ml_dtypes.bfloat16).__dlpack__()
    with pytest.raises(TypeError, match="no dtype complex128"):
        tl.from_dlpack(np.ones(2) * 1j)
    for transform in (tl.jit, tl.vmap, tl.grad):
        with pytest.raises(tl.TracerError, match="export by DLPack"):
            transform(lambda x: tl.from_dlpack(x))(x)


def test_to_device() -> None:
    x = tl.ones(2)
    assert x.to_device("cpu") is x
    with pytest.raises(ValueError, match="no streams"):
        x.to_device("cpu", stream=1)
    with pytest.raises(ValueError, match="no device 'moon'"):
        x.to_device("moon")
