"""What classifiers and regressors minimize and measure, as functions for `Trainer`, and what their
models compute. They travel to the workers."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import tensorlite as tl
from tensorlite import nn


def prepared(preprocess: Callable[..., Any] | None, rows: tl.Tensor) -> Any:
    """What the network sees of a batch of rows."""
    if preprocess is not None:
        return preprocess(rows)
    single = rows.astype(tl.float32)
    return single / 255 if rows.dtype == tl.uint8 else single


@dataclasses.dataclass(frozen=True)
class Objective:
    """The loss over rows, labels and, if there are any, weights.

    Args:
        preprocess: what is done with rows before the network sees them; not with `augmented` ones.
        class_weights: factors of the rows' losses by label.
        mean_weight: of all rows: weights count in relation to it.
    """

    preprocess: Callable[..., Any] | None
    augmented: bool = False
    class_weights: tuple[float, ...] | None = None
    mean_weight: float = 1.0

    def train(self, network: Any, rows: Any, labels: Any, weights: Any, key: Any) -> Any:
        """(mean loss, network) of a batch, the network with what it has changed of itself."""
        seen = rows if self.augmented else prepared(self.preprocess, rows)
        options: dict[str, Any] = {}
        takes = inspect.signature(type(network).__call__).parameters
        if "training" in takes:
            options["training"] = True
        if "key" in takes and key is not None:
            options["key"] = key
        outputs = network(seen, **options)
        return tl.mean(self._weighted(self.losses(outputs, labels), labels, weights)), network

    def evaluate(self, network: Any, rows: Any, labels: Any, *weights: Any) -> dict[str, Any]:
        """Measures of a batch by name."""
        outputs = network(prepared(self.preprocess, rows))
        losses = self.losses(outputs, labels)
        weighted = self._weighted(losses, labels, weights[0] if weights else None)
        return {"loss": tl.mean(weighted), **self.measures(outputs, labels)}

    def losses(self, outputs: Any, labels: Any) -> Any:
        """The loss of each row."""
        raise NotImplementedError

    def measures(self, outputs: Any, labels: Any) -> dict[str, Any]:
        """What is told of validation rows besides the loss."""
        return {}

    def _weighted(self, losses: Any, labels: Any, weights: Any) -> Any:
        if weights is not None:
            losses = losses * (weights.astype(losses.dtype) / self.mean_weight)
        if self.class_weights is not None:
            factors = tl.asarray(self.class_weights, dtype=losses.dtype)
            losses = losses * factors[labels.astype(tl.int32)]
        return losses


class CrossEntropy(Objective):
    """Of a classifier, whose outputs are logits (N, classes)."""

    def losses(self, outputs: Any, labels: Any) -> Any:
        return nn.softmax_cross_entropy(outputs, labels.astype(tl.int32))

    def measures(self, outputs: Any, labels: Any) -> dict[str, Any]:
        hits = tl.argmax(outputs, axis=-1) == labels.astype(tl.int64)
        return {"accuracy": tl.mean(hits.astype(tl.float32))}


class SquaredError(Objective):
    """Of a regressor, whose outputs have shape (N,) or (N, 1)."""

    def losses(self, outputs: Any, labels: Any) -> Any:
        difference = flat(outputs) - labels.astype(outputs.dtype)
        return difference * difference


def loss_of(objective: Objective, network: type[Any], has_weights: bool) -> Callable[..., Any]:
    """The loss, with the parameters that `Trainer` looks for; `network` is its class."""

    def keyed(network: Any, rows: Any, labels: Any, *weights: Any, key: Any = None) -> Any:
        return objective.train(network, rows, labels, weights[0] if has_weights else None, key)

    def plain(network: Any, rows: Any, labels: Any, *weights: Any) -> Any:
        return keyed(network, rows, labels, *weights)

    return keyed if "key" in inspect.signature(network.__call__).parameters else plain


def flat(outputs: Any) -> Any:
    """Outputs of a regressor as (N,)."""
    if outputs.ndim == 2 and outputs.shape[1] == 1:
        return outputs[:, 0]
    if outputs.ndim != 1:
        raise ValueError(
            f"TensorliteRegressor: the network returns shape {outputs.shape}; (N,) or (N, 1) is "
            "expected"
        )
    return outputs


@dataclasses.dataclass(frozen=True)
class Application:
    """What a fitted model computes of rows: logits (N, classes), or numbers (N,)."""

    preprocess: Callable[..., Any] | None
    is_classifier: bool

    def __call__(self, network: Any, rows: tl.Tensor) -> Any:
        outputs = network(prepared(self.preprocess, rows))
        return outputs if self.is_classifier else flat(outputs)
