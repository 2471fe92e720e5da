"""Convolutions on OpenCL devices against NumPy, in all directions, by the kernels for CPUs and by
those for GPUs."""

from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from tensorlite import dtypes
from tensorlite.core import Aval
from tensorlite.ops.conv import conv_input_grad_p, conv_p, conv_weight_grad_p
from tensorlite.ops.window import Window
from tests.backends.onednn.cases import windows
from tests.backends.opencl.product_cases import (
    CPU,
    GPU,
    close,
    computed,
    numbers,
    planned,
    reference,
)

CHANNELS = st.sampled_from([1, 2, 3, 5, 8, 13, 16, 17, 32])
DTYPES = st.sampled_from([dtypes.float32] * 4 + [dtypes.bfloat16, dtypes.float64])


def check_all(
    traits: Any, shape: tuple[int, ...], out: int, window: Window, dtype: Any = np.float32
) -> None:
    """conv and its two adjoints on images of a shape."""
    rng = np.random.default_rng(sum(shape) + out)
    x = numbers(rng, shape, dtype)
    w = numbers(rng, (*window.sizes, shape[-1] // window.groups, out), dtype)
    g = numbers(rng, (len(x), *window.positions(shape[1:-1]), out), dtype)
    cells = math.prod(window.sizes)
    for prim, arrays, params, terms in (
        (conv_p, (x, w), {"window": window}, cells * w.shape[-2]),
        (conv_weight_grad_p, (x, g), {"window": window}, math.prod(g.shape[:-1])),
        (
            conv_input_grad_p,
            (g, w),
            {"window": window, "spatial": shape[1:-1]},
            cells * out // window.groups,
        ),
    ):
        close(computed(traits, prim, arrays, params), reference(prim, arrays, params), terms)


@st.composite
def convolutions(draw: Any, depthwise: bool = False) -> Any:
    """(shape of the images, channels of the result, window, dtype)."""
    window, spatial = draw(windows())
    if depthwise:
        window = window._replace(groups=draw(CHANNELS))
    each_in = 1 if depthwise else draw(CHANNELS)
    each_out = draw(st.integers(1, 2)) if depthwise else draw(CHANNELS)
    shape = draw(st.integers(1, 3)), *spatial, each_in * window.groups
    return shape, each_out * window.groups, window, draw(DTYPES)


@given(convolutions())
@settings(max_examples=12)
def test_convolutions_equal_numpy(case: Any) -> None:
    check_all(CPU, *case)


@given(convolutions(depthwise=True))
@settings(max_examples=8)
def test_depthwise_convolutions_equal_numpy(case: Any) -> None:
    check_all(CPU, *case)


@given(convolutions())
@settings(max_examples=3)
def test_convolutions_by_work_groups_equal_numpy(case: Any) -> None:
    check_all(GPU, *case)


@given(convolutions(depthwise=True))
@settings(max_examples=3)
def test_depthwise_convolutions_point_by_point_equal_numpy(case: Any) -> None:
    check_all(GPU, *case)


@pytest.mark.parametrize("traits", [CPU, GPU], ids=lambda t: t.kind)
@pytest.mark.parametrize(
    "kind",
    [
        {"x": (3, 20, 5), "out": 7, "sizes": (3,), "padding": 1},
        {"x": (2, 9, 9, 3), "out": 64, "sizes": (5, 5), "padding": 2},
        {"x": (2, 9, 9, 64), "out": 64, "sizes": (3, 3), "padding": (0, 1), "stride": 2},
        {"x": (2, 11, 11, 16), "out": 8, "sizes": (3, 3), "dilation": 3},
        {"x": (1, 5, 5, 4), "out": 4, "sizes": (3, 3), "padding": (6, 4)},
        {"x": (2, 8, 8, 24), "out": 24, "sizes": (3, 3), "padding": 1, "groups": 24},
        {"x": (2, 8, 8, 24), "out": 48, "sizes": (3, 3), "padding": 1, "groups": 24},
        {"x": (2, 8, 8, 32), "out": 64, "sizes": (3, 3), "padding": 1, "groups": 4},
        {"x": (2, 8, 8, 17), "out": 13, "sizes": (1, 1), "stride": 2},
        {"x": (1, 6, 6, 6, 5), "out": 3, "sizes": (3, 3, 3), "padding": 1},
        {"x": (1, 6, 6, 6, 5), "out": 1, "sizes": (2, 2, 2), "stride": 3, "dilation": 2},
        {"x": (2, 9, 9, 8), "out": 300, "sizes": (3, 3), "stride": 2, "dtype": dtypes.float16},
    ],
    ids=lambda kind: "x".join(map(str, (*kind["x"], kind["out"]))),
)
def test_usual_and_unusual_windows(kind: dict[str, Any], traits: Any) -> None:
    """Strides beyond the window leave pixels that no cell reaches, padding beyond it positions
    that see nothing."""
    ndim, padding = len(kind["sizes"]), kind.get("padding", 0)
    pairs = (padding if isinstance(padding, tuple) else (padding, padding),) * ndim
    stride, dilation = kind.get("stride", 1), kind.get("dilation", 1)
    window = Window(
        kind["sizes"], (stride,) * ndim, pairs, (dilation,) * ndim, kind.get("groups", 1)
    )
    check_all(traits, kind["x"], kind["out"], window, kind.get("dtype", np.float32))


@pytest.mark.parametrize("traits", [CPU, GPU], ids=lambda t: t.kind)
@pytest.mark.parametrize(("channels", "groups"), [(16, 1), (12, 3), (20, 20)])
def test_epilogues(channels: int, groups: int, traits: Any) -> None:
    rng = np.random.default_rng(0)
    window = Window((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), groups)
    shape = (2, 6, 5, channels)
    x, other, bias = (numbers(rng, s, np.float32) for s in (shape, shape, (channels,)))
    w = numbers(rng, (3, 3, channels // groups, channels), np.float32)
    epilogue = (("bias", 2), ("add", 3), ("relu",))
    arrays, params = (x, w, bias, other), {"window": window}
    got = computed(traits, conv_p, arrays, params, epilogue)
    close(got, reference(conv_p, arrays, params, epilogue), 9 * channels // groups)


@pytest.mark.parametrize("traits", [CPU, GPU], ids=lambda t: t.kind)
def test_epilogues_of_gradients_with_strides(traits: Any) -> None:
    """A gradient by the image is several products there, some of them without any term."""
    rng = np.random.default_rng(0)
    window = Window((2, 2), (3, 3), ((0, 0), (1, 0)), (1, 1))
    x, w, bias = (numbers(rng, s, np.float32) for s in [(2, 8, 8, 5), (2, 2, 5, 6), (5,)])
    g = numbers(rng, (2, *window.positions((8, 8)), 6), np.float32)
    epilogue = (("bias", 2), ("add", 3), ("tanh",))
    arrays, params = (g, w, bias, x), {"window": window, "spatial": (8, 8)}
    got = computed(traits, conv_input_grad_p, arrays, params, epilogue)
    close(got, reference(conv_input_grad_p, arrays, params, epilogue), 24)


@pytest.mark.parametrize("traits", [CPU, GPU], ids=lambda t: t.kind)
def test_long_sums_are_split_and_added_in_order(traits: Any) -> None:
    window = Window((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1))
    many = traits._replace(units=64)
    image, kernel = Aval((4, 16, 16, 3), dtypes.float32), Aval((3, 3, 3, 8), dtypes.float32)
    result = Aval((4, 16, 16, 8), dtypes.float32)
    plan = planned(many, conv_weight_grad_p, (image, result), kernel, {"window": window})
    assert plan is not None
    assert plan.calls[-1].code.name == "sum_parts_float32"
    check_all(many, image.shape, 8, window)


def test_zeros_of_the_padding_do_not_meet_what_is_infinite() -> None:
    """Pixels that no cell reaches are 0 whatever the kernel holds."""
    window = Window((1, 1), (2, 2), ((0, 0), (0, 0)), (1, 1))
    g, w = np.ones((1, 2, 2, 3), np.float32), np.full((1, 1, 2, 3), np.inf, np.float32)
    for traits in (CPU, GPU):
        params = {"window": window, "spatial": (4, 4)}
        got = computed(traits, conv_input_grad_p, (g, w), params)
        assert got is not None
        assert np.isinf(got[:, ::2, ::2]).all()
        assert (got[:, 1::2] == 0).all()
        assert (got[:, ::2, 1::2] == 0).all()
