"""The tutorial network in tinygrad: one jitted step on its default device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tinygrad import Tensor, TinyJit  # type: ignore[import-not-found, unused-ignore]

from benchmarks.models.definitions import MODELS, WEIGHT_DECAY, load

Tensors = dict[str, Any]


class Operations:
    """See `definitions.Operations`: what the tutorial network needs. Images are (N, C, H, W)."""

    def __init__(self, weights: Tensors):
        self.weights = weights

    def conv(self, x: Any, name: str, stride: int = 1, padding: int = 0) -> Any:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return x.conv2d(weight, bias, stride=stride, padding=padding)

    def linear(self, x: Any, name: str) -> Any:
        return x @ self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def local_response_norm(self, x: Any, size: int, alpha: float) -> Any:
        half = size // 2
        squares = (x * x).pad(((0, 0), (half, half), (0, 0), (0, 0)))
        channels = x.shape[1]
        total = sum(squares[:, i : i + channels] for i in range(size))
        return x * (1 + alpha / size * total).pow(-0.75)

    def relu(self, x: Any) -> Any:
        return x.relu()

    def max_pool(self, x: Any, window: int, stride: int) -> Any:
        over = (x.shape[-1] - 1) // stride * stride + window - x.shape[-1]
        padding = (over // 2, over - over // 2) * 2
        return x.max_pool2d((window, window), stride=stride, padding=padding)

    def flatten(self, x: Any) -> Any:
        return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1)


def build_step(arrays: str, model: str, threads: int = 1, norm: bool = True) -> Callable[[], float]:
    """A function that takes a training step and returns the loss.

    Args:
        arrays: file of weights and a batch that `definitions.save` wrote.
        model: "tutorial".
        norm: with local response norm; without it, the network is another one.
    """
    definition = MODELS[model]
    parameters, _, images, labels = load(arrays)
    weights = {}
    for name, array in parameters.items():
        turned = array.transpose(3, 2, 0, 1).copy() if array.ndim == 4 else array
        weights[name] = Tensor(turned).realize()
    x = Tensor(images.transpose(0, 3, 1, 2).copy()).realize()
    y = Tensor(labels.astype("int32")).realize()
    operations = Operations(weights)
    if not norm:
        operations.local_response_norm = lambda x, size, alpha: x  # type: ignore[method-assign]

    @TinyJit
    def train() -> Any:
        loss = definition.forward(operations, x).sparse_categorical_crossentropy(y)
        for name in definition.decayed:
            loss = loss + WEIGHT_DECAY * 0.5 * (weights[name] * weights[name]).sum()
        names = list(weights)
        gradients = loss.gradient(*[weights[name] for name in names])
        for name, gradient in zip(names, gradients, strict=True):
            weights[name].assign(weights[name] - definition.learning_rate * gradient)
        return loss.realize(*weights.values())

    def step() -> float:
        return float(train().item())

    return step
