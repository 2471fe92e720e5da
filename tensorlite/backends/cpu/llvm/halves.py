"""Conversions of float16 and bfloat16, which are dtypes of storage: arithmetic is in float32.

bfloat16 is the upper half of a float32. For float16 there are instructions on all but old
processors; there, conversions are arithmetic on bits, since LLVM would call functions that a
process need not have.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .... import dtypes
from .place import Place


def from_half(place: Place, x: str, source: np.dtype[Any]) -> str:
    """A float16 or bfloat16 as float32."""
    if source == dtypes.float16 and not place.function.module.float16:
        return _unpacked(place, x)
    single = place.type(dtypes.float32)
    if source == dtypes.float16:
        return place.value(f"fpext {place.type(source)} {x} to {single}")
    bits = place.type(dtypes.int32)
    wide = place.value(f"zext {place.type(source)} {x} to {bits}")
    high = place.value(f"shl {bits} {wide}, {place.literal(16, dtypes.int32)}")
    return place.value(f"bitcast {bits} {high} to {single}")


def to_bfloat16(place: Place, x: str) -> str:
    """A float32 as bfloat16. Round to nearest, ties to even; NaN stays NaN."""
    bits, int32 = place.type(dtypes.int32), dtypes.int32

    def number(value: int) -> str:
        return place.literal(value, int32)

    whole = place.value(f"bitcast {place.type(dtypes.float32)} {x} to {bits}")
    high = place.value(f"lshr {bits} {whole}, {number(16)}")
    odd = place.value(f"and {bits} {high}, {number(1)}")
    bump = place.value(f"add {bits} {odd}, {number(0x7FFF)}")
    rounded = place.value(f"add {bits} {whole}, {bump}")
    number_bits = place.value(f"lshr {bits} {rounded}, {number(16)}")
    quiet = place.value(f"or {bits} {high}, {number(0x40)}")
    nan = place.value(f"fcmp uno {place.type(dtypes.float32)} {x}, {x}")
    chosen = place.select(nan, int32, quiet, number_bits)
    return place.value(f"trunc {bits} {chosen} to {place.type(dtypes.bfloat16)}")


def to_float16(place: Place, x: str) -> str:
    """A float32 as float16, rounded to nearest, ties to even."""
    if not place.function.module.float16:
        return _packed(place, x)
    return place.value(f"fptrunc {place.type(dtypes.float32)} {x} to {place.type(dtypes.float16)}")


def _unpacked(place: Place, x: str) -> str:
    """A float16 as float32: the bits in place, then a product that corrects the exponent."""
    half, short = place.type(dtypes.float16), place.type(dtypes.int16)
    bits, single = place.type(dtypes.int32), place.type(dtypes.float32)
    raw = place.value(f"bitcast {half} {x} to {short}")
    wide = place.value(f"zext {short} {raw} to {bits}")
    sign = _integer(place, "shl", _integer(place, "and", wide, 0x8000), 16)
    size = _integer(place, "and", wide, 0x7FFF)
    moved = _integer(place, "shl", size, 13)
    value = place.value(f"bitcast {bits} {moved} to {single}")
    scaled = place.value(f"fmul {single} {value}, {place.literal(2.0**112, dtypes.float32)}")
    finite = place.value(f"bitcast {single} {scaled} to {bits}")
    special = _integer(place, "or", moved, 0x7F800000)
    limit = place.literal(0x7C00, dtypes.int32)
    beyond = place.value(f"icmp uge {bits} {size}, {limit}")
    chosen = place.select(beyond, dtypes.int32, special, finite)
    signed = place.value(f"or {bits} {chosen}, {sign}")
    return place.value(f"bitcast {bits} {signed} to {single}")


def _packed(place: Place, x: str) -> str:
    """A float32 as float16: for each of normal, subnormal and special results its bits."""
    half, short = place.type(dtypes.float16), place.type(dtypes.int16)
    bits, single = place.type(dtypes.int32), place.type(dtypes.float32)
    whole = place.value(f"bitcast {single} {x} to {bits}")
    sign = _integer(place, "and", _integer(place, "lshr", whole, 16), 0x8000)
    size = _integer(place, "and", whole, 0x7FFFFFFF)
    odd = _integer(place, "and", _integer(place, "lshr", size, 13), 1)
    bump = place.value(f"add {bits} {size}, {_integer(place, 'add', odd, 0xFFF)}")
    normal = _integer(place, "sub", _integer(place, "lshr", bump, 13), 112 << 10)
    # Half a unit is what a sum with 0.5 keeps of a subnormal number.
    positive = place.value(f"bitcast {bits} {size} to {single}")
    middle = place.value(f"fadd {single} {positive}, {place.literal(0.5, dtypes.float32)}")
    small = _integer(place, "sub", place.value(f"bitcast {single} {middle} to {bits}"), 0x3F000000)
    tiny = place.value(f"icmp ult {bits} {size}, {place.literal(0x38800000, dtypes.int32)}")
    finite = place.select(tiny, dtypes.int32, small, normal)
    large = place.value(f"icmp uge {bits} {size}, {place.literal(0x47800000, dtypes.int32)}")
    nan = place.value(f"icmp ugt {bits} {size}, {place.literal(0x7F800000, dtypes.int32)}")
    quiet, infinite = (place.literal(v, dtypes.int32) for v in (0x7E00, 0x7C00))
    special = place.select(nan, dtypes.int32, quiet, infinite)
    chosen = place.select(large, dtypes.int32, special, finite)
    signed = place.value(f"or {bits} {chosen}, {sign}")
    narrow = place.value(f"trunc {bits} {signed} to {short}")
    return place.value(f"bitcast {short} {narrow} to {half}")


def _integer(place: Place, op: str, x: str, constant: int) -> str:
    kind = place.type(dtypes.int32)
    return place.value(f"{op} {kind} {x}, {place.literal(constant, dtypes.int32)}")
