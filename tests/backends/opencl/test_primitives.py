"""Every primitive on an OpenCL device against the CPU, on the samples that its rules are tested
with; eagerly, and through jit."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tensorlite as tl
from tensorlite import dtypes
from tensorlite.core import bind, primitives
from tensorlite.device import get_device
from tests.ops.sampling import Sample, strategy_of
from tests.ops.test_rules import NAMES, as_tuple

# Its results differ between libraries in ways that do not matter, or lie on the CPU by contract.
APART = {"eigh", "svd", "qr"}


def compare(got: Any, want: Any, dtype: Any) -> None:
    for a, b in zip(as_tuple(got), as_tuple(want), strict=True):
        assert a.device == "opencl:0"
        x, y = np.asarray(a), np.asarray(b)
        assert x.dtype == y.dtype and x.shape == y.shape
        if x.dtype.kind in "biu":
            np.testing.assert_array_equal(x, y)
            continue
        tolerance = 1e-10 if dtype == np.float64 else 2e-5
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", sorted(set(NAMES) - APART))
@settings(max_examples=3)
@given(data=st.data())
def test_like_the_cpu(name: str, data: Any) -> None:
    sample: Sample = data.draw(strategy_of(name))
    dtype = data.draw(st.sampled_from([np.float32, np.float64]))
    arrays = [a.astype(dtype) if a.dtype == dtypes.float64 else a for a in sample.args]
    prim = primitives[name]
    with np.errstate(all="ignore"):
        want = bind(prim, *[tl.asarray(a) for a in arrays], **sample.params)
    if "device" in sample.params:
        sample.params["device"] = get_device("opencl:0")
    there = [tl.asarray(a, device="opencl:0") for a in arrays]
    with contextlib.ExitStack() as stack:
        if not there:
            stack.enter_context(tl.default_device("opencl:0"))
        compare(bind(prim, *there, **sample.params), want, dtype)
        compare(tl.jit(lambda *xs: bind(prim, *xs, **sample.params))(*there), want, dtype)


@pytest.mark.parametrize("size", [1, 2, 7, 13])
def test_decompositions_multiply_back(size: int) -> None:
    """Signs and orders may differ from the CPU's; what the factors make may not."""
    x = np.random.default_rng(size).normal(size=(size + 3, size))
    a, symmetric = (tl.asarray(m, device="opencl:0") for m in (x, x.T @ x))

    def multiplied(a: Any, symmetric: Any) -> Any:
        q, r = tl.linalg.qr(a)
        u, s, v = tl.linalg.svd(a, full_matrices=False)
        values, vectors = tl.linalg.eigh(symmetric)
        return q @ r, (u * s) @ v, (vectors * values) @ tl.matrix_transpose(vectors)

    for got, want in zip(tl.jit(multiplied)(a, symmetric), (x, x, x.T @ x), strict=True):
        assert got.device == "opencl:0"
        np.testing.assert_allclose(np.asarray(got), want, atol=1e-10)
