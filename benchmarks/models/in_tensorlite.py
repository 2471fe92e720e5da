"""The models in tensorlite: one jitted step, whose parameters and state are donated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorlite as tl
from benchmarks.models.definitions import (
    BATCH_NORM_MOMENTUM,
    MODELS,
    NORM_EPSILON,
    WEIGHT_DECAY,
    load,
)
from tensorlite import nn, optim

Tensors = dict[str, tl.Tensor]
profile = tl.profile


class Operations:
    """See `definitions.Operations`."""

    def __init__(self, weights: Tensors, statistics: Tensors):
        self.weights, self.statistics = weights, dict(statistics)

    def conv(self, x: tl.Tensor, name: str, stride: int = 1, padding: int = 0) -> tl.Tensor:
        y = nn.conv(x, self.weights[f"{name}.weight"], stride=stride, padding=padding)
        bias = self.weights.get(f"{name}.bias")
        return y if bias is None else y + bias.astype(y.dtype)

    def linear(self, x: tl.Tensor, name: str) -> tl.Tensor:
        y = x @ self.weights[f"{name}.weight"]
        return y + self.weights[f"{name}.bias"].astype(y.dtype)

    def batch_norm(self, x: tl.Tensor, name: str) -> tl.Tensor:
        y, mean, variance = nn.batch_norm_train(
            x, self.weights[f"{name}.scale"], self.weights[f"{name}.offset"], eps=NORM_EPSILON
        )
        for statistic, new in ((f"{name}.mean", mean), (f"{name}.variance", variance)):
            old = self.statistics[statistic] * BATCH_NORM_MOMENTUM
            self.statistics[statistic] = old + tl.stop_gradient(new) * (1 - BATCH_NORM_MOMENTUM)
        return y

    def layer_norm(self, x: tl.Tensor, name: str) -> tl.Tensor:
        scale, offset = self.weights[f"{name}.scale"], self.weights[f"{name}.offset"]
        return nn.layer_norm(x, scale, offset, eps=NORM_EPSILON)

    def local_response_norm(self, x: tl.Tensor, size: int, alpha: float) -> tl.Tensor:
        return nn.local_response_norm(x, size, alpha=alpha, beta=0.75, k=1.0)

    def relu(self, x: tl.Tensor) -> tl.Tensor:
        return nn.relu(x)

    def gelu(self, x: tl.Tensor) -> tl.Tensor:
        return nn.gelu(x, approximate=True)

    def max_pool(self, x: tl.Tensor, window: int, stride: int) -> tl.Tensor:
        return nn.max_pool(x, window, stride=stride, padding="same")

    def mean_of_pixels(self, x: tl.Tensor) -> tl.Tensor:
        return tl.mean(x, axis=(1, 2))

    def mean_of_tokens(self, x: tl.Tensor) -> tl.Tensor:
        return tl.mean(x, axis=1)

    def flatten(self, x: tl.Tensor) -> tl.Tensor:
        return x.reshape(x.shape[0], -1)

    def tokens(self, x: tl.Tensor, name: str) -> tl.Tensor:
        n, height, width, channels = x.shape
        return x.reshape(n, height * width, channels) + self.weights[f"{name}.weight"]

    def attention(self, qkv: tl.Tensor, heads: int) -> tl.Tensor:
        n, tokens, width = qkv.shape
        split = qkv.reshape(n, tokens, 3, heads, width // (3 * heads))
        q, k, v = tl.unstack(tl.permute_dims(split, (2, 0, 3, 1, 4)), axis=0)
        y = nn.attention(q, k, v)
        return tl.permute_dims(y, (0, 2, 1, 3)).reshape(n, tokens, width // 3)


def build_step(
    arrays: str, model: str, precision: str = "f32", threads: int = 1, device: str = "cpu"
) -> Callable[[], float]:
    """A function that takes a training step and returns the loss.

    Args:
        arrays: file of weights and a batch that `definitions.save` wrote.
        model: a name in `definitions.MODELS`.
        precision: "f32", or "bf16" for products in bfloat16 with float32 weights.
        threads: of the worker; here its environment has said so already.
        device: where it trains.
    """
    definition = MODELS[model]
    optimizer = _optimizer(definition.optimizer, definition.learning_rate)

    def loss_of(
        weights: Tensors, statistics: Tensors, images: tl.Tensor, labels: tl.Tensor
    ) -> tuple[tl.Tensor, Tensors]:
        operations = Operations(weights, statistics)
        logits = definition.forward(operations, images)
        loss = tl.mean(nn.softmax_cross_entropy(logits, labels))
        for name in definition.decayed:
            loss = loss + WEIGHT_DECAY * nn.l2_loss(weights[name])
        return loss, operations.statistics

    @tl.jit(donate_argnums=(0, 1, 2))
    def train(
        weights: Tensors, statistics: Tensors, state: Any, images: tl.Tensor, labels: tl.Tensor
    ) -> tuple[Tensors, Tensors, Any, tl.Tensor]:
        differentiate = tl.value_and_grad(loss_of, has_aux=True)
        (loss, statistics), gradients = differentiate(weights, statistics, images, labels)
        updates, state = optimizer.update(gradients, state, weights)
        return optim.apply_updates(weights, updates), statistics, state, loss

    parameters, buffers, *batch = load(arrays)
    with tl.default_device(device):
        images, labels = map(tl.asarray, batch)
        weights, statistics = tl.tree.map(tl.asarray, (parameters, buffers))
        state = optimizer.init(weights)
    policy = tl.precision(precision)

    def step() -> float:
        nonlocal weights, statistics, state
        with policy:
            weights, statistics, state, loss = train(weights, statistics, state, images, labels)
        return float(loss)

    return step


def _optimizer(name: str, rate: float) -> optim.Optimizer:
    if name == "adam":
        return optim.adam(rate)
    return optim.sgd(rate, momentum=0.9 if name == "momentum" else 0.0)
