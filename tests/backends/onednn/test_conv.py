"""Convolutions on oneDNN against the NumPy kernels."""

from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from tensorlite import dtypes
from tensorlite.backends.cpu.onednn import Epilogue, plan
from tensorlite.core import Aval
from tensorlite.ops.conv import conv_input_grad_p, conv_p, conv_weight_grad_p
from tensorlite.ops.window import Window
from tests.backends.onednn.cases import (
    CHANNELS,
    DTYPES,
    FLOATS,
    close,
    needs_avx512,
    numbers,
    planned,
    windows,
)


@st.composite
def convolutions(draw: Any, depthwise: bool = False) -> Any:
    """(x, w, g, window), where g is shaped like the result."""
    window, spatial = draw(windows())
    if depthwise:
        window = window._replace(groups=draw(CHANNELS))
    each_in = 1 if depthwise else draw(CHANNELS)
    each_out = draw(st.integers(1, 2)) if depthwise else draw(CHANNELS)
    dtype, groups = draw(DTYPES), window.groups
    x = numbers(draw, (draw(st.integers(1, 3)), *spatial, each_in * groups), dtype)
    w = numbers(draw, (*window.sizes, each_in, each_out * groups), dtype)
    g = numbers(draw, (len(x), *window.positions(spatial), w.shape[-1]), dtype)
    return x, w, g, window


def check_all(x: np.ndarray, w: np.ndarray, g: np.ndarray, window: Window) -> list[bool]:
    """Compare conv and its two adjoints with NumPy; which of them oneDNN has."""
    cells = math.prod(window.sizes)
    to_input = {"window": window, "spatial": x.shape[1:-1]}
    cases: list[Any] = [
        (conv_p, (x, w), {"window": window}, cells * w.shape[-2]),
        (conv_input_grad_p, (g, w), to_input, cells * w.shape[-1] // window.groups),
        (conv_weight_grad_p, (x, g), {"window": window}, math.prod(g.shape[:-1])),
    ]
    there = []
    for prim, arrays, params, terms in cases:
        got = planned(prim, arrays, params)
        there.append(got is not None)
        if got is not None:
            close(got[0], prim.numpy_rule(*arrays, **params), terms, x.dtype)
    return there


@given(convolutions())
@settings(max_examples=80)
def test_convolutions_equal_numpy(case: Any) -> None:
    check_all(*case)


@given(convolutions(depthwise=True))
@settings(max_examples=40)
def test_depthwise_convolutions_equal_numpy(case: Any) -> None:
    check_all(*case)


@pytest.mark.parametrize(
    ("x", "w", "window"),
    [
        (
            (2, 1, 4, 5, 32),
            (2, 2, 1, 16, 32),
            Window((2, 2, 1), (1, 1, 1), ((1, 1), (1, 0), (2, 0)), (2, 1, 2), 2),
        ),
        (
            (1, 4, 2, 5, 72),
            (1, 1, 3, 24, 120),
            Window((1, 1, 3), (3, 1, 3), ((0, 3), (0, 2), (0, 1)), (1, 1, 2), 3),
        ),
        ((1, 3, 3, 32), (1, 1, 32, 32), Window((1, 1), (1, 1), ((0, 1), (0, 0)), (1, 1), 1)),
        ((1, 1, 3, 32), (2, 1, 32, 32), Window((2, 1), (1, 1), ((1, 1), (0, 0)), (2, 1), 1)),
    ],
)
def test_bfloat16_windows_that_lie_in_the_padding_are_left_to_numpy(
    x: tuple[int, ...], w: tuple[int, ...], window: Window
) -> None:
    """oneDNN 3.2 crashes on them where a processor has AMX."""
    rng = np.random.default_rng(0)
    for dtype, is_planned in ((dtypes.bfloat16, False), (dtypes.float32, True)):
        arrays = tuple(rng.normal(size=shape).astype(dtype) for shape in (x, w))
        found = planned(conv_p, arrays, {"window": window})
        assert (found is not None) == is_planned


def case(
    x: tuple[int, ...],
    out: int,
    sizes: tuple[int, ...],
    *,
    stride: int = 1,
    padding: Any = 0,
    dilation: int = 1,
    groups: int = 1,
    dtype: Any = np.float32,
) -> Any:
    ndim = len(sizes)
    pairs = (padding if isinstance(padding, tuple) else (padding, padding),) * ndim
    window = Window(sizes, (stride,) * ndim, pairs, (dilation,) * ndim, groups)
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=s).astype(dtype) for s in (x, (*sizes, x[-1] // groups, out))]
    g = rng.normal(size=(x[0], *window.positions(x[1:-1]), out)).astype(dtype)
    return *arrays, g, window


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(
    "kind",
    [
        {"x": (3, 20, 5), "out": 7, "sizes": (3,), "padding": 1},
        {"x": (2, 9, 9, 3), "out": 64, "sizes": (5, 5), "padding": 2},
        {"x": (2, 9, 9, 64), "out": 64, "sizes": (3, 3), "padding": (0, 1), "stride": 2},
        {"x": (2, 11, 11, 16), "out": 8, "sizes": (3, 3), "dilation": 3},
        {"x": (2, 8, 8, 24), "out": 24, "sizes": (3, 3), "padding": 1, "groups": 24},
        {"x": (2, 8, 8, 32), "out": 64, "sizes": (3, 3), "padding": 1, "groups": 4},
        {"x": (2, 8, 8, 17), "out": 13, "sizes": (1, 1), "stride": 2},
        {"x": (1, 6, 6, 6, 5), "out": 3, "sizes": (3, 3, 3), "padding": 1},
    ],
    ids=lambda kind: "x".join(map(str, (*kind["x"], kind["out"]))),
)
def test_usual_convolutions_have_all_three_kernels(kind: dict[str, Any], dtype: Any) -> None:
    assert check_all(*case(**kind, dtype=dtype)) == [True, True, True]


SMALL: list[dict[str, Any]] = [
    {"x": (3, 2, 2, 256), "out": 300, "sizes": (3, 3), "padding": 1},
    {"x": (5, 1, 1, 300), "out": 256, "sizes": (3, 3), "padding": 1},
    {"x": (1, 2, 2, 256), "out": 256, "sizes": (5, 5), "padding": 2},
    {"x": (2, 2, 3, 256), "out": 256, "sizes": (3, 5), "padding": (1, 1)},
    {"x": (3, 4, 4, 256), "out": 256, "sizes": (3, 3), "padding": 1},
    {"x": (2, 3, 3, 256), "out": 256, "sizes": (3, 3), "padding": 2, "dilation": 2},
    {"x": (2, 2, 256), "out": 256, "sizes": (3,), "padding": 1},
    {"x": (2, 2, 2, 2, 256), "out": 256, "sizes": (3, 3, 3), "padding": 1},
    {"x": (2, 4, 4, 256), "out": 256, "sizes": (3, 3), "padding": 1, "stride": 2},
    {"x": (2, 2, 2, 256), "out": 256, "sizes": (3, 3), "padding": (2, 0)},
]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("kind", SMALL, ids=lambda kind: "x".join(map(str, kind["x"])))
def test_small_images_of_many_channels(kind: dict[str, Any], dtype: Any) -> None:
    assert check_all(*case(**kind, dtype=dtype)) == [True, True, True]


def test_small_images_are_products_of_pixels() -> None:
    x, w, g, window = case((3, 2, 2, 256), 256, (3, 3), padding=1)
    params = {"window": window}
    avals = [Aval(a.shape, a.dtype) for a in (x, w, g)]
    found = plan(conv_p, avals[:2], avals[2:], params)
    assert found is not None
    # The central cell, one for each of four corners, two for each row above and below and one for
    # each column beside it.
    assert len(found.calls) == 1 + 4 + 2 * 2 + 2 * 1
    assert plan(conv_p, avals[:2], avals[2:], params, epilogue=(("relu",),)) is None


@needs_avx512
def test_narrow_images_in_bfloat16_are_left_to_numpy() -> None:
    """oneDNN 3.2 has wrong sums there."""
    x, w, g, window = case((3, 9, 1, 16), 32, (3, 3), stride=2, padding=2, dtype=dtypes.bfloat16)
    assert check_all(x, w, g, window) == [True, True, False]


@pytest.mark.parametrize("dtype", [dtypes.float64, dtypes.float16], ids=str)
def test_other_dtypes_are_left_to_numpy_or_right(dtype: Any) -> None:
    there = check_all(*case((2, 5, 5, 3), 4, (3, 3), dtype=dtype))
    assert dtype != dtypes.float64 or not any(there)


@pytest.mark.parametrize("shape", [(0, 5, 5, 3), (2, 5, 5, 0)])
def test_nothing_at_all_is_left_to_numpy(shape: tuple[int, ...]) -> None:
    assert check_all(*case(shape, 4, (3, 3))) == [False, False, False]


# ---- epilogues -----------------------------------------------------------------------


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


EPILOGUES: list[Epilogue] = [
    (("bias", 2),),
    (("bias", 2), ("relu",)),
    (("relu",), ("mul", 4)),
    (("add", 3),),
    (("bias", 2), ("add", 3), ("relu",)),
    (("add", 2), ("tanh",), ("mul", 4)),
]


def apply(epilogue: Epilogue, y: np.ndarray, arrays: Any) -> np.ndarray:
    for name, *operands in epilogue:
        if name in ("bias", "add"):
            y = y + arrays[operands[0]]
        elif name == "mul":
            y = y * arrays[operands[0]]
        else:
            y = {"relu": relu, "tanh": np.tanh}[name](y)
    return y


@given(convolutions(), st.sampled_from(EPILOGUES), st.data())
@settings(max_examples=60)
def test_epilogues_of_convolution(case: Any, epilogue: Epilogue, data: Any) -> None:
    x, w, y, window = case
    vector = numbers(data.draw, y.shape[-1:], x.dtype)
    full, scalar = (numbers(data.draw, shape, x.dtype) for shape in (y.shape, (1,) * y.ndim))
    arrays = (x, w, vector, full, scalar)
    got = planned(conv_p, arrays, {"window": window}, epilogue)
    if got is None:
        return
    wide = [a.astype(np.float64) for a in arrays]
    expected = apply(epilogue, conv_p.numpy_rule(*wide[:2], window=window), wide)
    close(got[0], expected.astype(x.dtype), 4 * math.prod(w.shape[:-1]), x.dtype)


def test_the_usual_epilogue_is_fused() -> None:
    x, w, g, window = case((2, 9, 9, 16), 32, (3, 3), padding=1)
    bias = np.arange(32, dtype=np.float32) - 16
    got = planned(conv_p, (x, w, bias, g), {"window": window}, (("bias", 2), ("relu",)))
    assert got is not None
    expected = relu(conv_p.numpy_rule(x, w, window=window) + bias)
    close(got[0], expected, 144, x.dtype)
    assert not np.signbit(got[0]).any()


def test_relu_keeps_nan_and_infinity() -> None:
    x, w, _, window = case((1, 5, 5, 16), 16, (1, 1))
    x[0, 1, 1], x[0, 2, 2] = np.nan, 1e38
    w[...] = np.where(np.arange(16) < 8, 1e3, -1e3)
    got = planned(conv_p, (x, w), {"window": window}, (("relu",),))
    assert got is not None
    assert np.isnan(got[0][0, 1, 1]).all()
    assert got[0][0, 2, 2].tolist() == [np.inf] * 8 + [0] * 8
    assert np.isfinite(np.delete(got[0][0].reshape(25, 16), [6, 12], axis=0)).all()


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_the_gradient_of_a_bias_comes_with_that_of_the_kernel(ndim: int, dtype: Any) -> None:
    x, _, g, window = case((2, *(7,) * ndim, 5), 24, (3,) * ndim, padding=1, dtype=dtype)
    got = planned(conv_weight_grad_p, (x, g), {"window": window}, (("bias_grad",),))
    assert got is not None
    close(got[0], conv_weight_grad_p.numpy_rule(x, g, window=window), g[..., 0].size, dtype)
    total = g.astype(np.float64).sum(axis=tuple(range(ndim + 1)))
    close(got[1], total.astype(dtype), g[..., 0].size, dtype)


@pytest.mark.parametrize(
    "epilogue", [(("exp",),), (("bias", 3),), (("add", 3), ("cube",)), (("bias_grad",),)]
)
def test_what_cannot_be_fused_has_no_plan(epilogue: Epilogue) -> None:
    x, w, g, window = case((2, 9, 9, 16), 32, (3, 3))
    assert planned(conv_p, (x, w, g, g[:1, :2]), {"window": window}, epilogue) is None
    to_input = {"window": window, "spatial": x.shape[1:-1]}
    assert planned(conv_input_grad_p, (g, w), to_input, (("relu",),)) is None
