"""Epilogues: what is done to an element of a product before it is stored.

An epilogue is a sequence of ("bias", i), ("add", i), ("mul", i), where i is an input of the
equation, and of functions named in `FUNCTIONS`. The functions are written in arithmetic, since
the device's own are calls that keep a compiler from vectorizing the loop around them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from .... import dtypes
from ....compiler.launches import Ref
from ....core import Aval
from .types import Number

PostOp = tuple[Any, ...]
Epilogue = tuple[PostOp, ...]

_RELU = "{t} relu({t} x) {{ return x < 0 ? 0 : x; }}\n"  # NaN stays NaN

# exp(-x) for x >= 0, as 2 ** n * e ** r with |r| <= ln(2) / 2. Adding 1.5 * 2 ** 23 rounds.
_DECAY = """
float decay(float x) {
  x = x > 87.0f ? 87.0f : x;
  const float shifted = x * -1.44269504f + 12582912.0f;
  const float n = shifted - 12582912.0f;
  const float r = (-x - n * 0.693359375f) + n * 2.12194440e-4f;
  float y = 1.9875691500e-4f;
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1.0f;
  return y * as_float((as_int(shifted) - 0x4b400000 + 127) << 23);
}
"""
_SIGMOID = """
float sigmoid(float x) {
  const float size = x < 0 ? -x : x;
  const float e = decay(size);
  return (x < 0 ? e : 1.0f) / (1.0f + e);
}
"""
_TANH = """
float hyperbolic_tangent(float x) {
  const float size = x < 0 ? -x : x, z = x * x;
  float y = -0.0060967141659081976f;
  y = y * z + 0.020997178999074751f;
  y = y * z + -0.053850909578513581f;
  y = y * z + 0.13332769736976328f;
  y = y * z + -0.33333328944134255f;
  const float e = decay(size > 20.0f ? 40.0f : 2.0f * size);
  const float far = (1.0f - e) / (1.0f + e);
  return size <= 0.625f ? y * z * x + x : (x != x ? x : (x < 0 ? -far : far));
}
"""
_DOUBLE_SIGMOID = "double sigmoid(double x) { return 1.0 / (1.0 + exp(-x)); }\n"
_DOUBLE_TANH = "double hyperbolic_tangent(double x) { return tanh(x); }\n"

FUNCTIONS = {"relu": "relu", "sigmoid": "sigmoid", "tanh": "hyperbolic_tangent"}
_OPERATORS = {"bias": "+", "add": "+", "mul": "*"}


class Operation(NamedTuple):
    """A step of an epilogue, resolved: a function, or an operator with an operand."""

    name: str
    dtype: dtypes.DType | None = None  # of the operand
    along: str = ""  # the operand is read at the result's "element", at its "channel", or "once"


class Steps(NamedTuple):
    """An epilogue as kernels use it: `operations`, and the buffer of each operand."""

    operations: tuple[Operation, ...] = ()
    operands: tuple[Ref, ...] = ()

    @property
    def suffix(self) -> str:
        """For the name of a kernel: `_bias_relu`."""
        return "".join(f"_{operation.name}" for operation in self.operations)


def resolve(epilogue: Epilogue, inputs: Sequence[Aval], result: Aval) -> Steps | None:
    """The steps of an epilogue; None if one of them has no kernel.

    Args:
        inputs: of the equation, which post-operations name by their index.
        result: what the equation gives.
    """
    operations, operands = [], []
    for name, *rest in epilogue:
        if name in FUNCTIONS and not rest:
            if name != "relu" and not dtypes.is_float(result.dtype):
                return None
            operations.append(Operation(name))
            continue
        if name not in _OPERATORS or len(rest) != 1:
            return None
        operand = inputs[rest[0]]
        along = _along(operand, result)
        if along is None or operand.dtype != result.dtype:
            return None
        operations.append(Operation(name, operand.dtype, along))
        operands.append(Ref("input", rest[0]))
    return Steps(tuple(operations), tuple(operands))


def _along(operand: Aval, result: Aval) -> str | None:
    if operand.size == 1 and operand.ndim <= result.ndim:
        return "once"
    if operand.shape == result.shape:
        return "element"
    shape = (1,) * (result.ndim - operand.ndim) + operand.shape
    flat = len(shape) == result.ndim and math.prod(shape) == shape[-1] == result.shape[-1]
    return "channel" if flat else None


def functions(operations: Sequence[Operation], number: Number) -> str:
    """The functions that the operations call."""
    used = {operation.name for operation in operations}
    parts = []
    if "relu" in used:
        is_integer = number.dtype in dtypes.INTEGERS  # narrow ones are cut to their width first
        parts.append(_RELU.format(t=number.stored if is_integer else number.computed))
    wide = number.dtype == dtypes.float64
    if used & {"sigmoid", "tanh"} and not wide:
        parts.append(_DECAY)
    if "sigmoid" in used:
        parts.append(_DOUBLE_SIGMOID if wide else _SIGMOID)
    if "tanh" in used:
        parts.append(_DOUBLE_TANH if wide else _TANH)
    return "".join(parts)


def parameters(operations: Sequence[Operation]) -> list[str]:
    """The parameters of a kernel that hold the operands."""
    found = [operation for operation in operations if operation.dtype is not None]
    return [
        f"__global const {Number(operation.dtype).stored} *restrict operand{number}"
        for number, operation in enumerate(found)
        if operation.dtype is not None
    ]


def statements(operations: Sequence[Operation], element: str, channel: str) -> list[str]:
    """Statements that take `value` through the operations.

    Args:
        element: an expression for the index of the element in the result.
        channel: an expression for its index along the result's last axis.
    """
    lines, operand = [], 0
    for operation in operations:
        if operation.dtype is None:
            lines.append(f"value = {FUNCTIONS[operation.name]}(value);")
            continue
        index = {"element": element, "channel": channel, "once": "0"}[operation.along]
        other = Number(operation.dtype).load(f"operand{operand}", index)
        lines.append(f"value = value {_OPERATORS[operation.name]} {other};")
        operand += 1
    return lines
