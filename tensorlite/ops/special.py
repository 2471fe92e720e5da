"""NumPy twins of elementwise operations that NumPy lacks or whose special cases differ."""

from __future__ import annotations

import math
from collections.abc import Callable

import ml_dtypes
import numpy as np

Array = np.ndarray


def floor_divide(x: Array, y: Array) -> Array:
    """floor(x / y) as NumPy has it, but infinite rather than NaN where x is infinite or y is 0, as
    the array API standard asks."""
    quotient = np.floor_divide(x, y)
    return quotient if _exact(x) else np.where(np.isnan(quotient), np.floor(x / y), quotient)


def remainder(x: Array, y: Array) -> Array:
    """x - floor(x / y) * y, with the sign of y."""
    return np.remainder(x, y)


def power(x: Array, y: Array) -> Array:
    """x ** y; a negative exponent of integers gives 0 (or +-1) instead of an error, as integer
    division does."""
    if not _exact(x):
        # For one exponent of 0.5 NumPy takes the square root, of -inf and -0.0 too.
        return pow_half(x) if y.ndim == 0 and y == 0.5 else np.power(x, y)
    if not np.any(np.less(y, 0)):
        return np.power(x, y)
    odd = np.where(np.bitwise_and(y, 1) == 1, x, np.ones_like(x))
    return np.where(
        np.less(y, 0), np.where(np.abs(x) == 1, odd, 0), np.power(x, np.maximum(y, 0))
    ).astype(x.dtype)


def pow_half(x: Array) -> Array:
    """x ** 0.5, which is the square root, but 0.0 of -0.0 and infinite of -inf."""
    root = np.abs(np.sqrt(x))
    if x.size == 0 or x.min() >= 0:
        return root
    return np.where(x == -np.inf, -x, root)


def logaddexp(x: Array, y: Array) -> Array:
    """log(exp(x) + exp(y)) without overflow."""
    return in_float32(np.logaddexp)(x, y)


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), where only non-positive numbers are exponentiated."""
    z = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + z), z / (1 + z)).astype(x.dtype, copy=False)


def softplus(x: Array) -> Array:
    """log(1 + exp(x)) without overflow."""
    return (np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))).astype(x.dtype, copy=False)


def signbit(x: Array) -> Array:
    """Whether the sign bit is set."""
    if x.dtype == ml_dtypes.bfloat16:  # for which NumPy has no loop of its own
        return np.signbit(x.astype(np.float32))
    return np.signbit(x)


def keep_integers(f: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """`f` on floats, nothing on integers, which are rounded already."""
    return lambda x: np.array(x) if _exact(x) else f(x)


def _exact(x: Array) -> bool:
    return np.asarray(x).dtype.kind in "iub"


def in_float32(f: Callable[..., Array]) -> Callable[..., Array]:
    """`f` computed in float32 for bfloat16, for which NumPy has no loop of its own."""

    def wrapped(*xs: Array) -> Array:
        if xs[0].dtype != ml_dtypes.bfloat16:
            return f(*xs)
        return f(*[x.astype(np.float32) for x in xs]).astype(ml_dtypes.bfloat16)

    return wrapped


# Rational approximations of erf and erfc by W. J. Cody, "Rational Chebyshev approximations for the
# error function", Mathematics of Computation 23 (1969); good to double precision.
ERF_SMALL = (
    (
        1.85777706184603153e-1,
        3.16112374387056560e0,
        1.13864154151050156e2,
        3.77485237685302021e2,
        3.20937758913846947e3,
    ),
    (
        1.0,
        2.36012909523441209e1,
        2.44024637934444173e2,
        1.28261652607737228e3,
        2.84423683343917062e3,
    ),
)
ERFC_MIDDLE = (
    (
        2.15311535474403846e-8,
        5.64188496988670089e-1,
        8.88314979438837594e0,
        6.61191906371416295e1,
        2.98635138197400131e2,
        8.81952221241769090e2,
        1.71204761263407058e3,
        2.05107837782607147e3,
        1.23033935479799725e3,
    ),
    (
        1.0,
        1.57449261107098347e1,
        1.17693950891312499e2,
        5.37181101862009858e2,
        1.62138957456669019e3,
        3.29079923573345963e3,
        4.36261909014324716e3,
        3.43936767414372164e3,
        1.23033935480374942e3,
    ),
)
ERFC_LARGE = (
    (
        1.63153871373020978e-2,
        3.05326634961232344e-1,
        3.60344899949804439e-1,
        1.25781726111229246e-1,
        1.60837851487422766e-2,
        6.58749161529837803e-4,
    ),
    (
        1.0,
        2.56852019228982242e0,
        1.87295284992346725e0,
        5.27905102951428412e-1,
        6.05183413124413191e-2,
        2.33520497626869185e-3,
    ),
)


def erf(x: Array) -> Array:
    """The error function, computed in float64."""
    z = np.asarray(x, np.float64)
    size = np.minimum(np.abs(z), 6.0)  # erf(6) is 1 in double precision
    small = z * _ratio(ERF_SMALL, np.where(size <= 0.5, z * z, 0))
    result = np.where(size <= 0.5, small, np.copysign(1 - _erfc(size), z))
    return np.where(np.isnan(z), z, result).astype(np.asarray(x).dtype)


def _erfc(size: Array) -> Array:
    """1 - erf, to double precision, for arguments of 0.46 and more."""
    middle = _ratio(ERFC_MIDDLE, size)
    inverse = 1 / np.square(np.maximum(size, 1.0))
    large = (1 / math.sqrt(math.pi) - inverse * _ratio(ERFC_LARGE, inverse)) / np.maximum(size, 1.0)
    return np.exp(-size * size) * np.where(size <= 4, middle, large)


def _ratio(coefficients: tuple[tuple[float, ...], tuple[float, ...]], x: Array) -> Array:
    return np.polyval(coefficients[0], x) / np.polyval(coefficients[1], x)


# First guess by M. Giles, "Approximating the erfinv function", GPU Computing Gems (2011), good to
# single precision.
ERFINV_CENTRE = (
    2.81022636e-08,
    3.43273939e-07,
    -3.5233877e-06,
    -4.39150654e-06,
    0.00021858087,
    -0.00125372503,
    -0.00417768164,
    0.246640727,
    1.50140941,
)
ERFINV_TAIL = (
    -0.000200214257,
    0.000100950558,
    0.00134934322,
    -0.00367342844,
    0.00573950773,
    -0.0076224613,
    0.00943887047,
    1.00167406,
    2.83297682,
)


def erfinv(x: Array) -> Array:
    """The inverse of erf on [-1, 1], NaN outside: Giles' polynomials, then for float64 steps of
    Newton's method."""
    z = np.asarray(x, np.float64)
    with np.errstate(all="ignore"):
        w = -np.log((1 - z) * (1 + z))
        inside = np.where(np.abs(z) < 1, w, 1.0)
        y = z * np.where(
            inside < 5,
            np.polyval(ERFINV_CENTRE, inside - 2.5),
            np.polyval(ERFINV_TAIL, np.sqrt(np.maximum(inside, 5)) - 3),
        )
        if np.asarray(x).dtype == np.float64:
            y = np.copysign(_refined(np.abs(y), np.abs(z)), z)
        y = np.where(np.abs(z) < 1, y, np.where(np.abs(z) == 1, np.copysign(np.inf, z), np.nan))
    return y.astype(np.asarray(x).dtype)


def _refined(y: Array, z: Array) -> Array:
    """`y` after four Newton steps towards erf(y) = z >= 0. In the tail they are steps towards
    log(erfc(y)) = log(1 - z), which is nearly a parabola, while erf is flat there."""
    tail, rest = z > 0.5, 1 - z
    for _ in range(4):
        slope = 2 / math.sqrt(math.pi) * np.exp(-y * y)
        complement = _erfc(np.maximum(y, 0.46))
        step = np.where(tail, np.log(complement / rest) * complement, z - erf(y)) / slope
        y = y + step
    return y
