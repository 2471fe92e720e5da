"""Initial values of parameters: functions of (key, shape, dtype) that return a tensor.

`zeros`, `ones`, `glorot_uniform`, `he_normal` and `lecun_normal` are such functions; `constant(v)`,
`normal(stddev)`, `truncated_normal(stddev)` and `uniform(bound)` make one. The last two axes of a
shape are input and output channels, the axes before them the window, as in the weights of
`nn.Linear` and `nn.Conv`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from .. import random
from ..core import Tensor
from ..ops.creation import Shape, full

__all__ = [
    "Initializer",
    "constant",
    "glorot_uniform",
    "he_normal",
    "lecun_normal",
    "normal",
    "ones",
    "truncated_normal",
    "uniform",
    "zeros",
]

Initializer = Callable[[Any, Shape, Any], Tensor]


def zeros(key: Tensor | None, shape: Shape, dtype: Any) -> Tensor:
    """All zeros; needs no key."""
    return full(shape, 0, dtype=dtype)


def ones(key: Tensor | None, shape: Shape, dtype: Any) -> Tensor:
    """All ones; needs no key."""
    return full(shape, 1, dtype=dtype)


def constant(value: float) -> Initializer:
    """All `value`; needs no key."""
    return lambda key, shape, dtype: full(shape, value, dtype=dtype)


def normal(stddev: float) -> Initializer:
    """Normal with mean 0."""
    return lambda key, shape, dtype: random.normal(key, shape, dtype) * stddev


def truncated_normal(stddev: float) -> Initializer:
    """Normal with mean 0, cut at two standard deviations: `tf.random.truncated_normal`, whose own
    deviation is 0.88 `stddev`.
    """
    return lambda key, shape, dtype: random.truncated_normal(key, -2, 2, shape, dtype) * stddev


def uniform(bound: float) -> Initializer:
    """Uniform on [-bound, bound)."""
    return lambda key, shape, dtype: random.uniform(key, shape, dtype, -bound, bound)


def glorot_uniform(key: Tensor, shape: Shape, dtype: Any) -> Tensor:
    """Uniform with variance 2 / (fan_in + fan_out) (Glorot and Bengio, AISTATS 2010)."""
    fan_in, fan_out = fans(shape)
    return uniform(math.sqrt(6 / (fan_in + fan_out)))(key, shape, dtype)


def he_normal(key: Tensor, shape: Shape, dtype: Any) -> Tensor:
    """Normal with variance 2 / fan_in, for layers that a relu follows (He et al., ICCV 2015)."""
    return normal(math.sqrt(2 / fans(shape)[0]))(key, shape, dtype)


def lecun_normal(key: Tensor, shape: Shape, dtype: Any) -> Tensor:
    """Normal with variance 1 / fan_in (LeCun et al., Efficient BackProp, 1998)."""
    return normal(math.sqrt(1 / fans(shape)[0]))(key, shape, dtype)


def fans(shape: Shape) -> tuple[int, int]:
    """How many inputs each output of such a weight sums, and how many outputs each input reaches;
    at least 1.
    """
    if len(shape) < 2:
        size = max(math.prod(shape), 1)
        return size, size
    window = math.prod(shape[:-2])
    return max(window * shape[-2], 1), max(window * shape[-1], 1)
