"""Nests of particular kinds: argmax, windows, gathers, casts, long sums, what is empty."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tensorlite import dtypes
from tensorlite.compiler.loops import (
    Nest,
    Operand,
    Output,
    Recorder,
    Scalar,
    Scalars,
    row_major,
)
from tensorlite.ops.pool import pool_argmax_p
from tensorlite.ops.window import Window
from tests.backends.nests.runners import Run, each

pytestmark = each

FLOAT32, INT64 = dtypes.float32, dtypes.int64


def reduction(run_nest: Run, kind: str, x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    recorder = Recorder()
    value = recorder.emit("load", (), x.dtype, 0)
    dtype = INT64 if kind == "argmax" else x.dtype
    result = recorder.emit("reduce", (value,), dtype, kind)
    kept = tuple(1 if a in axes else n for a, n in enumerate(x.shape))
    nest = Nest(
        x.shape,
        axes,
        (Operand(x.dtype, row_major(x.shape)),),
        tuple(recorder.body),
        (Output(result.position, Operand(dtype, row_major(kept))),),
    )
    out = np.zeros(kept, dtype)
    run_nest(nest, [x], [out])
    return out


def first_largest(x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    moved = np.moveaxis(x, axes, range(-len(axes), 0))
    flat = moved.reshape((*moved.shape[: x.ndim - len(axes)], -1))
    return np.expand_dims(np.argmax(flat, axis=-1), axes)


SHAPES = [
    ((5, 7), (1,)),
    ((5, 70), (0,)),
    ((3, 4, 5, 33), (1, 3)),
    ((70000,), (0,)),
    ((9, 40000), (1,)),
    ((30, 7, 3000), (2, 0)),  # points are numbered in the order of the axes as they are named
    ((6, 5, 4), (2, 1, 0)),
]


@pytest.mark.parametrize(("shape", "axes"), SHAPES)
@pytest.mark.parametrize("dtype", [dtypes.float32, dtypes.float64, dtypes.int8, dtypes.uint16])
def test_argmax(
    run_nest: Run, shape: tuple[int, ...], axes: tuple[int, ...], dtype: np.dtype[Any]
) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 100, shape).astype(dtype)  # many are equal: the first wins
    np.testing.assert_array_equal(reduction(run_nest, "argmax", x, axes), first_largest(x, axes))
    if dtype.kind == "f":
        x[rng.random(shape) < 0.01] = np.nan
        np.testing.assert_array_equal(
            reduction(run_nest, "argmax", x, axes), first_largest(x, axes)
        )
        x[...] = -np.inf
        np.testing.assert_array_equal(
            reduction(run_nest, "argmax", x, axes), first_largest(x, axes)
        )


@pytest.mark.parametrize(("shape", "axes"), SHAPES)
@pytest.mark.parametrize("kind", ["sum", "prod", "max", "min", "any", "all"])
def test_reductions(
    run_nest: Run, kind: str, shape: tuple[int, ...], axes: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(-3, 4, shape).astype(np.int32)
    if kind in ("any", "all"):
        x = rng.random(shape) < (0.02 if kind == "any" else 0.98)
    want = getattr(np, kind)(x, axis=axes, keepdims=True)
    np.testing.assert_array_equal(reduction(run_nest, kind, x, axes), want.astype(x.dtype))


@pytest.mark.parametrize(("shape", "axes"), SHAPES)
@pytest.mark.parametrize("kind", ["max", "min"])
def test_nan_wins(run_nest: Run, kind: str, shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    x.reshape(-1)[x.size // 2] = np.nan
    want = getattr(np, kind)(x, axis=axes, keepdims=True)
    np.testing.assert_array_equal(reduction(run_nest, kind, x, axes), want)


@pytest.mark.parametrize("shape", [(1_000_003,), (2, 1_000_003)])
def test_long_sums_are_accurate(run_nest: Run, shape: tuple[int, ...]) -> None:
    """Against the exact sum, at most a few times as far off as NumPy's pairwise sum may be."""
    x = np.random.default_rng(0).random(shape).astype(np.float32)
    got = reduction(run_nest, "sum", x, (len(shape) - 1,)).reshape(-1)
    for row, total in zip(x.reshape(-1, shape[-1]), got, strict=True):
        exact = math.fsum(row.tolist())
        assert abs(float(total) - exact) <= 20 * np.finfo(np.float32).eps * exact


def test_columns_are_accurate(run_nest: Run) -> None:
    x = np.random.default_rng(0).random((73728, 64)).astype(np.float32)
    got = reduction(run_nest, "sum", x, (0,))
    want = x.sum(axis=0, keepdims=True, dtype=np.float64)
    np.testing.assert_allclose(got, want, rtol=3e-6)


def pooling(shape: tuple[int, int, int, int], window: Window, dtype: np.dtype[Any]) -> Nest:
    """Max pooling of images (N, H, W, C): values and the number of the cell that won."""
    n, height, width, channels = shape
    rows, columns = window.positions((height, width))
    recorder = Recorder()
    k: Any = Scalars(recorder)
    space = (n, rows, columns, channels, *window.sizes)
    index: list[Any] = [recorder.emit("index", (), INT64, a) for a in range(len(space))]
    inside: Any = None
    places: list[Scalar] = []
    for axis, size in enumerate((height, width)):
        lo = window.padding[axis][0]
        at = index[1 + axis] * window.strides[axis] + index[4 + axis] - lo
        within = (at >= 0) & (at < size)
        inside = within if inside is None else inside & within
        places.append(k.max(k.min(at, size - 1), 0))
    strides = row_major(shape)
    args = (index[0], places[0], places[1], index[3])
    pixel = recorder.emit("gather", args, dtype, (0, strides))
    value = k.where(inside, pixel, -math.inf)
    best = recorder.emit("reduce", (value,), dtype, "max")
    cell = recorder.cast(recorder.emit("reduce", (value,), INT64, "argmax"), dtypes.uint8)
    result = row_major((n, rows, columns, channels, 1, 1))
    return Nest(
        space,
        (4, 5),
        (Operand(dtype, (0,) * 6),),
        tuple(recorder.body),
        (
            Output(best.position, Operand(dtype, result)),
            Output(cell.position, Operand(dtypes.uint8, result)),
        ),
    )


@pytest.mark.parametrize("channels", [1, 3, 16, 64, 70])
@pytest.mark.parametrize("dtype", [dtypes.float32, dtypes.bfloat16, dtypes.float64])
def test_max_pooling(run_nest: Run, channels: int, dtype: np.dtype[Any]) -> None:
    window = Window((3, 3), (2, 2), ((1, 1), (0, 1)), (1, 1))
    shape = (4, 11, 12, channels)
    rng = np.random.default_rng(0)
    x = rng.integers(-4, 5, shape).astype(dtype)
    x[rng.random(shape) < 0.01] = np.nan
    nest = pooling(shape, window, dtype)
    want = pool_argmax_p.numpy_rule(x, window=window)
    values, cells = np.zeros(want[0].shape, dtype), np.zeros(want[1].shape, np.uint8)
    run_nest(nest, [x], [values, cells])
    np.testing.assert_array_equal(cells, want[1])
    np.testing.assert_array_equal(values.astype(np.float64), want[0].astype(np.float64))


@pytest.mark.parametrize("dtype", [dtypes.float32, dtypes.bfloat16, dtypes.float64, dtypes.bool_])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("shape", [(3, 5, 64), (4, 6, 33), (5, 40, 1)])
def test_guarded_loads(
    run_nest: Run, shape: tuple[int, ...], axis: int, dtype: np.dtype[Any]
) -> None:
    """Sums of up to five neighbours along an axis; beyond the ends nothing is read."""
    rng = np.random.default_rng(0)
    x = rng.integers(-3, 4, shape).astype(dtype)
    strides, step = row_major(shape), row_major(shape)[axis]
    recorder = Recorder()
    at = recorder.emit("index", (), INT64, axis) + recorder.emit("index", (), INT64, 3) - 2
    inside: Any = (at >= 0) & (at < shape[axis])
    neighbour = recorder.emit("load", (inside,), dtype, 0)
    total = recorder.emit("reduce", (recorder.cast(neighbour, FLOAT32),), FLOAT32, "sum")
    # A guard that is false everywhere, of one element for all points of an axis.
    never = recorder.emit("load", (at > shape[axis] + 9,), dtype, 1)
    nothing = recorder.emit("reduce", (recorder.cast(never, FLOAT32),), FLOAT32, "sum")
    still = tuple(0 if a == 2 else s for a, s in enumerate(strides))
    nest = Nest(
        (*shape, 5),
        (3,),
        (Operand(dtype, (*strides, step), -2 * step), Operand(dtype, (*still, 0), 1 << 40)),
        tuple(recorder.body),
        (
            Output(total.position, Operand(FLOAT32, (*strides, 0))),
            Output(nothing.position, Operand(FLOAT32, (*strides, 0))),
        ),
    )
    sums, zeros = np.zeros(shape, FLOAT32), np.ones(shape, FLOAT32)
    run_nest(nest, [x, x], [sums, zeros])
    padded = np.pad(x.astype(FLOAT32), [(2, 2) if a == axis else (0, 0) for a in range(3)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, 5, axis)
    np.testing.assert_array_equal(sums, windows.sum(axis=-1))
    np.testing.assert_array_equal(zeros, np.zeros(shape, FLOAT32))


TRANSPOSED = [dtypes.float32, dtypes.float64, dtypes.bfloat16, dtypes.bool_, dtypes.int8]


@pytest.mark.parametrize("dtype", TRANSPOSED)
@pytest.mark.parametrize(
    "shape", [(32, 48), (64, 64), (17, 33), (2, 3, 70), (5, 16, 1), (3, 100, 37), (1, 5, 4)]
)
def test_transposes(run_nest: Run, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Nests of inputs in two layouts: whole blocks that are transposed in registers, and edges."""
    rng = np.random.default_rng(0)
    x, y = (rng.integers(0, 2 if dtype == dtypes.bool_ else 9, shape).astype(dtype) for _ in "xy")
    swapped = (*shape[:-2], shape[-1], shape[-2])
    strides = row_major(shape)
    moved = (*strides[:-2], strides[-1], strides[-2])
    recorder = Recorder()
    a, b, c = (recorder.emit("load", (), dtype, i) for i in range(3))
    largest = recorder.emit("max", (recorder.emit("max", (a, b), dtype), c), dtype)
    nest = Nest(
        swapped,
        (),
        (Operand(dtype, moved), Operand(dtype, moved), Operand(dtype, row_major(swapped))),
        tuple(recorder.body),
        (
            Output(a.position, Operand(dtype, row_major(swapped))),
            Output(largest.position, Operand(dtype, row_major(swapped))),
        ),
    )
    z = rng.integers(0, 2, swapped).astype(dtype)
    copied, larger = np.zeros(swapped, dtype), np.zeros(swapped, dtype)
    run_nest(nest, [x, y, z], [copied, larger])
    np.testing.assert_array_equal(copied, np.swapaxes(x, -1, -2))
    want = np.maximum(np.maximum(np.swapaxes(x, -1, -2), np.swapaxes(y, -1, -2)), z)
    np.testing.assert_array_equal(larger, want)


@pytest.mark.parametrize("width", [1, 5, 64, 70])
def test_rows_of_a_table(run_nest: Run, width: int) -> None:
    rng = np.random.default_rng(0)
    table = rng.normal(size=(50, width)).astype(np.float32)
    rows = rng.integers(0, 50, 33).astype(np.int32)
    recorder = Recorder()
    row = recorder.emit("load", (), dtypes.int32, 1)
    value = recorder.emit("gather", (row,), FLOAT32, (0, (width,)))
    nest = Nest(
        (33, width),
        (),
        (Operand(FLOAT32, (0, 1)), Operand(dtypes.int32, (1, 0))),
        tuple(recorder.body),
        (Output(value.position, Operand(FLOAT32, (width, 1))),),
    )
    out = np.zeros((33, width), np.float32)
    run_nest(nest, [table, rows], [out])
    np.testing.assert_array_equal(out, table[rows])


NUMBERS = sorted(dtypes.ALL, key=lambda d: d.name)


@pytest.mark.parametrize("source", NUMBERS, ids=lambda d: d.name)
@pytest.mark.parametrize("target", NUMBERS, ids=lambda d: d.name)
def test_casts(run_nest: Run, source: np.dtype[Any], target: np.dtype[Any]) -> None:
    recorder = Recorder()
    value = recorder.cast(recorder.emit("load", (), source, 0), target)
    nest = Nest(
        (37,),
        (),
        (Operand(source, (1,)),),
        tuple(recorder.body),
        (Output(value.position, Operand(target, (1,))),),
    )
    numbers = np.random.default_rng(0).uniform(-100, 100, 37)
    numbers[:4] = 0, 1, 0.5, 2.5
    if source in dtypes.UNSIGNED or target in dtypes.UNSIGNED:
        numbers = np.abs(numbers)
    x = numbers.astype(source)
    out = np.zeros(37, target)
    run_nest(nest, [x], [out])
    want = x.astype(target)
    if source == dtypes.float64 and target in (dtypes.float16, dtypes.bfloat16):
        # Rounded to float32 in between.
        want = x.astype(np.float32).astype(target)
    np.testing.assert_array_equal(out, want)


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 3)])
def test_nothing_at_all(run_nest: Run, shape: tuple[int, ...]) -> None:
    recorder = Recorder()
    value = recorder.emit("load", (), FLOAT32, 0)
    operand = Operand(FLOAT32, row_major(shape))
    nest = Nest(shape, (), (operand,), tuple(recorder.body), (Output(value.position, operand),))
    out = np.full(1, 7, np.float32)
    run_nest(nest, [np.ones(1, np.float32)], [out])
    assert out[0] == 7


def test_the_sum_of_nothing_is_zero(run_nest: Run) -> None:
    np.testing.assert_array_equal(reduction(run_nest, "sum", np.ones((5, 0), np.float32), (1,)), 0)
