"""ONNX operators that move elements: reshape, transpose, slices, gather and scatter, pad, and those
that make tensors from numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ... import dtypes
from ...core import Tensor, bind
from ...ops import elementwise as ew
from ...ops import shape as sh
from ...ops.creation import arange, asarray, cast, full, iota
from ...ops.index import gather_p, one_hot, scatter_p, take, take_along_axis
from .registry import Node, dtype_of, operator

# ---- tensors from numbers ------------------------------------------------------------------------


@operator("Constant")
def _(node: Node) -> Tensor:
    for name in ("value", "value_float", "value_int", "value_floats", "value_ints"):
        if name in node.attributes:
            kind = np.float32 if "float" in name else np.int64
            value = node.get(name)
            return asarray(value if name == "value" else np.asarray(value, kind))
    raise NotImplementedError(f"{node}: holds {', '.join(node.attributes)}, not numbers")


@operator("ConstantOfShape")
def _(node: Node, shape: Tensor) -> Tensor:
    value = np.asarray(node.get("value", np.zeros(1, np.float32)))
    sizes = tuple(int(n) for n in node.known("shape", shape))
    return full(sizes, value.reshape(())[()].item(), dtype=value.dtype)


@operator("Range")
def _(node: Node, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    names = zip(("start", "limit", "delta"), (start, limit, delta), strict=True)
    return arange(*[node.known(name, x).item() for name, x in names], dtype=start.dtype)


@operator("EyeLike")
def _(node: Node, x: Tensor) -> Tensor:
    dtype = dtype_of(node.get("dtype"), str(node)) if "dtype" in node.attributes else x.dtype
    rows, columns = x.shape
    return asarray(np.eye(rows, columns, k=node.get("k", 0), dtype=dtype), device=x.device)


@operator("OneHot")
def _(node: Node, indices: Tensor, depth: Tensor, values: Tensor) -> Tensor:
    count = int(node.known("depth", depth).reshape(()))
    ids = cast(indices, dtypes.int64)
    hot = one_hot(ew.where(ids < 0, ids + count, ids), count, dtype=dtypes.bool_)
    axis = node.get("axis", -1)
    return sh.moveaxis(ew.where(hot, values[1], values[0]), -1, axis)


# ---- shapes as values ----------------------------------------------------------------------------


@operator("Shape")
def _(node: Node, x: Tensor) -> Tensor:
    part = slice(node.get("start", 0), node.get("end"))
    return asarray(np.asarray(x.shape[part], np.int64))


@operator("Size")
def _(node: Node, x: Tensor) -> Tensor:
    return asarray(np.asarray(x.size, np.int64))


# ---- other shapes, the same elements -------------------------------------------------------------


@operator("Reshape")
def _(node: Node, x: Tensor, shape: Tensor | None = None) -> Tensor:
    wanted = list(node.integers("shape", shape) or ())
    if not node.get("allowzero", 0):
        wanted = [x.shape[i] if n == 0 else n for i, n in enumerate(wanted)]
    return sh.reshape(x, tuple(wanted))


@operator("Flatten")
def _(node: Node, x: Tensor) -> Tensor:
    axis = node.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return sh.reshape(x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))


@operator("Squeeze")
def _(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    return sh.squeeze(x, axis=node.integers("axes", axes))


@operator("Unsqueeze")
def _(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    return sh.expand_dims(x, axis=node.integers("axes", axes) or ())


@operator("Transpose")
def _(node: Node, x: Tensor) -> Tensor:
    return sh.permute_dims(x, tuple(node.get("perm", range(x.ndim)[::-1])))


@operator("Expand")
def _(node: Node, x: Tensor, shape: Tensor) -> Tensor:
    wanted = node.integers("shape", shape) or ()
    return sh.broadcast_to(x, sh.broadcast_shapes(str(node), x.shape, wanted))


@operator("DepthToSpace")
def _(node: Node, x: Tensor) -> Tensor:
    block = node.get("blocksize")
    n, c, *spatial = x.shape
    dims, channels = len(spatial), c // block ** len(spatial)
    blocks = (block,) * dims
    channels_last = node.get("mode", "DCR") == "DCR"
    lead = (*blocks, channels) if channels_last else (channels, *blocks)
    x = sh.reshape(x, (n, *lead, *spatial))
    first_block, channel = (1, dims + 1) if channels_last else (2, 1)
    pairs = [axis for i in range(dims) for axis in (dims + 2 + i, first_block + i)]
    return sh.reshape(
        sh.permute_dims(x, (0, channel, *pairs)), (n, channels, *(s * block for s in spatial))
    )


@operator("SpaceToDepth")
def _(node: Node, x: Tensor) -> Tensor:
    block = node.get("blocksize")
    n, c, *spatial = x.shape
    dims, sizes = len(spatial), [size for s in spatial for size in (s // block, block)]
    x = sh.reshape(x, (n, c, *sizes))
    blocks, pixels = range(3, 3 + 2 * dims, 2), range(2, 2 + 2 * dims, 2)
    order = (*blocks, 1) if node.get("mode", "DCR") == "DCR" else (1, *blocks)
    moved = sh.permute_dims(x, (0, *order, *pixels))
    return sh.reshape(moved, (n, c * block**dims, *(s // block for s in spatial)))


# ---- joining, splitting, slicing, padding --------------------------------------------------------


@operator("Concat")
def _(node: Node, *inputs: Tensor) -> Tensor:
    return sh.concat(inputs, axis=node.get("axis", 1))


@operator("Split")
def _(node: Node, x: Tensor, split: Tensor | None = None) -> tuple[Tensor, ...]:
    axis = node.get("axis", 0)
    axis, size = axis % x.ndim, x.shape[axis]
    parts = node.integers("split", split)
    if parts is None:
        count = node.get("num_outputs", len(node.outputs))
        step = -(-size // count)
        parts = tuple(max(min(step, size - i * step), 0) for i in range(count))
    if sum(parts) != size:
        raise ValueError(f"{node}: parts {parts} do not add up to {size} of axis {axis}, {x.aval}")
    ends = np.cumsum(parts).tolist()
    starts = [0, *ends[:-1]]
    before = (slice(None),) * axis
    return tuple(x[(*before, slice(a, b))] for a, b in zip(starts, ends, strict=True))


@operator("Slice")
def _(
    node: Node,
    x: Tensor,
    starts: Tensor | None = None,
    ends: Tensor | None = None,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    begin, end = node.integers("starts", starts) or (), node.integers("ends", ends) or ()
    which = node.integers("axes", axes, range(len(begin))) or ()
    step = node.integers("steps", steps, (1,) * len(begin)) or ()
    index = [slice(None)] * x.ndim
    for axis, first, last, by in zip(which, begin, end, step, strict=True):
        # Before the first element, going backwards, is None in Python, not -1.
        beyond = by < 0 and last < -x.shape[axis]
        index[axis] = slice(first, None if beyond else last, by)
    return x[tuple(index)]


@operator("Pad")
def _(
    node: Node,
    x: Tensor,
    pads: Tensor | None = None,
    value: Tensor | None = None,
    axes: Tensor | None = None,
) -> Tensor:
    amounts = node.integers("pads", pads, node.get("paddings")) or ()
    which = node.integers("axes", axes, range(x.ndim)) or ()
    half = len(amounts) // 2
    widths = [(0, 0)] * x.ndim
    for axis, low, high in zip(which, amounts[:half], amounts[half:], strict=True):
        widths[axis] = (low, high)
    mode = node.get("mode", "constant")
    if mode != "constant":
        return _pad_by_index(node, x, widths, mode)
    cut = tuple(
        slice(max(-lo, 0), n - max(-hi, 0)) for n, (lo, hi) in zip(x.shape, widths, strict=True)
    )
    x = x[cut]
    config = tuple((max(lo, 0), max(hi, 0), 0) for lo, hi in widths)
    fill = node.option("value", value, 0)
    number = node.known("constant_value", fill).item() if isinstance(fill, Tensor) else fill
    return bind(sh.pad_p, x, config=config, value=number)


_NUMPY_MODES = {"edge": "edge", "reflect": "reflect", "wrap": "wrap"}


def _pad_by_index(node: Node, x: Tensor, widths: Sequence[tuple[int, int]], mode: str) -> Tensor:
    """Padding with elements of `x`: which ones, NumPy says."""
    if mode not in _NUMPY_MODES:
        raise NotImplementedError(f"{node}: mode {mode!r}; there are constant, edge, reflect, wrap")
    for axis, (low, high) in enumerate(widths):
        if low or high:
            size = x.shape[axis]
            kept = np.arange(size)[max(-low, 0) : size - max(-high, 0)]
            places = np.pad(kept, (max(low, 0), max(high, 0)), _NUMPY_MODES[mode])  # type: ignore[call-overload]
            x = take(x, asarray(places, device=x.device), axis=axis)
    return x


@operator("Tile")
def _(node: Node, x: Tensor, repeats: Tensor) -> Tensor:
    counts = node.integers("repeats", repeats) or ()
    pairs = [size for count, n in zip(counts, x.shape, strict=True) for size in (count, n)]
    apart = sh.reshape(x, tuple(size for n in x.shape for size in (1, n)))
    return sh.reshape(
        sh.broadcast_to(apart, tuple(pairs)),
        tuple(count * n for count, n in zip(counts, x.shape, strict=True)),
    )


@operator("Trilu")
def _(node: Node, x: Tensor, k: Tensor | None = None) -> Tensor:
    diagonal = 0 if k is None else int(node.known("k", k).item())
    rows, columns, upper = x.shape[-2], x.shape[-1], node.get("upper", 1)
    keep = np.tri(rows, columns, k=diagonal - 1 if upper else diagonal, dtype=np.bool_) ^ bool(
        upper
    )
    return ew.where(asarray(keep, device=x.device), x, asarray(0, dtype=x.dtype))


@operator("CumSum", "CumProd")
def _(node: Node, x: Tensor, axis: Tensor) -> Tensor:
    from ... import cumulative_prod, cumulative_sum

    run = cumulative_sum if node.op == "CumSum" else cumulative_prod
    along = int(node.known("axis", axis).item()) % x.ndim
    if node.get("reverse", 0):
        x = sh.flip(x, axis=along)
    exclusive = bool(node.get("exclusive", 0))
    total = run(x, axis=along, dtype=x.dtype, include_initial=exclusive)
    if exclusive:
        size = x.shape[along]
        total = total[tuple(slice(size) if i == along else slice(None) for i in range(x.ndim))]
    return sh.flip(total, axis=along) if node.get("reverse", 0) else total


# ---- shapes that depend on values ----------------------------------------------------------------


@operator("NonZero")
def _(node: Node, x: Tensor) -> Tensor:
    return asarray(np.stack(np.nonzero(np.atleast_1d(node.known("X", x)))), device=x.device)


@operator("Compress")
def _(node: Node, x: Tensor, condition: Tensor) -> Tensor:
    axis = node.get("axis")
    x = sh.reshape(x, -1) if axis is None else x
    kept = np.flatnonzero(node.known("condition", condition))
    return take(x, asarray(kept, device=x.device), axis=0 if axis is None else axis)


# ---- gather and scatter --------------------------------------------------------------------------


def _counted_from_start(indices: Tensor, size: int) -> Tensor:
    indices = cast(indices, dtypes.int64)
    return ew.where(indices < 0, indices + size, indices)


@operator("Gather")
def _(node: Node, x: Tensor, indices: Tensor) -> Tensor:
    axis = node.get("axis", 0) % x.ndim
    return take(x, _counted_from_start(indices, x.shape[axis]), axis=axis)


@operator("GatherElements")
def _(node: Node, x: Tensor, indices: Tensor) -> Tensor:
    axis = node.get("axis", 0) % x.ndim
    if indices.shape != x.shape:  # ONNX takes the leading part where indices are smaller
        x = x[tuple(slice(None) if i == axis else slice(n) for i, n in enumerate(indices.shape))]
    return take_along_axis(x, _counted_from_start(indices, x.shape[axis]), axis=axis)


@operator("GatherND")
def _(node: Node, x: Tensor, indices: Tensor) -> Tensor:
    batch = node.get("batch_dims", 0)
    return bind(gather_p, x, *_coordinates(x, indices, batch))


@operator("ScatterND")
def _(node: Node, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    return bind(scatter_p, x, updates, *_coordinates(x, indices), mode=_mode(node))


def _coordinates(x: Tensor, indices: Tensor, batch: int = 0) -> list[Tensor]:
    """The last axis of `indices` as one index array for each of the first axes of `x`."""
    lead = indices.shape[:-1]
    columns = [iota(lead, axis) for axis in range(batch)]
    for column in range(indices.shape[-1]):
        columns.append(_counted_from_start(indices[..., column], x.shape[batch + column]))
    return columns


@operator("ScatterElements", "Scatter")
def _(node: Node, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    axis, shape = node.get("axis", 0) % x.ndim, indices.shape
    own = _counted_from_start(indices, x.shape[axis])
    places = [own if i == axis else iota(shape, i) for i in range(x.ndim)]
    return bind(scatter_p, x, updates, *places, mode=_mode(node))


def _mode(node: Node) -> Any:
    return {"none": "set", "mul": "multiply"}.get(
        node.get("reduction", "none"), node.get("reduction", "none")
    )
