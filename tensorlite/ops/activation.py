"""Activation functions that `ops.elementwise` does not have: relu and its relatives, gelu, silu.

Those of several steps compute in float32 for float16 and bfloat16, and round once.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import dtypes
from ..composite import composite
from ..core import Tensor, bind
from .creation import asarray, cast
from .elementwise import elementwise, erf, expm1, logical_and, sigmoid, tanh, where
from .norm import wide

# ---- relu ----------------------------------------------------------------------------


def _positive_part(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, x.dtype.type(0))


def _passed(g: np.ndarray, y: np.ndarray) -> np.ndarray:
    """`g` where y > 0, else 0."""
    if g.shape != y.shape or g.ndim == 0:
        return np.where(y > 0, g, g.dtype.type(0))
    # Which units are active is close to random, so that a branch for each is mispredicted half of
    # the time; masking bits needs none and is several times faster. (A product with 0 would turn an
    # infinite gradient into NaN.)
    bits = np.dtype(f"int{8 * g.itemsize}")
    active = np.greater(y, 0).view(np.int8)
    mask = np.negative(active, out=active).astype(bits)
    return np.bitwise_and(mask, g.view(bits), out=mask).view(g.dtype)


relu_gate: Any = elementwise(
    "relu_gate",
    _passed,
    scalar=lambda k, g, y: k.where(y > 0, g, 0),
    kinds=dtypes.FLOATS,
    vjp=lambda z, g, y: (lambda ct: relu_gate(ct, y), None),
    doc="The first argument where the second is positive, else 0: the derivative of relu.",
)
relu = elementwise(
    "relu",
    _positive_part,
    scalar=lambda k, x: k.max(x, 0),
    vjp=lambda y, x: lambda g: relu_gate(g, y),
    doc="max(x, 0), elementwise. Its derivative at 0 is 0.",
)
relu6 = elementwise(
    "relu6",
    lambda x: np.minimum(_positive_part(x), x.dtype.type(6)),
    scalar=lambda k, x: k.min(k.max(x, 0), 6),
    vjp=lambda y, x: lambda g: where(logical_and(x > 0, x < 6), g, 0.0),
    doc="min(max(x, 0), 6), elementwise. Its derivative at 0 and at 6 is 0.",
)


# ---- the others ----------------------------------------------------------------------


def leaky_relu(x: Tensor, negative_slope: float = 0.01) -> Tensor:
    """x where x > 0, else negative_slope * x.

    Raises:
        TypeError: `x` is not floating-point.
    """
    return bind(_leaky_relu, _floating("leaky_relu", x), slope=float(negative_slope))


@composite
def _leaky_relu(x: Tensor, *, slope: float) -> Tensor:
    return where(x > 0, x, slope * x)


def elu(x: Tensor, alpha: float = 1.0) -> Tensor:
    """x where x > 0, else alpha * (exp(x) - 1).

    Raises:
        TypeError: `x` is not floating-point.
    """
    return bind(_elu, _floating("elu", x), alpha=float(alpha))


@composite
def _elu(x: Tensor, *, alpha: float) -> Tensor:
    # The inner `where` keeps the branch that is not taken from overflowing, and with it its
    # gradient.
    values = wide(x)
    rest = alpha * expm1(where(values > 0, 0.0, values))
    return cast(where(values > 0, values, rest), x.dtype)


def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x), also called swish.

    Raises:
        TypeError: `x` is not floating-point.
    """
    return bind(_silu, _floating("silu", x))


@composite
def _silu(x: Tensor) -> Tensor:
    values = wide(x)
    return cast(values * sigmoid(values), x.dtype)


def gelu(x: Tensor, *, approximate: bool = True) -> Tensor:
    """x * P(Z <= x) for a standard normal Z (Hendrycks and Gimpel, arXiv:1606.08415).

    Args:
        x: floating-point.
        approximate: use the tanh formula, which is within 5e-4 of the exact one and much cheaper.

    Raises:
        TypeError: `x` is not floating-point.
    """
    return bind(_gelu, _floating("gelu", x), approximate=bool(approximate))


@composite
def _gelu(x: Tensor, *, approximate: bool) -> Tensor:
    values = wide(x)
    half = 0.5 * values
    if approximate:
        bent = values + 0.044715 * (values * values * values)
        return cast(half * (1 + tanh(math.sqrt(2 / math.pi) * bent)), x.dtype)
    return cast(half * (1 + erf(values * math.sqrt(0.5))), x.dtype)


def _floating(op: str, x: Any) -> Tensor:
    x = asarray(x)
    if x.dtype not in dtypes.FLOATS:
        raise TypeError(f"{op}: takes floating-point tensors, got {x.aval}; convert with astype")
    return x
