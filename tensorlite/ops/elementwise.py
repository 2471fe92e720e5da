"""Elementwise operations: a table with one line for each.

A line gives the NumPy twin, the scalar expression that backends render (written against a small builder `k`, whose methods are the
functions of C's math library, with Python's operators for arithmetic), and the derivative written in the operations themselves. The shape rule,
the batching rule and the sums that broadcasting asks of derivatives are the same for all and stand before the table.
"""

from __future__ import annotations

import builtins
import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import dtypes
from ..core import Aval, Primitive, Tensor, bind
from . import special
from .creation import asarray, cast, constant
from .shape import broadcast_shapes, pad_rank, unbroadcast


class Elementwise(Primitive):
    """A primitive that computes each element of its result from one element of each argument, which broadcast.

    `scalar(k, *values)` is the expression for one element; `kinds` are the dtypes it takes.
    """

    def __init__(
        self, name: str, numpy: Callable[..., Any], scalar: Any, kinds: frozenset[Any], result: Any, differentiable: bool
    ):
        super().__init__(name, differentiable=differentiable)
        self.numpy_rule = numpy
        self.scalar = scalar
        self.kinds = kinds
        self.result = result  # the dtype of the result where it is not that of the arguments

    def abstract(self, *avals: Aval, **params: Any) -> Aval:
        dtype = avals[-1].dtype
        for aval in avals[1:] if self.name == "where" else avals:
            if aval.dtype != dtype:
                raise TypeError(f"{self.name}: dtypes {avals[0].dtype} and {dtype} differ; convert one with astype")
        if dtype not in self.kinds:
            raise TypeError(f"{self.name}: does not take dtype {dtype}")
        shape = broadcast_shapes(self.name, *[a.shape for a in avals])
        return Aval(shape, self.result or dtype)


ANY, BOOLEAN, INTEGER, FLOAT = dtypes.ALL, frozenset({dtypes.bool_}), dtypes.INTEGERS, dtypes.FLOATS
NUMERIC, BITS = INTEGER | FLOAT, INTEGER | BOOLEAN
SIGNED = dtypes.SIGNED | FLOAT

Line = Callable[..., Any]


def elementwise(
    name: str,
    numpy: Callable[..., Any],
    *,
    scalar: Callable[..., Any],
    vjp: Line | None = None,
    kinds: frozenset[Any] = NUMERIC,
    result: Any = None,
    doc: str = "",
) -> Any:
    """A new elementwise operation: the public function, whose `prim` is the primitive.

    Args:
        vjp: (ans, *args) -> the pull of each argument (bare for one argument); None: no derivative.
        kinds: the dtypes it takes. An operation of floats alone converts integers to the default float first.
        result: the dtype of the result where it is not that of the arguments.
    """
    prim = Elementwise(name, numpy, scalar, kinds, result, vjp is not None)
    arity = scalar.__code__.co_argcount - 1
    if vjp is not None:
        prim.vjp_rule = _with_sums(vjp)
    prim.batch_rule = functools.partial(_batch, prim)
    floats_only = kinds == FLOAT

    def unary(x: Any, /) -> Tensor:
        x = x if isinstance(x, Tensor) else asarray(x)
        if x.dtype not in kinds:
            x = _convert(name, x, kinds)
        return bind(prim, x)

    def binary(x1: Any, x2: Any, /) -> Tensor:
        x1, x2 = meet(x1, x2)
        if floats_only and x1.dtype not in FLOAT:
            x1, x2 = _convert(name, x1, kinds), _convert(name, x2, kinds)
        return bind(prim, x1, x2)

    function: Any = unary if arity == 1 else binary
    function.__name__ = function.__qualname__ = name
    function.__doc__ = doc or f"{name}, elementwise" + (" with broadcasting." if arity > 1 else ".")
    function.prim = prim
    return function


def _convert(name: str, x: Tensor, kinds: frozenset[Any]) -> Tensor:
    if kinds == FLOAT and x.dtype in INTEGER | BOOLEAN:
        return cast(x, dtypes.default_float)
    if kinds == BOOLEAN:
        raise TypeError(f"{name}: takes booleans, got {x.dtype}; compare with != 0 first")
    if x.dtype == dtypes.bool_ and dtypes.default_int in kinds:
        return cast(x, dtypes.default_int)
    raise TypeError(f"{name}: does not take dtype {x.dtype}")


def meet(x: Any, y: Any) -> tuple[Tensor, Tensor]:
    """Two operands at their common dtype; a Python scalar takes that of the other operand."""
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        if x.dtype == y.dtype:
            return x, y
        dtype = dtypes.result_type(x, y)
        return cast(x, dtype), cast(y, dtype)
    if isinstance(x, Tensor) and isinstance(y, bool | int | float):
        dtype = dtypes.of_python_scalar(y, x.dtype)
        return cast(x, dtype), _scalar(y, dtype, x)
    if isinstance(y, Tensor) and isinstance(x, bool | int | float):
        dtype = dtypes.of_python_scalar(x, y.dtype)
        return _scalar(x, dtype, y), cast(y, dtype)
    return meet(asarray(x), asarray(y))


def _scalar(value: Any, dtype: np.dtype, like: Tensor) -> Tensor:
    try:
        return constant(value, dtype, like.device)
    except OverflowError:
        raise OverflowError(f"the Python integer {value} does not fit {dtype}, the dtype of the other operand") from None


# ---- the rules that all lines share --------------------------------------------------------------------------------


def _with_sums(vjp: Line) -> Line:
    """The derivative rule of a line, with the sums that broadcasting asks for."""

    def rule(ans: Tensor, *args: Tensor) -> Any:
        pulls = vjp(ans, *args)
        pulls = pulls if isinstance(pulls, tuple) else (pulls,)
        return tuple(
            pull if pull is None or arg.shape == ans.shape else _summed(pull, arg.shape)
            for pull, arg in zip(pulls, args, strict=True)
        )

    return rule


def _summed(pull: Line, shape: tuple[int, ...]) -> Line:
    def summed(g: Tensor) -> Tensor | None:
        cotangent = pull(g)
        return None if cotangent is None else unbroadcast(cotangent, shape)

    return summed


def _batch(prim: Primitive, args: list[Tensor], batched: list[bool]) -> Tensor:
    ndim = builtins.max(x.ndim - b for x, b in zip(args, batched, strict=True))
    return bind(prim, *[pad_rank(x, ndim) if b else x for x, b in zip(args, batched, strict=True)])


# ---- arithmetic ----------------------------------------------------------------------------------------------------

add = elementwise(
    "add", np.add, scalar=lambda k, x, y: x + y, kinds=ANY, vjp=lambda z, x, y: (lambda g: g, lambda g: g)
)
subtract = elementwise(
    "subtract", np.subtract, scalar=lambda k, x, y: x - y, vjp=lambda z, x, y: (lambda g: g, lambda g: -g)
)
multiply = elementwise(
    "multiply", np.multiply, scalar=lambda k, x, y: x * y, kinds=ANY, vjp=lambda z, x, y: (lambda g: g * y, lambda g: g * x)
)
divide = elementwise(
    "divide", np.divide, scalar=lambda k, x, y: x / y, kinds=FLOAT,
    vjp=lambda z, x, y: (lambda g: g / y, lambda g: -g * z / y),
)  # fmt: skip
negative = elementwise("negative", np.negative, scalar=lambda k, x: -x, vjp=lambda y, x: lambda g: -g)
abs = elementwise("abs", np.abs, scalar=lambda k, x: k.abs(x), vjp=lambda y, x: lambda g: g * sign(x))
sign = elementwise("sign", np.sign, scalar=lambda k, x: k.sign(x), vjp=lambda y, x: lambda g: None)
square = elementwise("square", np.square, scalar=lambda k, x: x * x, vjp=lambda y, x: lambda g: g * (2 * x))
reciprocal = elementwise(
    "reciprocal", np.reciprocal, scalar=lambda k, x: 1 / x, kinds=FLOAT, vjp=lambda y, x: lambda g: -g * y * y
)
sqrt = elementwise("sqrt", np.sqrt, scalar=lambda k, x: k.sqrt(x), kinds=FLOAT, vjp=lambda y, x: lambda g: g * 0.5 / y)
rsqrt = elementwise(
    "rsqrt", lambda x: 1 / np.sqrt(x), scalar=lambda k, x: k.rsqrt(x), kinds=FLOAT,
    vjp=lambda y, x: lambda g: g * (-0.5 * y * y * y), doc="1 / sqrt(x), elementwise.",
)  # fmt: skip
maximum = elementwise(
    "maximum", np.maximum, scalar=lambda k, x, y: k.max(x, y), kinds=ANY,
    vjp=lambda z, x, y: (lambda g: g * _share(x, y, z), lambda g: g * _share(y, x, z)),
    doc="The larger of two, elementwise; NaN if either is. Where they are equal each gets half of the gradient.",
)  # fmt: skip
minimum = elementwise(
    "minimum", np.minimum, scalar=lambda k, x, y: k.min(x, y), kinds=ANY,
    vjp=lambda z, x, y: (lambda g: g * _share(x, y, z), lambda g: g * _share(y, x, z)),
    doc="The smaller of two, elementwise; NaN if either is. Where they are equal each gets half of the gradient.",
)  # fmt: skip
floor_divide = elementwise(
    "floor_divide", special.floor_divide, scalar=lambda k, x, y: k.floor_divide(x, y),
    vjp=lambda z, x, y: (lambda g: None, lambda g: None),
)  # fmt: skip
remainder = elementwise(
    "remainder", special.remainder, scalar=lambda k, x, y: k.remainder(x, y),
    vjp=lambda z, x, y: (lambda g: g, lambda g: -g * floor(x / y)),
    doc="x1 - floor(x1 / x2) * x2, elementwise: the sign is that of x2.",
)  # fmt: skip
pow = elementwise(
    "pow", special.power, scalar=lambda k, x, y: k.pow(x, y),
    vjp=lambda z, x, y: (lambda g: g * _pow_slope(x, y), lambda g: g * z * _safe_log(x, y)),
)  # fmt: skip


def _share(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """The part of the gradient of z = max(x, y) or min(x, y) that goes to x."""
    return where(x == z, where(y == z, 0.5, 1.0), 0.0).astype(z.dtype)


def _pow_slope(x: Tensor, y: Tensor) -> Tensor:
    """d(x ** y) / dx, which is 0 for y = 0 even at x = 0."""
    return where(y == 0, 0.0, y * pow(x, where(y == 0, 1.0, y - 1)))


def _safe_log(x: Tensor, y: Tensor) -> Tensor:
    """log(x) where x > 0 and 0 elsewhere, since x ** y is real for negative x at integers y only."""
    return where(x > 0, log(where(x > 0, x, 1.0)), 0.0)


# ---- exponentials and logarithms -----------------------------------------------------------------------------------

exp = elementwise("exp", np.exp, scalar=lambda k, x: k.exp(x), kinds=FLOAT, vjp=lambda y, x: lambda g: g * y)
expm1 = elementwise("expm1", np.expm1, scalar=lambda k, x: k.expm1(x), kinds=FLOAT, vjp=lambda y, x: lambda g: g * (y + 1))
log = elementwise("log", np.log, scalar=lambda k, x: k.log(x), kinds=FLOAT, vjp=lambda y, x: lambda g: g / x)
log1p = elementwise("log1p", np.log1p, scalar=lambda k, x: k.log1p(x), kinds=FLOAT, vjp=lambda y, x: lambda g: g / (1 + x))
log2 = elementwise(
    "log2", np.log2, scalar=lambda k, x: k.log2(x), kinds=FLOAT, vjp=lambda y, x: lambda g: g / (x * math.log(2))
)
log10 = elementwise(
    "log10", np.log10, scalar=lambda k, x: k.log10(x), kinds=FLOAT, vjp=lambda y, x: lambda g: g / (x * math.log(10))
)
logaddexp = elementwise(
    "logaddexp", special.logaddexp, scalar=lambda k, x, y: k.max(x, y) + k.log1p(k.exp(-k.abs(x - y))), kinds=FLOAT,
    vjp=lambda z, x, y: (lambda g: g * exp(x - z), lambda g: g * exp(y - z)),
    doc="log(exp(x1) + exp(x2)) without overflow, elementwise.",
)  # fmt: skip
sigmoid = elementwise(
    "sigmoid", special.sigmoid, scalar=lambda k, x: 1 / (1 + k.exp(-x)), kinds=FLOAT,
    vjp=lambda y, x: lambda g: g * (y * (1 - y)), doc="1 / (1 + exp(-x)), elementwise.",
)  # fmt: skip
softplus = elementwise(
    "softplus", special.softplus, scalar=lambda k, x: k.max(x, 0) + k.log1p(k.exp(-k.abs(x))), kinds=FLOAT,
    vjp=lambda y, x: lambda g: g * sigmoid(x), doc="log(1 + exp(x)) without overflow, elementwise.",
)  # fmt: skip

# ---- trigonometric, hyperbolic, error function ---------------------------------------------------------------------

sin = elementwise("sin", np.sin, scalar=lambda k, x: k.sin(x), kinds=FLOAT, vjp=lambda y, x: lambda g: g * cos(x))
cos = elementwise("cos", np.cos, scalar=lambda k, x: k.cos(x), kinds=FLOAT, vjp=lambda y, x: lambda g: -g * sin(x))
tan = elementwise("tan", np.tan, scalar=lambda k, x: k.tan(x), kinds=FLOAT, vjp=lambda y, x: lambda g: g * (1 + y * y))
asin = elementwise(
    "asin", np.arcsin, scalar=lambda k, x: k.asin(x), kinds=FLOAT, vjp=lambda y, x: lambda g: g * rsqrt((1 - x) * (1 + x))
)
acos = elementwise(
    "acos", np.arccos, scalar=lambda k, x: k.acos(x), kinds=FLOAT, vjp=lambda y, x: lambda g: -g * rsqrt((1 - x) * (1 + x))
)
atan = elementwise("atan", np.arctan, scalar=lambda k, x: k.atan(x), kinds=FLOAT, vjp=lambda y, x: lambda g: g / (1 + x * x))
atan2 = elementwise(
    "atan2", np.arctan2, scalar=lambda k, y, x: k.atan2(y, x), kinds=FLOAT,
    vjp=lambda z, y, x: (lambda g: g * x / (x * x + y * y), lambda g: -g * y / (x * x + y * y)),
)  # fmt: skip
hypot = elementwise(
    "hypot", np.hypot, scalar=lambda k, x, y: k.hypot(x, y), kinds=FLOAT,
    vjp=lambda z, x, y: (lambda g: g * x / z, lambda g: g * y / z),
)  # fmt: skip
sinh = elementwise("sinh", np.sinh, scalar=lambda k, x: k.sinh(x), kinds=FLOAT, vjp=lambda y, x: lambda g: g * cosh(x))
cosh = elementwise("cosh", np.cosh, scalar=lambda k, x: k.cosh(x), kinds=FLOAT, vjp=lambda y, x: lambda g: g * sinh(x))
tanh = elementwise("tanh", np.tanh, scalar=lambda k, x: k.tanh(x), kinds=FLOAT, vjp=lambda y, x: lambda g: g * (1 - y * y))
asinh = elementwise("asinh", np.arcsinh, scalar=lambda k, x: k.asinh(x), kinds=FLOAT, vjp=lambda y, x: lambda g: g * rsqrt(x * x + 1))
acosh = elementwise(
    "acosh", np.arccosh, scalar=lambda k, x: k.acosh(x), kinds=FLOAT, vjp=lambda y, x: lambda g: g * rsqrt((x - 1) * (x + 1))
)
atanh = elementwise("atanh", np.arctanh, scalar=lambda k, x: k.atanh(x), kinds=FLOAT, vjp=lambda y, x: lambda g: g / ((1 - x) * (1 + x)))
erf = elementwise(
    "erf", special.erf, scalar=lambda k, x: k.erf(x), kinds=FLOAT,
    vjp=lambda y, x: lambda g: g * (2 / math.sqrt(math.pi) * exp(-x * x)), doc="The error function, elementwise.",
)  # fmt: skip
erfinv = elementwise(
    "erfinv", special.erfinv, scalar=lambda k, x: k.erfinv(x), kinds=FLOAT,
    vjp=lambda y, x: lambda g: g * (math.sqrt(math.pi) / 2 * exp(y * y)), doc="The inverse of the error function, elementwise.",
)  # fmt: skip

# ---- rounding ------------------------------------------------------------------------------------------------------


def _flat(y: Tensor, x: Tensor) -> Any:
    """The derivative of a function of steps."""
    return lambda g: None


floor = elementwise("floor", special.keep_integers(np.floor), scalar=lambda k, x: k.floor(x), vjp=_flat)
ceil = elementwise("ceil", special.keep_integers(np.ceil), scalar=lambda k, x: k.ceil(x), vjp=_flat)
trunc = elementwise("trunc", special.keep_integers(np.trunc), scalar=lambda k, x: k.trunc(x), vjp=_flat)
round = elementwise("round", special.keep_integers(np.rint), scalar=lambda k, x: k.rint(x), vjp=_flat)

# ---- comparison, logic, bits ---------------------------------------------------------------------------------------

_bool = dtypes.bool_
equal = elementwise("equal", np.equal, scalar=lambda k, x, y: x == y, kinds=ANY, result=_bool)
not_equal = elementwise("not_equal", np.not_equal, scalar=lambda k, x, y: x != y, kinds=ANY, result=_bool)
less = elementwise("less", np.less, scalar=lambda k, x, y: x < y, kinds=ANY, result=_bool)
less_equal = elementwise("less_equal", np.less_equal, scalar=lambda k, x, y: x <= y, kinds=ANY, result=_bool)
greater = elementwise("greater", np.greater, scalar=lambda k, x, y: x > y, kinds=ANY, result=_bool)
greater_equal = elementwise("greater_equal", np.greater_equal, scalar=lambda k, x, y: x >= y, kinds=ANY, result=_bool)
isnan = elementwise("isnan", np.isnan, scalar=lambda k, x: k.isnan(x), result=_bool)
isinf = elementwise("isinf", np.isinf, scalar=lambda k, x: k.isinf(x), result=_bool)
isfinite = elementwise("isfinite", np.isfinite, scalar=lambda k, x: k.isfinite(x), result=_bool)
logical_not = elementwise("logical_not", np.logical_not, scalar=lambda k, x: k.logical_not(x), kinds=BOOLEAN)
logical_and = elementwise("logical_and", np.logical_and, scalar=lambda k, x, y: x & y, kinds=BOOLEAN)
logical_or = elementwise("logical_or", np.logical_or, scalar=lambda k, x, y: x | y, kinds=BOOLEAN)
logical_xor = elementwise("logical_xor", np.logical_xor, scalar=lambda k, x, y: x ^ y, kinds=BOOLEAN)
bitwise_invert = elementwise("bitwise_invert", np.invert, scalar=lambda k, x: ~x, kinds=BITS)
bitwise_and = elementwise("bitwise_and", np.bitwise_and, scalar=lambda k, x, y: x & y, kinds=BITS)
bitwise_or = elementwise("bitwise_or", np.bitwise_or, scalar=lambda k, x, y: x | y, kinds=BITS)
bitwise_xor = elementwise("bitwise_xor", np.bitwise_xor, scalar=lambda k, x, y: x ^ y, kinds=BITS)
bitwise_left_shift = elementwise("bitwise_left_shift", np.left_shift, scalar=lambda k, x, y: x << y, kinds=INTEGER)
bitwise_right_shift = elementwise("bitwise_right_shift", np.right_shift, scalar=lambda k, x, y: x >> y, kinds=INTEGER)

# ---- selection -----------------------------------------------------------------------------------------------------

where_p = Elementwise("where", np.where, lambda k, c, x, y: k.where(c, x, y), ANY, None, True)
where_p.vjp_rule = _with_sums(lambda z, c, x, y: (None, lambda g: where(c, g, 0.0), lambda g: where(c, 0.0, g)))
where_p.batch_rule = functools.partial(_batch, where_p)


def where(condition: Any, x1: Any, x2: Any, /) -> Tensor:
    """`x1` where `condition` (boolean), else `x2`; all three broadcast. A NaN in the branch not taken has no gradient here."""
    condition = asarray(condition)
    if condition.dtype != dtypes.bool_:
        raise TypeError(f"where: the condition is boolean, got {condition.dtype}; compare with != 0 first")
    x1, x2 = meet(x1, x2)
    return bind(where_p, condition, x1, x2)


def clip(x: Any, /, min: Any = None, max: Any = None) -> Tensor:
    """`x` limited to [min, max]; either bound may be left out. The result has the dtype of `x`."""
    x = asarray(x)
    if min is not None:
        x = maximum(x, asarray(min, dtype=x.dtype))
    return x if max is None else minimum(x, asarray(max, dtype=x.dtype))


def positive(x: Any, /) -> Tensor:
    """`x` itself."""
    return asarray(x)
