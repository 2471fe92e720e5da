"""Lowering of nests: bodies that use basic operations only, so that a renderer prints little more
than what its machine has instructions for.

- float16 and bfloat16 remain in loads, casts and what is stored; arithmetic becomes float32;
- exp and its like become arithmetic (`math`);
- division and shifts of integers get NumPy's results where the machine has none.

Beside the arithmetic of `loops.OPERATIONS` the result uses

- `bitcast`: the bits as another dtype of the same width;
- `modulo`: C's fmod, or the remainder of integers; `quotient`: division of integers that rounds
  towards zero. The divisor is neither 0 nor (of signed integers) -1;
- `left`, `right`: shifts by less than the number of bits;
- `scale` (x, n): x * 2**n, n a float that is whole, with one rounding or, below the normal
  numbers, two;
- `rarely` (condition, y, x), attribute a C function: that function of x where the condition holds,
  which it hardly ever does, else y;
- `library`, attribute a C function of one or two arguments;
- `integer_power`: x ** y for y >= 0, as `ops.special.power`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import dtypes
from . import math as mathematics
from . import powers
from .loops import Instruction, Nest, Recorder, Scalar, Scalars

_HALVES = (dtypes.float16, dtypes.bfloat16)
_WIDE = ("sin", "cos")  # computed in float64 for float32
_LIBRARY = (
    "tan",
    "asin",
    "acos",
    "atan",
    "atan2",
    "hypot",
    "asinh",
    "acosh",
    "atanh",
)


def lower(nest: Nest, float64: bool = True) -> Nest:
    """`nest` in basic operations. It computes the same, up to rounding, from the same buffers.

    Args:
        float64: the machine has it. Where not, what float32 functions need it for (sine and
            cosine) is left to the machine's library.
    """
    recorder = Recorder()
    values: list[Scalar] = []
    kept, uses = nest.kept(), _uses(nest)
    for position, instruction in enumerate(nest.body):
        args = [values[a] for a in instruction.args]
        if _is_one_plus_tanh(nest, instruction, uses):
            (tanh,) = (nest.body[a] for a in instruction.args if nest.body[a].op == "tanh")
            sole = values[tanh.args[0]]
            values.append(mathematics.one_plus_tanh(Scalars(recorder), sole))
            continue
        if _is_share_of_sum(nest, instruction, kept, position):
            values.append(powers.share(Scalars(recorder), *args))
            continue
        if instruction.op in _WIDE and not float64 and args[0].dtype == dtypes.float32:
            values.append(_emit("library", *args, attribute=instruction.op))
            continue
        values.append(_lowered(recorder, instruction, args))
    outputs = []
    for output in nest.outputs:
        value = _stored(recorder, values[output.value], output.operand.dtype)
        outputs.append(output._replace(value=value.position))
    return _without_unused(nest._replace(body=tuple(recorder.body), outputs=tuple(outputs)))


def _uses(nest: Nest) -> list[int]:
    """How often each value is used."""
    uses = [0] * len(nest.body)
    for a in (*(a for i in nest.body for a in i.args), *(o.value for o in nest.outputs)):
        uses[a] += 1
    return uses


def _is_one_plus_tanh(nest: Nest, instruction: Instruction, uses: Sequence[int]) -> bool:
    """Whether this is 1 + tanh(x), as in gelu, of a tanh that nothing else needs."""
    if instruction.op != "add" or instruction.dtype.kind != "f":
        return False
    one, tanh = sorted((nest.body[a] for a in instruction.args), key=lambda i: i.op == "tanh")
    alone = all(uses[a] == 1 for a in instruction.args if nest.body[a].op == "tanh")
    return one.op == "constant" and one.attribute == 1 and tanh.op == "tanh" and alone


def _is_share_of_sum(
    nest: Nest, instruction: Instruction, kept: Sequence[bool], position: int
) -> bool:
    """Whether this divides many values by one sum, as softmax does."""
    if instruction.op != "divide" or kept[position]:
        return False
    divisor = nest.body[instruction.args[1]]
    while divisor.op == "cast" and divisor.dtype.kind == "f":
        divisor = nest.body[divisor.args[0]]
    return divisor.op == "reduce" and divisor.attribute == "sum"


def _stored(recorder: Recorder, value: Scalar, dtype: np.dtype[Any]) -> Scalar:
    """`value` as the dtype of its buffer: what was only widened when it was loaded is as it was."""
    op, args, _, _ = recorder.body[value.position]
    if op == "cast" and dtype in _HALVES and recorder.body[args[0]].dtype == dtype:
        return Scalar(recorder, args[0], dtype)
    return recorder.cast(value, dtype)


def _without_unused(nest: Nest) -> Nest:
    """The nest without the instructions that no output needs."""
    used = {output.value for output in nest.outputs}
    for i in range(len(nest.body) - 1, -1, -1):
        if i in used:
            used.update(nest.body[i].args)
    place = {i: number for number, i in enumerate(sorted(used))}
    body = tuple(
        nest.body[i]._replace(args=tuple(place[a] for a in nest.body[i].args)) for i in place
    )
    outputs = tuple(o._replace(value=place[o.value]) for o in nest.outputs)
    return nest._replace(body=body, outputs=outputs)


def _wide(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return dtypes.float32 if dtype in _HALVES else dtype


def _lowered(recorder: Recorder, instruction: Instruction, args: list[Scalar]) -> Scalar:
    op, _, dtype, attribute = instruction
    wide = _wide(dtype)
    if op in ("load", "gather"):
        return recorder.cast(recorder.emit(op, args, dtype, attribute), wide)
    if op == "cast":
        return recorder.cast(recorder.cast(args[0], dtype), wide)
    if op == "constant":
        return recorder.constant(attribute, wide)
    if op in ("reduce", "index"):
        return recorder.emit(op, args, wide, attribute)
    if op == "nextafter":
        return mathematics.nextafter(Scalars(recorder), args[0], args[1], dtype)
    rule = _RULES.get(op)
    if rule is not None:
        result = rule(Scalars(recorder), *args)
        if result is not None:
            return result
    return recorder.emit(op, args, wide, attribute)


# ---- rules: an operation in basic ones, or None where it is basic itself -------------------------


def _on_floats(rule: Callable[..., Scalar]) -> Callable[..., Scalar | None]:
    return lambda k, *args: rule(k, *args) if args[-1].dtype.kind == "f" else None


def _on_integers(rule: Callable[..., Scalar]) -> Callable[..., Scalar | None]:
    return lambda k, *args: rule(k, *args) if args[-1].dtype.kind in "iu" else None


def _emit(op: str, *args: Scalar, attribute: Any = None) -> Scalar:
    return args[0].recorder.emit(op, args, args[-1].dtype, attribute)


def _library(name: str) -> Callable[..., Scalar]:
    return lambda k, *args: _emit("library", *args, attribute=name)


def _pow(k: Scalars, x: Scalar, y: Scalar) -> Scalar:
    exponent = y.recorder.body[y.position]
    if x.dtype.kind == "f" and exponent.op == "constant":
        known = powers.known_power(k, x, exponent.attribute)
        if known is not None:
            return known
    if x.dtype == dtypes.float32:
        return powers.power(k, x, y)
    if x.dtype == dtypes.float64:
        return _emit("library", x, y, attribute="pow")
    if x.dtype in dtypes.UNSIGNED or x.dtype == dtypes.bool_:
        return _emit("integer_power", x, y)
    # As integer division would have it, a negative power of all but 1 and -1 is 0.
    result = _emit("integer_power", x, k.where(y < 0, 0, y))
    odd = k.where((y & 1) == 1, x, 1)
    return k.where(y < 0, k.where((x == 1) | (x == -1), odd, 0), result)


def _safe_divisor(k: Scalars, y: Scalar) -> Scalar:
    """`y`, but 1 where the machine would refuse to divide (-1 overflows at the lowest number)."""
    zero = y == 0
    return k.where(zero | (y == -1) if y.dtype in dtypes.SIGNED else zero, 1, y)


def _floor_divide(k: Scalars, x: Scalar, y: Scalar) -> Scalar:
    if x.dtype.kind == "f":
        return _float_floor_divide(k, x, y)
    divisor = _safe_divisor(k, y)
    quotient = _emit("quotient", x, divisor)
    if x.dtype in dtypes.SIGNED:
        rest = x - quotient * divisor
        below = (rest != 0) & ((rest < 0) != (divisor < 0))
        quotient = k.where(y == -1, -x, k.where(below, quotient - 1, quotient))
    return k.where(y == 0, 0, quotient)


def _remainder(k: Scalars, x: Scalar, y: Scalar) -> Scalar:
    if x.dtype.kind == "f":
        rest, other = _float_remainder(k, x, y)
        return k.where(
            y == 0, rest, k.where(other, rest + y, k.where(rest == 0, k.copysign(rest, y), rest))
        )
    divisor = _safe_divisor(k, y)
    rest = _emit("modulo", x, divisor)
    if x.dtype in dtypes.SIGNED:
        below = (rest != 0) & ((rest < 0) != (divisor < 0))
        rest = k.where(y == -1, 0, k.where(below, rest + divisor, rest))
    return k.where(y == 0, 0, rest)


def _float_remainder(k: Scalars, x: Scalar, y: Scalar) -> tuple[Scalar, Scalar]:
    """(fmod(x, y), whether its sign is not that of y)."""
    rest = _emit("modulo", x, y)
    return rest, (rest != 0) & ((rest < 0) != (y < 0))


def _float_floor_divide(k: Scalars, x: Scalar, y: Scalar) -> Scalar:
    rest, other = _float_remainder(k, x, y)
    exact = (x - rest) / y
    quotient = k.where(other, exact - 1, exact)
    whole = k.floor(quotient)
    whole = k.where(quotient - whole > 0.5, whole + 1, whole)
    whole = k.where(quotient == 0, k.copysign(quotient, x / y), whole)
    plain = x / y
    return k.where((y == 0) | (whole != whole), k.floor(plain), whole)


def _shift_left(k: Scalars, x: Scalar, y: Scalar) -> Scalar:
    fits = (y >= 0) & (y < 8 * x.dtype.itemsize)
    return k.where(fits, _emit("left", x, k.where(fits, y, 0)), 0)


def _shift_right(k: Scalars, x: Scalar, y: Scalar) -> Scalar:
    fits = (y >= 0) & (y < 8 * x.dtype.itemsize)
    last = 8 * x.dtype.itemsize - 1  # leaves the sign
    beyond = _emit("right", x, x.recorder.constant(last, x.dtype)) if x.dtype.kind == "i" else 0
    return k.where(fits, _emit("right", x, k.where(fits, y, 0)), beyond)


def _sign(k: Scalars, x: Scalar) -> Scalar:
    if x.dtype in dtypes.UNSIGNED:
        return k.where(x > 0, x.recorder.constant(1, x.dtype), 0)
    steps = k.where(
        x > 0, x.recorder.constant(1, x.dtype), k.where(x < 0, x.recorder.constant(-1, x.dtype), 0)
    )
    return k.where(x != x, x, steps) if x.dtype.kind == "f" else steps


def _unchanged(k: Scalars, x: Scalar) -> Scalar:
    return x


def _isinf(k: Scalars, x: Scalar) -> Scalar:
    if x.dtype.kind != "f":
        return x != x
    return k.abs(x) == float("inf")


def _isfinite(k: Scalars, x: Scalar) -> Scalar:
    if x.dtype.kind != "f":
        return x == x
    return k.abs(x) < float("inf")


def _signbit(k: Scalars, x: Scalar) -> Scalar:
    integer = np.dtype(f"int{8 * x.dtype.itemsize}")
    return mathematics.bitcast(x, integer) < 0


_RULES: dict[str, Callable[..., Any]] = {
    **{name: _on_floats(rule) for name, rule in mathematics.EXPANSIONS.items()},
    **{name: _library(name) for name in _LIBRARY},
    **dict.fromkeys(("floor", "ceil", "trunc", "round"), _on_integers(_unchanged)),
    "pow": _pow,
    "floor_divide": _floor_divide,
    "remainder": _remainder,
    "shift_left": _shift_left,
    "shift_right": _shift_right,
    "sign": _sign,
    "isnan": lambda k, x: x != x,
    "isinf": _isinf,
    "isfinite": _isfinite,
    "signbit": _signbit,
    "logical_not": lambda k, x: ~x,
}
