"""Nests and products of more than 2^31 elements, of which only the last work-group runs.

Its operands are given offsets so large that the far end of an array of gigabytes lies in a small
buffer: the places that a kernel computes are those of the whole array, the memory is not. The
numbers of the last group and its work-items are written into the kernels, since not every driver
takes offsets of more than 32 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyopencl as cl
import pytest

from tensorlite import dtypes
from tensorlite.backends.opencl import memory
from tensorlite.backends.opencl.random_bits import plan_bits
from tensorlite.backends.opencl.render import plan_nest
from tensorlite.backends.opencl.runtime import Traits, runtime
from tensorlite.compiler.loops import Nest, Operand, Output, Recorder
from tensorlite.core import Aval
from tensorlite.ops.conv import conv_p
from tensorlite.ops.linalg import matmul_p
from tensorlite.ops.window import Window
from tests.backends.opencl.product_cases import CPU, GPU, planned

MANY = CPU._replace(units=4096)  # so that a work-item has little to do
ROWS = (1 << 26) + 3
FAR = (1 << 31) + (1 << 17) + 77
KEPT = 1 << 18  # elements of the far end that are there

LARGE = GPU._replace(units=64)

BOTH = pytest.mark.parametrize("traits", [MANY, LARGE], ids=lambda t: t.kind)


def end_of(dtype: Any, strides: tuple[int, ...], total: int, kept: int = KEPT) -> Operand:
    """An array of `total` elements of which the last `kept` are there."""
    return Operand(np.dtype(dtype), strides, kept - total)


def run_last(traits: Traits, nest: Nest, inputs: Sequence[np.ndarray], output: np.ndarray) -> None:
    """Run the last work-group of each kernel of a nest on the ends of its arrays."""
    at = runtime("opencl:0")
    plan = plan_nest(traits, nest)
    target = memory.from_numpy(at, np.array(output))
    places = {
        "input": [memory.from_numpy(at, np.array(a)) for a in inputs],
        "output": [target],
        "temporary": [memory.from_numpy(at, np.zeros(n, np.uint8)) for n in plan.temporaries],
    }
    for code, refs in plan.calls:
        local = code.local_size or (1,) * len(code.global_size)
        source = code.source
        for d, (n, m) in enumerate(zip(code.global_size, local, strict=True)):
            for kind, skipped in (("global", n - m), ("group", n // m - 1)):
                own = f"get_{kind}_id({d})"
                source = source.replace(own, f"((ulong){own} + {skipped}ul)")
        kernel = at.programs.kernel(code._replace(source=source))
        kernel.set_args(*[places[ref.kind][ref.place].memory for ref in refs])
        cl.enqueue_nd_range_kernel(at.queue, kernel, local, local)
    output[...] = memory.to_numpy(target)


@BOTH
def test_elements(traits: Traits) -> None:
    recorder = Recorder()
    x = recorder.emit("load", (), dtypes.int8, 0)
    y = recorder.emit("add", (x, recorder.emit("constant", (), dtypes.int8, 1)), dtypes.int8)
    at = end_of(np.int8, (1,), FAR)
    nest = Nest((FAR,), (), (at,), tuple(recorder.body), (Output(y.position, at),))
    values = np.arange(KEPT).astype(np.int8)
    result = np.full(KEPT, 99, np.int8)
    run_last(traits, nest, [values], result)
    (touched,) = np.nonzero(result != 99)
    assert touched[-1] in (KEPT - 1, KEPT - 2)
    first = int(touched[0])
    np.testing.assert_array_equal(result[first:], (values + 1)[first:])
    assert KEPT - first >= FAR % 256 if traits is LARGE else FAR // (4 * traits.units) // 2


@BOTH
def test_numbers_of_points(traits: Traits) -> None:
    recorder = Recorder()
    index = recorder.emit("index", (), dtypes.int64, 1)
    out = end_of(np.int64, (ROWS, 1), 40 * ROWS)
    nest = Nest((40, ROWS), (), (), tuple(recorder.body), (Output(index.position, out),))
    result = np.full(KEPT, -1)
    run_last(traits, nest, [], result)
    (touched,) = np.nonzero(result != -1)
    want = np.arange(ROWS - KEPT, ROWS)
    np.testing.assert_array_equal(result[touched], want[touched])
    assert touched[-1] == KEPT - 1


@BOTH
def test_rows(traits: Traits) -> None:
    recorder = Recorder()
    x = recorder.emit("load", (), dtypes.int32, 0)
    best = recorder.emit("reduce", (x,), dtypes.int32, "max")
    width = 40
    nest = Nest(
        (ROWS, width),
        (1,),
        (end_of(np.int32, (width, 1), ROWS * width, KEPT * width),),
        tuple(recorder.body),
        (Output(best.position, end_of(np.int32, (1, 0), ROWS)),),
    )
    values = np.arange(KEPT * width, dtype=np.int32).reshape(KEPT, width)
    result = np.full(KEPT, -1, np.int32)
    run_last(traits, nest, [values], result)
    (touched,) = np.nonzero(result != -1)
    np.testing.assert_array_equal(result[touched], values.max(axis=1)[touched])
    assert touched[-1] == KEPT - 1


@BOTH
def test_columns(traits: Traits) -> None:
    recorder = Recorder()
    x = recorder.emit("load", (), dtypes.int8, 0)
    total = recorder.emit("reduce", (x,), dtypes.int8, "sum")
    nest = Nest(
        (3, FAR),
        (0,),
        (end_of(np.int8, (0, 1), FAR),),
        tuple(recorder.body),
        (Output(total.position, end_of(np.int8, (0, 1), FAR)),),
    )
    values = np.arange(KEPT).astype(np.int8)
    result = np.full(KEPT, 99, np.int8)
    run_last(traits, nest, [values], result)
    first = int(np.nonzero(result != 99)[0][0])
    np.testing.assert_array_equal(result[first:], (3 * values)[first:])


@BOTH
def test_shares_of_one_long_reduction(traits: Traits) -> None:
    """argmax finds a point whose number no int32 holds."""
    recorder = Recorder()
    x = recorder.emit("load", (), dtypes.int8, 0)
    where = recorder.emit("reduce", (x,), dtypes.int64, "argmax")
    share = 1 << 27  # elements of the last share, at most
    nest = Nest(
        (FAR,),
        (0,),
        (end_of(np.int8, (1,), FAR, share),),
        tuple(recorder.body),
        (Output(where.position, Operand(dtypes.int64, (0,))),),
    )
    values = np.zeros(share, np.int8)
    values[-9] = values[-3] = 7
    result = np.zeros(1, np.int64)
    run_last(traits, nest, [values], result)
    assert result[0] == FAR - 9


def test_a_work_group_counts_the_points_of_several_axes_in_long() -> None:
    recorder = Recorder()
    x = recorder.emit("load", (), dtypes.int8, 0)
    total = recorder.emit("reduce", (x,), dtypes.int8, "sum")
    strides = (1 << 40, 200_000, 1)
    nest = Nest(
        (500, 50_000, 100_000),
        (1, 2),
        (Operand(dtypes.int8, strides),),
        tuple(recorder.body),
        (Output(total.position, Operand(dtypes.int8, (1, 0, 0))),),
    )
    (call,) = plan_nest(LARGE, nest).calls
    assert "r < (long)(50000) * 100000" in call.code.source


# ---- products ------------------------------------------------------------------------------------


def floats(*shape: int) -> Aval:
    return Aval(shape, dtypes.float32)


def sources(traits: Traits, prim: Any, x: Aval, y: Aval, z: Aval, **params: Any) -> list[str]:
    plan = planned(traits, prim, (x, y), z, params)
    assert plan is not None
    return [call.code.source for call in plan.calls]


@BOTH
def test_products_count_places_in_long(traits: Traits) -> None:
    wide = "typedef long Index;"
    large = floats(70_000, 40_000), floats(40_000, 16), floats(70_000, 16)
    assert any(wide in source for source in sources(traits, matmul_p, *large))
    thin = floats(70_000, 40_000), floats(40_000, 1), floats(70_000, 1)
    assert any(wide in source for source in sources(traits, matmul_p, *thin))
    images = floats(600, 250, 250, 64)
    window = Window((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 64)
    depthwise = sources(traits, conv_p, images, floats(3, 3, 1, 64), images, window=window)
    assert wide in depthwise[0]  # the images, padded where that pays
    assert wide in depthwise[-1]
    small = floats(70, 40), floats(40, 16), floats(70, 16)
    assert not any(wide in source for source in sources(traits, matmul_p, *small))


def test_panels_that_are_larger_than_their_matrix() -> None:
    """17 columns take two panels of 16: the matrix has less than 2^31 elements, its copy more."""
    x, y, z = floats(200, 700_000), floats(100, 700_000, 17), floats(100, 200, 17)
    assert y.size < 2**31 < 2 * y.size
    assert all("typedef long Index;" in source for source in sources(CPU, matmul_p, x, y, z)[:2])


@BOTH
def test_what_kernels_cannot_count_is_left_to_the_host(traits: Traits) -> None:
    x, y, z = floats((1 << 31) + 5, 2), floats(2, 3), floats((1 << 31) + 5, 3)
    assert planned(traits, matmul_p, (x, y), z, {}) is None
    assert plan_bits(traits, 1, (1 << 31,), np.dtype(np.uint32)) is None
    assert plan_bits(traits, 1, (1 << 30,), np.dtype(np.uint32)) is not None
