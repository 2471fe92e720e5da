"""The NumPy kernels of the convolution primitives.

The pixels under each position of the window are copied into the rows of a matrix ("columns"), a few
examples at a time so that it stays in the processor's cache, and multiplied once by the kernel. The
loops run over such chunks and over the cells of the window, never over pixels or examples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from .. import dtypes
from .window import Sizes, Window

# Of columns at a time: what fits the second-level cache, so that the product reads them from there.
CHUNK_BYTES = 1 << 20


def widened(kernel: Any, a: np.ndarray, b: np.ndarray, *rest: Any) -> np.ndarray:
    """`kernel(a, b, *rest)` on contiguous arrays, in float32 where their dtype is narrower."""
    narrow = a.dtype in (dtypes.float16, dtypes.bfloat16)
    wide = np.dtype(np.float32) if narrow else a.dtype
    result = kernel(np.ascontiguousarray(a, wide), np.ascontiguousarray(b, wide), *rest)
    return result.astype(a.dtype, copy=False)


def convolve(x: np.ndarray, w: np.ndarray, window: Window) -> np.ndarray:
    """x * w: the columns of `x` times the kernel."""
    y = np.empty((len(x), *window.positions(x.shape[1:-1]), w.shape[-1]), x.dtype)
    kernel = _kernel_matrices(w, window.groups)
    for examples, columns in _columns(x, window):
        target = y[examples].reshape(-1, y.shape[-1])
        if window.groups == 1:
            np.matmul(columns[0], kernel[0], out=target)
        else:
            _by_group(target, window.groups)[...] = np.matmul(columns, kernel)
    return y


def weight_grad(x: np.ndarray, g: np.ndarray, window: Window) -> np.ndarray:
    """The adjoint of `convolve` in w: the transposed columns of `x` times `g`."""
    groups, channels = window.groups, x.shape[-1] // window.groups
    total = np.zeros((groups, math.prod(window.sizes) * channels, g.shape[-1] // groups), x.dtype)
    for examples, columns in _columns(x, window):
        rows = _by_group(g[examples].reshape(-1, g.shape[-1]), groups)
        total += np.matmul(columns.transpose(0, 2, 1), rows)
    return total.transpose(1, 0, 2).reshape(*window.sizes, channels, g.shape[-1])


def input_grad(g: np.ndarray, w: np.ndarray, window: Window, spatial: Sizes) -> np.ndarray:
    """The adjoint of `convolve` in x: cell by cell, `g` times the kernel, added in its place."""
    mirrored = _mirror(w, window)
    if mirrored is not None:
        return convolve(g, *mirrored)
    groups, channels = window.groups, w.shape[-2]
    kernels = _kernel_matrices(w, groups).reshape(groups, -1, channels, w.shape[-1] // groups)
    kernels = kernels.transpose(1, 0, 3, 2)  # (cells, groups, C_out / groups, C_in / groups)
    x = np.empty((len(g), *spatial, groups * channels), g.dtype)
    positions = g.shape[1:-1]
    step = _examples_per_chunk(math.prod(positions) * groups * channels * g.itemsize)
    canvas = np.empty((min(step, len(g)), *window.padded(spatial), groups * channels), g.dtype)
    for start in range(0, len(g), step):
        part = g[start : start + step]
        padded = canvas[: len(part)]
        padded[...] = 0
        rows = np.ascontiguousarray(_by_group(part.reshape(-1, part.shape[-1]), groups))
        for number, offset in window.cells():
            share = np.matmul(rows, kernels[number]).transpose(1, 0, 2)
            axes = zip(offset, positions, window.strides, strict=True)
            under = tuple(slice(at, at + (n - 1) * stride + 1, stride) for at, n, stride in axes)
            padded[(slice(None), *under)] += share.reshape(len(part), *positions, groups * channels)
        x[start : start + step] = padded[_interior(window, spatial)]
    return x


def _mirror(w: np.ndarray, window: Window) -> tuple[np.ndarray, Window] | None:
    """The kernel and window of the convolution that is the adjoint, where one costs no more.

    With stride 1, no output pixel is skipped, so the adjoint is a convolution with the flipped
    kernel and wastes nothing on zeros. It pays unless it has more channels to gather than the image
    has to scatter.
    """
    groups, ndim = window.groups, len(window.sizes)
    pads = tuple(
        (extent - 1 - lo, extent - 1 - hi)
        for extent, (lo, hi) in zip(window.extents, window.padding, strict=True)
    )
    too_far = any(amount < 0 for pair in pads for amount in pair)
    if set(window.strides) != {1} or too_far or w.shape[-1] > groups * w.shape[-2]:
        return None
    split = np.flip(w, tuple(range(ndim))).reshape(*window.sizes, w.shape[-2], groups, -1)
    swapped = split.transpose(*range(ndim), ndim + 2, ndim + 1, ndim)
    shape = (*window.sizes, w.shape[-1] // groups, groups * w.shape[-2])
    return swapped.reshape(shape), window._replace(padding=pads)


def _kernel_matrices(w: np.ndarray, groups: int) -> np.ndarray:
    """(groups, cells * C_in / groups, C_out / groups)."""
    return _by_group(w.reshape(-1, w.shape[-1]), groups)


def _by_group(rows: np.ndarray, groups: int) -> np.ndarray:
    """A view of (rows, channels) as (groups, rows, channels / groups)."""
    return rows.reshape(len(rows), groups, rows.shape[-1] // groups).transpose(1, 0, 2)


def _columns(x: np.ndarray, window: Window) -> Iterator[tuple[slice, np.ndarray]]:
    """A few examples at a time, the pixels under each position: (groups, examples * positions,
    cells * C_in / groups).

    The array is reused by the next chunk.
    """
    ndim, groups = len(window.sizes), window.groups
    spatial, channels = x.shape[1:-1], x.shape[-1] // groups
    if window == Window((1,) * ndim, (1,) * ndim, ((0, 0),) * ndim, window.dilation):
        yield (
            slice(None),
            x.reshape(1, math.prod(x.shape[:-1]), channels),
        )  # a 1x1 convolution is a product as it stands
        return
    positions = window.positions(spatial)
    shape = (*positions, *window.sizes, channels)
    step = _examples_per_chunk(math.prod(shape) * groups * x.itemsize)
    count = min(step, len(x))
    is_padded = any(map(any, window.padding))
    canvas = np.zeros((count if is_padded else 0, *window.padded(spatial), x.shape[-1]), x.dtype)
    buffer = np.empty((groups, count, *shape), x.dtype)
    for start in range(0, len(x), step):
        part = x[start : start + step]
        if is_padded:
            canvas[: len(part)][_interior(window, spatial)] = part
        columns = buffer[:, : len(part)]
        np.copyto(columns, _windows(canvas[: len(part)] if is_padded else part, window, positions))
        yield (
            slice(start, start + step),
            columns.reshape(groups, len(part) * math.prod(positions), -1),
        )


def _windows(canvas: np.ndarray, window: Window, positions: Sizes) -> np.ndarray:
    """A view of padded images (n, *padded, C) as (groups, n, *positions, *window, C / groups)."""
    n, *_, channels = canvas.shape
    along = canvas.strides[1:-1]
    strides = (
        channels // window.groups * canvas.itemsize,
        canvas.strides[0],
        *(s * stride for s, stride in zip(along, window.strides, strict=True)),
        *(s * step for s, step in zip(along, window.dilation, strict=True)),
        canvas.itemsize,
    )
    shape = (window.groups, n, *positions, *window.sizes, channels // window.groups)
    return as_strided(canvas, shape, strides, writeable=False)


def _interior(window: Window, spatial: Sizes) -> tuple[slice, ...]:
    """Where the image lies in its padding."""
    return (
        slice(None),
        *(slice(lo, lo + n) for (lo, _), n in zip(window.padding, spatial, strict=True)),
    )


def _examples_per_chunk(bytes_per_example: int) -> int:
    return max(1, CHUNK_BYTES // max(1, bytes_per_example))
