"""Matrix products on oneDNN against NumPy's."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

import tensorlite as tl
from tensorlite import dtypes
from tensorlite.backends.cpu.onednn import Plan, plan, plan_matmul, run
from tensorlite.core import Aval
from tensorlite.ops.linalg import matmul_p
from tests.backends.onednn.cases import CHANNELS, DTYPES, FLOATS, aval, close, numbers

LEADS = st.sampled_from(
    [((), ()), ((3,), (3,)), ((3,), ()), ((), (2,)), ((2, 1), (3,)), ((2, 3), (2, 3)), ((1,), (4,))]
)


def reference(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return matmul_p.numpy_rule(x, y)  # type: ignore[misc]


@given(LEADS, CHANNELS, CHANNELS, CHANNELS, DTYPES, st.booleans(), st.booleans(), st.data())
@settings(max_examples=100)
def test_products_equal_numpy(
    lead: Any, m: int, k: int, n: int, dtype: Any, swap_x: bool, swap_y: bool, data: Any
) -> None:
    x = numbers(data.draw, (*lead[0], *((k, m) if swap_x else (m, k))), dtype)
    y = numbers(data.draw, (*lead[1], *((n, k) if swap_y else (k, n))), dtype)
    expected = reference(x.swapaxes(-1, -2) if swap_x else x, y.swapaxes(-1, -2) if swap_y else y)
    found = plan_matmul(aval(x), aval(y), aval(expected), transpose_a=swap_x, transpose_b=swap_y)
    assert found is not None
    z = np.full_like(expected, np.nan)
    run(found, (x, y), (z,))
    close(z, expected, k, dtype)


@pytest.mark.parametrize("lead", [(), (4,), (2, 3)], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_bias_activation_and_residual_are_fused(lead: tuple[int, ...], dtype: Any) -> None:
    rng = np.random.default_rng(0)
    shapes = [(*lead, 5, 24), (24, 40), (40,), (*lead, 5, 40)]
    x, y, bias, residual = arrays = [rng.normal(size=s).astype(dtype) for s in shapes]
    out = aval(residual)
    epilogue = (("bias", 2), ("relu",), ("add", 3))
    found = plan_matmul(*map(aval, arrays[:2]), out, *map(aval, arrays[2:]), epilogue=epilogue)
    assert found is not None
    z = np.empty(out.shape, out.dtype)
    run(found, arrays, (z,))
    wide = [a.astype(np.float64) for a in (x, y, bias, residual)]
    expected = np.maximum(wide[0] @ wide[1] + wide[2], 0) + wide[3]
    close(z, expected.astype(dtype), 48, dtype)


def planned(x: Aval, y: Aval, z: Aval) -> Plan | None:
    return plan(matmul_p, (x, y), (z,), {})


@pytest.mark.parametrize("dtype", [dtypes.float64, dtypes.int32, dtypes.uint8], ids=str)
def test_other_dtypes_are_left_to_numpy(dtype: Any) -> None:
    square = Aval((4, 4), dtype)
    assert planned(square, square, square) is None


def test_empty_products_are_left_to_numpy() -> None:
    x, y, z = (Aval(shape, dtypes.float32) for shape in ((3, 0), (0, 2), (3, 2)))
    assert planned(x, y, z) is None


@pytest.mark.parametrize("dtype", [tl.float32, tl.bfloat16, tl.float16, tl.float64], ids=str)
@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((70, 80), (80, 90)),
        ((7, 70, 80), (80, 90)),
        ((5, 1, 70, 80), (3, 80, 9)),
        ((1, 900), (900, 400)),
    ],
)
def test_eager_products_of_all_kinds(left: Any, right: Any, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=shape).astype(dtype) for shape in (left, right))
    expected = reference(x, y)
    transposed = [tl.asarray(np.ascontiguousarray(a.swapaxes(-1, -2))) for a in (x, y)]
    for a in (tl.asarray(x), tl.matrix_transpose(transposed[0])):
        for b in (tl.asarray(y), tl.matrix_transpose(transposed[1])):
            close((a @ b).numpy(), expected, left[-1], dtype)
    every_other = tl.asarray(np.repeat(x, 2, axis=-1))[..., ::2]
    close((every_other @ tl.asarray(y)).numpy(), expected, left[-1], dtype)


def test_large_eager_products_that_do_not_fit_are_explained() -> None:
    with pytest.raises(ValueError, match=r"matmul: .* do not fit: x.shape\[-1\] must equal"):
        tl.ones((900, 900)) @ tl.ones((800, 900))
