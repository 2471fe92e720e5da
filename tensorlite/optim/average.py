"""Moving averages of parameters, which often classify better than the parameters themselves."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..ops.creation import cast
from ..ops.elementwise import minimum
from .base import entry, named_parameters, new_count, rebuild, wide


class MovingAverage(NamedTuple):
    """An exponential moving average of a model's parameters; make one with `ema`."""

    decay: float
    warm_up: bool

    def init(self, model: Any) -> Any:
        """The state: the averages, which are the parameters at first, by name and in float32 at
        least, and a count.
        """
        parameters = named_parameters("ema", model)
        return {
            "average": {n: cast(p, wide(p.dtype)) for n, p in parameters.items()},
            "count": new_count(),
        }

    def update(self, state: Any, model: Any) -> Any:
        """The state after taking the parameters of `model` into the averages.

        Raises:
            ValueError: names or shapes of the state and the model differ.
        """
        parameters = named_parameters("ema", model)
        averages, count = entry(state, "average", parameters), entry(state, "count") + 1
        new = {}
        for name, p in parameters.items():
            dtype = wide(p.dtype)
            old = averages[name]
            kept: Any = self.decay
            if self.warm_up:
                time = cast(count, dtype)
                kept = minimum(self.decay, (1 + time) / (10 + time))
            new[name] = old - (1 - kept) * (old - p)
        return {"average": new, "count": count}

    def average(self, state: Any, model: Any) -> Any:
        """`model` with the averages in the place of its parameters, in their dtypes; its buffers
        are kept.
        """
        parameters = named_parameters("ema", model)
        averages = entry(state, "average", parameters)
        values = {name: cast(averages[name], p.dtype) for name, p in parameters.items()}
        return rebuild(model, values, lambda leaf: leaf)


def ema(decay: float, *, warm_up: bool = False) -> MovingAverage:
    """An exponential moving average: average -= (1 - decay) * (average - parameter) at each update.

    Args:
        warm_up: use min(decay, (1 + n) / (10 + n)) at the n-th update (from 1), so that early
            parameters are forgotten faster, as TensorFlow's ExponentialMovingAverage does when it
            is given `num_updates`.

    Raises:
        ValueError: `decay` is outside [0, 1].

    Example:
        >>> average = optim.ema(0.5)
        >>> params = {"w": tl.asarray(0.0)}
        >>> state = average.init(params)
        >>> state = average.update(state, {"w": tl.asarray(8.0)})
        >>> print(average.average(state, params)["w"])
        4.0
    """
    if not 0 <= decay <= 1:
        raise ValueError(f"optim.ema: decay must be in [0, 1], got {decay}")
    return MovingAverage(decay, warm_up)
