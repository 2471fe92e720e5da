"""Functions such as exp and sin, written in arithmetic, comparisons and integer operations on bits.

Renderers print them instead of calls of a math library, so that they vectorize wherever arithmetic
does. They are written against the builder of scalar expressions (`loops.Scalars`), so that one text
serves every renderer and dtype. A product that is added to something may be fused into one rounding
or not; nothing here depends on it.

Unless noted, polynomials interpolate at Chebyshev nodes, where they are within a small factor of
the best of their degree; float32 results are within 2 units in the last place, float64 ones too.
Infinities, NaN, signed zeros and subnormal numbers are treated as C's math library treats them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import dtypes
from ..ops.special import ERF_SMALL, ERFC_LARGE, ERFC_MIDDLE, ERFINV_CENTRE, ERFINV_TAIL
from .formats import FORMATS, Format
from .loops import Scalar, Scalars

LOG2_E, LN_2 = 1 / math.log(2), math.log(2)

# ---- exponentials --------------------------------------------------------------------------------


def exp(k: Scalars, x: Scalar) -> Scalar:
    """e ** x."""
    form = FORMATS[x.dtype]
    n, _, r = whole_and_rest(k, clamped(k, x, *form.exp_range))
    y = 1 + (r + r * r * polynomial(form.exp_tail, r))
    return x.recorder.emit("scale", (y, n), x.dtype)


def expm1(k: Scalars, x: Scalar) -> Scalar:
    """e ** x - 1, accurate near 0."""
    form = FORMATS[x.dtype]
    _, n, r = whole_and_rest(k, clamped(k, x, form.expm1_lowest, form.exp_range[1]))
    y = r + r * r * polynomial(form.exp_tail, r)
    scale = _power_of_two(n - 1, form)
    return k.where(x == 0, x, 2 * (y * scale + (scale - 0.5)))


def sinh(k: Scalars, x: Scalar) -> Scalar:
    """(e ** x - e ** -x) / 2."""
    size = k.abs(x)
    y = expm1(k, size)
    small = 0.5 * (y + y / (y + 1))
    half = exp(k, 0.5 * size)  # its square may be finite where e ** size is not
    return k.copysign(k.where(size < 20, small, 0.5 * half * half), x)


def cosh(k: Scalars, x: Scalar) -> Scalar:
    """(e ** x + e ** -x) / 2."""
    size = k.abs(x)
    y = exp(k, size)
    half = exp(k, 0.5 * size)
    return k.where(size < 20, 0.5 * (y + 1 / y), 0.5 * half * half)


_TANH = (  # (tanh(x) / x - 1) / x**2 in x**2 for |x| <= 0.625
    -0.33333328944134255,
    0.13332769736976328,
    -0.053850909578513581,
    0.020997178999074751,
    -0.0060967141659081976,
)


def tanh(k: Scalars, x: Scalar) -> Scalar:
    """sinh(x) / cosh(x), which is y / (y + 2) for y = expm1(2 * x)."""
    form = FORMATS[x.dtype]
    limit = 9.02 if x.dtype == dtypes.float32 else 22.0  # from where on it rounds to 1
    size = k.abs(x)
    _, n, r = whole_and_rest(k, 2 * k.where(size > limit, limit, size))
    scale = _power_of_two(n, form)
    y = (r + r * r * polynomial(form.exp_tail, r)) * scale + (scale - 1)
    y = y / (y + 2)
    if x.dtype == dtypes.float32:  # three roundings are too many where units are small
        z = x * x
        y = k.where(size < 0.625, size + size * (z * polynomial(_TANH, z)), y)
    return k.copysign(y, x)


def one_plus_tanh(k: Scalars, x: Scalar) -> Scalar:
    """1 + tanh(x), without the error that the sum has where tanh(x) is nearly -1."""
    return 2 / (1 + exp(k, -2 * x))


# ---- logarithms ----------------------------------------------------------------------------------

# (log(1 + f) - f + f**2 / 2) / f**3 for 1 + f in [sqrt(1/2), sqrt(2)]
_LOG_TAIL = (
    0.33333330728190677,
    -0.25000306422569795,
    0.2000104509416068,
    -0.16641281463106393,
    0.14214495923947963,
    -0.12998183763651529,
    0.12622319849228376,
    -0.07902743772393441,
)
# (2 * atanh(s) / s - 2) / z where z = s**2 and s = f / (2 + f), for the same f
_ATANH_TAIL = (
    0.66666666666666666,
    0.40000000000000883,
    0.28571428570799785,
    0.22222222392581045,
    0.18181795547521136,
    0.15386244737621667,
    0.13268638369266824,
    0.13088034850927554,
)


def log(k: Scalars, x: Scalar) -> Scalar:
    """The natural logarithm."""
    form = FORMATS[x.dtype]
    e, f, _ = split(k, x)
    return _log_limits(k, x, _log_of_split(e, f, form.ln2))


def log2(k: Scalars, x: Scalar) -> Scalar:
    """The logarithm to base 2."""
    e, f, _ = split(k, x)
    return _log_limits(k, x, e + LOG2_E * _log_of_split(0.0, f, (0.0, 0.0)))


def log10(k: Scalars, x: Scalar) -> Scalar:
    """The logarithm to base 10."""
    # The first part of log10(2) has so few bits that its product with an exponent is exact.
    bits = 16 if x.dtype == dtypes.float32 else 42
    high = math.floor(math.log10(2) * 2.0**bits) / 2.0**bits
    low = math.log10(2) - high
    e, f, _ = split(k, x)
    tail = _log_of_split(0.0, f, (0.0, 0.0)) * (1 / math.log(10))
    return _log_limits(k, x, (tail + e * low) + e * high)


def log1p(k: Scalars, x: Scalar) -> Scalar:
    """log(1 + x), accurate near 0."""
    form = FORMATS[x.dtype]
    whole = 1 + x
    lost = k.where(x < 1, x - (whole - 1), 1 - (whole - x))  # of x, when 1 was added
    e, f, exponent = split(k, whole)
    lost = k.where(whole < 2.0 ** (form.mantissa + 1), lost * _power_of_two(-exponent, form), 0)
    y = _log_limits(k, whole, _log_of_split(e, f + lost, form.ln2))
    return k.where(x == 0, x, y)


def split(k: Scalars, x: Scalar) -> tuple[Scalar, Scalar, Scalar]:
    """(e, f, e as an integer) such that x = 2**e * (1 + f), 1 + f in [sqrt(1/2), sqrt(2)]."""
    form = FORMATS[x.dtype]
    recorder = x.recorder
    subnormal = x < form.smallest_normal
    scaled = k.where(subnormal, x * 2.0**form.mantissa, x)
    middle = int(np.sqrt(0.5).astype(x.dtype).view(form.integer))
    bits = bitcast(scaled, form.integer) - middle
    exponent = (bits >> form.mantissa) - k.where(subnormal, like(bits, form.mantissa), 0)
    fraction = bitcast((bits & ((1 << form.mantissa) - 1)) + middle, x.dtype)
    return recorder.cast(exponent, x.dtype), fraction - 1, exponent


def _log_of_split(e: Any, f: Scalar, ln2: tuple[float, float]) -> Scalar:
    square = f * f
    if f.dtype == dtypes.float32:
        tail = f * square * polynomial(_LOG_TAIL, f)
        return ((tail + e * ln2[1]) - 0.5 * square + f) + e * ln2[0]
    s = f / (2 + f)
    z = s * s
    tail = s * (0.5 * square + z * polynomial(_ATANH_TAIL, z)) + e * ln2[1]
    return e * ln2[0] - ((0.5 * square - tail) - f)


def _log_limits(k: Scalars, x: Scalar, y: Scalar) -> Scalar:
    """`y`, but what a logarithm is at 0, infinity, NaN and negative `x`."""
    outside = k.where(x == 0, like(y, -math.inf), math.nan)
    return k.where(x > 0, k.where(x == math.inf, x, y), outside)


def rsqrt(k: Scalars, x: Scalar) -> Scalar:
    """1 / sqrt(x)."""
    return 1 / k.sqrt(x)


# ---- sine and cosine -----------------------------------------------------------------------------

# (sin(r) / r - 1) / z and (cos(r) - 1 + z / 2) / z**2, where z = r**2, for |r| <= pi / 4
_SINE = {
    dtypes.float32: (
        -0.16666666663741368,
        0.0083333318306294284,
        -0.00019840063040804117,
        2.7246868722877945e-6,
    ),
    dtypes.float64: (
        -0.16666666666666667,
        0.0083333333333333314,
        -0.00019841269841264822,
        2.7557319221509148e-6,
        -2.5052106167335706e-8,
        1.6058521349954986e-10,
        -7.5860947896726201e-13,
    ),
}
_COSINE = {
    dtypes.float32: (0.04166666459882798, -0.0013888291300556933, 2.4545419078353295e-5),
    dtypes.float64: (
        0.041666666666666667,
        -0.0013888888888888888,
        2.4801587301584511e-5,
        -2.7557319221298087e-7,
        2.0876755754879596e-9,
        -1.1470455178216907e-11,
        4.7455370173192584e-14,
    ),
}
# pi / 2 in parts of 33 bits, whose products with the number of quarter turns are exact
_QUARTER = (1.57079632673412561417e00, 6.07710050630396597660e-11, 2.02226624879595063154e-21)


def sin(k: Scalars, x: Scalar) -> Scalar:
    """The sine of x in radians."""
    y = _sine_of_quadrant(k, *_quadrant(k, x), shift=0)
    return k.where(x == 0, x, _unless_huge(k, "sin", x, y))


def cos(k: Scalars, x: Scalar) -> Scalar:
    """The cosine of x in radians."""
    return _unless_huge(k, "cos", x, _sine_of_quadrant(k, *_quadrant(k, x), shift=1))


def _quadrant(k: Scalars, x: Scalar) -> tuple[Scalar, Scalar]:
    """(n, r) such that x = n * pi / 2 + r, |r| <= pi / 4, computed in float64."""
    wide = x.recorder.cast(x, dtypes.float64)
    rounder = FORMATS[dtypes.float64].rounder
    shifted = wide * (2 / math.pi) + rounder
    n = shifted - rounder
    rest = wide - n * _QUARTER[0]
    for part in _QUARTER[1:]:
        rest = rest - n * part
    quarters = x.recorder.cast(bitcast(shifted, dtypes.int64), FORMATS[x.dtype].integer)
    return quarters, x.recorder.cast(rest, x.dtype)


def _sine_of_quadrant(k: Scalars, quarters: Scalar, r: Scalar, shift: int) -> Scalar:
    form = FORMATS[r.dtype]
    z = r * r
    sine = r + r * (z * polynomial(_SINE[r.dtype], z))
    cosine = (1 - 0.5 * z) + z * z * polynomial(_COSINE[r.dtype], z)
    turns = quarters + shift
    y = k.where((turns & 1) == 1, cosine, sine)
    sign = (turns & 2) << (8 * r.dtype.itemsize - 2)
    return bitcast(bitcast(y, form.integer) ^ sign, r.dtype)


def _unless_huge(k: Scalars, name: str, x: Scalar, y: Scalar) -> Scalar:
    """`y`, but the math library's function of arguments so large that pi / 2 has too few digits."""
    huge = k.abs(x) > 2.0**20
    return x.recorder.emit("rarely", (huge, y, x), x.dtype, name)


# ---- the error function --------------------------------------------------------------------------

_ERF = (  # erf(x) / x - 1 in x**2 for |x| <= 1
    0.1283791670615434,
    -0.3761263846802871,
    0.11283782495236845,
    -0.026865430727670243,
    0.0052210318078580228,
    -0.00084840804055351063,
    0.00011265959025606609,
    -9.6670445714869964e-6,
)
_LOG_ERFC = (  # log(1 - erf(x)) for x in [0.92, 4]
    0.00036289933255183696,
    -1.1304466948861358,
    -0.63137390730029493,
    -0.11061598977873298,
    0.026813354805621953,
    -0.0049438777614057678,
    0.00065253634057817958,
    -5.6546689782689323e-5,
    2.7547028619721938e-6,
    -5.1485673746630623e-8,
)


def erf(k: Scalars, x: Scalar) -> Scalar:
    """The error function."""
    if x.dtype == dtypes.float64:
        size = clamped(k, k.abs(x), 0.0, 6.0)  # erf(6) is 1 in double precision
        small = x * _ratio(ERF_SMALL, x * x)
        return k.where(size <= 0.5, small, k.copysign(1 - _erfc(k, size), x))
    size = clamped(k, k.abs(x), 0.0, 4.0)
    small = x + x * polynomial(_ERF, x * x)
    large = k.copysign(1 - exp(k, polynomial(_LOG_ERFC, size)), x)
    return k.where(size < 0.95, small, large)


def _erfc(k: Scalars, size: Scalar) -> Scalar:
    """1 - erf in float64, for arguments of 0.46 and more (W. J. Cody, see `ops.special`)."""
    middle = _ratio(ERFC_MIDDLE, size)
    safe = k.where(size < 1, like(size, 1.0), size)
    inverse = 1 / (safe * safe)
    large = (1 / math.sqrt(math.pi) - inverse * _ratio(ERFC_LARGE, inverse)) / safe
    return exp(k, -size * size) * k.where(size <= 4, middle, large)


def erfinv(k: Scalars, x: Scalar) -> Scalar:
    """The inverse of erf (M. Giles, see `ops.special`), within 4 units in the last place."""
    size = k.abs(x)
    inside = size < 1
    w = k.where(inside, -log(k, (1 - x) * (1 + x)), 1.0)
    far = k.sqrt(k.where(w < 5, like(w, 5.0), w)) - 3
    centre = polynomial(ERFINV_CENTRE[::-1], w - 2.5)
    y = size * k.where(w < 5, centre, polynomial(ERFINV_TAIL[::-1], far))
    if x.dtype == dtypes.float64:
        y = _refined_erfinv(k, y, size)
    edge = k.where(size == 1, like(x, math.inf), math.nan)
    return k.copysign(k.where(inside, y, edge), x)


def _refined_erfinv(k: Scalars, y: Scalar, z: Scalar) -> Scalar:
    """Newton steps; in the tail towards log(erfc(y)) = log(1 - z), which is nearly a parabola."""
    rest = 1 - z
    for _ in range(3):
        slope = 2 / math.sqrt(math.pi) * exp(k, -y * y)
        complement = _erfc(k, k.where(y < 0.46, like(y, 0.46), y))
        tail = log(k, complement / rest) * complement
        y = y + k.where(z > 0.5, tail, z - erf(k, y)) / slope
    return y


# ---- neighbours ----------------------------------------------------------------------------------


def nextafter(k: Scalars, x: Scalar, y: Scalar, storage: np.dtype[Any]) -> Scalar:
    """The next number after `x` towards `y` that dtype `storage` holds; both are such numbers."""
    recorder = x.recorder
    integer = np.dtype(f"int{8 * storage.itemsize}")
    bits = bitcast(recorder.cast(x, storage), integer)
    step = k.where((x < y) == (x > 0), like(bits, 1), -1)
    sign = k.where(negative(y), like(bits, np.iinfo(integer).min), 0)
    moved = k.where(x == 0, sign + 1, bits + step)
    result = recorder.cast(bitcast(moved, storage), x.dtype)
    return k.where(x == y, y, k.where((x != x) | (y != y), x + y, result))


# ---- helpers -------------------------------------------------------------------------------------


def bitcast(x: Scalar, dtype: np.dtype[Any]) -> Scalar:
    """The bits of `x` as another dtype of the same width."""
    return x.recorder.emit("bitcast", (x,), dtype)


def negative(x: Scalar) -> Any:
    """Whether the sign bit is set."""
    return bitcast(x, FORMATS[x.dtype].integer) < 0


def like(x: Scalar, value: Any) -> Scalar:
    """A constant of the dtype of `x`."""
    return x.recorder.constant(value, x.dtype)


def clamped(k: Scalars, x: Scalar, low: float, high: float) -> Scalar:
    """`x` within [low, high]; NaN stays."""
    x = k.where(x > high, high, x)
    return k.where(x < low, low, x)


def whole_and_rest(k: Scalars, x: Scalar) -> tuple[Scalar, Scalar, Scalar]:
    """(n, n as an integer, r) such that x = n * ln(2) + r, |r| <= ln(2) / 2, n is whole."""
    form = FORMATS[x.dtype]
    shifted = x * LOG2_E + form.rounder
    n = shifted - form.rounder
    rest = x - n * form.ln2[0] - n * form.ln2[1]
    start = int(np.asarray(form.rounder, x.dtype).view(form.integer))
    return n, bitcast(shifted, form.integer) - start, rest


def _power_of_two(n: Scalar, form: Format) -> Scalar:
    """2 ** n of an integer within the range of normal exponents."""
    return bitcast((n + form.bias) << form.mantissa, _of_integer(form))


def _of_integer(form: Format) -> np.dtype[Any]:
    return dtypes.float32 if form.integer == dtypes.int32 else dtypes.float64


def polynomial(coefficients: Sequence[float], x: Scalar) -> Any:
    """The sum of coefficients[i] * x ** i."""
    y: Any = coefficients[-1]
    for c in reversed(coefficients[:-1]):
        y = y * x + c
    return y


def _ratio(tables: tuple[Sequence[float], Sequence[float]], x: Scalar) -> Any:
    """A quotient of polynomials whose coefficients start at the highest power."""
    return polynomial(tables[0][::-1], x) / polynomial(tables[1][::-1], x)


EXPANSIONS: dict[str, Callable[..., Scalar]] = {
    "exp": exp,
    "expm1": expm1,
    "log": log,
    "log1p": log1p,
    "log2": log2,
    "log10": log10,
    "rsqrt": rsqrt,
    "sin": sin,
    "cos": cos,
    "sinh": sinh,
    "cosh": cosh,
    "tanh": tanh,
    "erf": erf,
    "erfinv": erfinv,
}
