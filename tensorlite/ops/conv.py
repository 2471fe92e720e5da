"""Convolution: three bilinear primitives, each the derivative of the other two.

    y = x * w       conv
    x' = y' * w     conv_input_grad      the adjoint of conv in x
    w' = x * y'     conv_weight_grad     the adjoint of conv in w

Every derivative of any order is one of the three, so a backend that has these kernels has them all.
vmap folds its axis into the batch, the channels or the groups. Images are (N, *spatial, C_in),
kernels (*window, C_in / groups, C_out), 1-D to 3-D; as in all of deep learning, the kernel is not
flipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import dtypes
from ..core import Aval, Primitive, Tensor, bind
from ..precision import operands
from . import conv_numpy
from .creation import asarray
from .shape import moveaxis, reshape
from .window import Sizes, Window, extents, fold, per_axis, resolve_padding, unfold

Padding = str | int | Sequence[int] | Sequence[tuple[int, int]]


def conv(
    x: Tensor,
    w: Tensor,
    *,
    stride: int | Sequence[int] = 1,
    padding: Padding = "same",
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """Convolution (cross-correlation) over 1, 2 or 3 spatial axes.

    Args:
        x: images (N, *spatial, C_in), floating-point.
        w: kernels (*window, C_in / groups, C_out), of the dtype of `x`.
        stride: pixels between neighbouring positions of the window; an int, or one for each spatial
            axis.
        padding: zeros around the image. "same": ceil(n / stride) positions along each axis, the odd
            pixel of padding at the end, as in TensorFlow; "valid": none; "full": wherever window
            and image touch; an int: that many on every side; or a pair (low, high) for each spatial
            axis.
        dilation: pixels between neighbouring cells of the window.
        groups: the channels are split into this many groups, each with its own kernels.

    Returns:
        (N, *positions, C_out) of the dtype of `x`; float16 and bfloat16 are summed in float32.

    Raises:
        ValueError: ranks or channels do not fit, or the window is larger than the padded image.
        TypeError: dtypes differ or are not floating-point, or an option is of the wrong kind.

    Example:
        >>> x = tl.ones((1, 4, 4, 3))  # one image of 4 x 4 pixels with 3 channels
        >>> w = tl.ones((3, 3, 3, 8))
        >>> nn.conv(x, w).shape, nn.conv(x, w, padding="valid").shape, nn.conv(x, w, stride=2).shape
        ((1, 4, 4, 8), (1, 2, 2, 8), (1, 2, 2, 8))
        >>> print(nn.conv(x, w)[0, :, :, 0])
        [[12. 18. 18. 12.]
         [18. 27. 27. 18.]
         [18. 27. 27. 18.]
         [12. 18. 18. 12.]]
    """
    x, w = operands(asarray(x), asarray(w))
    ndim = _spatial_axes("conv", x, w)
    sizes, strides = w.shape[:ndim], per_axis("conv", "stride", stride, ndim)
    dilations = per_axis("conv", "dilation", dilation, ndim)
    pads = resolve_padding("conv", padding, x.shape[1:-1], sizes, strides, dilations)
    window = Window(sizes, strides, pads, dilations, _check_groups("conv", groups))
    conv_p.abstract(x.aval, w.aval, window=window)
    return bind(conv_p, x, w, window=window)


def conv_transpose(
    x: Tensor,
    w: Tensor,
    *,
    stride: int | Sequence[int] = 1,
    padding: Padding = "same",
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """Transposed convolution, which enlarges images: the adjoint in x of `conv` with the same
    kernel and options.

    Args:
        x: images (N, *spatial, C_in), floating-point.
        w: kernels (*window, C_out / groups, C_in): the layout of the convolution from C_out to C_in
            channels whose adjoint this is, and that of TensorFlow's conv2d_transpose.
        stride: by how much each axis grows.
        padding: that of the adjoint convolution. An axis of n pixels becomes n * stride for "same",
            n * stride + max(extent - stride, 0) for "valid", and else (n - 1) * stride + extent -
            low - high, where the extent of the window is dilation * (size - 1) + 1.
        dilation, groups: as in `conv`.

    Returns:
        (N, *enlarged, C_out) of the dtype of `x`.

    Raises:
        ValueError: ranks or channels do not fit, or the padding leaves no pixel.
        TypeError: dtypes differ or are not floating-point, or an option is of the wrong kind.

    Example:
        >>> nn.conv_transpose(tl.ones((1, 4, 4, 3)), tl.ones((2, 2, 8, 3)), stride=2).shape
        (1, 8, 8, 8)
    """
    op = "conv_transpose"
    x, w = operands(asarray(x), asarray(w))
    ndim = _spatial_axes(op, x, w)
    sizes, strides, spatial = w.shape[:ndim], per_axis(op, "stride", stride, ndim), x.shape[1:-1]
    dilations = per_axis(op, "dilation", dilation, ndim)
    spans = extents(sizes, dilations)
    axes = list(zip(spatial, strides, spans, strict=True))
    is_same, is_valid = padding == "same", padding == "valid"
    enlarged = tuple(n * s + (0 if is_same else max(span - s, 0)) for n, s, span in axes)
    pads = resolve_padding(op, padding, enlarged, sizes, strides, dilations)
    if not (is_same or is_valid):
        enlarged = tuple(
            (n - 1) * s + span - lo - hi for (n, s, span), (lo, hi) in zip(axes, pads, strict=True)
        )
    if any(n < 1 for n in enlarged):
        raise ValueError(
            f"{op}: padding {padding!r} leaves nothing of {x.aval}: "
            f"the result would have sizes {enlarged}"
        )
    window = Window(sizes, strides, pads, dilations, _check_groups(op, groups))
    if x.shape[-1] != w.shape[-1]:
        raise ValueError(
            f"{op}: x has {x.shape[-1]} channels but w expects {w.shape[-1]} (w.shape[-1]); "
            f"x is (N, *spatial, C_in) and w (*window, C_out / groups, C_in), got {x.aval} and "
            f"{w.aval}"
        )
    _check_kernel(op, x.aval, w.aval, window)
    return bind(conv_input_grad_p, x, w, window=window, spatial=enlarged)


# ---- y = x * w -----------------------------------------------------------------------

conv_p = Primitive("conv")  # (x, w)


@conv_p.shape
def _(x: Aval, w: Aval, *, window: Window) -> Aval:
    _check_kernel("conv", x, w, window)
    expected = w.shape[-2] * window.groups
    if x.shape[-1] != expected:
        product = f"w.shape[-2] * groups = {w.shape[-2]} * {window.groups}"
        raise ValueError(
            f"conv: x has {x.shape[-1]} channels but w expects {expected} ({product}); "
            f"x is (N, *spatial, C_in) and w (*window, C_in / groups, C_out), got {x} and {w}"
        )
    window.check("conv", x.shape[1:-1])
    return Aval((x.shape[0], *window.positions(x.shape[1:-1]), w.shape[-1]), x.dtype)


@conv_p.numpy
def _(x: np.ndarray, w: np.ndarray, *, window: Window) -> np.ndarray:
    return conv_numpy.widened(conv_numpy.convolve, x, w, window)


@conv_p.vjp
def _(y: Tensor, x: Tensor, w: Tensor, *, window: Window) -> Any:
    spatial = x.shape[1:-1]
    return (
        lambda g: bind(conv_input_grad_p, g, w, window=window, spatial=spatial),
        lambda g: bind(conv_weight_grad_p, x, g, window=window),
    )


@conv_p.batch
def _(args: list[Tensor], batched: list[bool], *, window: Window) -> Tensor:
    x, w = args
    if not batched[1]:
        return unfold(bind(conv_p, fold(x), w, window=window), x)
    count = w.shape[0]
    if not batched[0]:
        y = bind(conv_p, x, _into_channels(w, -1, window.groups), window=window)
        return _from_channels(y, -1, count, window.groups)
    x, w = _into_channels(x, -1, 1), _into_channels(w, -1, 1)
    y = bind(conv_p, x, w, window=_regrouped(window, count))
    return _from_channels(y, -1, count, 1)


# ---- the adjoint in x ----------------------------------------------------------------

# (g, w), where g is shaped like y; `spatial` are the sizes of x, which those of y leave open.
conv_input_grad_p = Primitive("conv_input_grad")


@conv_input_grad_p.shape
def _(g: Aval, w: Aval, *, window: Window, spatial: Sizes) -> Aval:
    _check_kernel("conv_input_grad", g, w, window)
    window.check("conv_input_grad", spatial)
    if g.shape[1:] != (*window.positions(spatial), w.shape[-1]):
        expected = ", ".join(map(str, ("N", *window.positions(spatial), w.shape[-1])))
        raise ValueError(
            f"conv_input_grad: g is {g}, but {w} over images of sizes {spatial} gives ({expected})"
        )
    return Aval((g.shape[0], *spatial, w.shape[-2] * window.groups), g.dtype)


@conv_input_grad_p.numpy
def _(g: np.ndarray, w: np.ndarray, *, window: Window, spatial: Sizes) -> np.ndarray:
    return conv_numpy.widened(conv_numpy.input_grad, g, w, window, spatial)


@conv_input_grad_p.vjp
def _(x: Tensor, g: Tensor, w: Tensor, *, window: Window, spatial: Sizes) -> Any:
    return (
        lambda ct: bind(conv_p, ct, w, window=window),
        lambda ct: bind(conv_weight_grad_p, ct, g, window=window),
    )


@conv_input_grad_p.batch
def _(args: list[Tensor], batched: list[bool], *, window: Window, spatial: Sizes) -> Tensor:
    g, w = args
    if not batched[1]:
        return unfold(bind(conv_input_grad_p, fold(g), w, window=window, spatial=spatial), g)
    count = w.shape[0]
    if not batched[0]:
        x = bind(conv_input_grad_p, g, _into_channels(w, -2, 1), window=window, spatial=spatial)
        return _from_channels(x, -1, count, window.groups)
    g, w = _into_channels(g, -1, 1), _into_channels(w, -1, 1)
    x = bind(conv_input_grad_p, g, w, window=_regrouped(window, count), spatial=spatial)
    return _from_channels(x, -1, count, 1)


# ---- the adjoint in w ----------------------------------------------------------------

conv_weight_grad_p = Primitive("conv_weight_grad")  # (x, g), where g is shaped like y


@conv_weight_grad_p.shape
def _(x: Aval, g: Aval, *, window: Window) -> Aval:
    if x.ndim != len(window.sizes) + 2 or x.dtype != g.dtype:
        raise ValueError(
            f"conv_weight_grad: {x} and {g} do not fit a window of sizes {window.sizes}"
        )
    window.check("conv_weight_grad", x.shape[1:-1])
    if g.shape[:-1] != (x.shape[0], *window.positions(x.shape[1:-1])):
        positions = window.positions(x.shape[1:-1])
        raise ValueError(
            f"conv_weight_grad: g is {g}, but the window has {positions} positions on {x}"
        )
    if x.shape[-1] % window.groups or g.shape[-1] % window.groups:
        raise ValueError(
            f"conv_weight_grad: {window.groups} groups do not divide the channels of {x} and {g}"
        )
    return Aval((*window.sizes, x.shape[-1] // window.groups, g.shape[-1]), x.dtype)


@conv_weight_grad_p.numpy
def _(x: np.ndarray, g: np.ndarray, *, window: Window) -> np.ndarray:
    return conv_numpy.widened(conv_numpy.weight_grad, x, g, window)


@conv_weight_grad_p.vjp
def _(w: Tensor, x: Tensor, g: Tensor, *, window: Window) -> Any:
    spatial = x.shape[1:-1]
    return (
        lambda ct: bind(conv_input_grad_p, g, ct, window=window, spatial=spatial),
        lambda ct: bind(conv_p, x, ct, window=window),
    )


@conv_weight_grad_p.batch
def _(args: list[Tensor], batched: list[bool], *, window: Window) -> Tensor:
    x, g = args
    if all(batched):
        count = x.shape[0]
        x, g = _into_channels(x, -1, 1), _into_channels(g, -1, 1)
        return _from_channels(
            bind(conv_weight_grad_p, x, g, window=_regrouped(window, count)), -1, count, 1
        )
    if batched[0]:
        w = bind(conv_weight_grad_p, _into_channels(x, -1, window.groups), g, window=window)
        return _from_channels(w, -2, x.shape[0], 1)
    w = bind(conv_weight_grad_p, x, _into_channels(g, -1, window.groups), window=window)
    return _from_channels(w, -1, g.shape[0], window.groups)


# ---- checks --------------------------------------------------------------------------


def _spatial_axes(op: str, x: Tensor, w: Tensor) -> int:
    """How many spatial axes there are, once the ranks are known to fit."""
    if x.ndim == w.ndim - 1 and 3 <= w.ndim <= 5:
        raise ValueError(
            f"{op}: w is {w.aval}, so x is (N, *spatial, C) with {w.ndim - 2} spatial axes, but it "
            f"is {x.aval}; for a single image add the batch axis with x[None]"
        )
    if not 3 <= x.ndim <= 5:
        raise ValueError(
            f"{op}: x is (N, *spatial, C) with 1 to 3 spatial axes, got {x.aval}; "
            "for a single image add the batch axis with x[None]"
        )
    if w.ndim != x.ndim:
        raise ValueError(
            f"{op}: x has {x.ndim - 2} spatial axes, so w has {x.ndim} dimensions (*window, "
            f"channels, channels), got {w.aval}"
        )
    return x.ndim - 2


def _check_groups(op: str, groups: Any) -> int:
    if isinstance(groups, bool) or not isinstance(groups, int | np.integer) or groups < 1:
        raise ValueError(f"{op}: groups is a positive integer, got {groups!r}")
    return int(groups)


def _check_kernel(op: str, x: Aval, w: Aval, window: Window) -> None:
    if x.dtype != w.dtype:
        raise TypeError(f"{op}: the image is {x} and w {w}; convert one with astype")
    if x.dtype not in dtypes.FLOATS:
        raise TypeError(
            f"{op}: takes floating-point images and kernels, got {x}; "
            "convert with astype(tl.float32)"
        )
    if x.ndim != len(window.sizes) + 2 or w.ndim != x.ndim or w.shape[:-2] != window.sizes:
        raise ValueError(f"{op}: {x} and {w} do not fit a window of sizes {window.sizes}")
    if 0 in window.sizes:
        raise ValueError(f"{op}: the window of w is empty, got {w}")
    if w.shape[-1] % window.groups:
        raise ValueError(f"{op}: {window.groups} groups do not divide w.shape[-1], w is {w}")


# ---- folding the axis of vmap --------------------------------------------------------


def _into_channels(x: Tensor, axis: int, groups: int) -> Tensor:
    """Axis 0, the batch, folded into the channels at `axis`, inside `groups` blocks of channels."""
    count, place = x.shape[0], axis % x.ndim
    split = reshape(x, (*x.shape[:place], groups, x.shape[place] // groups, *x.shape[place + 1 :]))
    moved = moveaxis(split, 0, place)
    return reshape(moved, (*x.shape[1:place], count * x.shape[place], *x.shape[place + 1 :]))


def _from_channels(x: Tensor, axis: int, count: int, groups: int) -> Tensor:
    """The inverse of `_into_channels`."""
    place = axis % x.ndim
    channels = x.shape[place] // count
    split = reshape(x, (*x.shape[:place], groups, count, channels // groups, *x.shape[place + 1 :]))
    moved = moveaxis(split, place + 1, 0)
    return reshape(moved, (count, *x.shape[:place], channels, *x.shape[place + 1 :]))


def _regrouped(window: Window, count: int) -> Window:
    return window._replace(groups=window.groups * count)
