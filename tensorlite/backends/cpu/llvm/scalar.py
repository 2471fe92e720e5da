"""Each basic operation (`compiler.lower`) as LLVM instructions, for one lane or many.

Products and sums of floats may be contracted into fused ones; nothing else is reassociated, and
NaN, infinities and signed zeros are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .... import dtypes
from .halves import from_half, to_bfloat16, to_float16
from .place import Place, suffix
from .text import Function, register_type, vector


def apply(
    place: Place,
    op: str,
    attribute: Any,
    result: np.dtype[Any],
    operands: Sequence[np.dtype[Any]],
    args: Sequence[str],
) -> str:
    """Write a basic operation on `args`, whose dtypes `operands` gives; its value's name."""
    dtype = operands[-1]
    if op == "cast":
        return cast(place, args[0], dtype, result)
    if op == "bitcast":
        return place.value(f"bitcast {place.type(dtype)} {args[0]} to {place.type(result)}")
    if op == "where":
        return place.select(args[0], dtype, args[1], args[2])
    if op == "scale":
        return _scale(place, result, *args)
    if op == "rarely":
        return _rarely(place, attribute, dtype, *args)
    if op == "library":
        return _by_lane(place, _library_name(attribute, dtype), dtype, args)
    if op == "integer_power":
        return _by_lane(place, _integer_power(place.function, dtype), dtype, args)
    if op in _COMPARISONS:
        return compare(place, op, dtype, *args)
    kind = "f" if dtype.kind == "f" else "b" if dtype == dtypes.bool_ else "i"
    rule = _RULES.get((op, kind))
    if rule is None:
        raise NotImplementedError(f"the CPU's code generator has no {op!r} of {dtype}")
    return rule(place, dtype, *args)


# ---- arithmetic ----------------------------------------------------------------------------------

_Rule = Callable[..., str]


def _plain(name: str) -> _Rule:
    return lambda p, d, x, y: p.value(f"{name} {p.type(d)} {x}, {y}")


def _intrinsic(name: str) -> _Rule:
    return lambda p, d, *args: p.intrinsic(name, d, *args)


def _signed(signed: _Rule, unsigned: _Rule) -> _Rule:
    return lambda p, d, *args: (unsigned if d in dtypes.UNSIGNED else signed)(p, d, *args)


def _swapped(rule: _Rule, constant: Any) -> _Rule:
    """A unary operation as a binary one whose first operand is a constant."""
    return lambda p, d, x: rule(p, d, p.literal(constant, d), x)


def _extremum(name: str) -> _Rule:
    """The larger or smaller; NaN if either is. Which of two zeros is open."""
    return lambda p, d, x, y: p.intrinsic(name, d, x, y, flags="nsz ")


def _invert(p: Place, d: np.dtype[Any], x: str) -> str:
    ones = p.literal(True if d == dtypes.bool_ else -1, d)
    return p.value(f"xor {p.type(d)} {x}, {ones}")


def _integer_abs(p: Place, d: np.dtype[Any], x: str) -> str:
    if d in dtypes.UNSIGNED:
        return x
    kind = p.type(d)
    name = f"llvm.abs.{suffix(d, p.lanes)}"
    return p.function.call(kind, name, (kind, x), ("i1", "false"))


_RULES: dict[tuple[str, str], _Rule] = {
    ("add", "f"): _plain("fadd contract"),
    ("subtract", "f"): _plain("fsub contract"),
    ("multiply", "f"): _plain("fmul contract"),
    ("divide", "f"): _plain("fdiv"),
    ("modulo", "f"): _plain("frem"),
    ("negative", "f"): lambda p, d, x: p.value(f"fneg {p.type(d)} {x}"),
    ("max", "f"): _extremum("maximum"),
    ("min", "f"): _extremum("minimum"),
    ("abs", "f"): _intrinsic("fabs"),
    ("sqrt", "f"): _intrinsic("sqrt"),
    ("copysign", "f"): _intrinsic("copysign"),
    ("floor", "f"): _intrinsic("floor"),
    ("ceil", "f"): _intrinsic("ceil"),
    ("trunc", "f"): _intrinsic("trunc"),
    ("round", "f"): _intrinsic("rint"),
    ("add", "i"): _plain("add"),
    ("subtract", "i"): _plain("sub"),
    ("multiply", "i"): _plain("mul"),
    ("quotient", "i"): _signed(_plain("sdiv"), _plain("udiv")),
    ("modulo", "i"): _signed(_plain("srem"), _plain("urem")),
    ("negative", "i"): _swapped(_plain("sub"), 0),
    ("max", "i"): _signed(_intrinsic("smax"), _intrinsic("umax")),
    ("min", "i"): _signed(_intrinsic("smin"), _intrinsic("umin")),
    ("abs", "i"): _integer_abs,
    ("left", "i"): _plain("shl"),
    ("right", "i"): _signed(_plain("ashr"), _plain("lshr")),
    ("and", "i"): _plain("and"),
    ("or", "i"): _plain("or"),
    ("xor", "i"): _plain("xor"),
    ("invert", "i"): _invert,
    ("add", "b"): _plain("or"),
    ("subtract", "b"): _plain("xor"),
    ("multiply", "b"): _plain("and"),
    ("max", "b"): _plain("or"),
    ("min", "b"): _plain("and"),
    ("and", "b"): _plain("and"),
    ("or", "b"): _plain("or"),
    ("xor", "b"): _plain("xor"),
    ("invert", "b"): _invert,
    ("abs", "b"): lambda p, d, x: x,
}
# `right` keeps the sign of signed integers; shifts of bits by `math` are within the width.
_RULES["shift_left", "i"] = _RULES["left", "i"]
_RULES["shift_right", "i"] = _RULES["right", "i"]

_COMPARISONS = {  # of floats, signed and unsigned integers
    "equal": ("oeq", "eq", "eq"),
    "not_equal": ("une", "ne", "ne"),
    "less": ("olt", "slt", "ult"),
    "less_equal": ("ole", "sle", "ule"),
    "greater": ("ogt", "sgt", "ugt"),
    "greater_equal": ("oge", "sge", "uge"),
}


def compare(place: Place, op: str, dtype: np.dtype[Any], x: str, y: str) -> str:
    """A comparison, as i1."""
    of_floats, signed, unsigned = _COMPARISONS[op]
    kind = place.type(dtype)
    if dtype.kind == "f":
        return place.value(f"fcmp {of_floats} {kind} {x}, {y}")
    return place.value(f"icmp {signed if dtype in dtypes.SIGNED else unsigned} {kind} {x}, {y}")


def _scale(place: Place, dtype: np.dtype[Any], x: str, n: str) -> str:
    """`x` * 2**n: one instruction of AVX-512, else two products, since 2**n alone may not be a
    number where the result is one."""
    kind = place.type(dtype)
    if place.function.module.avx512 and place.lanes * dtype.itemsize == 64:
        name = "llvm.x86.avx512.mask.scalef." + ("ps.512" if dtype.itemsize == 4 else "pd.512")
        every = (f"i{place.lanes}", "-1")
        rounding = ("i32", "4")  # as set
        values = ((kind, x), (kind, n), (kind, "zeroinitializer"))
        return place.function.call(kind, name, *values, every, rounding)
    if place.function.module.avx512 and place.lanes * dtype.itemsize == 128:
        return _in_halves(place, lambda p, *args: _scale(p, dtype, *args), dtype, (x, n))
    mantissa, bias = (23, 127) if dtype == dtypes.float32 else (52, 1023)
    integer = dtypes.int32 if dtype == dtypes.float32 else dtypes.int64
    bits = place.type(integer)
    n = _truncated(place, n, dtype, integer)

    def number(value: int) -> str:
        return place.literal(value, integer)

    half = place.value(f"ashr {bits} {n}, {number(1)}")
    other = place.value(f"sub {bits} {n}, {half}")
    for part in (half, other):
        biased = place.value(f"add {bits} {part}, {number(bias)}")
        shifted = place.value(f"shl {bits} {biased}, {number(mantissa)}")
        power = place.value(f"bitcast {bits} {shifted} to {kind}")
        x = place.value(f"fmul {kind} {x}, {power}")
    return x


def _in_halves(
    place: Place, rule: Callable[..., str], dtype: np.dtype[Any], args: Sequence[str]
) -> str:
    """`rule` on the lower and on the upper half of the lanes."""
    lanes, half = place.lanes, place.lanes // 2
    wide, narrow = place.type(dtype), register_type(dtype, half)
    results = []
    for start in (0, half):
        chosen = ", ".join(f"i32 {start + i}" for i in range(half))
        parts = [
            place.value(f"shufflevector {wide} {a}, {wide} poison, <{half} x i32> <{chosen}>")
            for a in args
        ]
        results.append(rule(Place(place.function, half), *parts))
    every = ", ".join(f"i32 {i}" for i in range(lanes))
    low, high = results
    joined = f"shufflevector {narrow} {low}, {narrow} {high}, <{lanes} x i32> <{every}>"
    return place.value(joined)


# ---- conversions ---------------------------------------------------------------------------------


def cast(place: Place, x: str, source: np.dtype[Any], target: np.dtype[Any]) -> str:
    """`x` as `target`, as NumPy's astype converts."""
    if source == target:
        return x
    if source in (dtypes.float16, dtypes.bfloat16):
        wide = from_half(place, x, source)
        return cast(place, wide, dtypes.float32, target)
    if target == dtypes.float16:
        narrow = cast(place, x, source, dtypes.float32)
        return to_float16(place, narrow)
    if target == dtypes.bfloat16:
        return to_bfloat16(place, cast(place, x, source, dtypes.float32))
    if target == dtypes.bool_:
        return compare(place, "not_equal", source, x, place.literal(0, source))
    if source.kind == "f":
        return _from_float(place, x, source, target)
    return _from_integer(place, x, source, target)


def _from_float(place: Place, x: str, source: np.dtype[Any], target: np.dtype[Any]) -> str:
    kind = place.type(source)
    if target.kind == "f":
        op = "fpext" if target.itemsize > source.itemsize else "fptrunc"
        return place.value(f"{op} {kind} {x} to {place.type(target)}")
    if target == dtypes.uint64:  # the upper half of the range does not fit a signed integer
        middle = place.literal(2.0**63, source)
        large = place.value(f"fcmp oge {kind} {x}, {middle}")
        lower = place.value(f"fsub {kind} {x}, {middle}")
        reduced = _truncated(place, place.select(large, source, lower, x), source, dtypes.int64)
        flipped = place.literal(-(2**63), dtypes.int64)
        upper = place.value(f"xor {place.type(dtypes.int64)} {reduced}, {flipped}")
        return place.select(large, dtypes.int64, upper, reduced)
    through = dtypes.int64 if target in (dtypes.int64, dtypes.uint32) else dtypes.int32
    whole = _truncated(place, x, source, through)
    if target.itemsize == through.itemsize:
        return whole
    return place.value(f"trunc {place.type(through)} {whole} to {place.type(target)}")


def _truncated(place: Place, x: str, source: np.dtype[Any], target: np.dtype[Any]) -> str:
    # What does not fit becomes some integer, but must not poison what is computed from it.
    raw = place.value(f"fptosi {place.type(source)} {x} to {place.type(target)}")
    return place.value(f"freeze {place.type(target)} {raw}")


def _from_integer(place: Place, x: str, source: np.dtype[Any], target: np.dtype[Any]) -> str:
    kind, signed = place.type(source), source in dtypes.SIGNED
    if target.kind == "f":
        op = "sitofp" if signed else "uitofp"
    elif source == dtypes.bool_ or target.itemsize > source.itemsize:
        op = "sext" if signed else "zext"
    elif target.itemsize < source.itemsize:
        op = "trunc"
    else:
        return x
    return place.value(f"{op} {kind} {x} to {place.type(target)}")


# ---- calls ---------------------------------------------------------------------------------------


def _library_name(name: str, dtype: np.dtype[Any]) -> str:
    return name + "f" if dtype == dtypes.float32 else name


def _by_lane(place: Place, name: str, dtype: np.dtype[Any], args: Sequence[str]) -> str:
    """Call a function of scalars for each lane."""
    kind, scalar = place.type(dtype), register_type(dtype)
    if place.lanes == 1:
        return place.function.call(scalar, name, *[(scalar, a) for a in args])
    helper = f"lanes.{name}.{suffix(dtype, place.lanes)}"
    _define_lane_loop(place, helper, name, dtype, len(args))
    operands = ", ".join(f"{kind} {a}" for a in args)
    return place.value(f"call {kind} @{helper}({operands})")


def _define_lane_loop(
    place: Place, helper: str, name: str, dtype: np.dtype[Any], count: int
) -> None:
    """A function of vectors that calls `name` lane after lane."""
    module = place.function.module
    kind, scalar = place.type(dtype), register_type(dtype)
    module.declare(scalar, name, ", ".join([scalar] * count))
    parameters = ", ".join(f"{kind} %x{i}" for i in range(count))
    elements = [f"  %e{i} = extractelement {kind} %x{i}, i64 %lane" for i in range(count)]
    operands = ", ".join(f"{scalar} %e{i}" for i in range(count))
    lines = [
        f"define internal {kind} @{helper}({parameters}) noinline {{",
        "entry:",
        "  br label %body",
        "body:",
        "  %lane = phi i64 [ 0, %entry ], [ %next, %body ]",
        f"  %sum = phi {kind} [ zeroinitializer, %entry ], [ %filled, %body ]",
        *elements,
        f"  %y = call {scalar} @{name}({operands})",
        f"  %filled = insertelement {kind} %sum, {scalar} %y, i64 %lane",
        "  %next = add i64 %lane, 1",
        f"  %more = icmp ult i64 %next, {place.lanes}",
        "  br i1 %more, label %body, label %done",
        "done:",
        f"  ret {kind} %filled",
        "}",
    ]
    module.define(helper, "\n".join(lines))


def _rarely(place: Place, name: str, dtype: np.dtype[Any], condition: str, y: str, x: str) -> str:
    """`y`, but a library function of `x` where the condition holds: a branch, seldom taken."""
    function, kind = place.function, place.type(dtype)
    slot = function.slot(kind)
    function.line(f"store {kind} {y}, ptr {slot}")
    some = condition
    if place.lanes > 1:
        mask = vector("i1", place.lanes)
        some = function.call("i1", f"llvm.vector.reduce.or.v{place.lanes}i1", (mask, condition))
    with function.when(some):
        called = _by_lane(place, _library_name(name, dtype), dtype, [x])
        chosen = place.select(condition, dtype, called, y)
        function.line(f"store {kind} {chosen}, ptr {slot}")
    return function.value(f"load {kind}, ptr {slot}")


def _integer_power(function: Function, dtype: np.dtype[Any]) -> str:
    """A function of scalars: x ** y by squaring, y >= 0."""
    kind = register_type(dtype)
    if dtype == dtypes.bool_:
        name, product = "power.bool", "and"
    else:
        name, product = f"power.{dtype.name}", "mul"
    lines = [
        f"define internal {kind} @{name}({kind} %x, {kind} %y) {{",
        "entry:",
        "  br label %head",
        "head:",
        f"  %base = phi {kind} [ %x, %entry ], [ %square, %body ]",
        f"  %rest = phi {kind} [ %y, %entry ], [ %half, %body ]",
        f"  %result = phi {kind} [ 1, %entry ], [ %product, %body ]",
        f"  %more = icmp ne {kind} %rest, 0",
        "  br i1 %more, label %body, label %done",
        "body:",
        f"  %bit = and {kind} %rest, 1",
        f"  %odd = icmp ne {kind} %bit, 0",
        f"  %multiplied = {product} {kind} %result, %base",
        f"  %product = select i1 %odd, {kind} %multiplied, {kind} %result",
        f"  %square = {product} {kind} %base, %base",
        f"  %half = lshr {kind} %rest, 1" if kind != "i1" else "  %half = xor i1 %rest, %rest",
        "  br label %head",
        "done:",
        f"  ret {kind} %result",
        "}",
    ]
    function.module.define(name, "\n".join(lines))
    return name
