"""Layers: modules that hold the parameters of the functions in `functional`, with channels last.

Where a layer behaves differently in training it takes `training`, and where it draws random numbers
`key`; `Sequential` hands both on to the layers that take them.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .. import dtypes, random
from ..core import Tensor
from ..ops.control import stop_gradient
from ..ops.creation import asarray
from ..ops.creation import ones as ones_of
from ..ops.creation import zeros as zeros_of
from ..ops.shape import moveaxis, permute_dims
from ..precision import beside
from . import functional, init
from .module import Buffer, Module

__all__ = [
    "AvgPool",
    "BatchNorm",
    "Conv",
    "ConvTranspose",
    "Dropout",
    "Embedding",
    "LayerNorm",
    "Linear",
    "LocalResponseNorm",
    "MaxPool",
    "Sequential",
]

# ---- layers with weights -------------------------------------------------------------------------


class Linear(Module):
    """`x @ weight + bias` over the last axis: (..., in_features) to (..., out_features).

    Args:
        key: for the initial weight.
        weight_init, bias_init: functions of (key, shape, dtype); see `nn.init`.

    `weight` has shape (in_features, out_features), `bias` (out_features,) or is None.

    Example:
        >>> layer = nn.Linear(4, 2, key=random.key(0))
        >>> layer(tl.ones((5, 4))).shape, layer.weight.shape, layer.bias.shape
        ((5, 2), (4, 2), (2,))
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        key: Tensor,
        bias: bool = True,
        weight_init: init.Initializer = init.lecun_normal,
        bias_init: init.Initializer = init.zeros,
        dtype: Any = dtypes.float32,
    ):
        _check_positive("Linear", in_features=in_features, out_features=out_features)
        weight_key, bias_key = random.split(key)
        self.weight = weight_init(weight_key, (in_features, out_features), dtype)
        self.bias = bias_init(bias_key, (out_features,), dtype) if bias else None

    def __call__(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        features, outputs = self.weight.shape
        if not x.ndim or x.shape[-1] != features:
            raise ValueError(
                f"Linear({features}, {outputs}): x must have {features} features in its last "
                f"axis, got shape {x.shape}"
            )
        y = x @ self.weight
        return y if self.bias is None else y + beside(self.bias, y)


class _Convolution(Module):
    """What `Conv` and `ConvTranspose` have in common: everything but the layout of the weight."""

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        window: int | Sequence[int],
        *,
        key: Tensor,
        stride: int | Sequence[int] = 1,
        padding: Any = "same",
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        dims: int | None = None,
        bias: bool = True,
        weight_init: init.Initializer = init.lecun_normal,
        bias_init: init.Initializer = init.zeros,
        dtype: Any = dtypes.float32,
    ):
        layer = type(self).__name__
        _check_positive(layer, in_channels=in_channels, out_channels=out_channels, groups=groups)
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f"{layer}({in_channels}, {out_channels}, {window}): groups={groups} must divide "
                "both numbers of channels"
            )
        sizes = _window(layer, window, dims)
        weight_key, bias_key = random.split(key)
        self.weight = weight_init(weight_key, (*sizes, in_channels // groups, out_channels), dtype)
        self.bias = bias_init(bias_key, (out_channels,), dtype) if bias else None
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.stride, self.padding, self.dilation = _fixed(stride), _fixed(padding), _fixed(dilation)

    def _apply(self, function: Callable[..., Tensor], x: Tensor) -> Tensor:
        *window, _, _ = self.weight.shape
        dims = len(window)
        if x.ndim != dims + 2 or x.shape[-1] != self.in_channels:
            spatial = ", ".join(["height", "width", "depth"][:dims] if dims > 1 else ["length"])
            raise ValueError(
                f"{type(self).__name__}({self.in_channels}, {self.out_channels}, {tuple(window)}): "
                f"x must have shape (N, {spatial}, {self.in_channels}), got {x.shape}"
            )
        y = function(
            x,
            self.weight,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
        )
        return y if self.bias is None else y + beside(self.bias, y)


class Conv(_Convolution):
    """A convolution (cross-correlation) of images (N, *spatial, in_channels): see `nn.conv`.

    Args:
        window: the size along each spatial axis; one int means a square window over `dims` axes
            (two by default).
        stride, dilation: an int or one int for each spatial axis.
        padding: "same", "valid", "full", an int, or a (low, high) pair for each spatial axis.
        groups: into how many groups the channels are divided, each of which sees only its own.
        key, bias, weight_init, bias_init, dtype: as for `Linear`.

    `weight` has shape (*window, in_channels / groups, out_channels), `bias` (out_channels,) or is
    None.

    Example:
        >>> layer = nn.Conv(3, 16, 5, stride=2, key=random.key(0))
        >>> layer(tl.ones((8, 32, 32, 3))).shape, layer.weight.shape
        ((8, 16, 16, 16), (5, 5, 3, 16))
    """

    def __call__(self, x: Tensor) -> Tensor:
        """(N, *spatial, in_channels) to (N, *new spatial, out_channels)."""
        return self._apply(functional.conv, x)


class ConvTranspose(_Convolution):
    """A transposed convolution, which enlarges images by `stride`: see `nn.conv_transpose`.

    The arguments are those of `Conv`. `weight` has shape
    (*window, out_channels / groups, in_channels), as in TensorFlow's Conv2DTranspose, and is drawn
    like that of a `Conv`.
    """

    def __init__(self, in_channels: int, out_channels: int, window: Any, **options: Any):
        super().__init__(in_channels, out_channels, window, **options)
        *sizes, inner, outer = self.weight.shape
        per_group = outer // self.groups
        split = self.weight.reshape(*sizes, inner, self.groups, per_group)
        n = len(sizes)
        turned = permute_dims(split, (*range(n), n + 2, n + 1, n))
        self.weight = turned.reshape(*sizes, per_group, in_channels)

    def __call__(self, x: Tensor) -> Tensor:
        """(N, *spatial, in_channels) to (N, *new spatial, out_channels)."""
        return self._apply(functional.conv_transpose, x)


class Embedding(Module):
    """A table of vectors: integers (...) to (..., features). `weight` has shape (num_embeddings,
    features).
    """

    weight: Tensor

    def __init__(
        self,
        num_embeddings: int,
        features: int,
        *,
        key: Tensor,
        weight_init: init.Initializer = init.normal(1.0),  # noqa: B008
        dtype: Any = dtypes.float32,
    ):
        _check_positive("Embedding", num_embeddings=num_embeddings, features=features)
        self.weight = weight_init(key, (num_embeddings, features), dtype)

    def __call__(self, ids: Tensor) -> Tensor:
        """Integers (...) below num_embeddings to vectors (..., features)."""
        return functional.embedding(self.weight, ids)


# ---- normalization -------------------------------------------------------------------------------


class BatchNorm(Module):
    """Batch normalization of one axis (Ioffe and Szegedy, ICML 2015).

    In training, `x` is normalized by the mean and variance of the batch (over all axes but `axis`),
    and the running statistics, which are
    buffers, are assigned anew: `momentum` times the old plus 1 - `momentum` times those of the
    batch. Otherwise the running statistics are used. Return the module from a transformed function
    to keep them: `return loss, model` with has_aux=True.

    Args:
        channels: the size of `axis`.
        dtype: of `scale` and `offset`; the statistics are float32 at least.
        across_workers: in distributed training, take the statistics over the global batch instead
            of each worker's share, so that the model trains alike on any number of workers. It
            costs a message forward and one backward.

    Example:
        >>> norm = nn.BatchNorm(2, momentum=0.5)
        >>> x = tl.asarray([[1.0, 10.0], [3.0, 30.0]])
        >>> y = norm(x, training=True)
        >>> print(norm.mean, norm(x).shape)
        [ 1. 10.] (2, 2)
    """

    scale: Tensor
    offset: Tensor
    mean: Any  # a tensor; Any because it is assigned as a Buffer
    variance: Any

    def __init__(
        self,
        channels: int,
        *,
        momentum: float = 0.9,
        eps: float = 1e-5,
        axis: int = -1,
        dtype: Any = dtypes.float32,
        across_workers: bool = False,
    ):
        _check_positive("BatchNorm", channels=channels)
        if not 0 <= momentum <= 1:
            raise ValueError(f"BatchNorm({channels}): momentum must be in [0, 1], got {momentum}")
        statistics = dtypes.promote(dtypes.canonical(dtype), dtypes.float32)
        self.scale, self.offset = ones_of(channels, dtype=dtype), zeros_of(channels, dtype=dtype)
        self.mean = Buffer(zeros_of(channels, dtype=statistics))
        self.variance = Buffer(ones_of(channels, dtype=statistics))
        self.momentum, self.eps, self.axis = momentum, eps, axis
        self.across_workers = across_workers

    def __call__(self, x: Tensor, training: bool = False) -> Tensor:
        """`x` normalized: the same shape and dtype."""
        channels = self.scale.shape[0]
        if not -x.ndim <= self.axis < x.ndim or x.shape[self.axis] != channels:
            raise ValueError(
                f"BatchNorm({channels}): x must have {channels} channels in axis "
                f"{self.axis}, got shape {x.shape}"
            )
        x = moveaxis(x, self.axis, -1)
        if training:
            y, mean, variance = functional.batch_norm_train(
                x,
                self.scale,
                self.offset,
                eps=self.eps,
                across_workers=self.across_workers,
            )
            self.mean = self._running(self.mean, mean)
            self.variance = self._running(self.variance, variance)
        else:
            y = functional.batch_norm(
                x, self.scale, self.offset, self.mean, self.variance, eps=self.eps
            )
        return moveaxis(y, -1, self.axis)

    def _running(self, old: Tensor, of_batch: Tensor) -> Tensor:
        new = asarray(stop_gradient(of_batch), dtype=old.dtype)
        return old * self.momentum + new * (1 - self.momentum)


class LayerNorm(Module):
    """Normalization of each vector along the last axis to mean 0 and variance 1, then `* scale +
    offset` (Ba et al., 2016).
    """

    scale: Tensor
    offset: Tensor

    def __init__(self, features: int, *, eps: float = 1e-5, dtype: Any = dtypes.float32):
        _check_positive("LayerNorm", features=features)
        self.scale, self.offset = ones_of(features, dtype=dtype), zeros_of(features, dtype=dtype)
        self.eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        """(..., features), normalized."""
        features = self.scale.shape[0]
        if not x.ndim or x.shape[-1] != features:
            raise ValueError(
                f"LayerNorm({features}): x must have {features} features in its last "
                f"axis, got shape {x.shape}"
            )
        return functional.layer_norm(x, self.scale, self.offset, eps=self.eps)


class LocalResponseNorm(Module):
    """Normalization of each channel by its neighbours: see `nn.local_response_norm`."""

    def __init__(self, size: int, *, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0):
        _check_positive("LocalResponseNorm", size=size)
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k

    def __call__(self, x: Tensor) -> Tensor:
        """(..., channels), normalized."""
        return functional.local_response_norm(
            x, self.size, alpha=self.alpha, beta=self.beta, k=self.k
        )


# ---- layers without parameters -------------------------------------------------------------------


class MaxPool(Module):
    """The largest value in each window of images (N, *spatial, C): see `nn.max_pool`. The stride is
    the window by default.
    """

    def __init__(
        self,
        window: int | Sequence[int],
        *,
        stride: int | Sequence[int] | None = None,
        padding: Any = "valid",
    ):
        self.window, self.stride, self.padding = _fixed(window), _fixed(stride), _fixed(padding)

    def __call__(self, x: Tensor) -> Tensor:
        """(N, *spatial, C) to (N, *new spatial, C)."""
        return functional.max_pool(x, self.window, stride=self.stride, padding=self.padding)


class AvgPool(Module):
    """The mean of each window of images (N, *spatial, C): see `nn.avg_pool`. The stride is the
    window by default.
    """

    def __init__(
        self,
        window: int | Sequence[int],
        *,
        stride: int | Sequence[int] | None = None,
        padding: Any = "valid",
        count_include_pad: bool = False,
    ):
        self.window, self.stride, self.padding = _fixed(window), _fixed(stride), _fixed(padding)
        self.count_include_pad = count_include_pad

    def __call__(self, x: Tensor) -> Tensor:
        """(N, *spatial, C) to (N, *new spatial, C)."""
        return functional.avg_pool(
            x,
            self.window,
            stride=self.stride,
            padding=self.padding,
            count_include_pad=self.count_include_pad,
        )


class Dropout(Module):
    """In training, each element is zero with probability `rate` and divided by 1 - `rate`
    otherwise; else `x` itself.
    """

    def __init__(self, rate: float):
        if not 0 <= rate < 1:
            raise ValueError(f"Dropout: rate must be in [0, 1), got {rate}")
        self.rate = rate

    def __call__(self, x: Tensor, key: Tensor | None = None, training: bool = False) -> Tensor:
        """`x` with elements dropped: the same shape. Training needs a key."""
        if not training or self.rate == 0:
            return x
        if key is None:
            raise ValueError(
                f"Dropout({self.rate}): training=True needs a key, as in model(x, key=key, "
                "training=True); a loss function that takes `key` is given one by the trainer"
            )
        return functional.dropout(x, self.rate, key)


class Sequential(Module):
    """Layers one after the other: modules or plain functions of one tensor.

    `Sequential(nn.Conv(...), nn.relu, nn.Dropout(0.5))` or with one list. It has a length, and is
    indexed like a list; a slice is a `Sequential`. `training` and `key` go to the layers that take
    an argument of that name, each with a key of its own.

    Example:
        >>> k1, k2 = random.split(random.key(0))
        >>> model = nn.Sequential(nn.Linear(4, 8, key=k1), nn.relu, nn.Linear(8, 2, key=k2))
        >>> model(tl.ones((5, 4))).shape
        (5, 2)
    """

    layers: list[Callable[..., Tensor]]

    def __init__(self, *layers: Callable[..., Tensor] | Sequence[Callable[..., Tensor]]):
        if len(layers) == 1 and isinstance(layers[0], list | tuple):
            layers = tuple(layers[0])
        for place, layer in enumerate(layers):
            if not callable(layer):
                raise TypeError(
                    f"Sequential: layer {place} is a {type(layer).__name__}, which cannot be called"
                )
        self.layers = list(layers)  # type: ignore[arg-type]

    def __call__(self, x: Tensor, *, training: bool = False, key: Tensor | None = None) -> Tensor:
        """`x` through all layers."""
        takers = sum(_takes(layer, "key") for layer in self.layers)
        keys = iter(random.split(key, takers)) if key is not None and takers else None
        for layer in self.layers:
            options: dict[str, Any] = {}
            if _takes(layer, "training"):
                options["training"] = training
            if keys is not None and _takes(layer, "key"):
                options["key"] = next(keys)
            x = layer(x, **options)
        return x

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[Callable[..., Tensor]]:
        return iter(self.layers)

    def __getitem__(self, index: Any) -> Any:
        return Sequential(self.layers[index]) if isinstance(index, slice) else self.layers[index]


# ---- helpers -------------------------------------------------------------------------------------


def _takes(layer: Callable[..., Tensor], name: str) -> bool:
    """Whether a layer has an argument of that name."""
    return name in _arguments(type(layer).__call__ if isinstance(layer, Module) else layer)


@functools.lru_cache(maxsize=256)
def _arguments(function: Callable[..., Any]) -> frozenset[str]:
    try:
        return frozenset(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # some built-in functions do not tell
        return frozenset()


def _check_positive(layer: str, **sizes: int) -> None:
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{layer}: {name} must be a positive integer, got {size!r}")


def _window(layer: str, window: int | Sequence[int], dims: int | None) -> tuple[int, ...]:
    """The window's size along each spatial axis."""
    sizes = (window,) * (dims or 2) if isinstance(window, int) else tuple(window)
    if dims is not None and len(sizes) != dims:
        raise ValueError(f"{layer}: window {sizes} has {len(sizes)} sizes, but dims={dims}")
    if not 1 <= len(sizes) <= 3:
        raise ValueError(
            f"{layer}: 1 to 3 spatial dimensions, got a window of {len(sizes)}: {sizes}"
        )
    for size in sizes:
        _check_positive(layer, window=size)
    return sizes


def _fixed(option: Any) -> Any:
    """Lists as tuples, so that the option can be part of the structure as it is."""
    return tuple(_fixed(item) for item in option) if isinstance(option, list | tuple) else option
