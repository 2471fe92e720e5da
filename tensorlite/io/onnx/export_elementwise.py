"""How elementwise primitives are written in ONNX, and the activations that are composites."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ... import dtypes
from ...core import Aval
from .builder import Builder, Decompose, Value, exports

# ---- one to one ----------------------------------------------------------------------------------

_SAME = {
    "abs": "Abs",
    "acos": "Acos",
    "acosh": "Acosh",
    "asin": "Asin",
    "asinh": "Asinh",
    "atan": "Atan",
    "atanh": "Atanh",
    "bitwise_and": "BitwiseAnd",
    "bitwise_invert": "BitwiseNot",
    "bitwise_or": "BitwiseOr",
    "bitwise_xor": "BitwiseXor",
    "ceil": "Ceil",
    "cos": "Cos",
    "cosh": "Cosh",
    "divide": "Div",
    "equal": "Equal",
    "erf": "Erf",
    "exp": "Exp",
    "floor": "Floor",
    "isinf": "IsInf",
    "isnan": "IsNaN",
    "log": "Log",
    "logical_and": "And",
    "logical_not": "Not",
    "logical_or": "Or",
    "logical_xor": "Xor",
    "negative": "Neg",
    "pow": "Pow",
    "reciprocal": "Reciprocal",
    "relu": "Relu",
    "round": "Round",
    "sigmoid": "Sigmoid",
    "sign": "Sign",
    "sin": "Sin",
    "sinh": "Sinh",
    "softplus": "Softplus",
    "sqrt": "Sqrt",
    "stop_gradient": "Identity",
    "subtract": "Sub",
    "tan": "Tan",
    "tanh": "Tanh",
    "where": "Where",
}
_OF_BOOLEANS = {"bitwise_and": "And", "bitwise_or": "Or", "bitwise_xor": "Xor"}
_OF_BOOLEANS |= {"bitwise_invert": "Not"}
_OF_FLOATS = frozenset(("ceil", "floor", "round"))


def _one_to_one(primitive: str, op: str) -> None:
    @exports(primitive)
    def entry(b: Builder, inputs: list[Value], result: Aval) -> str:
        dtype = inputs[-1].aval.dtype
        if primitive in _OF_FLOATS and not dtypes.is_float(dtype):
            return b.emit("Identity", *inputs)
        return b.emit(_OF_BOOLEANS.get(primitive, op) if dtype == dtypes.bool_ else op, *inputs)


for _primitive, _op in _SAME.items():
    _one_to_one(_primitive, _op)


def _of_numbers_or_booleans(primitive: str, op: str, of_booleans: str) -> None:
    @exports(primitive)
    def entry(b: Builder, inputs: list[Value], result: Aval) -> str:
        return b.emit(of_booleans if result.dtype == dtypes.bool_ else op, *inputs)


_of_numbers_or_booleans("add", "Add", "Or")
_of_numbers_or_booleans("multiply", "Mul", "And")
_of_numbers_or_booleans("maximum", "Max", "Or")
_of_numbers_or_booleans("minimum", "Min", "And")


def _comparison(primitive: str, op: str) -> None:
    @exports(primitive)
    def entry(b: Builder, inputs: list[Value], result: Aval) -> str:
        if inputs[0].aval.dtype == dtypes.bool_:  # which ONNX does not order
            return b.emit(op, *[b.cast(x, np.int32) for x in inputs])
        return b.emit(op, *inputs)


_comparison("less", "Less")
_comparison("less_equal", "LessOrEqual")
_comparison("greater", "Greater")
_comparison("greater_equal", "GreaterOrEqual")


# ---- by several operators ------------------------------------------------------------------------


@exports("not_equal")
def _(b: Builder, inputs: list[Value], result: Aval) -> str:
    return b.emit("Not", b.emit("Equal", *inputs))


@exports("isfinite")
def _(b: Builder, inputs: list[Value], result: Aval) -> str:
    return b.emit("Not", b.emit("Or", b.emit("IsNaN", *inputs), b.emit("IsInf", *inputs)))


@exports("square")
def _(b: Builder, inputs: list[Value], result: Aval) -> str:
    return b.emit("Mul", inputs[0], inputs[0])


@exports("pow_half")
def _(b: Builder, inputs: list[Value], result: Aval) -> str:
    return b.emit("Pow", inputs[0], b.number(0.5, inputs[0]))


@exports("rsqrt")
def _(b: Builder, inputs: list[Value], result: Aval) -> str:
    return b.emit("Reciprocal", b.emit("Sqrt", *inputs))


@exports("trunc")
def _(b: Builder, inputs: list[Value], result: Aval) -> str:
    if not dtypes.is_float(result.dtype):
        return b.emit("Identity", *inputs)
    return b.emit("Mul", b.emit("Sign", *inputs), b.emit("Floor", b.emit("Abs", *inputs)))


@exports("expm1")
def _(b: Builder, inputs: list[Value], result: Aval) -> str:
    # tanh(x / 2) * (exp(x) + 1), which keeps its digits near 0, unlike exp(x) - 1
    x = inputs[0]
    half = b.emit("Tanh", b.emit("Mul", x, b.number(0.5, x)))
    near = b.emit("Mul", half, b.emit("Add", b.emit("Exp", x), b.number(1, x)))
    far = b.emit("Sub", b.emit("Exp", x), b.number(1, x))
    is_near = b.emit("Less", b.emit("Abs", x), b.number(1, x))
    return b.emit("Where", is_near, near, far)


@exports("log1p")
def _(b: Builder, inputs: list[Value], result: Aval) -> str:
    # 2 atanh(x / (2 + x)) keeps its digits near 0
    x = inputs[0]
    ratio = b.emit("Div", x, b.emit("Add", x, b.number(2, x)))
    near = b.emit("Mul", b.emit("Atanh", ratio), b.number(2, x))
    far = b.emit("Log", b.emit("Add", x, b.number(1, x)))
    is_near = b.emit("Less", b.emit("Abs", x), b.number(0.5, x))
    return b.emit("Where", is_near, near, far)


def _logarithm(primitive: str, base: float) -> None:
    @exports(primitive)
    def entry(b: Builder, inputs: list[Value], result: Aval) -> str:
        return b.emit("Mul", b.emit("Log", *inputs), b.number(1 / math.log(base), inputs[0]))


_logarithm("log2", 2)
_logarithm("log10", 10)


@exports("logaddexp")
def _(b: Builder, inputs: list[Value], result: Aval) -> str:
    x, y = inputs
    distance = b.emit("Neg", b.emit("Abs", b.emit("Sub", x, y)))
    # Of equal infinities the difference is NaN, where it should be 0.
    same = b.emit("Equal", x, y)
    distance = b.emit("Where", same, b.number(0, x), distance)
    # softplus(-d) = log(1 + exp(-d))
    return b.emit("Add", b.emit("Max", x, y), b.emit("Softplus", distance))


@exports("hypot")
def _(b: Builder, inputs: list[Value], result: Aval) -> str:
    squares = [b.emit("Mul", x, x) for x in inputs]
    return b.emit("Sqrt", b.emit("Add", *squares))


@exports("floor_divide")
def _(b: Builder, inputs: list[Value], result: Aval) -> str:
    x, y = inputs
    if dtypes.is_float(result.dtype):
        return b.emit("Floor", b.emit("Div", x, y))
    return b.emit("Div", b.emit("Sub", x, b.emit("Mod", x, y)), y)  # the quotient is exact


@exports("remainder")
def _(b: Builder, inputs: list[Value], result: Aval) -> str:
    x, y = inputs
    if not dtypes.is_float(result.dtype):
        return b.emit("Mod", x, y)
    # Mod of floats has the sign of x; where that differs from the sign of y, one y is missing.
    rest = b.emit("Mod", x, y, fmod=1)
    zero = b.number(0, x)
    differ = b.emit("Less", b.emit("Mul", rest, b.emit("Sign", y)), zero)
    return b.emit("Where", differ, b.emit("Add", rest, y), rest)


def _shift(primitive: str, direction: str) -> None:
    @exports(primitive)
    def entry(b: Builder, inputs: list[Value], result: Aval) -> str:
        if result.dtype not in dtypes.UNSIGNED:
            raise NotImplementedError(
                f"tl.io.to_onnx: the primitive {primitive!r} of {result}: ONNX shifts unsigned "
                "integers only; convert with astype"
            )
        return b.emit("BitShift", *inputs, direction=direction)


_shift("bitwise_left_shift", "LEFT")
_shift("bitwise_right_shift", "RIGHT")


@exports("cast")
def _(b: Builder, inputs: list[Value], result: Aval, *, dtype: Any) -> str:
    return b.cast(inputs[0], dtype)


@exports("transfer")
def _(b: Builder, inputs: list[Value], result: Aval, *, device: Any) -> str:
    return inputs[0].name


@exports("optimization_barrier")
def _(b: Builder, inputs: list[Value], *results: Aval) -> list[str]:
    return [x.name for x in inputs]


# ---- activations ---------------------------------------------------------------------------------


@exports("relu6")
def _(b: Builder, inputs: list[Value], result: Aval) -> str:
    return b.emit("Clip", inputs[0], b.number(0, inputs[0]), b.number(6, inputs[0]))


@exports("relu_gate")
def _(b: Builder, inputs: list[Value], result: Aval) -> str:
    g, y = inputs
    return b.emit("Where", b.emit("Greater", y, b.number(0, y)), g, b.number(0, g))


@exports("leaky_relu")
def _(b: Builder, inputs: list[Value], result: Aval, *, slope: float) -> str:
    return b.emit("LeakyRelu", *inputs, alpha=slope)


@exports("elu")
def _(b: Builder, inputs: list[Value], result: Aval, *, alpha: float) -> str:
    return b.emit("Elu", *inputs, alpha=alpha)


@exports("silu")
def _(b: Builder, inputs: list[Value], result: Aval) -> str:
    return b.emit("Mul", inputs[0], b.emit("Sigmoid", inputs[0]))


@exports("gelu")
def _(b: Builder, inputs: list[Value], result: Aval, *, approximate: bool) -> str:
    if b.opset < 20:  # the operator is new there
        raise Decompose
    return b.emit("Gelu", *inputs, approximate="tanh" if approximate else "none")


@exports("softmax")
def _(b: Builder, inputs: list[Value], result: Aval, *, axis: int) -> str:
    return b.emit("Softmax", *inputs, axis=axis)


@exports("log_softmax")
def _(b: Builder, inputs: list[Value], result: Aval, *, axis: int) -> str:
    return b.emit("LogSoftmax", *inputs, axis=axis)
