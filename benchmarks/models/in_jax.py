"""The models in JAX: one jitted step, whose parameters and state are donated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax  # type: ignore[import-not-found, unused-ignore]
import jax.numpy as jnp  # type: ignore[import-not-found, unused-ignore]
from jax import lax  # type: ignore[import-not-found, unused-ignore]

from benchmarks.models.definitions import (
    BATCH_NORM_MOMENTUM,
    MODELS,
    NORM_EPSILON,
    WEIGHT_DECAY,
    load,
)

Arrays = dict[str, Any]


class Operations:
    """See `definitions.Operations`. Products are made of `dtype`, everything else of float32."""

    def __init__(self, weights: Arrays, statistics: Arrays, dtype: Any):
        self.weights, self.statistics, self.dtype = weights, dict(statistics), dtype

    def conv(self, x: Any, name: str, stride: int = 1, padding: int = 0) -> Any:
        y = lax.conv_general_dilated(
            x.astype(self.dtype),
            self.weights[f"{name}.weight"].astype(self.dtype),
            (stride, stride),
            [(padding, padding)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        bias = self.weights.get(f"{name}.bias")
        return y if bias is None else y + bias.astype(self.dtype)

    def linear(self, x: Any, name: str) -> Any:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return x.astype(self.dtype) @ weight.astype(self.dtype) + bias.astype(self.dtype)

    def batch_norm(self, x: Any, name: str) -> Any:
        wide = x.astype(jnp.float32)
        mean = wide.mean((0, 1, 2))
        variance = jnp.square(wide).mean((0, 1, 2)) - jnp.square(mean)
        for statistic, new in ((f"{name}.mean", mean), (f"{name}.variance", variance)):
            old = self.statistics[statistic] * BATCH_NORM_MOMENTUM
            self.statistics[statistic] = old + lax.stop_gradient(new) * (1 - BATCH_NORM_MOMENTUM)
        factor = lax.rsqrt(variance + NORM_EPSILON) * self.weights[f"{name}.scale"]
        return ((wide - mean) * factor + self.weights[f"{name}.offset"]).astype(self.dtype)

    def layer_norm(self, x: Any, name: str) -> Any:
        wide = x.astype(jnp.float32)
        mean = wide.mean(-1, keepdims=True)
        variance = jnp.square(wide).mean(-1, keepdims=True) - jnp.square(mean)
        normal = (wide - mean) * lax.rsqrt(variance + NORM_EPSILON)
        y = normal * self.weights[f"{name}.scale"] + self.weights[f"{name}.offset"]
        return y.astype(self.dtype)

    def local_response_norm(self, x: Any, size: int, alpha: float) -> Any:
        # A product with a band matrix: several times faster here than lax.reduce_window.
        channels = jnp.arange(x.shape[-1])
        band = (jnp.abs(channels[:, None] - channels) <= size // 2).astype(x.dtype)
        return x * (1 + alpha / size * (jnp.square(x) @ band)) ** -0.75

    def relu(self, x: Any) -> Any:
        return jax.nn.relu(x)

    def gelu(self, x: Any) -> Any:
        return jax.nn.gelu(x, approximate=True)

    def max_pool(self, x: Any, window: int, stride: int) -> Any:
        sizes, strides = (1, window, window, 1), (1, stride, stride, 1)
        return lax.reduce_window(x, -jnp.inf, lax.max, sizes, strides, "SAME")

    def mean_of_pixels(self, x: Any) -> Any:
        return x.mean((1, 2))

    def mean_of_tokens(self, x: Any) -> Any:
        return x.mean(1)

    def flatten(self, x: Any) -> Any:
        return x.reshape(x.shape[0], -1)

    def tokens(self, x: Any, name: str) -> Any:
        n, height, width, channels = x.shape
        return x.reshape(n, height * width, channels) + self.weights[f"{name}.weight"]

    def attention(self, qkv: Any, heads: int) -> Any:
        n, tokens, width = qkv.shape
        q, k, v = jnp.moveaxis(qkv.reshape(n, tokens, 3, heads, width // (3 * heads)), 2, 0)
        return jax.nn.dot_product_attention(q, k, v).reshape(n, tokens, width // 3)


def build_step(
    arrays: str, model: str, precision: str = "f32", threads: int = 1
) -> Callable[[], float]:
    """A function that takes a training step and returns the loss; see `in_tensorlite`. JAX has as
    many threads as the worker has processors."""
    definition = MODELS[model]
    dtype = {"f32": jnp.float32, "bf16": jnp.bfloat16}[precision]
    update = {"sgd": sgd, "momentum": momentum, "adam": adam}[definition.optimizer]

    def loss_of(weights: Arrays, statistics: Arrays, images: Any, labels: Any) -> Any:
        operations = Operations(weights, statistics, dtype)
        logits = definition.forward(operations, images).astype(jnp.float32)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)
        loss = -chosen.mean()
        for name in definition.decayed:
            loss += WEIGHT_DECAY * jnp.square(weights[name]).sum() / 2
        return loss, operations.statistics

    def train(
        weights: Arrays, statistics: Arrays, state: Any, images: Any, labels: Any
    ) -> tuple[Arrays, Arrays, Any, Any]:
        differentiate = jax.value_and_grad(loss_of, has_aux=True)
        (loss, statistics), gradients = differentiate(weights, statistics, images, labels)
        weights, state = update(weights, gradients, state, definition.learning_rate)
        return weights, statistics, state, loss

    compiled = jax.jit(train, donate_argnums=(0, 1, 2))
    parameters, buffers, *batch = load(arrays)
    images, labels = map(jnp.asarray, batch)
    weights, statistics = jax.tree.map(jnp.array, (parameters, buffers))
    zeros = jax.tree.map(jnp.zeros_like, (weights, weights))
    state = (jnp.zeros((), jnp.int32), *zeros)

    def step() -> float:
        nonlocal weights, statistics, state
        weights, statistics, state, loss = compiled(weights, statistics, state, images, labels)
        return float(loss)

    return step


def sgd(weights: Arrays, gradients: Arrays, state: Any, rate: float) -> tuple[Arrays, Any]:
    """Plain gradient descent."""
    return jax.tree.map(lambda w, g: w - rate * g, weights, gradients), state


def momentum(weights: Arrays, gradients: Arrays, state: Any, rate: float) -> tuple[Arrays, Any]:
    """Gradient descent with a momentum of 0.9."""
    count, velocity, unused = state
    velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, gradients)
    weights = jax.tree.map(lambda w, v: w - rate * v, weights, velocity)
    return weights, (count, velocity, unused)


def adam(weights: Arrays, gradients: Arrays, state: Any, rate: float) -> tuple[Arrays, Any]:
    """Adam with its usual constants."""
    count, m, v = state
    count = count + 1
    m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, gradients)
    v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, gradients)
    bias_m, bias_v = 1 - 0.9**count, 1 - 0.999**count
    weights = jax.tree.map(
        lambda w, m, v: w - rate * (m / bias_m) / (jnp.sqrt(v / bias_v) + 1e-8), weights, m, v
    )
    return weights, (count, m, v)
