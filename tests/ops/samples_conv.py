"""Samples for convolution and pooling."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np

from tensorlite.ops.window import Window
from tests.ops.sampling import Sample, distinct, rngs, samples


def per_axis(draw: Any, ndim: int, low: int, high: int) -> tuple[int, ...]:
    return tuple(draw(st.integers(low, high)) for _ in range(ndim))


def pairs(draw: Any, ndim: int, high: int) -> tuple[tuple[int, int], ...]:
    return tuple((draw(st.integers(0, high)), draw(st.integers(0, high))) for _ in range(ndim))


def fitting(draw: Any, window: Window) -> tuple[int, ...]:
    """Sizes of a small image that the window fits into once it is padded."""
    smallest = [
        max(1, span - lo - hi)
        for span, (lo, hi) in zip(window.extents, window.padding, strict=True)
    ]
    return tuple(draw(st.integers(n, n + 2)) for n in smallest)


def conv_windows(draw: Any) -> tuple[Window, tuple[int, ...]]:
    ndim = draw(st.sampled_from([1, 1, 2, 2, 3]))
    sizes = per_axis(draw, ndim, 1, 3 if ndim < 3 else 2)
    strides, dilation = per_axis(draw, ndim, 1, 2), per_axis(draw, ndim, 1, 2)
    padding = pairs(draw, ndim, 2) if draw(st.booleans()) else ((0, 0),) * ndim
    window = Window(sizes, strides, padding, dilation, draw(st.sampled_from([1, 1, 2])))
    return window, fitting(draw, window)


@samples("conv", "conv_input_grad", "conv_weight_grad")
def conv(draw: Any, name: str) -> Sample:
    window, spatial = conv_windows(draw)
    count = draw(st.integers(0, 2))
    channels_in, channels_out = per_axis(draw, 2, 1, 2)
    rng = draw(rngs())
    x = rng.normal(size=(count, *spatial, channels_in * window.groups))
    w = rng.normal(size=(*window.sizes, channels_in, channels_out * window.groups))
    y = rng.normal(size=(count, *window.positions(spatial), w.shape[-1]))
    if name == "conv":
        return Sample((x, w), {"window": window})
    if name == "conv_weight_grad":
        return Sample((x, y), {"window": window})
    return Sample((y, w), {"window": window, "spatial": spatial})


def pool_windows(draw: Any) -> tuple[Window, tuple[int, ...]]:
    ndim = draw(st.sampled_from([1, 2, 2, 3]))
    sizes = per_axis(draw, ndim, 1, 3 if ndim < 3 else 2)
    padding = tuple((draw(st.integers(0, n - 1)), draw(st.integers(0, n - 1))) for n in sizes)
    window = Window(sizes, per_axis(draw, ndim, 1, 3), padding, (1,) * ndim)
    return window, fitting(draw, window)


@samples("max_pool", "pool_argmax", "pool_sum")
def pool(draw: Any, name: str) -> Sample:
    window, spatial = pool_windows(draw)
    x = distinct(draw(rngs()), (draw(st.integers(0, 2)), *spatial, draw(st.integers(1, 2))))
    return Sample((x,), {"window": window})


@samples("pool_gather", "pool_scatter", "pool_spread")
def pool_adjoints(draw: Any, name: str) -> Sample:
    window, spatial = pool_windows(draw)
    rng, count, channels = draw(rngs()), draw(st.integers(0, 2)), draw(st.integers(1, 2))
    x = rng.normal(size=(count, *spatial, channels))
    y = rng.normal(size=(count, *window.positions(spatial), channels))
    count_cells = int(np.prod(window.sizes))
    cells = rng.integers(0, count_cells, y.shape).astype(np.uint8)  # in the padding too
    if name == "pool_gather":
        return Sample((x, cells), {"window": window})
    if name == "pool_scatter":
        return Sample((y, cells), {"window": window, "spatial": spatial})
    return Sample((y,), {"window": window, "spatial": spatial})
