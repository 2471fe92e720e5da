"""What `math` has to know about the floating-point formats that it computes in."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .. import dtypes


class Format(NamedTuple):
    """What the functions have to know about a floating-point format."""

    integer: np.dtype[Any]  # of the same width
    mantissa: int  # explicit bits
    bias: int
    rounder: float  # adding it leaves the nearest integer in the low bits
    smallest_normal: float
    ln2: tuple[float, float]  # the first part times an exponent is exact
    exp_range: tuple[float, float]  # beyond which exp is 0 or infinite
    expm1_lowest: float  # below it expm1 is -1
    exp_tail: tuple[float, ...]  # (exp(r) - 1 - r) / r**2 for |r| <= ln(2) / 2


FORMATS = {
    dtypes.float32: Format(
        dtypes.int32,
        23,
        127,
        1.5 * 2**23,
        2.0**-126,
        (0.693359375, -2.12194440054690583e-4),
        (-104.0, 89.0),
        -20.0,
        (0.5, 0.16666576989698776, 0.041666554617204574, 0.0083631790527225774, 0.0013926183587714),
    ),
    dtypes.float64: Format(
        dtypes.int64,
        52,
        1023,
        1.5 * 2**52,
        2.0**-1022,
        (6.93147180369123816490e-01, 1.90821492927058770002e-10),
        (-746.0, 710.0),
        -40.0,
        (
            0.5,
            0.16666666666666671,
            0.04166666666666667,
            0.0083333333333261351,
            0.0013888888888883748,
            0.00019841269874820625,
            2.4801587325547741e-5,
            2.7557255400206424e-6,
            2.7557273643110295e-7,
            2.5105217004720745e-8,
            2.0914686968086877e-9,
        ),
    ),
}
