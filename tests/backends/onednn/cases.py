"""Random convolutions and products, and how close oneDNN must come to NumPy."""

from __future__ import annotations

import math
import pathlib
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest

from tensorlite import dtypes
from tensorlite.backends.cpu.onednn import Epilogue, plan, run
from tensorlite.core import Aval, Primitive
from tensorlite.ops.window import Window

# oneDNN computes in bfloat16 on processors with AVX-512; elsewhere NumPy does.
HAS_AVX512 = "avx512bw" in pathlib.Path("/proc/cpuinfo").read_text()
needs_avx512 = pytest.mark.skipif(not HAS_AVX512, reason="needs a processor with AVX-512")
FLOATS = [dtypes.float32, pytest.param(dtypes.bfloat16, marks=needs_avx512)]
DTYPES = st.sampled_from([dtypes.float32, *[dtypes.float32, dtypes.bfloat16] * HAS_AVX512])
# The rounding of one operation, relative.
STEP = {
    dtypes.float32: 2.0**-24,
    dtypes.bfloat16: 2.0**-8,
    dtypes.float16: 2.0**-11,
    dtypes.float64: 0,
}
CHANNELS = st.sampled_from([1, 2, 3, 5, 7, 8, 13, 16, 17, 24, 32, 40])


def aval(array: np.ndarray) -> Aval:
    return Aval(array.shape, array.dtype)


def numbers(draw: Any, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng.normal(size=shape).astype(dtype)


def close(got: np.ndarray, expected: np.ndarray, terms: int, dtype: Any) -> None:
    """Equal up to the rounding of a sum of `terms` products of numbers of size one."""
    scale = math.sqrt(terms) + float(np.abs(expected.astype(np.float64)).max(initial=0))
    narrow = 2 * STEP[dtype] if dtype != dtypes.float32 else 0
    tolerance = scale * (narrow + 4 * math.sqrt(terms) * STEP[dtypes.float32])
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    np.testing.assert_allclose(
        got.astype(np.float64), expected.astype(np.float64), rtol=0, atol=tolerance
    )


def planned(
    prim: Primitive,
    arrays: tuple[np.ndarray, ...],
    params: dict[str, Any],
    epilogue: Epilogue = (),
    count: int = 2,
) -> list[np.ndarray] | None:
    """The results of the plan for `prim` on the first `count` arrays, or None without a plan."""
    out: Any = prim.abstract(*map(aval, arrays[:count]), **params)
    outs = [out] if isinstance(out, Aval) else list(out)
    if epilogue == (("bias_grad",),):
        outs.append(Aval(arrays[1].shape[-1:], arrays[1].dtype))
    found = plan(prim, [aval(a) for a in arrays], outs, params, epilogue=epilogue)
    if found is None:
        return None
    results = [np.full(o.shape, np.nan, o.dtype) for o in outs]
    run(found, arrays, results)
    return results


@st.composite
def windows(draw: Any, max_groups: int = 4) -> tuple[Window, tuple[int, ...]]:
    """A window and sizes of images into which it fits."""
    ndim = draw(st.sampled_from([1, 2, 2, 2, 3]))
    axes = range(ndim)
    sizes = tuple(draw(st.integers(1, 5 if ndim < 3 else 3)) for _ in axes)
    strides = tuple(draw(st.sampled_from([1, 1, 2, 3])) for _ in axes)
    dilation = tuple(draw(st.sampled_from([1, 1, 2])) for _ in axes)
    pads = st.integers(0, 3)
    padding = tuple((draw(pads), draw(pads)) for _ in axes)
    window = Window(sizes, strides, padding, dilation, draw(st.integers(1, max_groups)))
    spatial = []
    for extent, (lo, hi) in zip(window.extents, padding, strict=True):
        least = max(1, extent - lo - hi)
        spatial.append(draw(st.integers(least, least + (9 if ndim < 3 else 4))))
    return window, tuple(spatial)
