"""Elementwise operations: a table with one line for each.

A line gives the NumPy twin, the scalar expression that backends render (written against a small
builder `k`, whose methods are the functions of C's math library, with Python's operators for
arithmetic), and the derivative written in the operations themselves.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import dtypes
from ..core import Tensor, bind
from . import special
from .broadcasting import (
    ANY,
    BITS,
    BOOLEAN,
    FLOAT,
    INTEGER,
    Elementwise,
    batch_elementwise,
    elementwise,
    meet,
    with_sums,
)
from .creation import asarray, cast, constant_array

Operation = Callable[..., Tensor]  # named where a line above uses one below it


# ---- arithmetic ----------------------------------------------------------------------------------

add = elementwise(
    "add",
    operator.add,  # which NumPy calls faster than its own np.add
    scalar=lambda k, x, y: x + y,
    kinds=ANY,
    vjp=lambda z, x, y: (lambda g: g, lambda g: g),
)
subtract = elementwise(
    "subtract",
    operator.sub,
    scalar=lambda k, x, y: x - y,
    vjp=lambda z, x, y: (lambda g: g, lambda g: -g),
)
multiply = elementwise(
    "multiply",
    operator.mul,
    scalar=lambda k, x, y: x * y,
    kinds=ANY,
    vjp=lambda z, x, y: (lambda g: g * y, lambda g: g * x),
)
divide = elementwise(
    "divide",
    operator.truediv,
    scalar=lambda k, x, y: x / y,
    kinds=FLOAT,
    vjp=lambda z, x, y: (lambda g: g / y, lambda g: -g * z / y),
)
negative = elementwise(
    "negative", operator.neg, scalar=lambda k, x: -x, vjp=lambda y, x: lambda g: -g
)
abs = elementwise(
    "abs", np.abs, scalar=lambda k, x: k.abs(x), vjp=lambda y, x: lambda g: g * sign(x)
)
sign: Operation = elementwise(
    "sign", np.sign, scalar=lambda k, x: k.sign(x), vjp=lambda y, x: lambda g: None
)
square = elementwise(
    "square", np.square, scalar=lambda k, x: x * x, vjp=lambda y, x: lambda g: g * (2 * x)
)
reciprocal = elementwise(
    "reciprocal",
    np.reciprocal,
    scalar=lambda k, x: 1 / x,
    kinds=FLOAT,
    vjp=lambda y, x: lambda g: -g * y * y,
)
sqrt = elementwise(
    "sqrt",
    np.sqrt,
    scalar=lambda k, x: k.sqrt(x),
    kinds=FLOAT,
    vjp=lambda y, x: lambda g: g * 0.5 / y,
)
rsqrt = elementwise(
    "rsqrt",
    lambda x: 1 / np.sqrt(x),
    scalar=lambda k, x: k.rsqrt(x),
    kinds=FLOAT,
    vjp=lambda y, x: lambda g: g * (-0.5 * y * y * y),
    doc="1 / sqrt(x), elementwise.",
)
maximum = elementwise(
    "maximum",
    np.maximum,
    scalar=lambda k, x, y: k.max(x, y),
    kinds=ANY,
    vjp=lambda z, x, y: (lambda g: g * _share(x, y, z), lambda g: g * _share(y, x, z)),
    doc="The larger of two, elementwise; NaN if either is. Where they are equal each gets half of "
    "the gradient.",
)
minimum = elementwise(
    "minimum",
    np.minimum,
    scalar=lambda k, x, y: k.min(x, y),
    kinds=ANY,
    vjp=lambda z, x, y: (lambda g: g * _share(x, y, z), lambda g: g * _share(y, x, z)),
    doc="The smaller of two, elementwise; NaN if either is. Where they are equal each gets half "
    "of the gradient.",
)
floor_divide: Operation = elementwise(
    "floor_divide",
    special.floor_divide,
    scalar=lambda k, x, y: k.floor_divide(x, y),
    vjp=lambda z, x, y: (lambda g: None, lambda g: None),
)
remainder = elementwise(
    "remainder",
    special.remainder,
    scalar=lambda k, x, y: k.remainder(x, y),
    vjp=lambda z, x, y: (lambda g: g, lambda g: -g * floor_divide(x, y)),
    doc="x1 - floor(x1 / x2) * x2, elementwise: the sign is that of x2.",
)
pow = elementwise(
    "pow",
    special.power,
    scalar=lambda k, x, y: k.pow(x, y),
    vjp=lambda z, x, y: (lambda g: g * _pow_slope(x, y), lambda g: g * z * _safe_log(x, y)),
)
pow_half = elementwise(  # pow(x, 0.5) for little more than sqrt(x), with a derivative as cheap
    "pow_half",
    special.pow_half,
    scalar=lambda k, x: k.abs(k.sqrt(k.where(x == -math.inf, math.inf, x))),
    kinds=FLOAT,
    vjp=lambda y, x: lambda g: g * 0.5 / y,
    doc="x ** 0.5, elementwise: sqrt(x), but 0.0 of -0.0 and inf of -inf.",
)


def _share(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """The part of the gradient of z = max(x, y) or min(x, y) that goes to x."""
    return where(x == z, where(y == z, 0.5, 1.0), 0.0).astype(z.dtype)


def _pow_slope(x: Tensor, y: Tensor) -> Tensor:
    """d(x ** y) / dx, which is 0 for y = 0 even at x = 0."""
    return where(y == 0, 0.0, y * pow(x, where(y == 0, 1.0, y - 1)))


def _safe_log(x: Tensor, y: Tensor) -> Tensor:
    """log(x) where x > 0 and 0 elsewhere, since x ** y is real for negative x at integers y
    only."""
    return where(x > 0, log(where(x > 0, x, 1.0)), 0.0)


copysign = elementwise(
    "copysign",
    special.in_float32(np.copysign),
    scalar=lambda k, x, y: k.copysign(x, y),
    kinds=FLOAT,
    vjp=lambda z, x, y: (lambda g: where(signbit(x) == signbit(z), g, -g), lambda g: None),
    doc="The magnitude of x1 with the sign of x2, elementwise; zeros and NaNs have signs too.",
)
nextafter = elementwise(
    "nextafter",
    np.nextafter,
    scalar=lambda k, x, y: k.nextafter(x, y),
    kinds=FLOAT,
    doc="The next number after x1 on the way to x2 that the dtype holds, elementwise.",
)

# ---- exponentials and logarithms -----------------------------------------------------------------

exp = elementwise(
    "exp", np.exp, scalar=lambda k, x: k.exp(x), kinds=FLOAT, vjp=lambda y, x: lambda g: g * y
)
expm1 = elementwise(
    "expm1",
    np.expm1,
    scalar=lambda k, x: k.expm1(x),
    kinds=FLOAT,
    vjp=lambda y, x: lambda g: g * (y + 1),
)
log = elementwise(
    "log", np.log, scalar=lambda k, x: k.log(x), kinds=FLOAT, vjp=lambda y, x: lambda g: g / x
)
log1p = elementwise(
    "log1p",
    np.log1p,
    scalar=lambda k, x: k.log1p(x),
    kinds=FLOAT,
    vjp=lambda y, x: lambda g: g / (1 + x),
)
log2 = elementwise(
    "log2",
    np.log2,
    scalar=lambda k, x: k.log2(x),
    kinds=FLOAT,
    vjp=lambda y, x: lambda g: g / (x * math.log(2)),
)
log10 = elementwise(
    "log10",
    np.log10,
    scalar=lambda k, x: k.log10(x),
    kinds=FLOAT,
    vjp=lambda y, x: lambda g: g / (x * math.log(10)),
)
logaddexp = elementwise(
    "logaddexp",
    special.logaddexp,
    scalar=lambda k, x, y: k.where(  # equal infinities have no difference
        x == y, x + math.log(2), k.max(x, y) + k.log1p(k.exp(-k.abs(x - y)))
    ),
    kinds=FLOAT,
    vjp=lambda z, x, y: (lambda g: g * exp(x - z), lambda g: g * exp(y - z)),
    doc="log(exp(x1) + exp(x2)) without overflow, elementwise.",
)
sigmoid = elementwise(
    "sigmoid",
    special.sigmoid,
    scalar=lambda k, x: 1 / (1 + k.exp(-x)),
    kinds=FLOAT,
    vjp=lambda y, x: lambda g: g * (y * (1 - y)),
    doc="1 / (1 + exp(-x)), elementwise.",
)
softplus = elementwise(
    "softplus",
    special.softplus,
    scalar=lambda k, x: k.max(x, 0) + k.log1p(k.exp(-k.abs(x))),
    kinds=FLOAT,
    vjp=lambda y, x: lambda g: g * sigmoid(x),
    doc="log(1 + exp(x)) without overflow, elementwise.",
)

# ---- trigonometric, hyperbolic, error function ---------------------------------------------------

sin = elementwise(
    "sin", np.sin, scalar=lambda k, x: k.sin(x), kinds=FLOAT, vjp=lambda y, x: lambda g: g * cos(x)
)
cos: Operation = elementwise(
    "cos", np.cos, scalar=lambda k, x: k.cos(x), kinds=FLOAT, vjp=lambda y, x: lambda g: -g * sin(x)
)
tan = elementwise(
    "tan",
    np.tan,
    scalar=lambda k, x: k.tan(x),
    kinds=FLOAT,
    vjp=lambda y, x: lambda g: g * (1 + y * y),
)
asin = elementwise(
    "asin",
    np.arcsin,
    scalar=lambda k, x: k.asin(x),
    kinds=FLOAT,
    vjp=lambda y, x: lambda g: g * rsqrt((1 - x) * (1 + x)),
)
acos = elementwise(
    "acos",
    np.arccos,
    scalar=lambda k, x: k.acos(x),
    kinds=FLOAT,
    vjp=lambda y, x: lambda g: -g * rsqrt((1 - x) * (1 + x)),
)
atan = elementwise(
    "atan",
    np.arctan,
    scalar=lambda k, x: k.atan(x),
    kinds=FLOAT,
    vjp=lambda y, x: lambda g: g / (1 + x * x),
)
atan2 = elementwise(
    "atan2",
    np.arctan2,
    scalar=lambda k, y, x: k.atan2(y, x),
    kinds=FLOAT,
    vjp=lambda z, y, x: (lambda g: g * x / (x * x + y * y), lambda g: -g * y / (x * x + y * y)),
)
hypot = elementwise(
    "hypot",
    np.hypot,
    scalar=lambda k, x, y: k.hypot(x, y),
    kinds=FLOAT,
    vjp=lambda z, x, y: (lambda g: g * x / z, lambda g: g * y / z),
)
sinh = elementwise(
    "sinh",
    np.sinh,
    scalar=lambda k, x: k.sinh(x),
    kinds=FLOAT,
    vjp=lambda y, x: lambda g: g * cosh(x),
)
cosh: Operation = elementwise(
    "cosh",
    np.cosh,
    scalar=lambda k, x: k.cosh(x),
    kinds=FLOAT,
    vjp=lambda y, x: lambda g: g * sinh(x),
)
tanh = elementwise(
    "tanh",
    np.tanh,
    scalar=lambda k, x: k.tanh(x),
    kinds=FLOAT,
    vjp=lambda y, x: lambda g: g * (1 - y * y),
)
asinh = elementwise(
    "asinh",
    np.arcsinh,
    scalar=lambda k, x: k.asinh(x),
    kinds=FLOAT,
    vjp=lambda y, x: lambda g: g * rsqrt(x * x + 1),
)
acosh = elementwise(
    "acosh",
    np.arccosh,
    scalar=lambda k, x: k.acosh(x),
    kinds=FLOAT,
    vjp=lambda y, x: lambda g: g * rsqrt((x - 1) * (x + 1)),
)
atanh = elementwise(
    "atanh",
    np.arctanh,
    scalar=lambda k, x: k.atanh(x),
    kinds=FLOAT,
    vjp=lambda y, x: lambda g: g / ((1 - x) * (1 + x)),
)
erf = elementwise(
    "erf",
    special.erf,
    scalar=lambda k, x: k.erf(x),
    kinds=FLOAT,
    vjp=lambda y, x: lambda g: g * (2 / math.sqrt(math.pi) * exp(-x * x)),
    doc="The error function, elementwise.",
)
erfinv = elementwise(
    "erfinv",
    special.erfinv,
    scalar=lambda k, x: k.erfinv(x),
    kinds=FLOAT,
    vjp=lambda y, x: lambda g: g * (math.sqrt(math.pi) / 2 * exp(y * y)),
    doc="The inverse of the error function, elementwise.",
)

# ---- rounding ------------------------------------------------------------------------------------


def _flat(y: Tensor, x: Tensor) -> Any:
    """The derivative of a function of steps."""
    return lambda g: None


floor: Operation = elementwise(
    "floor", special.keep_integers(np.floor), scalar=lambda k, x: k.floor(x), vjp=_flat
)
ceil = elementwise("ceil", special.keep_integers(np.ceil), scalar=lambda k, x: k.ceil(x), vjp=_flat)
trunc = elementwise(
    "trunc", special.keep_integers(np.trunc), scalar=lambda k, x: k.trunc(x), vjp=_flat
)
round = elementwise(
    "round", special.keep_integers(np.rint), scalar=lambda k, x: k.rint(x), vjp=_flat
)

# ---- comparison, logic, bits ---------------------------------------------------------------------

_bool = dtypes.bool_
equal = elementwise("equal", np.equal, scalar=lambda k, x, y: x == y, kinds=ANY, result=_bool)
not_equal = elementwise(
    "not_equal", np.not_equal, scalar=lambda k, x, y: x != y, kinds=ANY, result=_bool
)
less = elementwise("less", np.less, scalar=lambda k, x, y: x < y, kinds=ANY, result=_bool)
less_equal = elementwise(
    "less_equal", np.less_equal, scalar=lambda k, x, y: x <= y, kinds=ANY, result=_bool
)
greater = elementwise("greater", np.greater, scalar=lambda k, x, y: x > y, kinds=ANY, result=_bool)
greater_equal = elementwise(
    "greater_equal", np.greater_equal, scalar=lambda k, x, y: x >= y, kinds=ANY, result=_bool
)
isnan = elementwise("isnan", np.isnan, scalar=lambda k, x: k.isnan(x), result=_bool)
isinf = elementwise("isinf", np.isinf, scalar=lambda k, x: k.isinf(x), result=_bool)
isfinite = elementwise("isfinite", np.isfinite, scalar=lambda k, x: k.isfinite(x), result=_bool)
signbit: Operation = elementwise(
    "signbit",
    special.signbit,
    scalar=lambda k, x: k.signbit(x),
    kinds=FLOAT,
    result=_bool,
    doc="Whether the sign is negative, elementwise: that of -0.0 and of a negative NaN too.",
)
logical_not = elementwise(
    "logical_not", np.logical_not, scalar=lambda k, x: k.logical_not(x), kinds=BOOLEAN
)
logical_and = elementwise(
    "logical_and", np.logical_and, scalar=lambda k, x, y: x & y, kinds=BOOLEAN
)
logical_or = elementwise("logical_or", np.logical_or, scalar=lambda k, x, y: x | y, kinds=BOOLEAN)
logical_xor = elementwise(
    "logical_xor", np.logical_xor, scalar=lambda k, x, y: x ^ y, kinds=BOOLEAN
)
bitwise_invert = elementwise("bitwise_invert", np.invert, scalar=lambda k, x: ~x, kinds=BITS)
bitwise_and = elementwise("bitwise_and", np.bitwise_and, scalar=lambda k, x, y: x & y, kinds=BITS)
bitwise_or = elementwise("bitwise_or", np.bitwise_or, scalar=lambda k, x, y: x | y, kinds=BITS)
bitwise_xor = elementwise("bitwise_xor", np.bitwise_xor, scalar=lambda k, x, y: x ^ y, kinds=BITS)
bitwise_left_shift = elementwise(
    "bitwise_left_shift", np.left_shift, scalar=lambda k, x, y: x << y, kinds=INTEGER
)
bitwise_right_shift = elementwise(
    "bitwise_right_shift", np.right_shift, scalar=lambda k, x, y: x >> y, kinds=INTEGER
)

# ---- selection -----------------------------------------------------------------------------------

where_p = Elementwise("where", np.where, lambda k, c, x, y: k.where(c, x, y), ANY, None, True)
where_p.vjp_rule = with_sums(
    lambda z, c, x, y: (None, lambda g: where(c, g, 0.0), lambda g: where(c, 0.0, g))
)
where_p.batch_rule = functools.partial(batch_elementwise, where_p)


def where(condition: Any, x1: Any, x2: Any, /) -> Tensor:
    """`x1` where `condition` (boolean), else `x2`; all three broadcast. A NaN in the branch not
    taken has no gradient here.

    Example:
        >>> x = tl.asarray([-1.0, 0.0, 4.0])
        >>> print(tl.where(x > 0, tl.sqrt(tl.where(x > 0, x, 1.0)), 0.0))
        [0. 0. 2.]
    """
    condition = asarray(condition)
    if condition.dtype != dtypes.bool_:
        raise TypeError(
            f"where: the condition is boolean, got {condition.dtype}; compare with != 0 first"
        )
    x1, x2 = meet(x1, x2)
    return bind(where_p, condition, x1, x2)


def clip(x: Any, /, min: Any = None, max: Any = None) -> Tensor:
    """`x` limited to [min, max], of its own dtype; either bound may be left out; they broadcast.
    NaN in `x` or a bound gives NaN.

    Raises:
        TypeError: a bound is a float and `x` holds integers.
    """
    x = asarray(x)
    result = x
    for bound, limited in ((min, maximum), (max, minimum)):
        if bound is not None:
            result = limited(result, _bound(bound, x.dtype))
    return cast(result, x.dtype)  # a bound of a wider dtype was met there


def _bound(bound: Any, dtype: Any) -> Any:
    """A bound of `clip`, which keeps a dtype of its own if it is a tensor."""
    own = dtypes.result_type(bound)
    if dtypes.is_float(own) and not dtypes.is_float(dtype):
        raise TypeError(f"clip: a bound of {own} does not fit {dtype}; use astype on one of them")
    if isinstance(bound, bool | int | float):
        return asarray(constant_array(bound, dtype, "clip"))
    return bound


def positive(x: Any, /) -> Tensor:
    """`x` itself."""
    return asarray(x)
