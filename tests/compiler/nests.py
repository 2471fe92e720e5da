"""What a nest means, in NumPy: the reference that renderers and the fusion pass are tested against.

Values are arrays that broadcast to the shape of the nest. As in a renderer, float16 and bfloat16
are dtypes of storage: a value of theirs is held in float32, and rounded where it is stored or cast.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tensorlite import dtypes
from tensorlite.compiler.fuse import nest_p
from tensorlite.compiler.loops import BOOL, OPERATIONS, Instruction, Nest, Operand
from tensorlite.graph import Graph, Var
from tensorlite.ops import special

Array = np.ndarray


def evaluate(nest: Nest, inputs: Sequence[Array], shapes: Sequence[tuple[int, ...]]) -> list[Array]:
    """New arrays of `shapes` with what the nest writes to them."""
    outputs = [
        np.zeros(shape, output.operand.dtype)
        for shape, output in zip(shapes, nest.outputs, strict=True)
    ]
    run(nest, inputs, outputs)
    return outputs


def run_graph(graph: Graph, *args: Any) -> list[Array]:
    """The outputs of a graph whose equations may be nests; everything else runs by its NumPy
    rule."""
    values: dict[Any, Array] = {}

    def read(atom: Any) -> Array:
        return values[atom] if isinstance(atom, Var) else atom.numpy()

    for var, x in zip(graph.inputs, args, strict=True):
        values[var] = np.ascontiguousarray(np.asarray(x)).reshape(np.shape(x))
    for eqn in graph.equations:
        arrays = list(map(read, eqn.inputs))
        avals = [v.aval for v in eqn.outputs]
        if eqn.prim is nest_p:
            result: Any = evaluate(eqn.params["nest"], arrays, [a.shape for a in avals])
            assert eqn.params["avals"] == tuple(avals)
        else:
            with np.errstate(all="ignore"):
                result = eqn.prim.numpy_rule(*arrays, **eqn.params)
        results = result if isinstance(result, tuple | list) else (result,)
        for var, x in zip(eqn.outputs, results, strict=True):
            assert x.shape == var.aval.shape and x.dtype == var.aval.dtype, eqn.prim
            values[var] = np.ascontiguousarray(x).reshape(x.shape)
    return [read(atom) for atom in graph.outputs]


def run(nest: Nest, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
    """Run the nest on C-contiguous arrays; it writes to `outputs`, each element at most once.

    Raises:
        ValueError: an array is not what the nest takes, or the nest is not well-formed.
    """
    check(nest)
    sources = [_flat(x, operand) for x, operand in zip(inputs, nest.inputs, strict=True)]
    targets = [_flat(x, out.operand) for x, out in zip(outputs, nest.outputs, strict=True)]
    values: list[Array] = []
    with np.errstate(all="ignore"):
        for instruction in nest.body:
            args = [values[a] for a in instruction.args]
            values.append(_result(nest, instruction, args, sources))
    for output, target in zip(nest.outputs, targets, strict=True):
        _store(nest, output.operand, values[output.value], target)


def check(nest: Nest) -> None:
    """Raise ValueError unless the nest is well-formed: positions, dtypes and strides fit."""
    for i, (op, args, dtype, attribute) in enumerate(nest.body):
        where = f"instruction {i} ({op}) of {nest.name}"
        if any(not 0 <= a < i for a in args):
            raise ValueError(f"{where}: arguments {args} are not earlier ones")
        if op in ("load", "gather"):
            operand = nest.inputs[attribute if op == "load" else attribute[0]]
            if operand.dtype != dtype:
                raise ValueError(f"{where}: {dtype} from a buffer of {operand.dtype}")
        if op == "gather" and len(args) != len(attribute[1]):
            raise ValueError(f"{where}: {len(args)} indices with strides {attribute[1]}")
        if op in OPERATIONS:
            kinds = {nest.body[a].dtype for a in (args[1:] if op == "where" else args)}
            expected = dtypes.bool_ if OPERATIONS[op] == BOOL else nest.body[args[-1]].dtype
            if len(kinds) != 1 or dtype != expected:
                raise ValueError(f"{where}: {dtype} from {sorted(map(str, kinds))}")
            if op == "where" and nest.body[args[0]].dtype != dtypes.bool_:
                raise ValueError(f"{where}: the condition is {nest.body[args[0]].dtype}")
    kept = nest.kept()
    for operand in (*nest.inputs, *[o.operand for o in nest.outputs]):
        if len(operand.strides) != len(nest.shape):
            raise ValueError(f"{nest.name}: {operand} in a nest over {nest.shape}")
    for output in nest.outputs:
        if output.operand.dtype != nest.body[output.value].dtype:
            raise ValueError(f"{nest.name}: {output} of {nest.body[output.value].dtype}")
        # Each point writes an element of its own; of a kept value, each kept point does.
        folded = nest.reduced if kept[output.value] else ()
        for axis, (n, stride) in enumerate(zip(nest.shape, output.operand.strides, strict=True)):
            if n > 1 and bool(stride) == (axis in folded):
                raise ValueError(f"{nest.name}: {output} has stride {stride} along axis {axis}")


# ---- instructions --------------------------------------------------------------------------------


def _result(
    nest: Nest, instruction: Instruction, args: list[Array], sources: Sequence[Array]
) -> Array:
    op, _, dtype, attribute = instruction
    if op == "load":
        return _load(nest, nest.inputs[attribute], sources[attribute], args)
    if op == "gather":
        number, strides = attribute
        address = _addresses(nest, nest.inputs[number])
        for index, stride in zip(args, strides, strict=True):
            address = address + index.astype(np.int64) * stride
        if address.size and not 0 <= address.min() <= address.max() < sources[number].size:
            raise ValueError(f"{nest.name}: a gather leaves its buffer of {sources[number].size}")
        return _wide(sources[number][address])
    if op == "constant":
        return _wide(np.full((1,) * len(nest.shape), attribute, dtype))
    if op == "index":
        along = [-1 if axis == attribute else 1 for axis in range(len(nest.shape))]
        return np.arange(nest.shape[attribute], dtype=np.int64).reshape(along)
    if op == "cast":
        return _wide(args[0].astype(dtype))
    if op == "reduce":
        return _reduce(nest, attribute, args[0], dtype)
    if op == "nextafter":
        return _wide(np.nextafter(*[a.astype(dtype) for a in args]))
    return np.asarray(_FUNCTIONS[op](*args))


def _load(nest: Nest, operand: Operand, source: Array, args: list[Array]) -> Array:
    address = _addresses(nest, operand)
    if not args:
        return _wide(source[address])
    # A guarded load does not touch what lies behind a false guard.
    address, guard = np.broadcast_arrays(address, args[0])
    if guard.any() and not 0 <= address[guard].min() <= address[guard].max() < source.size:
        raise ValueError(f"{nest.name}: a guarded load leaves its buffer of {source.size}")
    return _wide(np.where(guard, source[np.where(guard, address, 0)], source.dtype.type(0)))


def _reduce(nest: Nest, how: str, x: Array, dtype: np.dtype[Any]) -> Array:
    axes = nest.reduced
    whole = np.broadcast_to(x, [n if a in axes else x.shape[a] for a, n in enumerate(nest.shape)])
    if how == "argmax":
        kept = [a for a in range(whole.ndim) if a not in axes]
        rows = whole.transpose(*kept, *axes).reshape(*[whole.shape[a] for a in kept], -1)
        return np.expand_dims(np.argmax(rows, axis=-1), tuple(sorted(axes)))
    if how == "sum" and whole.dtype == dtypes.float32:  # as close as it gets
        total = np.sum(whole, axis=tuple(axes), keepdims=True, dtype=np.float64)
        return total.astype(np.float32)
    function: Any = {
        "sum": np.sum,
        "prod": np.prod,
        "max": np.max,
        "min": np.min,
        "any": np.any,
        "all": np.all,
    }[how]
    options = {"dtype": whole.dtype} if how in ("sum", "prod") else {}
    return function(whole, axis=tuple(axes), keepdims=True, **options)


def _wide(x: Array) -> Array:
    return x.astype(np.float32) if x.dtype in (dtypes.float16, dtypes.bfloat16) else x


_FUNCTIONS: dict[str, Callable[..., Array]] = {
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
    "abs": np.abs,
    "sign": np.sign,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "floor_divide": special.floor_divide,
    "remainder": special.remainder,
    "pow": special.power,
    "copysign": np.copysign,
    "exp": np.exp,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "log2": np.log2,
    "log10": np.log10,
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "atan2": np.arctan2,
    "hypot": np.hypot,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "tanh": np.tanh,
    "asinh": np.arcsinh,
    "acosh": np.arccosh,
    "atanh": np.arctanh,
    "erf": special.erf,
    "erfinv": special.erfinv,
    "floor": special.keep_integers(np.floor),
    "ceil": special.keep_integers(np.ceil),
    "trunc": special.keep_integers(np.trunc),
    "round": special.keep_integers(np.rint),
    "where": np.where,
    "equal": np.equal,
    "not_equal": np.not_equal,
    "less": np.less,
    "less_equal": np.less_equal,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "isnan": np.isnan,
    "isinf": np.isinf,
    "isfinite": np.isfinite,
    "signbit": np.signbit,
    "logical_not": np.logical_not,
}


# ---- buffers -------------------------------------------------------------------------------------


def _flat(x: Array, operand: Operand) -> Array:
    if x.dtype != operand.dtype or not x.flags.c_contiguous:
        raise ValueError(f"a contiguous buffer of {operand.dtype}, got {x.dtype}, {x.strides}")
    return x.reshape(-1)


def _addresses(nest: Nest, operand: Operand) -> Array:
    """Where the element of each point lies; size 1 along axes that it does not depend on."""
    ndim = len(nest.shape)
    total = np.full((1,) * ndim, operand.offset, np.int64)
    for axis, (n, stride) in enumerate(zip(nest.shape, operand.strides, strict=True)):
        if stride or not n:
            along = [-1 if a == axis else 1 for a in range(ndim)]
            total = total + np.arange(n, dtype=np.int64).reshape(along) * stride
    return total


def _store(nest: Nest, operand: Operand, value: Array, target: Array) -> None:
    if 0 in [n for n, stride in zip(nest.shape, operand.strides, strict=True) if stride]:
        return
    address = _addresses(nest, operand)
    if not address.size:
        return
    if not 0 <= address.min() <= address.max() < target.size:
        raise ValueError(f"{nest.name}: {operand} leaves its buffer of {target.size} elements")
    here = [n if stride else 1 for n, stride in zip(nest.shape, operand.strides, strict=True)]
    if any(size not in (1, n) for size, n in zip(value.shape, here, strict=True)):
        value = value[tuple(slice(0, n) for n in here)]  # axes of no size: kept values have one
    target[np.broadcast_to(address, here)] = np.broadcast_to(value, here).astype(operand.dtype)
