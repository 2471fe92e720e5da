"""What docstrings of elementwise operations say: the formula of each, and what dtypes it takes."""

from __future__ import annotations

from typing import Any

from .. import dtypes

FORMULAS = {
    "abs": "The absolute value of x",
    "acos": "The inverse of the cosine, in [0, pi]",
    "acosh": "The inverse of the hyperbolic cosine",
    "add": "x1 + x2",
    "asin": "The inverse of the sine, in [-pi/2, pi/2]",
    "asinh": "The inverse of the hyperbolic sine",
    "atan": "The inverse of the tangent, in [-pi/2, pi/2]",
    "atan2": "The angle of the point with ordinate x1 and abscissa x2, in [-pi, pi]",
    "atanh": "The inverse of the hyperbolic tangent",
    "bitwise_and": "x1 & x2",
    "bitwise_invert": "~x",
    "bitwise_left_shift": "x1 << x2",
    "bitwise_or": "x1 | x2",
    "bitwise_right_shift": "x1 >> x2, which keeps the sign",
    "bitwise_xor": "x1 ^ x2",
    "ceil": "The smallest integer that is not below x, in the dtype of x",
    "cos": "The cosine of x, in radians",
    "cosh": "The hyperbolic cosine of x",
    "divide": "x1 / x2",
    "equal": "x1 == x2",
    "exp": "e to the power of x",
    "expm1": "exp(x) - 1, exact for small x",
    "floor": "The largest integer that is not above x, in the dtype of x",
    "floor_divide": "floor(x1 / x2)",
    "greater": "x1 > x2",
    "greater_equal": "x1 >= x2",
    "hypot": "sqrt(x1 ** 2 + x2 ** 2) without overflow",
    "isfinite": "Whether x is neither infinite nor NaN",
    "isinf": "Whether x is infinite",
    "isnan": "Whether x is NaN",
    "less": "x1 < x2",
    "less_equal": "x1 <= x2",
    "log": "The natural logarithm of x",
    "log10": "The logarithm of x to base 10",
    "log1p": "log(1 + x), exact for small x",
    "log2": "The logarithm of x to base 2",
    "logical_and": "Whether both are true",
    "logical_not": "Whether x is false",
    "logical_or": "Whether at least one is true",
    "logical_xor": "Whether exactly one is true",
    "multiply": "x1 * x2",
    "negative": "-x",
    "not_equal": "x1 != x2",
    "pow": "x1 to the power of x2",
    "reciprocal": "1 / x",
    "round": "The nearest integer, the even one of two, in the dtype of x",
    "sign": "-1, 0 or 1, as x is negative, zero or positive; NaN for NaN",
    "sin": "The sine of x, in radians",
    "sinh": "The hyperbolic sine of x",
    "sqrt": "The square root of x",
    "square": "x * x",
    "subtract": "x1 - x2",
    "tan": "The tangent of x, in radians",
    "tanh": "The hyperbolic tangent of x",
    "trunc": "The nearest integer on the way to zero, in the dtype of x",
}


def docstring(name: str, doc: str, arity: int, kinds: frozenset[Any], result: Any) -> str:
    """`doc`, or the formula of the operation, and a sentence about its dtypes."""
    broadcast = " with broadcasting" if arity > 1 else ""
    first = doc or f"{FORMULAS.get(name, name)}, elementwise{broadcast}."
    takes = _takes(kinds)
    gives = "The result is boolean." if result == dtypes.bool_ else ""
    rest = " ".join(sentence for sentence in (takes, gives) if sentence)
    return f"{first}\n\n{rest}" if rest else first


def _takes(kinds: frozenset[Any]) -> str:
    if kinds == dtypes.FLOATS:
        return "Integers and booleans become float32 first."
    if kinds == {dtypes.bool_}:
        return "Takes booleans only, and raises TypeError for others."
    if kinds == dtypes.INTEGERS:
        return "Takes integers, and raises TypeError for floating-point numbers."
    if kinds == dtypes.INTEGERS | {dtypes.bool_}:
        return "Takes integers and booleans, and raises TypeError for floating-point numbers."
    return ""
