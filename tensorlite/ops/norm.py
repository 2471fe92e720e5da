"""Normalization: batch norm, layer norm, local response norm.

Each is a composite, so it traces as one equation that a backend may lower whole; its body in
primitives answers everything else. Where the derivative of the body would keep or compute too much,
a cheaper one is given, made of differentiable functions in turn. Statistics of float16 and bfloat16
are computed in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import dtypes
from ..communication import world
from ..composite import composite
from ..core import Aval, Tensor, bind
from .collective import all_gather_p, all_reduce_p, counted
from .creation import asarray, cast, zeros_like
from .elementwise import pow, rsqrt, sqrt, square
from .linalg import exact_matmul
from .rearrange import unstack
from .reduce import count, mean
from .reduce import sum as total
from .shape import Axes, broadcast_to, normalize_axes, reshape, restore_axes, stack


def batch_norm(
    x: Tensor, scale: Tensor, offset: Tensor, mean: Tensor, variance: Tensor, *, eps: float = 1e-5
) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * scale + offset, with given statistics of each channel.

    Args:
        x: (..., C), floating-point.
        scale, offset, mean, variance: (C,), of the dtype of `x`, or float32 beside a half-precision
            `x`.
        eps: keeps channels that do not vary from dividing by zero.

    Returns:
        the shape and dtype of `x`.

    Raises:
        ValueError: a shape does not fit.
        TypeError: a dtype does not fit.
    """
    x = _image("batch_norm", x)
    named = {"scale": scale, "offset": offset, "mean": mean, "variance": variance}
    vectors = [_vector("batch_norm", name, v, x, x.shape[-1:]) for name, v in named.items()]
    return bind(_batch_norm, x, *vectors, eps=float(eps))


@composite
def _batch_norm(
    x: Tensor, scale: Tensor, offset: Tensor, mean: Tensor, variance: Tensor, *, eps: float
) -> Tensor:
    factor = wide(scale) * rsqrt(wide(variance) + eps)
    return cast((wide(x) - wide(mean)) * factor + wide(offset), x.dtype)


def batch_norm_train(
    x: Tensor, scale: Tensor, offset: Tensor, *, eps: float = 1e-5, across_workers: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """`batch_norm` with the statistics of the batch itself (Ioffe and Szegedy, arXiv:1502.03167).

    Args:
        x: (..., C), floating-point, with at least one element in each channel.
        scale, offset: (C,), of the dtype of `x`, or float32 beside a half-precision `x`.
        across_workers: take the statistics over the batch of all workers, whose numbers of rows may
            differ. Each of them must call this.

    Returns:
        (y, mean, variance): `y` like `x`; mean and (biased) variance over all axes but the last,
        (C,), of the dtype of `x` but float32 for half precision. All three are differentiable.

    Raises:
        ValueError: a shape does not fit, or the batch is empty.
        TypeError: a dtype does not fit.
    """
    op = "batch_norm_train"
    x = _image(op, x)
    axes = tuple(range(x.ndim - 1))
    _check_not_empty(op, x, axes)
    scale, offset = (
        _vector(op, n, v, x, x.shape[-1:]) for n, v in (("scale", scale), ("offset", offset))
    )
    size, bucket_bytes = world()
    if across_workers and size > 1:
        options = {"size": size, "bucket_bytes": bucket_bytes}
        y, batch_mean, variance, _ = bind(
            standardize_across_p, x, counted(), axes=axes, eps=float(eps), **options
        )
    else:
        y, batch_mean, variance = bind(standardize_p, x, axes=axes, eps=float(eps))
    return _affine(y, scale, offset), batch_mean, variance


def layer_norm(
    x: Tensor,
    scale: Tensor | None = None,
    offset: Tensor | None = None,
    *,
    eps: float = 1e-5,
    axis: int | Sequence[int] = -1,
) -> Tensor:
    """Each example standardized over its own `axis`, times `scale`, plus `offset` (Ba et al.,
    arXiv:1607.06450).

    Args:
        x: floating-point.
        scale, offset: shaped like the normalized axes of `x` (in the order of `x`), of the dtype of
            `x`, or float32 beside a half-precision `x`; None leaves that step out.

    Returns:
        the shape and dtype of `x`.

    Raises:
        ValueError: a shape does not fit, or there is nothing to take a mean of.
        TypeError: a dtype does not fit.
    """
    x = _image("layer_norm", x)
    axes = tuple(
        sorted(normalize_axes("layer_norm", axis if isinstance(axis, int) else tuple(axis), x.ndim))
    )
    _check_not_empty("layer_norm", x, axes)
    sizes = tuple(x.shape[a] for a in axes)
    aligned = tuple(n if i in axes else 1 for i, n in enumerate(x.shape))
    vectors = [
        None if v is None else reshape(_vector("layer_norm", name, v, x, sizes), aligned)
        for name, v in (("scale", scale), ("offset", offset))
    ]
    return _affine(bind(standardize_p, x, axes=axes, eps=float(eps))[0], *vectors)


# ---- to mean 0 and variance 1 --------------------------------------------------------


@composite
def _standardize(x: Tensor, *, axes: Axes, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """(standardized, mean, variance) over `axes`."""
    centre = mean(wide(x), axis=axes)
    deviation = wide(x) - restore_axes(centre, axes)
    variance = mean(square(deviation), axis=axes)
    return cast(deviation * restore_axes(rsqrt(variance + eps), axes), x.dtype), centre, variance


standardize_p = _standardize


@standardize_p.fwd
def _(needs: tuple[bool, ...], x: Tensor, *, axes: Axes, eps: float) -> Any:
    y, centre, variance = bind(standardize_p, x, axes=axes, eps=eps)
    inverse = restore_axes(rsqrt(variance + eps), axes)
    size = count(x, axes)

    def pull(cts: tuple[Tensor | None, ...]) -> tuple[Tensor]:
        total: Any = 0.0
        if cts[0] is not None:
            g, unit = wide(cts[0]), wide(y)
            along = mean(g * unit, axis=axes, keepdims=True)
            total = inverse * (g - mean(g, axis=axes, keepdims=True) - unit * along)
        if cts[1] is not None:
            total = total + restore_axes(cts[1] / size, axes)
        if cts[2] is not None:
            deviation = wide(x) - restore_axes(centre, axes)
            total = total + restore_axes(cts[2] * (2 / size), axes) * deviation
        return (cast(broadcast_to(total, x.shape), x.dtype),)

    return (y, centre, variance), pull


@composite
def _standardize_across(
    x: Tensor, live: Tensor, *, axes: Axes, eps: float, size: int, bucket_bytes: int | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(standardized, mean, variance, count) over `axes` and all ranks whose `live`, a bool, is
    true. Their means and squared deviations are joined as Chan, Golub and LeVeque (1979) do, which
    cancels nothing, in one exchange."""
    values = wide(x)
    own = mean(values, axis=axes)
    squares = total(square(values - restore_axes(own, axes)), axis=axes)
    some = cast(live, values.dtype)
    counts = broadcast_to(some * count(x, axes), own.shape)
    everyone = bind(all_gather_p, stack([counts, own, squares * some]), size=size)
    counts, means, squares = unstack(everyone, axis=1)
    number = total(counts, axis=0)
    centre = total(counts * means, axis=0) / number
    variance = total(squares + counts * square(means - centre), axis=0) / number
    factor = restore_axes(rsqrt(variance + eps), axes)
    y = cast((values - restore_axes(centre, axes)) * factor, x.dtype)
    return y, centre, variance, number


standardize_across_p = _standardize_across


@standardize_across_p.fwd
def _(
    needs: tuple[bool, ...], x: Tensor, live: Tensor, *, axes: Axes, eps: float, **options: Any
) -> Any:
    ans = bind(standardize_across_p, x, live, axes=axes, eps=eps, **options)
    y, centre, variance, number = ans
    inverse = restore_axes(rsqrt(variance + eps), axes)
    share = cast(live, variance.dtype) / number  # of the statistics, that each element here has

    def pull(cts: tuple[Tensor | None, ...]) -> tuple[Tensor, None]:
        g, unit = wide(zeros_like(y) if cts[0] is None else cts[0]), wide(y)
        of_mean, of_variance = (zeros_like(centre) if ct is None else ct for ct in cts[1:3])
        sums = [total(g, axis=axes), total(g * unit, axis=axes), of_mean, of_variance]
        everywhere = bind(all_reduce_p, stack(sums), op="sum", wire=None, **options) * share
        along, across, moved, spread = (restore_axes(v, axes) for v in unstack(everywhere))
        deviation = wide(x) - restore_axes(centre, axes)
        own = inverse * (g - along - unit * across) + moved + 2 * spread * deviation
        return cast(own, x.dtype), None

    return ans, pull


def _affine(y: Tensor, scale: Tensor | None, offset: Tensor | None) -> Tensor:
    result = wide(y)
    if scale is not None:
        result = result * wide(scale)
    if offset is not None:
        result = result + wide(offset)
    return cast(result, y.dtype)


# ---- local response norm -------------------------------------------------------------


def local_response_norm(
    x: Tensor, size: int, *, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Tensor:
    """x / (k + alpha / size * S) ** beta; S is the sum of x ** 2 over `size` neighbouring channels.

    Args:
        x: (..., C), floating-point.
        size: channels in the sum, centred (for an even size the extra one comes before), fewer at
            the ends.
        alpha, beta, k: of the formula of Krizhevsky et al. (2012), with alpha divided by `size`;
            TensorFlow's `alpha` is alpha / size here, its depth radius (size - 1) / 2, its bias k.

    Returns:
        the shape and dtype of `x`.

    Raises:
        ValueError: `size` or `k` is not positive, or `x` has no axis.
        TypeError: `x` is not floating-point.
    """
    op = "local_response_norm"
    x = _image(op, x)
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"{op}: size is a positive number of channels, got {size!r}")
    if not k > 0:
        raise ValueError(
            f"{op}: k must be positive, or channels of zeros divide by zero; got {k!r}"
        )
    return bind(lrn_p, x, size=size, alpha=float(alpha), beta=float(beta), k=float(k))


@composite
def _local_response_norm(x: Tensor, *, size: int, alpha: float, beta: float, k: float) -> Tensor:
    base = _lrn_base(wide(x), size, alpha, k)
    return cast(wide(x) * _negative_power(base, beta), x.dtype)


@composite
def _local_response_norm_grad(
    g: Tensor, x: Tensor, *, size: int, alpha: float, beta: float, k: float
) -> Tensor:
    """The cotangent of `x` when that of the result is `g`; linear in `g`."""
    values, ct = wide(x), wide(g)
    base = _lrn_base(values, size, alpha, k)
    scaled = ct * _negative_power(base, beta)
    neighbours = exact_matmul(scaled * values / base, _constant_band(values, size, transposed=True))
    return cast(scaled - (2 * alpha * beta / size) * values * neighbours, x.dtype)


lrn_p, lrn_grad_p = _local_response_norm, _local_response_norm_grad


@lrn_p.fwd
def _(needs: tuple[bool, ...], x: Tensor, **params: Any) -> Any:
    # The sums are computed again rather than kept: a small product costs less than memory traffic.
    return bind(lrn_p, x, **params), lambda g: (bind(lrn_grad_p, g, x, **params),)


def _lrn_base(x: Tensor, size: int, alpha: float, k: float) -> Tensor:
    """k + alpha / size * S.

    The sums are a product with a band matrix: fast, and exact, unlike differences of running sums.
    """
    return k + (alpha / size) * exact_matmul(square(x), _constant_band(x, size))


def _negative_power(base: Tensor, beta: float) -> Tensor:
    """base ** -beta; for the usual exponents by square roots, much faster than a power."""
    if beta == 0.5:
        return rsqrt(base)
    if beta == 0.75:
        root = sqrt(base)
        return 1 / (root * sqrt(root))
    return pow(base, -beta)


def _constant_band(like: Tensor, size: int, transposed: bool = False) -> Tensor:
    band = _band(like.shape[-1], size, like.dtype)
    return asarray(band.T.copy() if transposed else band, device=like.device)


def _band(channels: int, size: int, dtype: np.dtype[Any]) -> np.ndarray:
    """1 at [j, c] where channel j belongs to the sum of channel c."""
    ahead = np.arange(channels)[:, None] - np.arange(channels)
    return ((ahead >= -(size // 2)) & (ahead <= (size - 1) // 2)).astype(dtype)


ROW_BYTES = 1 << 17  # of pixels at a time, so that the steps on them stay in the cache


@lrn_p.numpy
def _(x: np.ndarray, *, size: int, alpha: float, beta: float, k: float) -> np.ndarray:
    rows, band, step = _lrn_rows(x, size, alpha)
    result = np.empty_like(rows)
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        base = np.matmul(np.square(part), band)
        base += k
        np.multiply(part, _lrn_factor(base, beta), out=result[start : start + step])
    return result.reshape(x.shape).astype(x.dtype, copy=False)


@lrn_grad_p.numpy
def _(
    g: np.ndarray, x: np.ndarray, *, size: int, alpha: float, beta: float, k: float
) -> np.ndarray:
    rows, band, step = _lrn_rows(x, size, alpha)
    cotangents = _lrn_rows(g, size, alpha)[0]
    back = np.ascontiguousarray(band.T) * band.dtype.type(2 * beta)
    result = np.empty_like(rows)
    for start in range(0, len(rows), step):
        part, target = rows[start : start + step], result[start : start + step]
        base = np.matmul(np.square(part), band)
        base += k
        scaled = _lrn_factor(base, beta)
        scaled *= cotangents[start : start + step]
        np.multiply(scaled, part, out=target)
        target /= base
        neighbours = np.matmul(target, back)
        neighbours *= part
        np.subtract(scaled, neighbours, out=target)
    return result.reshape(x.shape).astype(x.dtype, copy=False)


def _lrn_rows(x: np.ndarray, size: int, alpha: float) -> tuple[np.ndarray, np.ndarray, int]:
    """The pixels as rows of channels, the band times alpha / size, how many rows to do at once."""
    channels = x.shape[-1]
    dtype = dtypes.float32 if x.dtype.itemsize < 4 else x.dtype
    rows = np.ascontiguousarray(x, dtype).reshape(x.size // max(channels, 1), channels)
    band = _band(channels, size, dtype) * dtype.type(alpha / size)
    return rows, band, max(1, ROW_BYTES // max(1, channels * dtype.itemsize))


def _lrn_factor(base: np.ndarray, beta: float) -> np.ndarray:
    """base ** -beta as a new array."""
    if beta not in (0.5, 0.75):
        return np.power(base, base.dtype.type(-beta))
    root = np.sqrt(base)
    if beta == 0.75:
        root *= np.sqrt(root)
    return np.reciprocal(root, out=root)


# ---- helpers -------------------------------------------------------------------------


def wide(x: Tensor) -> Tensor:
    """`x` in at least single precision."""
    return cast(x, dtypes.float32) if x.dtype in (dtypes.float16, dtypes.bfloat16) else x


def _image(op: str, x: Any) -> Tensor:
    x = asarray(x)
    if x.dtype not in dtypes.FLOATS:
        raise TypeError(
            f"{op}: takes floating-point tensors, got {x.aval}; convert with astype(tl.float32)"
        )
    if x.ndim == 0:
        raise ValueError(f"{op}: x needs at least the axis of channels, got {x.aval}")
    return x


def _vector(op: str, name: str, vector: Any, x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A parameter of `shape`, checked."""
    vector = asarray(vector)
    if vector.shape != shape:
        raise ValueError(f"{op}: {name} has shape {vector.shape}, but x of {x.aval} takes {shape}")
    expected = Aval(vector.shape, dtypes.float32 if x.dtype.itemsize < 4 else x.dtype).dtype
    if vector.dtype not in (expected, x.dtype):
        raise TypeError(
            f"{op}: {name} is {vector.aval}, but x is {x.aval}; convert one with astype"
        )
    return vector


def _check_not_empty(op: str, x: Tensor, axes: Axes) -> None:
    if count(x, axes) == 0:
        raise ValueError(f"{op}: {x.aval} has no elements along axes {axes} to take a mean of")
