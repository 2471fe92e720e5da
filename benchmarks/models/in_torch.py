"""The models in PyTorch: eager or through `torch.compile`, in either layout of images, with the
fused kernels of its optimizers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks.models.definitions import (
    BATCH_NORM_MOMENTUM,
    MODELS,
    NORM_EPSILON,
    WEIGHT_DECAY,
    Array,
    load,
)

Tensors = dict[str, Any]


class Operations:
    """See `definitions.Operations`; images are (N, C, H, W) here, whatever their strides."""

    def __init__(self, weights: Tensors, statistics: Tensors):
        self.weights, self.statistics = weights, statistics

    def conv(self, x: Any, name: str, stride: int = 1, padding: int = 0) -> Any:
        weight, bias = self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias")
        return functional.conv2d(x, weight, bias, stride=stride, padding=padding)

    def linear(self, x: Any, name: str) -> Any:
        return functional.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def batch_norm(self, x: Any, name: str) -> Any:
        return functional.batch_norm(
            x,
            self.statistics[f"{name}.mean"],
            self.statistics[f"{name}.variance"],
            self.weights[f"{name}.scale"],
            self.weights[f"{name}.offset"],
            training=True,
            momentum=1 - BATCH_NORM_MOMENTUM,
            eps=NORM_EPSILON,
        )

    def layer_norm(self, x: Any, name: str) -> Any:
        scale, offset = self.weights[f"{name}.scale"], self.weights[f"{name}.offset"]
        return functional.layer_norm(x, scale.shape, scale, offset, eps=NORM_EPSILON)

    def local_response_norm(self, x: Any, size: int, alpha: float) -> Any:
        return functional.local_response_norm(x, size, alpha=alpha, beta=0.75, k=1.0)

    def relu(self, x: Any) -> Any:
        return functional.relu(x)

    def gelu(self, x: Any) -> Any:
        return functional.gelu(x, approximate="tanh")

    def max_pool(self, x: Any, window: int, stride: int) -> Any:
        return functional.max_pool2d(x, window, stride=stride, ceil_mode=True)

    def mean_of_pixels(self, x: Any) -> Any:
        return x.mean((2, 3))

    def mean_of_tokens(self, x: Any) -> Any:
        return x.mean(1)

    def flatten(self, x: Any) -> Any:
        return x.flatten(1)

    def tokens(self, x: Any, name: str) -> Any:
        return x.flatten(2).transpose(1, 2) + self.weights[f"{name}.weight"]

    def attention(self, qkv: Any, heads: int) -> Any:
        n, tokens, width = qkv.shape
        q, k, v = qkv.view(n, tokens, 3, heads, width // (3 * heads)).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(q, k, v)
        return y.transpose(1, 2).reshape(n, tokens, width // 3)


def build_step(
    arrays: str,
    model: str,
    precision: str = "f32",
    threads: int = 1,
    compiled: bool = False,
    channels_last: bool = False,
    device: str = "cpu",
    tf32: bool = False,
) -> Callable[[], float]:
    """A function that takes a training step and returns the loss; see `in_tensorlite`.

    Args:
        compiled: forward and backward pass through `torch.compile`.
        channels_last: images and kernels with strides in the order (N, H, W, C).
        device: where it trains: "cpu" or "cuda".
        tf32: whether a GPU may round the operands of products to 10 bits.
    """
    torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    definition = MODELS[model]
    parameters, buffers, image_array, label_array = load(arrays)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def stored(array: Array) -> Any:
        tensor = torch.from_numpy(np.ascontiguousarray(array)).to(device)
        return tensor.to(memory_format=memory_format) if tensor.ndim == 4 else tensor

    weights = {
        name: stored(turned(name, array, definition.flattened)).requires_grad_()
        for name, array in parameters.items()
    }
    statistics = {name: stored(array) for name, array in buffers.items()}
    images = stored(image_array.transpose(0, 3, 1, 2) if image_array.ndim == 4 else image_array)
    labels = torch.from_numpy(label_array).long().to(device)
    optimizer = _optimizer(definition.optimizer, definition.learning_rate, weights)

    def loss_of(images: Any, labels: Any) -> Any:
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            logits = definition.forward(Operations(weights, statistics), images)
        loss = functional.cross_entropy(logits.float(), labels)
        for name in definition.decayed:
            loss = loss + WEIGHT_DECAY * weights[name].square().sum() / 2
        return loss

    forward = torch.compile(loss_of) if compiled else loss_of

    def step() -> float:
        optimizer.zero_grad()
        loss = forward(images, labels)
        loss.backward()
        optimizer.step()
        return float(loss)

    return step


def turned(name: str, array: Array, flattened: dict[str, tuple[int, int, int]]) -> Array:
    """A weight in PyTorch's order of axes: (C_out, C_in, H, W), and (out, in)."""
    layer, _, part = name.rpartition(".")
    if part != "weight" or layer == "positions":
        return array
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1)
    if layer in flattened:
        image = array.reshape(*flattened[layer], -1)
        return image.transpose(3, 2, 0, 1).reshape(array.shape[1], -1)
    return array.T


def _optimizer(name: str, rate: float, weights: Tensors) -> Any:
    if name == "adam":
        return torch.optim.Adam(weights.values(), lr=rate, fused=True)
    momentum = 0.9 if name == "momentum" else 0.0
    return torch.optim.SGD(weights.values(), lr=rate, momentum=momentum, fused=True)
