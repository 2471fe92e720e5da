"""How primitives that are not elementwise are written in ONNX: shapes, indexing, reductions, matrix
products, convolution and pooling. Images are channels last here and channels first there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ... import dtypes
from ...core import Aval
from ...ops.window import Window
from .builder import Builder, Decompose, Value, exports

# ---- tensors from nothing ------------------------------------------------------------------------


@exports("full")
def _(b: Builder, inputs: list[Value], result: Aval, *, value: Any, **_: Any) -> str:
    scalar = b.constant(value, result.dtype)
    return b.emit("Expand", scalar, b.integers(result.shape)) if result.shape else scalar.name


@exports("iota")
def _(b: Builder, inputs: list[Value], result: Aval, *, axis: int, **_: Any) -> str:
    shape = [n if i == axis else 1 for i, n in enumerate(result.shape)]
    along = b.constant(np.arange(result.shape[axis]).astype(result.dtype).reshape(shape))
    return b.emit("Expand", along, b.integers(result.shape))


# ---- shapes --------------------------------------------------------------------------------------


@exports("reshape")
def _(b: Builder, inputs: list[Value], result: Aval, *, shape: Any) -> str:
    # Not Reshape's usual reading, in which a size of 0 means the size of the input.
    return b.emit("Reshape", inputs[0], b.integers(shape), allowzero=int(0 in shape))


@exports("permute")
def _(b: Builder, inputs: list[Value], result: Aval, *, axes: Any) -> str:
    return b.transpose(inputs[0], axes)


@exports("broadcast")
def _(b: Builder, inputs: list[Value], result: Aval, *, shape: Any) -> str:
    return b.emit("Expand", inputs[0], b.integers(shape))


@exports("concat")
def _(b: Builder, inputs: list[Value], result: Aval, *, axis: int) -> str:
    return b.emit("Concat", *inputs, axis=axis)


@exports("flip")
def _(b: Builder, inputs: list[Value], result: Aval, *, axes: Any) -> str:
    count, first = len(axes), np.iinfo(np.int64).min  # an end before the first element
    ends = [(-1,) * count, (first,) * count, axes, (-1,) * count]
    return b.emit("Slice", inputs[0], *map(b.integers, ends)) if axes else inputs[0].name


@exports("slice")
def _(b: Builder, inputs: list[Value], result: Aval, *, limits: Any) -> str:
    starts, stops, steps = zip(*limits, strict=True) if limits else ((), (), ())
    return _slice(b, inputs[0], starts, stops, range(len(limits)), steps)


def _slice(
    b: Builder,
    x: Value | str,
    starts: Sequence[int],
    stops: Sequence[int],
    axes: Sequence[int],
    steps: Sequence[int],
) -> str:
    return b.emit("Slice", x, *map(b.integers, (starts, stops, axes, steps)))


@exports("pad")
def _(b: Builder, inputs: list[Value], result: Aval, *, config: Any, value: Any) -> str:
    x: Value | str = inputs[0]
    fill, shape = b.number(value, inputs[0]), list(inputs[0].aval.shape)
    for axis, (_, _, inner) in enumerate(config):
        if inner and shape[axis] > 1:
            x = _spread(b, x, shape, axis, inner, fill)
    lows, highs = [low for low, _, _ in config], [high for _, high, _ in config]
    if not any(lows + highs):
        return x if isinstance(x, str) else x.name
    return b.emit("Pad", x, b.integers(lows + highs), fill)


def _spread(
    b: Builder, x: Value | str, shape: list[int], axis: int, inner: int, fill: Value
) -> str:
    """`inner` elements between those along `axis`; `shape` is changed to the new one."""
    apart = b.reshape(x, [*shape[: axis + 1], 1, *shape[axis + 1 :]])
    amounts = [0] * (2 * len(shape) + 2)
    amounts[len(shape) + 1 + axis + 1] = inner
    padded = b.emit("Pad", apart, b.integers(amounts), fill)
    size = shape[axis] * (inner + 1)
    joined = b.reshape(padded, [*shape[:axis], size, *shape[axis + 1 :]])
    shape[axis] = size - inner
    return _slice(b, joined, [0], [size - inner], [axis], [1])


# ---- gather and scatter --------------------------------------------------------------------------


def _coordinates(b: Builder, indices: Sequence[Value]) -> str:
    """Index arrays as the last axis of one tensor."""
    columns = [b.reshape(b.cast(index, np.int64), (*index.aval.shape, 1)) for index in indices]
    return b.emit("Concat", *columns, axis=-1)


@exports("gather")
def _(b: Builder, inputs: list[Value], result: Aval) -> str:
    x, *indices = inputs
    if len(indices) == 1:
        return b.emit("Gather", x, b.cast(indices[0], np.int64), axis=0)
    return b.emit("GatherND", x, _coordinates(b, indices))


@exports("scatter")
def _(b: Builder, inputs: list[Value], result: Aval, *, mode: str) -> str:
    base, updates, *indices = inputs
    reduction = {"set": "none", "multiply": "mul"}.get(mode, mode)
    if reduction in ("min", "max") and b.opset < 18:
        raise NotImplementedError(
            f"tl.io.to_onnx: the primitive 'scatter' with mode {mode!r} needs opset 18 or later"
        )
    return b.emit("ScatterND", base, _coordinates(b, indices), updates, reduction=reduction)


# ---- reductions and products ---------------------------------------------------------------------


def _reduction(primitive: str, op: str) -> None:
    @exports(primitive)
    def entry(b: Builder, inputs: list[Value], result: Aval, *, axes: Any) -> str:
        return b.reduce(op, inputs[0], axes)


_reduction("sum", "ReduceSum")
_reduction("reduce_max", "ReduceMax")
_reduction("reduce_min", "ReduceMin")


def _logical(primitive: str, op: str) -> None:
    @exports(primitive)
    def entry(b: Builder, inputs: list[Value], result: Aval, *, axes: Any) -> str:
        reduced = b.reduce(op, b.cast(inputs[0], np.int32), axes)
        return b.cast(Value(reduced, Aval(result.shape, dtypes.int32)), dtypes.bool_)


_logical("reduce_all", "ReduceMin")
_logical("reduce_any", "ReduceMax")


@exports("prod")
def _(b: Builder, inputs: list[Value], result: Aval, *, axis: int) -> str:
    return b.reduce("ReduceProd", inputs[0], (axis,))


@exports("argmax")
def _(b: Builder, inputs: list[Value], result: Aval, *, axis: int) -> str:
    return b.emit("ArgMax", inputs[0], axis=axis, keepdims=0)


@exports("argmin")
def _(b: Builder, inputs: list[Value], result: Aval, *, axis: int) -> str:
    return b.emit("ArgMin", inputs[0], axis=axis, keepdims=0)


@exports("sort")
def _(b: Builder, inputs: list[Value], result: Aval, *, axis: int, descending: bool) -> str:
    return _sorted(b, inputs[0], axis, descending)[0]


@exports("argsort")
def _(b: Builder, inputs: list[Value], result: Aval, *, axis: int, descending: bool) -> str:
    return _sorted(b, inputs[0], axis, descending)[1]


def _sorted(b: Builder, x: Value, axis: int, descending: bool) -> list[str]:
    """The values in order, and their places: of equal ones, ONNX has the first place first too."""
    count = b.integers([x.aval.shape[axis]])
    return b.emit_all("TopK", 2, x, count, axis=axis, largest=int(descending))


@exports("cumulative_sum")
def _(b: Builder, inputs: list[Value], result: Aval, *, axis: int) -> str:
    return b.emit("CumSum", inputs[0], b.constant(axis, np.int64))


@exports("matmul")
def _(b: Builder, inputs: list[Value], result: Aval) -> str:
    return b.emit("MatMul", *inputs)


# ---- images --------------------------------------------------------------------------------------


def _channels_first(b: Builder, x: Value) -> str:
    ndim = x.aval.ndim
    return b.transpose(x, (0, ndim - 1, *range(1, ndim - 1)))


def _channels_last(b: Builder, name: str, ndim: int) -> str:
    return b.transpose(name, (0, *range(2, ndim), 1))


def _kernel(b: Builder, w: Value) -> str:
    """(*window, inner, outer) as (outer, inner, *window)."""
    ndim = w.aval.ndim
    return b.transpose(w, (ndim - 1, ndim - 2, *range(ndim - 2)))


def _window(window: Window) -> dict[str, Any]:
    """The attributes of ONNX for a window."""
    lows, highs = zip(*window.padding, strict=True)
    return {
        "kernel_shape": window.sizes,
        "strides": window.strides,
        "pads": (*lows, *highs),
        "dilations": window.dilation,
    }


@exports("conv")
def _(b: Builder, inputs: list[Value], result: Aval, *, window: Window) -> str:
    x, w = inputs
    y = b.emit("Conv", _channels_first(b, x), _kernel(b, w), group=window.groups, **_window(window))
    return _channels_last(b, y, result.ndim)


@exports("conv_input_grad")
def _(b: Builder, inputs: list[Value], result: Aval, *, window: Window, spatial: Any) -> str:
    g, w = inputs
    positions = zip(g.aval.shape[1:-1], window.strides, window.extents, window.padding, strict=True)
    reached = [(n - 1) * stride + span - lo - hi for n, stride, span, (lo, hi) in positions]
    y = b.emit(
        "ConvTranspose",
        _channels_first(b, g),
        _kernel(b, w),
        group=window.groups,
        output_padding=[n - m for n, m in zip(spatial, reached, strict=True)],
        **_window(window),
    )
    return _channels_last(b, y, result.ndim)


@exports("max_pool")
def _(b: Builder, inputs: list[Value], result: Aval, *, window: Window) -> str:
    y = b.emit("MaxPool", _channels_first(b, inputs[0]), **_window(window))
    return _channels_last(b, y, result.ndim)


@exports("pool_sum")
def _(b: Builder, inputs: list[Value], result: Aval, *, window: Window) -> str:
    attributes = _window(window)
    if any(step != 1 for step in attributes.pop("dilations")):
        raise NotImplementedError(
            "tl.io.to_onnx: the primitive 'pool_sum' with dilation has no counterpart in ONNX"
        )
    mean = b.emit("AveragePool", _channels_first(b, inputs[0]), count_include_pad=1, **attributes)
    total = b.emit("Mul", mean, b.number(math.prod(window.sizes), inputs[0]))
    return _channels_last(b, total, result.ndim)


@exports("local_response_norm")
def _(
    b: Builder, inputs: list[Value], result: Aval, *, size: int, alpha: float, beta: float, k: float
) -> str:
    if size % 2 == 0 or result.ndim != 4:  # centred otherwise, and for images only
        raise Decompose
    y = b.emit("LRN", _channels_first(b, inputs[0]), size=size, alpha=alpha, beta=beta, bias=k)
    return _channels_last(b, y, result.ndim)
