"""Scalars in OpenCL C: types, literals, and an expression for each basic operation.

Compilers of CPUs turn a loop into vector code only if nothing in it is a call, so that what math
libraries do with bits (fabs, copysign, floor, halves) is done with bits here as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .... import dtypes

HALVES = (dtypes.float16, dtypes.bfloat16)
_TYPES = {
    dtypes.bool_: "bool",
    dtypes.int8: "char",
    dtypes.int16: "short",
    dtypes.int32: "int",
    dtypes.int64: "long",
    dtypes.uint8: "uchar",
    dtypes.uint16: "ushort",
    dtypes.uint32: "uint",
    dtypes.uint64: "ulong",
    dtypes.float16: "ushort",
    dtypes.bfloat16: "ushort",
    dtypes.float32: "float",
    dtypes.float64: "double",
}


def type_of(dtype: np.dtype[Any]) -> str:
    """The type of a variable; halves are their bits."""
    return _TYPES[dtype]


def stored_type(dtype: np.dtype[Any]) -> str:
    """The type of an element in memory."""
    return "uchar" if dtype == dtypes.bool_ else _TYPES[dtype]


def literal(value: Any, dtype: np.dtype[Any]) -> str:
    """A constant of `dtype`, which is none of the halves."""
    if dtype == dtypes.bool_:
        return "true" if value else "false"
    if dtype.kind == "f":
        return _float_literal(float(value), dtype)
    number = int(value)
    if dtype == dtypes.int64 and number == -(2**63):
        return "(-9223372036854775807L - 1)"
    if dtype == dtypes.int32 and number == -(2**31):
        return "(-2147483647 - 1)"
    suffix = {dtypes.int64: "L", dtypes.uint64: "UL", dtypes.uint32: "U"}.get(dtype, "")
    text = f"{number}{suffix}"
    return f"({text})" if number < 0 else text


def _float_literal(value: float, dtype: np.dtype[Any]) -> str:
    single = dtype == dtypes.float32
    if not math.isfinite(value):
        bits = int(np.asarray(value, dtype).view(np.uint32 if single else np.uint64))
        return f"as_float({bits:#x}U)" if single else f"as_double({bits:#x}UL)"
    text = f"{np.float32(value)!s}" if single else repr(value)
    if single and float(np.float32(text)) != float(np.float32(value)):
        text = f"{float(np.float32(value))!r}"
    if not any(c in text for c in ".en"):
        text += ".0"
    text += "f" if single else ""
    return f"({text})" if text.startswith("-") else text


# What kernels may call. Each is added to a program that names it.
HELPERS = {
    "half_to_float": """\
float half_to_float(ushort h) {
    uint size = h & 0x7fff, moved = size << 13;
    uint finite = as_uint(as_float(moved) * 0x1p112f);
    uint bits = size >= 0x7c00 ? moved | 0x7f800000 : finite;
    return as_float(bits | (uint)(h & 0x8000) << 16);
}
""",
    "float_to_half": """\
ushort float_to_half(float x) {
    uint whole = as_uint(x), sign = whole >> 16 & 0x8000, size = whole & 0x7fffffff;
    uint normal = (size + (size >> 13 & 1) + 0xfff >> 13) - (112 << 10);
    uint small = as_uint(as_float(size) + 0.5f) - 0x3f000000;
    uint finite = size < 0x38800000 ? small : normal;
    uint special = size > 0x7f800000 ? 0x7e00 : 0x7c00;
    return (ushort)((size >= 0x47800000 ? special : finite) | sign);
}
""",
    "bfloat_to_float": """\
float bfloat_to_float(ushort h) {
    return as_float((uint)h << 16);
}
""",
    "float_to_bfloat": """\
ushort float_to_bfloat(float x) {
    uint bits = as_uint(x), high = bits >> 16;
    uint rounded = bits + (high & 1) + 0x7fff >> 16;
    return (ushort)(x != x ? high | 0x40 : rounded);
}
""",
    "round_float": """\
float round_float(float x) {
    uint sign = as_uint(x) & 0x80000000;
    float size = as_float(as_uint(x) ^ sign);
    float whole = (size + 0x1p23f) - 0x1p23f;
    return as_float(as_uint(size < 0x1p23f ? whole : size) | sign);
}
""",
    "round_double": """\
double round_double(double x) {
    ulong sign = as_ulong(x) & 0x8000000000000000UL;
    double size = as_double(as_ulong(x) ^ sign);
    double whole = (size + 0x1p52) - 0x1p52;
    return as_double(as_ulong(size < 0x1p52 ? whole : size) | sign);
}
""",
    "scale_float": """\
float scale_float(float x, float n) {
    int whole = (int)n, part = whole >> 1;
    return x * as_float((part + 127) << 23) * as_float((whole - part + 127) << 23);
}
""",
    "scale_double": """\
double scale_double(double x, double n) {
    long whole = (long)n, part = whole >> 1;
    return x * as_double((part + 1023) << 52) * as_double((whole - part + 1023) << 52);
}
""",
}
for _type, _suffix in (("float", "f"), ("double", "")):
    # A compiler that writes for a processor knows its instruction; its library's sqrt is a call.
    HELPERS[f"root_{_type}"] = f"""\
{_type} root_{_type}({_type} x) {{
#if defined(__x86_64__) || defined(__aarch64__) || defined(__SPIR__) || defined(__SPIRV__)
    return __builtin_sqrt{_suffix}(x);
#else
    return sqrt(x);
#endif
}}
"""
HELPERS["stream"] = """\
#if defined(__has_builtin)
#if __has_builtin(__builtin_nontemporal_store)
#define stream(value, place) __builtin_nontemporal_store(value, place)
#endif
#endif
#ifndef stream
#define stream(value, place) *(place) = (value)
#endif
"""
for _type in ("uchar", "ushort", "uint", "ulong"):
    HELPERS[f"power_{_type}"] = f"""\
{_type} power_{_type}({_type} x, {_type} y) {{
    {_type} result = 1;
    for (; y; y >>= 1) {{
        if (y & 1) result = ({_type})((ulong)result * x);
        x = ({_type})((ulong)x * x);
    }}
    return result;
}}
"""
_SIGN = {"float": ("uint", "0x80000000U"), "double": ("ulong", "0x8000000000000000UL")}
for _type, (_integer, _sign) in _SIGN.items():
    for _name, _beyond, _step in (("floor", ">", "-"), ("ceil", "<", "+")):
        HELPERS[f"{_name}_{_type}"] = f"""\
{_type} {_name}_{_type}({_type} x) {{
    {_type} near = round_{_type}(x), whole = near {_beyond} x ? near {_step} 1 : near;
    return as_{_type}((as_{_integer}(whole) & ~{_sign}) | (as_{_integer}(x) & {_sign}));
}}
"""
    HELPERS[f"trunc_{_type}"] = f"""\
{_type} trunc_{_type}({_type} x) {{
    {_integer} sign = as_{_integer}(x) & {_sign};
    {_type} size = as_{_type}(as_{_integer}(x) ^ sign), near = round_{_type}(size);
    return as_{_type}(as_{_integer}(near > size ? near - 1 : near) | sign);
}}
"""


def helpers_for(text: str) -> str:
    """The helpers that a program names, in the order in which they must stand."""
    used: dict[str, None] = {}

    def visit(body: str) -> None:
        for name, helper in HELPERS.items():
            if f"{name}(" in body and name not in used and helper != body:
                visit(helper)
                used[name] = None

    visit(text)
    return "\n".join(HELPERS[name] for name in used)


# ---- operations ----------------------------------------------------------------------------------


def expression(
    op: str,
    attribute: Any,
    result: np.dtype[Any],
    operands: Sequence[np.dtype[Any]],
    args: Sequence[str],
) -> str:
    """A basic operation (`compiler.lower`) on variables, whose dtypes `operands` gives."""
    dtype = operands[-1]
    if op == "cast":
        return cast(args[0], dtype, result)
    if op == "bitcast":
        return f"as_{type_of(result)}({args[0]})"
    if op == "where":
        return "{} ? {} : {}".format(*args)
    if op == "scale":
        return f"scale_{type_of(dtype)}({args[0]}, {args[1]})"
    if op == "rarely":
        return f"{args[0]} ? {attribute}({args[2]}) : {args[1]}"
    if op == "library":
        return f"{attribute}({', '.join(args)})"
    if op == "integer_power":
        return _power(dtype, *args)
    if op in _COMPARISONS:
        return f"{args[0]} {_COMPARISONS[op]} {args[1]}"
    kind = "f" if dtype.kind == "f" else "b" if dtype == dtypes.bool_ else "i"
    rule = _RULES.get((op, kind))
    if rule is None:
        raise NotImplementedError(f"OpenCL's code generator has no {op!r} of {dtype}")
    return rule(dtype, *args)


_COMPARISONS = {
    "equal": "==",
    "not_equal": "!=",
    "less": "<",
    "less_equal": "<=",
    "greater": ">",
    "greater_equal": ">=",
}
_Rule = Callable[..., str]


def _infix(sign: str) -> _Rule:
    return lambda d, x, y: f"{x} {sign} {y}"


def _wrapping(sign: str) -> _Rule:
    """Signed integers wrap around, which C leaves open."""

    def rule(d: np.dtype[Any], x: str, y: str) -> str:
        wide = "ulong" if d.itemsize == 8 else "uint"
        return f"({type_of(d)})(({wide}){x} {sign} ({wide}){y})"

    return rule


def _bits(d: np.dtype[Any]) -> tuple[str, str, str]:
    """(integer type, mask of the sign, float type)."""
    return (*_SIGN[type_of(d)], type_of(d))


def _float_abs(d: np.dtype[Any], x: str) -> str:
    bits, sign, kind = _bits(d)
    return f"as_{kind}(as_{bits}({x}) & ~{sign})"


def _copysign(d: np.dtype[Any], x: str, y: str) -> str:
    bits, sign, kind = _bits(d)
    return f"as_{kind}((as_{bits}({x}) & ~{sign}) | (as_{bits}({y}) & {sign}))"


def _rounded(how: str) -> _Rule:
    return lambda d, x: f"{how}_{type_of(d)}({x})"


def _float_pick(sign: str) -> _Rule:
    # If y is not a number, the comparison fails and y is taken; if x is not, x is.
    return lambda d, x, y: f"({x} {sign} {y} || {x} != {x}) ? {x} : {y}"


def _integer_pick(sign: str) -> _Rule:
    return lambda d, x, y: f"{x} {sign} {y} ? {x} : {y}"


def _integer_abs(d: np.dtype[Any], x: str) -> str:
    if d in dtypes.UNSIGNED:
        return x
    return f"{x} < 0 ? {_wrapping('-')(d, '0', x)} : {x}"


_RULES: dict[tuple[str, str], _Rule] = {
    ("add", "f"): _infix("+"),
    ("subtract", "f"): _infix("-"),
    ("multiply", "f"): _infix("*"),
    ("divide", "f"): _infix("/"),
    ("modulo", "f"): lambda d, x, y: f"fmod({x}, {y})",
    ("negative", "f"): lambda d, x: f"-{x}",
    ("max", "f"): _float_pick(">"),
    ("min", "f"): _float_pick("<"),
    ("abs", "f"): _float_abs,
    ("sqrt", "f"): lambda d, x: f"root_{type_of(d)}({x})",
    ("copysign", "f"): _copysign,
    ("floor", "f"): _rounded("floor"),
    ("ceil", "f"): _rounded("ceil"),
    ("trunc", "f"): _rounded("trunc"),
    ("round", "f"): _rounded("round"),
    ("add", "i"): _wrapping("+"),
    ("subtract", "i"): _wrapping("-"),
    ("multiply", "i"): _wrapping("*"),
    ("quotient", "i"): _infix("/"),
    ("modulo", "i"): _infix("%"),
    ("negative", "i"): lambda d, x: _wrapping("-")(d, "0", x),
    ("max", "i"): _integer_pick(">"),
    ("min", "i"): _integer_pick("<"),
    ("abs", "i"): _integer_abs,
    ("left", "i"): _wrapping("<<"),
    ("right", "i"): _infix(">>"),
    ("and", "i"): _infix("&"),
    ("or", "i"): _infix("|"),
    ("xor", "i"): _infix("^"),
    ("invert", "i"): lambda d, x: f"~{x}",
    ("add", "b"): _infix("|"),
    ("subtract", "b"): _infix("!="),
    ("multiply", "b"): _infix("&"),
    ("max", "b"): _infix("|"),
    ("min", "b"): _infix("&"),
    ("and", "b"): _infix("&"),
    ("or", "b"): _infix("|"),
    ("xor", "b"): _infix("!="),
    ("invert", "b"): lambda d, x: f"!{x}",
    ("abs", "b"): lambda d, x: x,
}
# Shifts of bits by `math` are within the width.
_RULES["shift_left", "i"] = _RULES["left", "i"]
_RULES["shift_right", "i"] = _RULES["right", "i"]


def _power(dtype: np.dtype[Any], x: str, y: str) -> str:
    if dtype == dtypes.bool_:
        return f"{x} | !{y}"
    unsigned = {1: "uchar", 2: "ushort", 4: "uint", 8: "ulong"}[dtype.itemsize]
    return f"({type_of(dtype)})power_{unsigned}(({unsigned}){x}, ({unsigned}){y})"


# ---- conversions ---------------------------------------------------------------------------------


def cast(x: str, source: np.dtype[Any], target: np.dtype[Any]) -> str:
    """`x` as `target`, as NumPy's astype converts; floats that no integer holds become any."""
    if source == target:
        return x
    if source in HALVES:
        wide = f"{'bfloat' if source == dtypes.bfloat16 else 'half'}_to_float({x})"
        return cast(wide, dtypes.float32, target)
    if target in HALVES:
        single = cast(x, source, dtypes.float32)
        return f"float_to_{'bfloat' if target == dtypes.bfloat16 else 'half'}({single})"
    if target == dtypes.bool_:
        return f"{x} != {literal(0, source)}"
    if source.kind == "f" and target == dtypes.uint64:
        # One conversion for both halves of the range: Intel's compiler ends in a segmentation
        # fault where it makes vectors of a choice between two.
        middle, zero = literal(2.0**63, source), literal(0.0, source)
        low = f"{x} - ({x} >= {middle} ? {middle} : {zero})"
        return f"(ulong)(long)({low}) ^ ({x} >= {middle} ? 0x8000000000000000UL : 0UL)"
    if source.kind == "f" and target.kind in "iu":
        through = "long" if target in (dtypes.int64, dtypes.uint32) else "int"
        return f"({type_of(target)})({through})({x})"
    return f"({type_of(target)})({x})"
