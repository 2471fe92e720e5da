"""The models in TensorFlow: one tf.function, plain or compiled by XLA, with the fused kernels of
its optimizers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf  # type: ignore[import-not-found, import-untyped, unused-ignore]

from benchmarks.models.definitions import (
    BATCH_NORM_MOMENTUM,
    MODELS,
    NORM_EPSILON,
    WEIGHT_DECAY,
    load,
)

Variables = dict[str, Any]


class Operations:
    """See `definitions.Operations`. Products are made of `dtype`, everything else of float32."""

    def __init__(self, weights: Variables, statistics: Variables, dtype: Any):
        self.weights, self.statistics, self.dtype = weights, statistics, dtype

    def conv(self, x: Any, name: str, stride: int = 1, padding: int = 0) -> Any:
        both = [padding, padding]
        weight = tf.cast(self.weights[f"{name}.weight"], self.dtype)
        around: Any = [[0, 0], both, both, [0, 0]]
        if stride == 1 and padding == weight.shape[0] // 2:
            around = "SAME"  # the same padding, for which there are more kernels
        y = tf.nn.conv2d(tf.cast(x, self.dtype), weight, strides=stride, padding=around)
        bias = self.weights.get(f"{name}.bias")
        return y if bias is None else tf.nn.bias_add(y, tf.cast(bias, self.dtype))

    def linear(self, x: Any, name: str) -> Any:
        weight = tf.cast(self.weights[f"{name}.weight"], self.dtype)
        bias = tf.cast(self.weights[f"{name}.bias"], self.dtype)
        rows = tf.reshape(tf.cast(x, self.dtype), [-1, x.shape[-1]])
        y = tf.nn.bias_add(rows @ weight, bias)
        return tf.reshape(y, [*x.shape[:-1], weight.shape[-1]])

    def batch_norm(self, x: Any, name: str) -> Any:
        y, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            x,
            self.weights[f"{name}.scale"],
            self.weights[f"{name}.offset"],
            epsilon=NORM_EPSILON,
            is_training=True,
        )
        for statistic, new in ((f"{name}.mean", mean), (f"{name}.variance", variance)):
            variable = self.statistics[statistic]
            variable.assign_sub((variable - new) * (1 - BATCH_NORM_MOMENTUM))
        return y

    def layer_norm(self, x: Any, name: str) -> Any:
        wide = tf.cast(x, tf.float32)
        mean, variance = tf.nn.moments(wide, -1, keepdims=True)
        scale, offset = self.weights[f"{name}.scale"], self.weights[f"{name}.offset"]
        y = tf.nn.batch_normalization(wide, mean, variance, offset, scale, NORM_EPSILON)
        return tf.cast(y, self.dtype)

    def local_response_norm(self, x: Any, size: int, alpha: float) -> Any:
        wide = tf.cast(x, tf.float32)
        y = tf.nn.local_response_normalization(
            wide, depth_radius=size // 2, bias=1.0, alpha=alpha / size, beta=0.75
        )
        return tf.cast(y, self.dtype)

    def relu(self, x: Any) -> Any:
        return tf.nn.relu(x)

    def gelu(self, x: Any) -> Any:
        return tf.nn.gelu(x, approximate=True)

    def max_pool(self, x: Any, window: int, stride: int) -> Any:
        return tf.nn.max_pool2d(x, window, stride, "SAME")

    def mean_of_pixels(self, x: Any) -> Any:
        return tf.reduce_mean(x, [1, 2])

    def mean_of_tokens(self, x: Any) -> Any:
        return tf.reduce_mean(x, 1)

    def flatten(self, x: Any) -> Any:
        return tf.reshape(x, [x.shape[0], -1])

    def tokens(self, x: Any, name: str) -> Any:
        n, height, width, channels = x.shape
        positions = tf.cast(self.weights[f"{name}.weight"], self.dtype)
        return tf.reshape(x, [n, height * width, channels]) + positions

    def attention(self, qkv: Any, heads: int) -> Any:
        n, tokens, width = qkv.shape
        size = width // (3 * heads)
        split = tf.reshape(qkv, [n, tokens, 3, heads, size])
        q, k, v = tf.unstack(tf.transpose(split, [2, 0, 3, 1, 4]))
        scores = tf.nn.softmax(tf.matmul(q, k, transpose_b=True) * size**-0.5)
        return tf.reshape(tf.transpose(scores @ v, [0, 2, 1, 3]), [n, tokens, width // 3])


def build_step(
    arrays: str, model: str, precision: str = "f32", threads: int = 1, xla: bool = False
) -> Callable[[], float]:
    """A function that takes a training step and returns the loss; see `in_tensorlite`.

    Args:
        xla: the tf.function is compiled by XLA.
    """
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    definition = MODELS[model]
    dtype = {"f32": tf.float32, "bf16": tf.bfloat16}[precision]
    parameters, buffers, *batch = load(arrays)
    images, labels = map(tf.constant, batch)
    weights = {name: tf.Variable(array) for name, array in parameters.items()}
    statistics = {name: tf.Variable(array, trainable=False) for name, array in buffers.items()}
    update = _OPTIMIZERS[definition.optimizer](weights, definition.learning_rate)

    @tf.function(jit_compile=xla)  # type: ignore[untyped-decorator, unused-ignore]
    def train(images: Any, labels: Any) -> Any:
        with tf.GradientTape() as tape:
            operations = Operations(weights, statistics, dtype)
            logits = tf.cast(definition.forward(operations, images), tf.float32)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            loss = tf.reduce_mean(losses)
            for name in definition.decayed:
                loss += WEIGHT_DECAY * tf.nn.l2_loss(weights[name])
        update(tape.gradient(loss, weights))
        return loss

    def step() -> float:
        return float(train(images, labels))

    return step


def _slots(weights: Variables) -> Variables:
    return {name: tf.Variable(tf.zeros_like(w), trainable=False) for name, w in weights.items()}


def _sgd(weights: Variables, rate: float) -> Callable[[Variables], None]:
    def update(gradients: Variables) -> None:
        for name, gradient in gradients.items():
            tf.raw_ops.ResourceApplyGradientDescent(
                var=weights[name].handle, alpha=rate, delta=gradient
            )

    return update


def _momentum(weights: Variables, rate: float) -> Callable[[Variables], None]:
    velocity = _slots(weights)

    def update(gradients: Variables) -> None:
        for name, gradient in gradients.items():
            tf.raw_ops.ResourceApplyMomentum(
                var=weights[name].handle,
                accum=velocity[name].handle,
                lr=rate,
                grad=gradient,
                momentum=0.9,
            )

    return update


def _adam(weights: Variables, rate: float) -> Callable[[Variables], None]:
    m, v = _slots(weights), _slots(weights)
    powers = [tf.Variable(decay, trainable=False) for decay in (0.9, 0.999)]

    def update(gradients: Variables) -> None:
        # The kernel adds epsilon before it corrects the bias, the others after.
        epsilon = 1e-8 * tf.sqrt(1 - powers[1])
        for name, gradient in gradients.items():
            tf.raw_ops.ResourceApplyAdam(
                var=weights[name].handle,
                m=m[name].handle,
                v=v[name].handle,
                beta1_power=powers[0],
                beta2_power=powers[1],
                lr=rate,
                beta1=0.9,
                beta2=0.999,
                epsilon=epsilon,
                grad=gradient,
            )
        powers[0].assign(powers[0] * 0.9)
        powers[1].assign(powers[1] * 0.999)

    return update


_OPTIMIZERS = {"sgd": _sgd, "momentum": _momentum, "adam": _adam}
