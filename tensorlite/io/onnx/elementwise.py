"""ONNX operators that compute each element by itself: arithmetic, comparisons, logic, activations,
casts. Their results have the dtype of their first argument; nothing is promoted."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from ... import dtypes
from ...core import Tensor
from ...ops import activation
from ...ops import elementwise as ew
from ...ops.creation import asarray, cast, full
from .registry import Node, dtype_of, operator, scalar

pointwise = functools.partial(operator, layout="pointwise")

# ---- one to one ----------------------------------------------------------------------------------

_SAME = {
    "Abs": ew.abs,
    "Acos": ew.acos,
    "Acosh": ew.acosh,
    "Add": ew.add,
    "And": ew.logical_and,
    "Asin": ew.asin,
    "Asinh": ew.asinh,
    "Atan": ew.atan,
    "Atanh": ew.atanh,
    "BitwiseAnd": ew.bitwise_and,
    "BitwiseNot": ew.bitwise_invert,
    "BitwiseOr": ew.bitwise_or,
    "BitwiseXor": ew.bitwise_xor,
    "Ceil": ew.ceil,
    "Cos": ew.cos,
    "Cosh": ew.cosh,
    "Equal": ew.equal,
    "Erf": ew.erf,
    "Exp": ew.exp,
    "Floor": ew.floor,
    "Greater": ew.greater,
    "GreaterOrEqual": ew.greater_equal,
    "Identity": ew.positive,
    "IsNaN": ew.isnan,
    "Less": ew.less,
    "LessOrEqual": ew.less_equal,
    "Log": ew.log,
    "Mul": ew.multiply,
    "Neg": ew.negative,
    "Not": ew.logical_not,
    "Or": ew.logical_or,
    "Reciprocal": ew.reciprocal,
    "Relu": activation.relu,
    "Round": ew.round,
    "Sigmoid": ew.sigmoid,
    "Sign": ew.sign,
    "Sin": ew.sin,
    "Sinh": ew.sinh,
    "Softplus": ew.softplus,
    "Sqrt": ew.sqrt,
    "Sub": ew.subtract,
    "Tan": ew.tan,
    "Tanh": ew.tanh,
    "Where": ew.where,
    "Xor": ew.logical_xor,
}


@pointwise(*_SAME)
def _(node: Node, *inputs: Tensor) -> Tensor:
    return _SAME[node.op](*inputs)


# ---- arithmetic ----------------------------------------------------------------------------------


@pointwise("Div")
def _(node: Node, x: Tensor, y: Tensor) -> Tensor:
    if dtypes.is_float(x.dtype):
        return x / y
    if x.dtype in dtypes.UNSIGNED:
        return x // y
    quotient = ew.floor_divide(x, y)  # ONNX rounds towards zero
    inexact = ew.not_equal(quotient * y, x)
    return ew.where(ew.logical_and(quotient < 0, inexact), quotient + 1, quotient)


@pointwise("Mod")
def _(node: Node, x: Tensor, y: Tensor) -> Tensor:
    if not node.get("fmod", 0):
        return ew.remainder(x, y)
    size = ew.remainder(ew.abs(x), ew.abs(y))  # as in C, the sign is that of x
    return ew.where(x < 0, -size, size) if x.dtype not in dtypes.UNSIGNED else size


@pointwise("Pow")
def _(node: Node, x: Tensor, y: Tensor) -> Tensor:
    return cast(ew.pow(x, y), x.dtype)


@pointwise("Sum")
def _(node: Node, *inputs: Tensor) -> Tensor:
    return functools.reduce(ew.add, inputs)


@pointwise("Mean")
def _(node: Node, *inputs: Tensor) -> Tensor:
    return functools.reduce(ew.add, inputs) / len(inputs)


@pointwise("Max")
def _(node: Node, *inputs: Tensor) -> Tensor:
    return functools.reduce(ew.maximum, inputs)


@pointwise("Min")
def _(node: Node, *inputs: Tensor) -> Tensor:
    return functools.reduce(ew.minimum, inputs)


@pointwise("BitShift")
def _(node: Node, x: Tensor, by: Tensor) -> Tensor:
    left = node.get("direction") == "LEFT"
    return (ew.bitwise_left_shift if left else ew.bitwise_right_shift)(x, by)


@pointwise("Clip")
def _(node: Node, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    low, high = node.option("min", low), node.option("max", high)
    if low is not None:
        x = ew.maximum(x, asarray(low, dtype=x.dtype))
    return x if high is None else ew.minimum(x, asarray(high, dtype=x.dtype))


@pointwise("IsInf")
def _(node: Node, x: Tensor) -> Tensor:
    above, below = node.get("detect_positive", 1), node.get("detect_negative", 1)
    if above and below:
        return ew.isinf(x)
    if not above and not below:
        return ew.logical_and(ew.isinf(x), False)
    return ew.equal(x, math.inf if above else -math.inf)


# ---- activations ---------------------------------------------------------------------------------


@pointwise("LeakyRelu")
def _(node: Node, x: Tensor) -> Tensor:
    return activation.leaky_relu(x, node.get("alpha", 0.01))


@pointwise("PRelu")
def _(node: Node, x: Tensor, slope: Tensor) -> Tensor:
    return ew.where(x < 0, x * slope, x)


@pointwise("ThresholdedRelu")
def _(node: Node, x: Tensor) -> Tensor:
    return ew.where(x > node.get("alpha", 1.0), x, scalar(0, x))


@pointwise("Elu")
def _(node: Node, x: Tensor) -> Tensor:
    return activation.elu(x, node.get("alpha", 1.0))


@pointwise("Celu")
def _(node: Node, x: Tensor) -> Tensor:
    alpha = node.get("alpha", 1.0)
    return alpha * activation.elu(x / alpha)


@pointwise("Selu")
def _(node: Node, x: Tensor) -> Tensor:
    alpha = node.get("alpha", 1.6732632423543772)
    return node.get("gamma", 1.0507009873554805) * activation.elu(x, alpha)


@pointwise("Gelu")
def _(node: Node, x: Tensor) -> Tensor:
    return activation.gelu(x, approximate=node.get("approximate", "none") == "tanh")


@pointwise("HardSigmoid")
def _(node: Node, x: Tensor) -> Tensor:
    return ew.clip(x * node.get("alpha", 0.2) + node.get("beta", 0.5), 0, 1)


@pointwise("HardSwish")
def _(node: Node, x: Tensor) -> Tensor:
    return x * ew.clip(x / 6 + 0.5, 0, 1)


@pointwise("Swish")
def _(node: Node, x: Tensor) -> Tensor:
    return x * ew.sigmoid(x * node.get("alpha", 1.0))


@pointwise("Mish")
def _(node: Node, x: Tensor) -> Tensor:
    return x * ew.tanh(ew.softplus(x))


@pointwise("Softsign")
def _(node: Node, x: Tensor) -> Tensor:
    return x / (1 + ew.abs(x))


@pointwise("Shrink")
def _(node: Node, x: Tensor) -> Tensor:
    bias, limit = node.get("bias", 0.0), node.get("lambd", 0.5)
    wide = x if dtypes.is_float(x.dtype) else cast(x, dtypes.float64)
    inner = ew.where(wide > limit, wide - bias, scalar(0, wide))
    return cast(ew.where(wide < -limit, wide + bias, inner), x.dtype)


# ---- casts ---------------------------------------------------------------------------------------


@pointwise("Cast")
def _(node: Node, x: Tensor) -> Tensor:
    return _convert(x, dtype_of(node.get("to"), str(node)))


@operator("CastLike")
def _(node: Node, x: Tensor, like: Tensor) -> Tensor:
    return _convert(x, like.dtype)


def _convert(x: Tensor, dtype: np.dtype[Any]) -> Tensor:
    return ew.not_equal(x, scalar(0, x)) if dtype == dtypes.bool_ else cast(x, dtype)


@pointwise("Dropout")
def _(node: Node, x: Tensor, ratio: Tensor | None = None, training: Tensor | None = None) -> Any:
    """In inference: `x` itself. The mask, where it is asked for, is all True."""
    if training is not None and bool(node.known("training_mode", training).any()):
        rate = 0.5 if ratio is None else float(node.known("ratio", ratio).item())
        if rate:
            raise NotImplementedError(
                f"{node}: training_mode is True, but from_onnx computes inference only, since a "
                "model gives no key for random numbers; use nn.dropout"
            )
    if node.count_outputs() < 2:
        return x
    return x, full(x.shape, True, dtype=dtypes.bool_, device=x.device)
