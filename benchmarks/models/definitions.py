"""Six models, each said once: initial weights in NumPy, and a forward pass over `Operations`.

Images are (N, H, W, C), kernels of convolutions (H, W, C_in, C_out), weights of dense layers
(in, out). A framework whose images are (N, C, H, W) turns the weights when it takes them; that is
why a dense layer that follows `flatten` says which image it reads.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

CLASSES = 10
WEIGHT_DECAY = 0.004  # of the tutorial network's dense layers
BATCH_NORM_MOMENTUM = 0.9
NORM_EPSILON = 1e-5

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]


class Operations(Protocol):
    """What a framework has to offer. `name` is that of a layer: its weights are `name.weight`,
    `name.bias` and so on.
    """

    def conv(self, x: Any, name: str, stride: int = 1, padding: int = 0) -> Any:
        """Convolution with `padding` zeros on every side, plus `name.bias` if there is one."""

    def linear(self, x: Any, name: str) -> Any:
        """x @ name.weight + name.bias over the last axis."""

    def batch_norm(self, x: Any, name: str) -> Any:
        """Normalized by the statistics of the batch; the running statistics are updated."""

    def layer_norm(self, x: Any, name: str) -> Any:
        """Each vector along the last axis normalized."""

    def local_response_norm(self, x: Any, size: int, alpha: float) -> Any:
        """x / (1 + alpha / size * sum of squares over `size` channels) ** 0.75."""

    def relu(self, x: Any) -> Any:
        """max(x, 0)."""

    def gelu(self, x: Any) -> Any:
        """The tanh formula."""

    def max_pool(self, x: Any, window: int, stride: int) -> Any:
        """Windows begin at every stride-th pixel; the last one may reach over the edge."""

    def mean_of_pixels(self, x: Any) -> Any:
        """Images to (N, C)."""

    def mean_of_tokens(self, x: Any) -> Any:
        """(N, T, C) to (N, C)."""

    def flatten(self, x: Any) -> Any:
        """Images to (N, values)."""

    def tokens(self, x: Any, name: str) -> Any:
        """Images to (N, H * W, C), plus `name.weight`, the position's vector."""

    def attention(self, qkv: Any, heads: int) -> Any:
        """(N, T, 3 * C) to (N, T, C): softmax(q k^T / sqrt(C / heads)) v for each head."""


@dataclasses.dataclass(frozen=True)
class Model:
    """A model and how it is trained.

    `flattened` gives the (H, W, C) of the image that a dense layer reads; `decayed` names the
    weights whose l2 loss, times `WEIGHT_DECAY`, is added to the loss.
    """

    image: tuple[int, ...]
    initial: Callable[[Weights], None]
    forward: Callable[[Any, Any], Any]
    optimizer: str  # "sgd", "momentum" (0.9) or "adam"
    learning_rate: float
    flattened: dict[str, tuple[int, int, int]] = dataclasses.field(default_factory=dict)
    decayed: tuple[str, ...] = ()


class Weights:
    """Draws initial weights: normal, by default with a standard deviation of sqrt(2 / fan in) for
    convolutions and sqrt(1 / fan in) for dense layers."""

    def __init__(self, seed: int):
        self.arrays: Arrays = {}
        self._random = np.random.default_rng(seed)

    def conv(
        self,
        name: str,
        size: int,
        inner: int,
        outer: int,
        *,
        bias: float | None = None,
        deviation: float | None = None,
    ) -> None:
        """A square kernel; `bias` is the initial value of the bias, None leaves it out."""
        deviation = (2 / (size * size * inner)) ** 0.5 if deviation is None else deviation
        self._normal(f"{name}.weight", (size, size, inner, outer), deviation)
        if bias is not None:
            self.arrays[f"{name}.bias"] = np.full(outer, bias, np.float32)

    def linear(
        self,
        name: str,
        inner: int,
        outer: int,
        *,
        bias: float = 0.0,
        deviation: float | None = None,
    ) -> None:
        """A dense layer with a bias."""
        deviation = inner**-0.5 if deviation is None else deviation
        self._normal(f"{name}.weight", (inner, outer), deviation)
        self.arrays[f"{name}.bias"] = np.full(outer, bias, np.float32)

    def layer_norm(self, name: str, channels: int) -> None:
        """Scale and offset of a normalization."""
        self.arrays[f"{name}.scale"] = np.ones(channels, np.float32)
        self.arrays[f"{name}.offset"] = np.zeros(channels, np.float32)

    def batch_norm(self, name: str, channels: int) -> None:
        """Scale and offset, and running mean and variance."""
        self.layer_norm(name, channels)
        self.arrays[f"{name}.mean"] = np.zeros(channels, np.float32)
        self.arrays[f"{name}.variance"] = np.ones(channels, np.float32)

    def positions(self, name: str, tokens: int, channels: int) -> None:
        """One vector for each token."""
        self._normal(f"{name}.weight", (tokens, channels), 0.02)

    def _normal(self, name: str, shape: tuple[int, ...], deviation: float) -> None:
        normal = self._random.standard_normal(shape) * deviation
        self.arrays[name] = normal.astype(np.float32)


def initial_weights(model: str, seed: int = 0) -> dict[str, Any]:
    """The weights of a model and its running statistics, by name."""
    weights = Weights(seed)
    MODELS[model].initial(weights)
    return weights.arrays


def batch_of(model: str, size: int, seed: int = 1) -> tuple[Array, Array]:
    """Images (size, *image), float32, and labels (size,), int32.

    Every image is there twice, with two labels. A model that has learnt the batch by heart would
    have gradients that underflow, and processors take their time over such numbers; this one keeps
    being wrong.
    """
    half = np.random.default_rng(seed).standard_normal((size // 2, *MODELS[model].image))
    labels = (np.arange(size) % CLASSES).astype(np.int32)
    labels[size // 2 :] = (labels[: size // 2] + 3) % CLASSES
    return np.concatenate([half, half]).astype(np.float32), labels


def save(path: pathlib.Path, model: str, batch: int) -> None:
    """Write weights and a batch of a model as .npz, for all frameworks to read."""
    images, labels = batch_of(model, batch)
    arrays: dict[str, Any] = {"batch:images": images, "batch:labels": labels}
    np.savez(path, **arrays, **initial_weights(model))


def load(path: str) -> tuple[Arrays, Arrays, Array, Array]:
    """(parameters, running statistics, images, labels) of a file that `save` wrote."""
    with np.load(path) as file:
        arrays = dict(file)
    images, labels = arrays.pop("batch:images"), arrays.pop("batch:labels")
    statistics = {n: a for n, a in arrays.items() if n.endswith((".mean", ".variance"))}
    parameters = {name: a for name, a in arrays.items() if name not in statistics}
    return parameters, statistics, images, labels


# ---- the network of TensorFlow's CIFAR-10 tutorial, as in examples/cifar10.py --------------------


def _tutorial_weights(new: Weights) -> None:
    new.conv("conv1", 5, 3, 64, bias=0.0, deviation=0.05)
    new.conv("conv2", 5, 64, 64, bias=0.1, deviation=0.05)
    new.linear("dense1", 6 * 6 * 64, 384, bias=0.1, deviation=0.04)
    new.linear("dense2", 384, 192, bias=0.1, deviation=0.04)
    new.linear("head", 192, CLASSES, deviation=1 / 192)


def _tutorial(f: Operations, x: Any) -> Any:
    x = f.relu(f.conv(x, "conv1", padding=2))
    x = f.local_response_norm(f.max_pool(x, 3, stride=2), 9, alpha=0.001)
    x = f.relu(f.conv(x, "conv2", padding=2))
    x = f.max_pool(f.local_response_norm(x, 9, alpha=0.001), 3, stride=2)
    x = f.relu(f.linear(f.flatten(x), "dense1"))
    return f.linear(f.relu(f.linear(x, "dense2")), "head")


# ---- ResNet-20 (He et al., CVPR 2016, section 4.2), with projections as its shortcuts ------------

_STAGES = (16, 32, 64)
_BLOCKS = 3


def _resnet_weights(new: Weights) -> None:
    new.conv("stem", 3, 3, _STAGES[0])
    new.batch_norm("stem_norm", _STAGES[0])
    inner = _STAGES[0]
    for stage, outer in enumerate(_STAGES):
        for block in range(_BLOCKS):
            name = f"block{stage}{block}"
            new.conv(f"{name}_conv1", 3, inner, outer)
            new.batch_norm(f"{name}_norm1", outer)
            new.conv(f"{name}_conv2", 3, outer, outer)
            new.batch_norm(f"{name}_norm2", outer)
            if inner != outer:
                new.conv(f"{name}_short", 1, inner, outer)
                new.batch_norm(f"{name}_short_norm", outer)
            inner = outer
    new.linear("head", inner, CLASSES)


def _resnet(f: Operations, x: Any) -> Any:
    x = f.relu(f.batch_norm(f.conv(x, "stem", padding=1), "stem_norm"))
    for stage in range(len(_STAGES)):
        for block in range(_BLOCKS):
            name = f"block{stage}{block}"
            narrows = stage > 0 and block == 0
            stride = 2 if narrows else 1
            y = f.conv(x, f"{name}_conv1", stride=stride, padding=1)
            y = f.relu(f.batch_norm(y, f"{name}_norm1"))
            y = f.batch_norm(f.conv(y, f"{name}_conv2", padding=1), f"{name}_norm2")
            if narrows:
                x = f.batch_norm(f.conv(x, f"{name}_short", stride=2), f"{name}_short_norm")
            x = f.relu(x + y)
    return f.linear(f.mean_of_pixels(x), "head")


# ---- VGG-11 (Simonyan and Zisserman, ICLR 2015) for 32x32: batch norm, one dense layer -----------

_VGG = ((64,), (128,), (256, 256), (512, 512), (512, 512))


def _vgg_weights(new: Weights) -> None:
    inner = 3
    for stage, widths in enumerate(_VGG):
        for place, outer in enumerate(widths):
            new.conv(f"conv{stage}{place}", 3, inner, outer)
            new.batch_norm(f"norm{stage}{place}", outer)
            inner = outer
    new.linear("head", inner, CLASSES)


def _vgg(f: Operations, x: Any) -> Any:
    for stage, widths in enumerate(_VGG):
        for place in range(len(widths)):
            x = f.conv(x, f"conv{stage}{place}", padding=1)
            x = f.relu(f.batch_norm(x, f"norm{stage}{place}"))
        x = f.max_pool(x, 2, stride=2)
    return f.linear(f.flatten(x), "head")


# ---- LeNet-5 (LeCun et al., 1998), with rectifiers and max pooling -------------------------------


def _lenet_weights(new: Weights) -> None:
    new.conv("conv1", 5, 1, 6, bias=0.0)
    new.conv("conv2", 5, 6, 16, bias=0.0)
    new.linear("dense1", 5 * 5 * 16, 120)
    new.linear("dense2", 120, 84)
    new.linear("head", 84, CLASSES)


def _lenet(f: Operations, x: Any) -> Any:
    x = f.max_pool(f.relu(f.conv(x, "conv1", padding=2)), 2, stride=2)
    x = f.max_pool(f.relu(f.conv(x, "conv2")), 2, stride=2)
    x = f.relu(f.linear(f.flatten(x), "dense1"))
    return f.linear(f.relu(f.linear(x, "dense2")), "head")


# ---- a multilayer perceptron ---------------------------------------------------------------------


def _mlp_weights(new: Weights) -> None:
    new.linear("dense1", 784, 512)
    new.linear("dense2", 512, 512)
    new.linear("head", 512, CLASSES)


def _mlp(f: Operations, x: Any) -> Any:
    x = f.relu(f.linear(x, "dense1"))
    return f.linear(f.relu(f.linear(x, "dense2")), "head")


# ---- a small vision transformer (Dosovitskiy et al., ICLR 2021): norm first, mean of the tokens --

_PATCH, _WIDTH, _DEPTH, _HEADS = 4, 192, 6, 3


def _transformer_weights(new: Weights) -> None:
    new.conv("patches", _PATCH, 3, _WIDTH, bias=0.0)
    new.positions("positions", (32 // _PATCH) ** 2, _WIDTH)
    for layer in range(_DEPTH):
        new.layer_norm(f"layer{layer}_norm1", _WIDTH)
        new.linear(f"layer{layer}_qkv", _WIDTH, 3 * _WIDTH)
        new.linear(f"layer{layer}_out", _WIDTH, _WIDTH)
        new.layer_norm(f"layer{layer}_norm2", _WIDTH)
        new.linear(f"layer{layer}_wide", _WIDTH, 4 * _WIDTH)
        new.linear(f"layer{layer}_narrow", 4 * _WIDTH, _WIDTH)
    new.layer_norm("norm", _WIDTH)
    new.linear("head", _WIDTH, CLASSES)


def _transformer(f: Operations, x: Any) -> Any:
    x = f.tokens(f.conv(x, "patches", stride=_PATCH), "positions")
    for layer in range(_DEPTH):
        y = f.linear(f.layer_norm(x, f"layer{layer}_norm1"), f"layer{layer}_qkv")
        x = x + f.linear(f.attention(y, _HEADS), f"layer{layer}_out")
        y = f.linear(f.layer_norm(x, f"layer{layer}_norm2"), f"layer{layer}_wide")
        x = x + f.linear(f.gelu(y), f"layer{layer}_narrow")
    return f.linear(f.mean_of_tokens(f.layer_norm(x, "norm")), "head")


MODELS = {
    "tutorial": Model(
        image=(24, 24, 3),
        initial=_tutorial_weights,
        forward=_tutorial,
        optimizer="sgd",
        learning_rate=0.1,
        flattened={"dense1": (6, 6, 64)},
        decayed=("dense1.weight", "dense2.weight"),
    ),
    "resnet20": Model(
        image=(32, 32, 3),
        initial=_resnet_weights,
        forward=_resnet,
        optimizer="momentum",
        learning_rate=0.001,
    ),
    "vgg11": Model(
        image=(32, 32, 3),
        initial=_vgg_weights,
        forward=_vgg,
        optimizer="momentum",
        learning_rate=0.0001,
        flattened={"head": (1, 1, 512)},
    ),
    "lenet": Model(
        image=(28, 28, 1),
        initial=_lenet_weights,
        forward=_lenet,
        optimizer="momentum",
        learning_rate=0.001,
        flattened={"dense1": (5, 5, 16)},
    ),
    "mlp": Model(
        image=(784,),
        initial=_mlp_weights,
        forward=_mlp,
        optimizer="adam",
        learning_rate=0.001,
    ),
    "transformer": Model(
        image=(32, 32, 3),
        initial=_transformer_weights,
        forward=_transformer,
        optimizer="adam",
        learning_rate=0.001,
    ),
}
