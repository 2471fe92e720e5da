"""Powers, and quotients of many numbers by one.

See `math` for how functions are written, and for what they promise.
"""

from __future__ import annotations

import math
from typing import Any

from .. import dtypes
from .formats import FORMATS
from .loops import Scalar, Scalars
from .math import LN_2, bitcast, clamped, like, negative, polynomial, split


def known_power(k: Scalars, x: Scalar, exponent: float) -> Scalar | None:
    """x ** exponent in products, roots and quotients, within 4 units in the last place; None for
    exponents that are not multiples of 1 / 4 up to 4."""
    size = abs(exponent)
    whole, quarters = int(size), int(4 * (size % 1))
    if size > 4 or 4 * size != int(4 * size):
        return None
    if size == 0:
        return x.recorder.constant(1, x.dtype)
    inverted = exponent <= -1  # since x ** size may overflow where this does not
    base = 1 / x if inverted else x
    result: Any = None
    if quarters:
        # The root of -0.0 is -0.0, its powers are 0; those of -infinity are infinite.
        root = k.where(x == (0 if inverted else -math.inf), math.inf, k.abs(k.sqrt(base)))
        base = k.abs(base)
        result = {1: k.sqrt(root), 2: root, 3: root * k.sqrt(root)}[quarters]
    if whole:
        square = base * base
        product = {1: base, 2: square, 3: square * base, 4: square * square}[whole]
        result = product if result is None else product * result
    return 1 / result if exponent < 0 and not inverted else result


# (3 * atanh(s) / s - 3 - z) / z**2 where z = s**2, for (1 + s) / (1 - s) in [sqrt(1/2), sqrt(2)]
_ATANH = (0.6000002264543477, 0.4284332886251485, 0.3457350420668104)
_UPPER = -(1 << 12)  # the mask of the upper half of the bits of a float32
_SCALE = 2 / (3 * math.log(2))  # in two parts, the first of 12 bits
_SCALE_UPPER = math.floor(_SCALE * 2**12) / 2**12


def power(k: Scalars, x: Scalar, y: Scalar) -> Scalar:
    """x ** y for float32, within 2 units in the last place.

    It is 2 ** (y * log2(x)), where the logarithm and the product are sums of two numbers, since
    their whole part takes bits from the rest. The first of two has 12 bits only, so that products
    of such are exact.
    """
    size = k.abs(x)
    high, low = _log2_in_parts(k, size)
    limited = clamped(k, y, -(2.0**40), 2.0**40)  # large enough for any result but 1
    upper = _upper(limited)
    low = (limited - upper) * high + limited * low
    result = _exp2_of_parts(k, upper * high, low)
    edge = k.where((y > 0) == (size > 1), like(x, math.inf), 0)
    result = k.where((size == 0) | (size == math.inf), edge, result)
    half = 0.5 * y
    whole, even = k.floor(y) == y, k.floor(half) == half
    signed = k.where(negative(x) & whole & ~even, -result, result)
    real = (x >= 0) | whole | (size == math.inf)
    result = k.where(real, signed, math.nan)
    result = k.where((x != x) | (y != y), x + y, result)
    one = (y == 0) | (x == 1) | ((x == -1) & (k.abs(y) == math.inf))
    return k.where(one, 1, result)


def _upper(x: Scalar) -> Scalar:
    """The first 12 bits of a float32."""
    return bitcast(bitcast(x, dtypes.int32) & _UPPER, dtypes.float32)


def _log2_in_parts(k: Scalars, x: Scalar) -> tuple[Scalar, Scalar]:
    """log2(x) as a sum of two, within about 2**-33 of its size.

    With s = f / (2 + f), the logarithm of 1 + f is 2 * atanh(s) = 2 / 3 * s * (3 + s**2 + ...).
    """
    e, f, _ = split(k, x)
    divisor = f + 2
    divisor_upper = _upper(divisor)
    divisor_lower = f - (divisor_upper - 2)
    inverse = 1 / divisor
    s = f * inverse
    s_upper = _upper(s)
    s_lower = ((f - s_upper * divisor_upper) - s_upper * divisor_lower) * inverse
    square, z = s_upper * s_upper, s * s
    tail = z * z * polynomial(_ATANH, z) + s_lower * (s_upper + s)
    series = _upper(3 + square + tail)
    series_lower = tail - ((series - 3) - square)
    first, second = s_upper * series, s_lower * series + series_lower * s
    product = _upper(first + second)
    product_lower = second - (product - first)
    fraction = product * _SCALE_UPPER
    rest = product * (_SCALE - _SCALE_UPPER) + product_lower * _SCALE
    high = _upper((fraction + rest) + e)
    return high, rest - ((high - e) - fraction)


def _exp2_of_parts(k: Scalars, high: Scalar, low: Scalar) -> Scalar:
    """2 ** (high + low)."""
    form = FORMATS[high.dtype]
    n = clamped(k, high + low, -160.0, 130.0) + form.rounder - form.rounder
    r = clamped(k, (high - n) + low, -1.0, 1.0) * LN_2
    y = 1 + (r + r * r * polynomial(form.exp_tail, r))
    return y.recorder.emit("scale", (y, n), y.dtype)


def share(k: Scalars, x: Scalar, y: Scalar) -> Scalar:
    """x / y by way of 1 / y, which is computed once where many x have one y; within 2 units in the
    last place. 1 / y is scaled where it would be too large or too small a number."""
    form = FORMATS[y.dtype]
    size, far = k.abs(y), 2.0 ** (form.bias // 2)
    scale = k.where(size < 1 / far, like(y, far), k.where(size > far, like(y, 1 / far), 1))
    return x * (1 / (y * scale)) * scale
