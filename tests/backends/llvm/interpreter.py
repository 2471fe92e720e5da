"""What a nest means, in NumPy: the reference that rendered nests are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np

from tensorlite.compiler.loops import Nest, Operand
from tensorlite.ops import special

_HALVES = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))

_OPERATIONS: dict[str, Any] = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": np.divide,
    "negative": np.negative,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "invert": np.invert,
    "shift_left": np.left_shift,
    "shift_right": np.right_shift,
    "max": np.maximum,
    "min": np.minimum,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "floor_divide": special.floor_divide,
    "remainder": special.remainder,
    "pow": special.power,
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "atan2": np.arctan2,
    "asinh": np.arcsinh,
    "acosh": np.arccosh,
    "atanh": np.arctanh,
    "erf": special.erf,
    "erfinv": special.erfinv,
    "round": special.keep_integers(np.rint),
    "floor": special.keep_integers(np.floor),
    "ceil": special.keep_integers(np.ceil),
    "trunc": special.keep_integers(np.trunc),
    "where": np.where,
}


def run(nest: Nest, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> None:
    """Run a nest on one-dimensional buffers."""
    values: list[np.ndarray] = []
    with np.errstate(all="ignore"):
        for instruction in nest.body:
            args = [values[a] for a in instruction.args]
            value = np.asarray(_value(nest, instruction, args, inputs))
            stored = instruction.op in ("load", "gather", "cast", "nextafter", "constant")
            rounded = value.astype(instruction.dtype) if stored else value
            values.append(_wide(rounded) if instruction.op != "index" else value)
        for output, buffer in zip(nest.outputs, outputs, strict=True):
            at = _addresses(nest, output.operand)
            value = np.broadcast_to(values[output.value], nest.shape)
            if not set(nest.reduced) - {a for a, s in enumerate(output.operand.strides) if s == 0}:
                first = tuple(0 if a in nest.reduced else slice(None) for a in range(value.ndim))
                value, at = value[first], at[first]
            buffer[at] = value.astype(output.operand.dtype)


def _wide(value: np.ndarray) -> np.ndarray:
    return value.astype(np.float32) if value.dtype in _HALVES else value


def _addresses(nest: Nest, operand: Operand) -> np.ndarray:
    at = np.full(nest.shape, operand.offset)
    for axis, stride in enumerate(operand.strides):
        at = at + stride * _positions(nest, axis)
    return at


def _positions(nest: Nest, axis: int) -> np.ndarray:
    shape = [1] * len(nest.shape)
    shape[axis] = nest.shape[axis]
    return np.broadcast_to(np.arange(nest.shape[axis]).reshape(shape), nest.shape)


def _value(nest: Nest, instruction: Any, args: list[Any], inputs: Sequence[np.ndarray]) -> Any:
    op, _, dtype, attribute = instruction
    if op == "load":
        return inputs[attribute][_addresses(nest, nest.inputs[attribute])]
    if op == "gather":
        number, strides = attribute
        at = _addresses(nest, nest.inputs[number])
        for index, stride in zip(args, strides, strict=True):
            at = at + index.astype(np.int64) * stride
        return inputs[number][at]
    if op == "constant":
        return np.full(nest.shape, np.asarray(attribute).astype(dtype))
    if op == "index":
        return _positions(nest, attribute).astype(dtype)
    if op == "cast":
        return args[0].astype(dtype)
    if op == "reduce":
        return _reduced(nest, attribute, np.broadcast_to(args[0], nest.shape))
    if op == "nextafter" and dtype in _HALVES:
        return np.nextafter(args[0].astype(dtype), args[1].astype(dtype))
    return (_OPERATIONS.get(op) or getattr(np, op))(*args)


def _reduced(nest: Nest, kind: str, value: np.ndarray) -> np.ndarray:
    axes = nest.reduced
    if kind == "argmax":
        moved = np.moveaxis(value, sorted(axes), range(-len(axes), 0))
        flat = moved.reshape((*moved.shape[: value.ndim - len(axes)], -1))
        result = np.expand_dims(np.argmax(flat, axis=-1), sorted(axes))
    elif kind == "sum" and value.dtype == np.float32:
        result = np.sum(value, axis=axes, keepdims=True, dtype=np.float64).astype(np.float32)
    else:
        dtype = None if kind in ("max", "min", "any", "all") else value.dtype
        options = {} if dtype is None else {"dtype": dtype}
        result = getattr(np, kind)(value, axis=axes, keepdims=True, **options)
    return np.broadcast_to(result, nest.shape)
