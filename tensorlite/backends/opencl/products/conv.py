"""The three convolutions as contractions.

The gradient by the image gathers rather than scatters: along an axis of stride s, the pixels of
one residue modulo s are reached by the same cells of the window, and these pixels are a product of
their own. So a stride makes it several products, each without waste.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

from ....core import Aval
from ....ops.window import Window
from .contraction import Contraction, Index, Move, Operand


def conv(x: Aval, w: Aval, y: Aval, window: Window) -> Contraction:
    """y = x * w"""
    image, kernel, result = _Axes(x.ndim), _Axes(w.ndim, leading=0), _Axes(y.ndim)
    axes = range(len(window.sizes))
    each_in, each_out = w.shape[-2], w.shape[-1] // window.groups
    indices = [
        Index(x.shape[0], a=Move(0, 1), c=Move(0, 1)),
        *[
            Index(y.shape[1 + i], a=image.spatial(i, window.strides[i]), c=result.spatial(i))
            for i in axes
        ],
        Index(
            window.groups,
            image.channel(each_in),
            kernel.channel(each_out),
            result.channel(each_out),
        ),
        Index(each_out, b=kernel.channel(), c=result.channel()),
        *[
            Index(n, a=image.spatial(i, window.dilation[i]), b=kernel.spatial(i))
            for i, n in enumerate(window.sizes)
        ],
        Index(each_in, a=image.channel(), b=kernel.channel_in()),
    ]
    return Contraction(
        Operand(x.shape, x.dtype, (0, *[-lo for lo, _ in window.padding], 0)),
        _plain(w),
        _plain(y),
        tuple(indices),
    )


def conv_weight_grad(x: Aval, g: Aval, w: Aval, window: Window) -> Contraction:
    """w = the gradient by the kernel, from the image and the gradient by the result."""
    image, kernel, result = _Axes(x.ndim), _Axes(w.ndim, leading=0), _Axes(g.ndim)
    axes = range(len(window.sizes))
    each_in, each_out = w.shape[-2], w.shape[-1] // window.groups
    indices = [
        Index(
            window.groups,
            image.channel(each_in),
            result.channel(each_out),
            kernel.channel(each_out),
        ),
        *[
            Index(n, a=image.spatial(i, window.dilation[i]), c=kernel.spatial(i))
            for i, n in enumerate(window.sizes)
        ],
        Index(each_in, a=image.channel(), c=kernel.channel_in()),
        Index(each_out, b=result.channel(), c=kernel.channel()),
        Index(x.shape[0], a=Move(0, 1), b=Move(0, 1)),
        *[
            Index(g.shape[1 + i], a=image.spatial(i, window.strides[i]), b=result.spatial(i))
            for i in axes
        ],
    ]
    return Contraction(
        Operand(x.shape, x.dtype, (0, *[-lo for lo, _ in window.padding], 0)),
        _plain(g),
        _plain(w),
        tuple(indices),
    )


def conv_input_grad(g: Aval, w: Aval, x: Aval, window: Window) -> list[Contraction]:
    """x = the gradient by the image, from the gradient by the result and the kernel: one product
    for each residue of pixels, all of them together every pixel once."""
    image, kernel, result = _Axes(x.ndim), _Axes(w.ndim, leading=0), _Axes(g.ndim)
    each_in, each_out = w.shape[-2], w.shape[-1] // window.groups
    residues = [
        [_residue(window, axis, pixel, x.shape[1 + axis]) for pixel in range(stride)]
        for axis, stride in enumerate(window.strides)
    ]
    products = []
    for chosen in itertools.product(*residues):
        if any(residue.pixels == 0 for residue in chosen):
            continue
        indices = [
            Index(g.shape[0], a=Move(0, 1), c=Move(0, 1)),
            *[
                Index(r.pixels, a=result.spatial(i), c=image.spatial(i, window.strides[i]))
                for i, r in enumerate(chosen)
            ],
            Index(
                window.groups,
                result.channel(each_out),
                kernel.channel(each_out),
                image.channel(each_in),
            ),
            Index(each_in, b=kernel.channel_in(), c=image.channel()),
            *[
                Index(
                    r.cells, a=result.spatial(i, r.position_step), b=kernel.spatial(i, r.cell_step)
                )
                for i, r in enumerate(chosen)
            ],
            Index(each_out, a=result.channel(), b=kernel.channel()),
        ]
        products.append(
            Contraction(
                Operand(g.shape, g.dtype, (0, *[r.position for r in chosen], 0)),
                Operand(w.shape, w.dtype, (*[r.cell for r in chosen], 0, 0)),
                Operand(x.shape, x.dtype, (0, *[r.pixel for r in chosen], 0)),
                tuple(indices),
            )
        )
    return products


class _Residue(NamedTuple):
    """The pixels pixel, pixel + stride, ... of an axis and the cells that reach them: cell number j
    counts on by `cell_step` and reaches the first pixel from position `position` + j *
    `position_step`, each pixel further from one position further."""

    pixel: int
    pixels: int
    cell: int
    cells: int
    cell_step: int
    position: int
    position_step: int


def _residue(window: Window, axis: int, pixel: int, size: int) -> _Residue:
    """The residue of `pixel`, of an axis of so many pixels. A cell reaches a pixel if

    pixel + low = position * stride + cell * dilation.

    Cells are counted down, so that positions count up.
    """
    stride, dilation = window.strides[axis], window.dilation[axis]
    low, count = window.padding[axis][0], window.sizes[axis]
    pixels = -(-(size - pixel) // stride) if pixel < size else 0
    common = math.gcd(stride, dilation)
    reach = [c for c in range(count) if (pixel + low - c * dilation) % stride == 0]
    if not reach:
        return _Residue(pixel, pixels, 0, 0, 0, 0, 0)
    last = reach[-1]
    position = (pixel + low - last * dilation) // stride
    return _Residue(
        pixel, pixels, last, len(reach), -stride // common, position, dilation // common
    )


class _Axes:
    """Moves in an array (N, *spatial, C), or in a kernel (*window, C_in, C_out), which has no
    `leading` axis."""

    def __init__(self, ndim: int, leading: int = 1):
        self._ndim, self._leading = ndim, leading

    def spatial(self, axis: int, step: int = 1) -> Move:
        return Move(self._leading + axis, step)

    def channel(self, step: int = 1) -> Move:
        return Move(self._ndim - 1, step)

    def channel_in(self) -> Move:
        return Move(self._ndim - 2, 1)


def _plain(aval: Aval) -> Operand:
    return Operand(aval.shape, aval.dtype, (0,) * aval.ndim)
