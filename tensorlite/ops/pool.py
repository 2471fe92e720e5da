"""Pooling: max pooling as a search and a pair of adjoints, average pooling as another pair.

    pool_argmax   the largest value under each position of the window, and which cell holds it
    pool_gather   reads that cell; its adjoint is pool_scatter, which adds there
    pool_sum      the sum under each position; its adjoint is pool_spread, which adds to all cells

Cells in the padding never win and add nothing. Images are (N, *spatial, C), 1-D to 3-D. The NumPy
kernels loop over the cells of the window and run along all positions at once, a few examples at a
time so that they stay in the processor's cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import dtypes
from ..composite import composite
from ..core import Aval, Primitive, Tensor, bind
from .conv import Padding
from .creation import asarray
from .shape import broadcast_to
from .window import Sizes, Window, fold, per_axis, resolve_padding, steps_inside, unfold


def max_pool(
    x: Tensor,
    window: int | Sequence[int],
    *,
    stride: int | Sequence[int] | None = None,
    padding: Padding = "valid",
) -> Tensor:
    """The largest value under each position of a window.

    Args:
        x: images (N, *spatial, C), floating-point, 1 to 3 spatial axes.
        window: pixels along each spatial axis; an int is all of them.
        stride: pixels between positions; the default is the window, so that positions do not
            overlap.
        padding: as in `nn.conv`, but of cells that never win; less than the window.

    Returns:
        (N, *positions, C). NaN wins. The first of equal values takes the gradient.

    Raises:
        ValueError: rank, window or padding do not fit.
        TypeError: `x` is not floating-point, or an option is of the wrong kind.

    Example:
        >>> x = tl.reshape(tl.arange(16.0), (1, 4, 4, 1))
        >>> print(nn.max_pool(x, 2)[0, :, :, 0])
        [[ 5.  7.]
         [13. 15.]]
    """
    x = asarray(x)
    return bind(max_pool_p, x, window=_window("max_pool", x, window, stride, padding))


def avg_pool(
    x: Tensor,
    window: int | Sequence[int],
    *,
    stride: int | Sequence[int] | None = None,
    padding: Padding = "valid",
    count_include_pad: bool = False,
) -> Tensor:
    """The mean under each position of a window.

    Args:
        x, window, stride, padding: as in `max_pool`.
        count_include_pad: count the cells in the padding as zeros. By default the mean is over the
            pixels of the image only.

    Returns:
        (N, *positions, C) of the dtype of `x`; float16 and bfloat16 are summed in float32.

    Raises:
        ValueError: rank, window or padding do not fit.
        TypeError: `x` is not floating-point, or an option is of the wrong kind.

    Example:
        >>> x = tl.reshape(tl.arange(16.0), (1, 4, 4, 1))
        >>> print(nn.avg_pool(x, 2)[0, :, :, 0])
        [[ 2.5  4.5]
         [10.5 12.5]]
    """
    x = asarray(x)
    slider = _window("avg_pool", x, window, stride, padding)
    total = bind(pool_sum_p, x, window=slider)
    if count_include_pad or not any(map(any, slider.padding)):
        return total / math.prod(slider.sizes)
    counts = _pixels_inside(slider, x.shape[1:-1])[..., None]
    return total / asarray(counts.astype(x.dtype), device=x.device)


def _window(op: str, x: Tensor, sizes: Any, stride: Any, padding: Any) -> Window:
    """The checked window of a pooling function."""
    if not 3 <= x.ndim <= 5:
        raise ValueError(
            f"{op}: x is (N, *spatial, C) with 1 to 3 spatial axes, got {x.aval}; "
            "for a single image add the batch axis with x[None]"
        )
    if x.dtype not in dtypes.FLOATS:
        raise TypeError(
            f"{op}: takes floating-point images, got {x.aval}; convert with astype(tl.float32)"
        )
    ndim, spatial = x.ndim - 2, x.shape[1:-1]
    cells = per_axis(op, "window", sizes, ndim)
    strides = cells if stride is None else per_axis(op, "stride", stride, ndim)
    ones = (1,) * ndim
    pads = resolve_padding(op, padding, spatial, cells, strides, ones)
    for size, pair in zip(cells, pads, strict=True):
        if max(pair) >= size:
            raise ValueError(
                f"{op}: padding {pair} is not less than the window, {size}, so that some position "
                "would see no pixel at all; use less padding"
            )
    window = Window(cells, strides, pads, ones)
    window.check(op, spatial)
    return window


def _pixels_inside(window: Window, spatial: Sizes) -> np.ndarray:
    """How many cells of the window lie inside the image at each position."""
    counts = np.ones((), np.int64)
    for n, size, stride, (lo, _), positions in zip(
        spatial,
        window.sizes,
        window.strides,
        window.padding,
        window.positions(spatial),
        strict=True,
    ):
        first = np.arange(positions) * stride - lo
        counts = counts[..., None] * (np.minimum(first + size, n) - np.maximum(first, 0))
    return counts


# ---- max -----------------------------------------------------------------------------

# x -> (values, cells): a cell of the window is known by its number in row-major order.
pool_argmax_p = Primitive("pool_argmax")
pool_gather_p = Primitive("pool_gather")  # (x, cells); 0 where a cell lies in the padding
pool_scatter_p = Primitive("pool_scatter")  # (g, cells); spatial: the sizes of x


@composite
def _max_pool(x: Tensor, *, window: Window) -> Tensor:
    return bind(pool_argmax_p, x, window=window)[0]


max_pool_p = _max_pool


@max_pool_p.numpy
def _(x: np.ndarray, *, window: Window) -> np.ndarray:
    return _in_chunks(lambda part: _largest(part, window), x)


def _cell_dtype(window: Window) -> np.dtype[Any]:
    return dtypes.uint8 if math.prod(window.sizes) < 256 else dtypes.int32


def _result(op: str, x: Aval, window: Window) -> Aval:
    if x.ndim != len(window.sizes) + 2:
        raise ValueError(f"{op}: {x} does not fit a window of sizes {window.sizes}")
    window.check(op, x.shape[1:-1])
    return Aval((x.shape[0], *window.positions(x.shape[1:-1]), x.shape[-1]), x.dtype)


def _check_cells(op: str, values: Aval, cells: Aval) -> None:
    if values.shape != cells.shape or cells.dtype not in dtypes.INTEGERS:
        raise ValueError(f"{op}: cells are integers of shape {values.shape}, got {cells}")


@pool_argmax_p.shape
def _(x: Aval, *, window: Window) -> tuple[Aval, Aval]:
    values = _result("pool_argmax", x, window)
    return values, Aval(values.shape, _cell_dtype(window))


@pool_argmax_p.numpy
def _(x: np.ndarray, *, window: Window) -> tuple[np.ndarray, np.ndarray]:
    return _in_chunks(lambda part: _largest_and_cell(part, window), x)


@pool_argmax_p.fwd
def _(needs: tuple[bool, ...], x: Tensor, *, window: Window) -> Any:
    values, cells = bind(pool_argmax_p, x, window=window)
    spatial = x.shape[1:-1]

    def pull(cts: tuple[Tensor | None, Tensor | None]) -> tuple[Tensor | None]:
        if cts[0] is None:
            return (None,)
        return (bind(pool_scatter_p, cts[0], cells, window=window, spatial=spatial),)

    return (values, cells), pull


@pool_argmax_p.batch
def _(args: list[Tensor], batched: list[bool], *, window: Window) -> tuple[Tensor, ...]:
    return tuple(unfold(r, args[0]) for r in bind(pool_argmax_p, fold(args[0]), window=window))


@pool_gather_p.shape
def _(x: Aval, cells: Aval, *, window: Window) -> Aval:
    result = _result("pool_gather", x, window)
    _check_cells("pool_gather", result, cells)
    return result


@pool_gather_p.numpy
def _(x: np.ndarray, cells: np.ndarray, *, window: Window) -> np.ndarray:
    def gather(x: np.ndarray, cells: np.ndarray) -> np.ndarray:
        padding = ((0, 0), *window.padding, (0, 0))
        return np.pad(x, padding).reshape(-1)[_addresses(cells, window, x.shape[1:-1])]

    return _in_chunks(gather, x, cells)


@pool_gather_p.vjp
def _(y: Tensor, x: Tensor, cells: Tensor, *, window: Window) -> Any:
    spatial = x.shape[1:-1]
    return (lambda g: bind(pool_scatter_p, g, cells, window=window, spatial=spatial), None)


@pool_gather_p.batch
def _(args: list[Tensor], batched: list[bool], *, window: Window) -> Tensor:
    x, cells = _fold_both(args, batched)
    return unfold(bind(pool_gather_p, x, cells, window=window), args[0] if batched[0] else args[1])


@pool_scatter_p.shape
def _(g: Aval, cells: Aval, *, window: Window, spatial: Sizes) -> Aval:
    _check_cells("pool_scatter", g, cells)
    x = Aval((g.shape[0], *spatial, g.shape[-1]), g.dtype)
    if _result("pool_scatter", x, window) != g:
        raise ValueError(
            f"pool_scatter: {g} is not what a window over images of sizes {spatial} gives"
        )
    return x


@pool_scatter_p.numpy
def _(g: np.ndarray, cells: np.ndarray, *, window: Window, spatial: Sizes) -> np.ndarray:
    def scatter(g: np.ndarray, cells: np.ndarray) -> np.ndarray:
        padded = (len(g), *window.padded(spatial), g.shape[-1])
        weights = np.asarray(g, np.float64).reshape(-1)
        places = _addresses(cells, window, spatial).reshape(-1)
        canvas = np.bincount(places, weights, math.prod(padded)).reshape(padded)
        inside = [slice(lo, lo + n) for (lo, _), n in zip(window.padding, spatial, strict=True)]
        return canvas[(slice(None), *inside)].astype(g.dtype)

    return _in_chunks(scatter, g, cells, size=math.prod(spatial))


@pool_scatter_p.vjp
def _(x: Tensor, g: Tensor, cells: Tensor, *, window: Window, spatial: Sizes) -> Any:
    return (lambda ct: bind(pool_gather_p, ct, cells, window=window), None)


@pool_scatter_p.batch
def _(args: list[Tensor], batched: list[bool], *, window: Window, spatial: Sizes) -> Tensor:
    g, cells = _fold_both(args, batched)
    return unfold(
        bind(pool_scatter_p, g, cells, window=window, spatial=spatial),
        args[0] if batched[0] else args[1],
    )


# ---- sum -----------------------------------------------------------------------------

pool_sum_p = Primitive("pool_sum")
pool_spread_p = Primitive("pool_spread")  # spatial: the sizes of x


@pool_sum_p.shape
def _(x: Aval, *, window: Window) -> Aval:
    return _result("pool_sum", x, window)


@pool_sum_p.numpy
def _(x: np.ndarray, *, window: Window) -> np.ndarray:
    def total(x: np.ndarray) -> np.ndarray:
        y = np.zeros(_result_shape(x, window), _sum_dtype(x))
        for _, places, pixels in steps_inside(window, x.shape[1:-1]):
            y[places] += x[pixels]
        return y.astype(x.dtype, copy=False)

    return _in_chunks(total, x)


@pool_sum_p.vjp
def _(y: Tensor, x: Tensor, *, window: Window) -> Any:
    spatial = x.shape[1:-1]
    return lambda g: bind(pool_spread_p, g, window=window, spatial=spatial)


@pool_sum_p.batch
def _(args: list[Tensor], batched: list[bool], *, window: Window) -> Tensor:
    return unfold(bind(pool_sum_p, fold(args[0]), window=window), args[0])


@pool_spread_p.shape
def _(g: Aval, *, window: Window, spatial: Sizes) -> Aval:
    x = Aval((g.shape[0], *spatial, g.shape[-1]), g.dtype)
    if _result("pool_spread", x, window) != g:
        raise ValueError(
            f"pool_spread: {g} is not what a window over images of sizes {spatial} gives"
        )
    return x


@pool_spread_p.numpy
def _(g: np.ndarray, *, window: Window, spatial: Sizes) -> np.ndarray:
    def spread(g: np.ndarray) -> np.ndarray:
        x = np.zeros((len(g), *spatial, g.shape[-1]), _sum_dtype(g))
        for _, places, pixels in steps_inside(window, spatial):
            x[pixels] += g[places]
        return x.astype(g.dtype, copy=False)

    return _in_chunks(spread, g, size=math.prod(spatial))


@pool_spread_p.vjp
def _(x: Tensor, g: Tensor, *, window: Window, spatial: Sizes) -> Any:
    return lambda ct: bind(pool_sum_p, ct, window=window)


@pool_spread_p.batch
def _(args: list[Tensor], batched: list[bool], *, window: Window, spatial: Sizes) -> Tensor:
    return unfold(bind(pool_spread_p, fold(args[0]), window=window, spatial=spatial), args[0])


# ---- folding the axis of vmap into N -------------------------------------------------


def _fold_both(args: list[Tensor], batched: list[bool]) -> list[Tensor]:
    count = next(x.shape[0] for x, b in zip(args, batched, strict=True) if b)
    return [
        fold(x if b else broadcast_to(x, (count, *x.shape)))
        for x, b in zip(args, batched, strict=True)
    ]


# ---- NumPy kernels -------------------------------------------------------------------

# Of images at a time, so that the passes over the cells of the window read them from the cache.
CHUNK_BYTES = 1 << 19


def _in_chunks(kernel: Callable[..., Any], *arrays: np.ndarray, size: int | None = None) -> Any:
    """`kernel` on a few examples at a time; it returns an array or a tuple of arrays.

    `size` is the number of pixels of the larger image, by default that of the first array.
    """
    first = arrays[0]
    pixels = math.prod(first.shape[1:-1]) if size is None else size
    step = max(1, CHUNK_BYTES // max(1, pixels * first.shape[-1] * first.itemsize))
    if len(first) <= step:
        return kernel(*arrays)
    parts = [kernel(*[a[i : i + step] for a in arrays]) for i in range(0, len(first), step)]
    if isinstance(parts[0], tuple):
        return tuple(np.concatenate(column) for column in zip(*parts, strict=True))
    return np.concatenate(parts)


def _result_shape(x: np.ndarray, window: Window) -> tuple[int, ...]:
    return (len(x), *window.positions(x.shape[1:-1]), x.shape[-1])


def _sum_dtype(x: np.ndarray) -> np.dtype[Any]:
    return dtypes.float32 if x.dtype in (dtypes.float16, dtypes.bfloat16) else x.dtype


def _largest(x: np.ndarray, window: Window) -> np.ndarray:
    wide = x.astype(_sum_dtype(x), copy=False)
    y = np.full(_result_shape(x, window), -np.inf, wide.dtype)
    for _, places, pixels in steps_inside(window, x.shape[1:-1]):
        np.maximum(y[places], wide[pixels], out=y[places])
    return y.astype(x.dtype, copy=False)


def _largest_and_cell(x: np.ndarray, window: Window) -> tuple[np.ndarray, np.ndarray]:
    wide = x.astype(_sum_dtype(x), copy=False)
    y = _largest(wide, window)
    count, dtype = math.prod(window.sizes), _cell_dtype(window)
    # Cells that hold the largest value count down from `count`, so that the first one has the
    # highest rank. Ranks are small integers and this needs no branch, which makes it several times
    # faster than a masked copy for each cell.
    rank, candidate = np.zeros(y.shape, dtype), np.empty(y.shape, dtype)
    hit = np.empty(y.shape, np.bool_)
    steps = steps_inside(window, x.shape[1:-1])
    for number, places, pixels in steps:
        np.equal(wide[pixels], y[places], out=hit[places])
        np.multiply(hit[places].view(np.uint8), dtype.type(count - number), out=candidate[places])
        np.maximum(rank[places], candidate[places], out=rank[places])
    if not rank.all():  # NaN equals nothing: where it is the largest value, the first one wins
        for number, places, pixels in steps:
            first = np.isnan(wide[pixels]) & (rank[places] == 0)
            np.copyto(rank[places], dtype.type(count - number), where=first)
    return y.astype(x.dtype, copy=False), dtype.type(count) - rank


def _addresses(cells: np.ndarray, window: Window, spatial: Sizes) -> np.ndarray:
    """Where, in the flattened padded images, the chosen cell of each position lies."""
    padded = (len(cells), *window.padded(spatial), cells.shape[-1])
    steps = np.cumprod((1, *padded[:0:-1]))[::-1]  # elements from one index to the next
    moves = [
        sum(at * step for at, step in zip(offset, steps[1:-1], strict=True))
        for _, offset in window.cells()
    ]
    first = np.arange(cells.shape[-1])
    for axis in reversed(range(len(spatial))):
        starts = np.arange(cells.shape[axis + 1]) * (window.strides[axis] * steps[axis + 1])
        first = starts.reshape(-1, *[1] * first.ndim) + first
    first = (np.arange(len(cells)) * steps[0]).reshape(-1, *[1] * first.ndim) + first
    return np.asarray(moves)[cells] + first
