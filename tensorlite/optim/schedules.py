"""Learning rates as functions of the step: the number of updates made before, as an int or a tensor
of shape ().

They give a tensor of shape (): float64 for a float64 step, else float32. Any function that does
serves as a schedule.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from .. import dtypes
from ..core import Tensor
from ..ops.creation import asarray, cast, full
from ..ops.elementwise import clip, cos, floor, pow, where
from .base import Schedule


def constant(value: float) -> Schedule:
    """The same at every step."""
    return lambda step: full((), value, dtype=_time(step).dtype)


def exponential_decay(
    initial: float, decay_steps: float, decay_rate: float, *, staircase: bool = False
) -> Schedule:
    """initial * decay_rate ** (step / decay_steps); `staircase` takes the floor of the exponent. As
    TensorFlow's ExponentialDecay.

    Example:
        >>> rate = optim.exponential_decay(0.1, decay_steps=1000, decay_rate=0.5)
        >>> print(rate(0), rate(1000), rate(2000))
        0.1 0.05 0.025
    """
    _check_steps("exponential_decay", decay_steps)

    def schedule(step: Any) -> Tensor:
        exponent = _time(step) / decay_steps
        return initial * pow(decay_rate, floor(exponent) if staircase else exponent)

    return schedule


def piecewise_constant(boundaries: Sequence[float], values: Sequence[float]) -> Schedule:
    """`values[i]` where boundaries[i - 1] < step <= boundaries[i]. As TensorFlow's
    PiecewiseConstantDecay.

    Raises:
        ValueError: boundaries do not increase, or there is not one value more than boundaries.
    """
    limits, levels = list(boundaries), list(values)
    if len(levels) != len(limits) + 1:
        raise ValueError(
            "optim.piecewise_constant: needs one value more than boundaries, "
            f"got {len(levels)} for {len(limits)}"
        )
    if any(a >= b for a, b in itertools.pairwise(limits)):
        raise ValueError(f"optim.piecewise_constant: boundaries must increase, got {limits}")

    def schedule(step: Any) -> Tensor:
        time = _time(step)
        result = full((), levels[0], dtype=time.dtype)
        for limit, level in zip(limits, levels[1:], strict=True):
            result = where(time > limit, level, result)
        return result

    return schedule


def polynomial(initial: float, end: float, decay_steps: float, *, power: float = 1.0) -> Schedule:
    """From `initial` to `end` within `decay_steps`, along (1 - step / decay_steps) ** power; `end`
    from then on.
    """
    _check_steps("polynomial", decay_steps)
    return lambda step: end + (initial - end) * pow(1 - _fraction(step, decay_steps), power)


def cosine_decay(initial: float, decay_steps: float, *, end: float = 0.0) -> Schedule:
    """From `initial` to `end` within `decay_steps`, along half a period of a cosine (Loshchilov and
    Hutter, ICLR 2017).
    """
    _check_steps("cosine_decay", decay_steps)
    return lambda step: (
        end + (initial - end) * 0.5 * (1 + cos(math.pi * _fraction(step, decay_steps)))
    )


def linear_warmup(warmup_steps: float, after: float | Schedule) -> Schedule:
    """A rise from 0 within `warmup_steps` to `after`: a number, or a schedule that starts when the
    rise has ended.
    """
    _check_steps("linear_warmup", warmup_steps)
    following = after if callable(after) else constant(after)

    def schedule(step: Any) -> Tensor:
        time = _time(step)
        return _fraction(time, warmup_steps) * following(clip(time - warmup_steps, 0.0))

    return schedule


def warmup_cosine(
    peak: float, warmup_steps: float, total_steps: float, *, end: float = 0.0
) -> Schedule:
    """`linear_warmup` to `peak`, then `cosine_decay` to `end` at `total_steps`.

    Example:
        >>> rate = optim.warmup_cosine(0.5, warmup_steps=10, total_steps=100)
        >>> print(rate(0), rate(5), rate(10), rate(100))
        0.0 0.25 0.5 0.0
    """
    if not total_steps > warmup_steps:
        raise ValueError(
            f"optim.warmup_cosine: total_steps ({total_steps}) must be more than "
            f"warmup_steps ({warmup_steps})"
        )
    return linear_warmup(warmup_steps, cosine_decay(peak, total_steps - warmup_steps, end=end))


def _time(step: Any) -> Tensor:
    tensor = asarray(step)
    return tensor if tensor.dtype == dtypes.float64 else cast(tensor, dtypes.float32)


def _fraction(step: Any, steps: float) -> Tensor:
    """How much of `steps` has passed, in [0, 1]."""
    return clip(_time(step) / steps, 0.0, 1.0)


def _check_steps(schedule: str, steps: float) -> None:
    if not steps > 0:
        raise ValueError(f"optim.{schedule}: the number of steps must be positive, got {steps}")
