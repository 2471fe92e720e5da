"""ONNX operators on images: convolution, pooling, normalization. The images arrive channels last,
as `Image`; kernels arrive in the layout of ONNX, (C_out, C_in / groups, *window)."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from ... import dtypes
from ...core import Tensor, bind
from ...ops import conv as cv
from ...ops import elementwise as ew
from ...ops import norm
from ...ops import reduce as red
from ...ops import shape as sh
from ...ops.creation import asarray, cast, iota
from ...ops.index import take
from ...ops.pool import max_pool_p, pool_argmax_p, pool_sum_p
from ...ops.window import Window
from .registry import Image, Node, folded, operator

image = functools.partial(operator, layout="image")

# ---- windows -------------------------------------------------------------------------------------


def _window(node: Node, spatial: tuple[int, ...], sizes: tuple[int, ...]) -> Window:
    """The window of a convolution or pooling, with its padding in pixels."""
    dims = len(spatial)
    strides = tuple(node.get("strides", (1,) * dims))
    dilation = tuple(node.get("dilations", (1,) * dims))
    spans = [(size - 1) * step + 1 for size, step in zip(sizes, dilation, strict=True)]
    auto = node.get("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        totals = [
            max((-(-n // stride) - 1) * stride + span - n, 0)
            for n, stride, span in zip(spatial, strides, spans, strict=True)
        ]
        pads = [_halves(total, auto) for total in totals]
    elif auto == "VALID":
        pads = [(0, 0)] * dims
    else:
        given = node.get("pads", (0,) * 2 * dims)
        pads = list(zip(given[:dims], given[dims:], strict=True))
    if node.get("ceil_mode", 0):
        pads = [
            _rounded_up(n, pair, span, stride)
            for n, pair, span, stride in zip(spatial, pads, spans, strides, strict=True)
        ]
    return Window(sizes, strides, tuple(pads), dilation, node.get("group", 1))


def _halves(total: int, auto: str) -> tuple[int, int]:
    """Padding split in two, the odd pixel at the end (SAME_UPPER) or at the start."""
    small, large = total // 2, total - total // 2
    return (small, large) if auto == "SAME_UPPER" else (large, small)


def _rounded_up(n: int, pair: tuple[int, int], span: int, stride: int) -> tuple[int, int]:
    """More padding at the end, for the last position that sticks out; one that would lie wholly in
    the padding is left out."""
    low, high = pair
    positions = -(-(n + low + high - span) // stride) + 1
    if (positions - 1) * stride >= n + low:
        positions -= 1
    return low, max((positions - 1) * stride + span - n - low, high)


# ---- convolution ---------------------------------------------------------------------------------


@image("Conv")
def _(node: Node, x: Image, w: Tensor, bias: Tensor | None = None) -> Image:
    kernel = folded(sh.permute_dims, w, axes=(*range(2, w.ndim), 1, 0))
    window = _window(node, x.x.shape[1:-1], w.shape[2:])
    y = cv.conv(
        x.x,
        kernel,
        stride=window.strides,
        padding=window.padding,
        dilation=window.dilation,
        groups=window.groups,
    )
    return Image(y if bias is None else y + bias)


@image("ConvTranspose")
def _(node: Node, x: Image, w: Tensor, bias: Tensor | None = None) -> Image:
    # ONNX has (C_in, C_out / groups, *window), tensorlite (*window, C_out / groups, C_in).
    kernel = folded(sh.permute_dims, w, axes=(*range(2, w.ndim), 1, 0))
    dims, spatial = w.ndim - 2, x.x.shape[1:-1]
    strides = tuple(node.get("strides", (1,) * dims))
    dilation = tuple(node.get("dilations", (1,) * dims))
    pads, extra = _transposed_padding(node, spatial, w.shape[2:], strides, dilation)
    y = cv.conv_transpose(
        x.x,
        kernel,
        stride=strides,
        padding=[(max(low, 0), max(high, 0)) for low, high in pads],
        dilation=dilation,
        groups=node.get("group", 1),
    )
    ends = [(max(-lo, 0), max(-hi, 0) + e) for (lo, hi), e in zip(pads, extra, strict=True)]
    if any(map(any, ends)):  # rows and columns that no pixel reaches
        y = sh.pad(y, [(0, 0), *ends, (0, 0)])
    return Image(y if bias is None else y + bias)


def _transposed_padding(
    node: Node,
    spatial: tuple[int, ...],
    sizes: tuple[int, ...],
    strides: tuple[int, ...],
    dilation: tuple[int, ...],
) -> tuple[list[tuple[int, int]], list[int]]:
    """Of a transposed convolution: what is cut off (low, high), and what is added at the end."""
    dims = len(spatial)
    extra = list(node.get("output_padding", (0,) * dims))
    auto = node.get("auto_pad", "NOTSET")
    natural = [
        (n - 1) * stride + (size - 1) * step + 1
        for n, stride, size, step in zip(spatial, strides, sizes, dilation, strict=True)
    ]
    shape = node.get("output_shape")
    if shape is None and auto in ("NOTSET", "VALID"):
        given = node.get("pads", (0,) * 2 * dims) if auto == "NOTSET" else (0,) * 2 * dims
        pads = list(zip(given[:dims], given[dims:], strict=True))
        # Added pixels at the end are those that the padding there would have cut off.
        uncut = [min(high, e) for (_, high), e in zip(pads, extra, strict=True)]
        pads = [(low, high - u) for (low, high), u in zip(pads, uncut, strict=True)]
        return pads, [e - u for e, u in zip(extra, uncut, strict=True)]
    wanted = shape or [n * stride for n, stride in zip(spatial, strides, strict=True)]
    totals = [full + e - want for full, e, want in zip(natural, extra, wanted[-dims:], strict=True)]
    upper = "SAME_UPPER" if auto == "SAME_UPPER" else "SAME_LOWER"
    pads = []
    for total, added in zip(totals, extra, strict=True):
        low, high = _halves(max(total, 0), upper)
        pads.append((low, high - added + min(total, 0)))
    return pads, [0] * dims


# ---- pooling -------------------------------------------------------------------------------------


@image("MaxPool")
def _(node: Node, x: Image) -> Any:
    dtype = x.x.dtype
    pixels = x.x if dtypes.is_float(dtype) else cast(x.x, dtypes.float32)
    window = _window(node, pixels.shape[1:-1], tuple(node.get("kernel_shape")))
    if node.count_outputs() < 2:
        return Image(cast(bind(max_pool_p, pixels, window=window), dtype))
    values, cells = bind(pool_argmax_p, pixels, window=window)
    column_major = bool(node.get("storage_order", 0))
    return Image(cast(values, dtype)), Image(_addresses(cells, window, x.x.shape, column_major))


def _addresses(cells: Tensor, window: Window, shape: tuple[int, ...], column_major: bool) -> Tensor:
    """The place in the flattened ONNX image (N, C, *spatial) of each chosen cell."""
    offsets = np.asarray([offset for _, offset in window.cells()])
    spatial, dims = shape[1:-1], len(shape) - 2
    within: Any = 0
    for axis in range(dims)[::-1] if column_major else range(dims):
        first = iota(cells.shape, axis + 1) * window.strides[axis] - window.padding[axis][0]
        at = first + take(asarray(offsets[:, axis]), cast(cells, dtypes.int64), axis=0)
        within = within * spatial[axis] + at
    image_number = iota(cells.shape, 0) * shape[-1] + iota(cells.shape, len(shape) - 1)
    return image_number * math.prod(spatial) + within


@image("AveragePool")
def _(node: Node, x: Image) -> Image:
    spatial = x.x.shape[1:-1]
    window = _window(node, spatial, tuple(node.get("kernel_shape")))
    counts = _cells_counted(node, window, spatial)
    total = bind(pool_sum_p, x.x, window=window)
    return Image(total / asarray(counts[..., None].astype(total.dtype), device=total.device))


def _cells_counted(node: Node, window: Window, spatial: tuple[int, ...]) -> np.ndarray:
    """How many cells the mean at each position is over: those inside the image, or inside its
    padding too; what rounding up has added counts in neither case."""
    exact = node._replace(attributes={**node.attributes, "ceil_mode": 0})
    declared = _window(exact, spatial, window.sizes).padding
    include = node.get("count_include_pad", 0)
    counts = np.ones((), np.int64)
    for axis, positions in enumerate(window.positions(spatial)):
        low, high = declared[axis] if include else (0, 0)
        cells = np.arange(window.sizes[axis]) * window.dilation[axis]
        at = np.arange(positions)[:, None] * window.strides[axis] - window.padding[axis][0] + cells
        inside = (at >= -low) & (at < spatial[axis] + high)
        counts = counts[..., None] * inside.sum(axis=1)
    return counts


@image("LpPool")
def _(node: Node, x: Image) -> Image:
    p = node.get("p", 2)
    window = _window(node, x.x.shape[1:-1], tuple(node.get("kernel_shape")))
    return Image(ew.pow(bind(pool_sum_p, ew.pow(ew.abs(x.x), p), window=window), 1 / p))


@image("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def _(node: Node, x: Image) -> Image:
    axes = tuple(range(1, x.x.ndim - 1))
    if node.op == "GlobalLpPool":
        p = node.get("p", 2)
        total = red.sum(ew.pow(ew.abs(x.x), p), axis=axes, keepdims=True)
        return Image(ew.pow(total, 1 / p))
    reduce = red.mean if node.op == "GlobalAveragePool" else red.max
    return Image(reduce(x.x, axis=axes, keepdims=True))


# ---- normalization -------------------------------------------------------------------------------


@image("BatchNormalization")
def _(node: Node, x: Image, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Any:
    eps = node.get("epsilon", 1e-5)
    if not node.get("spatial", 1):  # until opset 8: statistics of each pixel
        raise NotImplementedError(f"{node}: spatial=0 is not supported; only statistics by channel")
    if not node.get("training_mode", 0):
        return Image(cast(norm.batch_norm(x.x, scale, bias, mean, variance, eps=eps), x.x.dtype))
    y, batch_mean, batch_variance = norm.batch_norm_train(x.x, scale, bias, eps=eps)
    momentum = node.get("momentum", 0.9)
    running = (
        old * momentum + cast(new, old.dtype) * (1 - momentum)
        for old, new in ((mean, batch_mean), (variance, batch_variance))
    )
    return (Image(y), *running)


@image("InstanceNormalization")
def _(node: Node, x: Image, scale: Tensor, bias: Tensor) -> Image:
    axes = tuple(range(1, x.x.ndim - 1))
    y = bind(norm.standardize_p, x.x, axes=axes, eps=node.get("epsilon", 1e-5))[0]
    return Image(y * scale + bias)


@operator("LpNormalization")
def _(node: Node, x: Tensor) -> Tensor:
    axis, size = node.get("axis", -1) % x.ndim, ew.abs(x)
    total = red.sum(size if node.get("p", 2) == 1 else x * x, axis=axis, keepdims=True)
    length = total if node.get("p", 2) == 1 else ew.sqrt(total)
    return ew.where(ew.equal(length, 0), x, x / ew.where(ew.equal(length, 0), 1.0, length))


@image("LRN")
def _(node: Node, x: Image) -> Image:
    size = node.get("size")
    options = {"alpha": node.get("alpha", 1e-4), "beta": node.get("beta", 0.75)}
    if size % 2:
        return Image(norm.local_response_norm(x.x, size, k=node.get("bias", 1.0), **options))
    # Of an even number of channels ONNX has the extra one after, tensorlite before.
    turned = norm.local_response_norm(
        sh.flip(x.x, axis=-1), size, k=node.get("bias", 1.0), **options
    )
    return Image(sh.flip(turned, axis=-1))


@operator("LayerNormalization")
def _(node: Node, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Any:
    axis = node.get("axis", -1) % x.ndim
    axes, eps = tuple(range(axis, x.ndim)), node.get("epsilon", 1e-5)
    y, mean, variance = bind(norm.standardize_p, x, axes=axes, eps=eps)
    y = y * scale
    y = y if bias is None else y + bias
    if node.count_outputs() < 2:
        return y
    inverse = ew.rsqrt(variance + eps)
    return y, sh.restore_axes(mean, axes), sh.restore_axes(inverse, axes)


@operator("GroupNormalization")
def _(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    groups, eps = node.get("num_groups"), node.get("epsilon", 1e-5)
    n, channels, *spatial = x.shape
    apart = sh.reshape(x, (n, groups, channels // groups, *spatial))
    y = bind(norm.standardize_p, apart, axes=tuple(range(2, apart.ndim)), eps=eps)[0]
    if node.version < 21:  # one scale for each group, before opset 21
        each = (groups, 1, *(1,) * len(spatial))
        return sh.reshape(y * sh.reshape(scale, each) + sh.reshape(bias, each), x.shape)
    each = (channels, *(1,) * len(spatial))
    return sh.reshape(y, x.shape) * sh.reshape(scale, each) + sh.reshape(bias, each)
