"""Convolutions on oneDNN against the NumPy kernels."""

from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st
import numpy as np
from hypothesis import given, settings

from tensorlite.ops.conv import conv_input_grad_p, conv_p, conv_weight_grad_p
from tensorlite.ops.window import Window
from tests.backends.onednn.cases import CHANNELS, DTYPES, close, numbers, planned, windows


@st.composite
def convolutions(draw: Any, depthwise: bool = False) -> Any:
    """(x, w, y-shaped g, window)"""
    window, spatial = draw(windows())
    each_in, each_out = (
        (1, draw(st.integers(1, 2))) if depthwise else (draw(CHANNELS), draw(CHANNELS))
    )
    if depthwise:
        window = window._replace(groups=draw(CHANNELS))
    dtype = draw(DTYPES)
    groups = window.groups
    x = numbers(draw, (draw(st.integers(1, 3)), *spatial, each_in * groups), dtype)
    w = numbers(draw, (*window.sizes, each_in, each_out * groups), dtype)
    g = numbers(draw, (len(x), *window.positions(spatial), w.shape[-1]), dtype)
    return x, w, g, window


def check(x: np.ndarray, w: np.ndarray, g: np.ndarray, window: Window) -> int:
    """Compare all three; how many of them oneDNN has."""
    spatial = x.shape[1:-1]
    cells = math.prod(window.sizes)
    cases = [
        (conv_p, (x, w), {"window": window}, cells * w.shape[-2]),
        (
            conv_input_grad_p,
            (g, w),
            {"window": window, "spatial": spatial},
            cells * w.shape[-1] // window.groups,
        ),
        (conv_weight_grad_p, (x, g), {"window": window}, math.prod(g.shape[:-1])),
    ]
    count = 0
    for prim, arrays, params, terms in cases:
        got = planned(prim, arrays, params)
        if got is not None:
            close(got[0], prim.numpy_rule(*arrays, **params), terms, x.dtype)
            count += 1
    return count


@given(convolutions())
@settings(max_examples=150, deadline=None)
def test_convolutions_equal_numpy(case: Any) -> None:
    check(*case)


@given(convolutions(depthwise=True))
@settings(max_examples=50, deadline=None)
def test_depthwise_convolutions_equal_numpy(case: Any) -> None:
    check(*case)
