"""Nests that reduce rows in several passes: what is kept from one to the next, and divisions by the
sum of a row."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tensorlite.compiler.axes import canonical
from tensorlite.compiler.loops import Nest, Operand, Output, Recorder, Scalar, Scalars
from tensorlite.compiler.lower import lower

llvm = pytest.importorskip("tensorlite.backends.cpu.llvm")
pytestmark = pytest.mark.skipif(not llvm.available(), reason="nests cannot be compiled here")

FLOAT32 = np.dtype(np.float32)


def rows(shape: tuple[int, int], softmax: bool) -> Nest:
    """Softmax of rows, or rows divided by their sums."""
    recorder = Recorder()
    k = Scalars(recorder)
    x = recorder.emit("load", (), FLOAT32, 0)

    def fold(value: Scalar, how: str) -> Scalar:
        return recorder.emit("reduce", (value,), FLOAT32, how)

    value = k.exp(x - fold(x, "max")) if softmax else x
    y = value / fold(value, "sum")
    operand = Operand(FLOAT32, (shape[1], 1))
    return Nest(
        shape, (1,), (operand,), tuple(recorder.body), (Output(y.position, operand),), "rows"
    )


def run(nest: Nest, x: np.ndarray) -> np.ndarray:
    y = np.empty_like(x)
    llvm.run_nest(nest, [x], [y])
    return y


@pytest.mark.parametrize("columns", [5, 40, 64, 512, 1000, 1003, 4000])
def test_softmax(columns: int) -> None:
    x = np.random.default_rng(0).normal(0, 9, (7, columns)).astype(np.float32)
    x[3, -1] = np.nan
    x[4, :] = -np.inf
    x[5, 2] = -np.inf
    with np.errstate(invalid="ignore"):
        wide = x.astype(np.float64)
        e = np.exp(wide - wide.max(axis=1, keepdims=True))
        want = e / e.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(run(rows(x.shape, True), x), want, rtol=2e-5, atol=1e-38)


@pytest.mark.parametrize("columns", [512, 1000])
def test_the_exponentials_of_a_row_are_kept_and_nothing_else(columns: int) -> None:
    from tensorlite.backends.cpu.llvm.render import render
    from tensorlite.backends.cpu.llvm.text import Module

    module = Module()
    render(module, "f", canonical(lower(rows((1000, columns), True))), 64)
    kept = [int(n) for n in re.findall(r"alloca float, i64 (\d+)", str(module))]
    assert kept == [-(-columns // 16) * 16]


@pytest.mark.parametrize("magnitude", [1e-44, 1e-39, 1e-30, 1e-3, 1.0, 1e10, 1e30, 1e36])
def test_shares_of_sums_of_any_magnitude(magnitude: float) -> None:
    rng = np.random.default_rng(0)
    x = (rng.uniform(0.5, 1, (4, 100)) * magnitude).astype(np.float32)
    x[1, 7] = 0
    wide = x.astype(np.float64)
    total = wide.sum(axis=1, keepdims=True).astype(np.float32)  # all that float32 can hold
    want = (wide / total).astype(np.float32)
    np.testing.assert_allclose(run(rows(x.shape, False), x), want, rtol=1e-6, atol=0)


def test_shares_of_sums_that_are_zero_or_infinite() -> None:
    x = np.zeros((3, 50), np.float32)
    x[1, 3:5] = 1, -1
    x[2, 3] = np.inf
    with np.errstate(all="ignore"):
        want = x / x.sum(axis=1, keepdims=True)
    np.testing.assert_array_equal(run(rows(x.shape, False), x), want)


@pytest.mark.parametrize("copies", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("how", ["max", "min"])
def test_extremum_of_rows_with_a_nan_anywhere(how: str, copies: int) -> None:
    columns = 16 * copies + 5
    recorder = Recorder()
    value = recorder.emit("load", (), FLOAT32, 0)
    result = recorder.emit("reduce", (value,), FLOAT32, how)
    nest = Nest(
        (columns + 1, columns),
        (1,),
        (Operand(FLOAT32, (columns, 1)),),
        tuple(recorder.body),
        (Output(result.position, Operand(FLOAT32, (1, 0))),),
    )
    x = np.random.default_rng(0).standard_normal((columns + 1, columns)).astype(np.float32)
    x[:columns][np.eye(columns, dtype=bool)] = np.nan
    got = np.empty(columns + 1, np.float32)
    llvm.run_nest(nest, [x], [got])
    assert np.isnan(got[:columns]).all()
    assert got[columns] == getattr(x[columns], how)()
