"""Simplification: a graph that computes the same with fewer equations.

Equations of small constants are computed now, equal ones are merged, chains of views and casts
become one, and what changes nothing is left out. Nothing is rewritten that would change a result,
the sign of a zero included (but the sum of a single -0.0 is -0.0 here). Results of an
`optimization_barrier` are values of their own, so that the second run of a checkpoint is not merged
with the first.

A product with a transposed matrix becomes an equation of `matmul_t`, with the parameters
`transpose_a` and `transpose_b`: which of the operands has its last two axes exchanged.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import dtypes
from ..checkpoint_policies import name_p
from ..core import Aval, Primitive, Tensor, exactly
from ..graph import Atom, Equation, Graph, Var
from ..ops import elementwise as e
from ..ops.control import barrier_p, stop_gradient_p
from ..ops.creation import cast_p, full_p, transfer_p
from ..ops.linalg import matmul_p
from ..ops.reduce import max_p, min_p
from ..ops.shape import broadcast_p, concat_p, permute_p, reshape_p, sum_p
from .unregistered import Unregistered

FOLDED = 1 << 12  # bytes up to which constants are computed while compiling
COMPARED = 1 << 18  # bytes up to which constants are told apart by their values

transposed_matmul_p = Unregistered("matmul_t")


@transposed_matmul_p.shape
def _(x: Aval, y: Aval, *, transpose_a: bool, transpose_b: bool) -> Aval:
    assert matmul_p.shape_rule is not None
    return matmul_p.shape_rule(_swapped(x) if transpose_a else x, _swapped(y) if transpose_b else y)


@transposed_matmul_p.numpy
def _(x: np.ndarray, y: np.ndarray, *, transpose_a: bool, transpose_b: bool) -> np.ndarray:
    assert matmul_p.numpy_rule is not None
    return matmul_p.numpy_rule(
        np.swapaxes(x, -1, -2) if transpose_a else x, np.swapaxes(y, -1, -2) if transpose_b else y
    )


def _swapped(x: Aval) -> Aval:
    return Aval((*x.shape[:-2], x.shape[-1], x.shape[-2]), x.dtype)


def simplify(graph: Graph) -> Graph:
    """`graph` with the same inputs and results, and fewer equations. Equations without results that
    are needed are left out."""
    return _Simplified(graph).result()


Parts = tuple[Primitive, tuple[Atom, ...], dict[str, Any]]


class _Simplified:
    def __init__(self, graph: Graph):
        self._graph = graph
        self._names: dict[Var, Atom] = {}
        self._equations: list[Equation] = []
        self._made_by: dict[Var, Equation] = {}
        self._known: dict[Any, tuple[Atom, ...]] = {}

    def result(self) -> Graph:
        graph = self._graph
        for eqn in graph.equations:
            if len(eqn.outputs) > 1 or eqn.prim in (barrier_p, transfer_p):
                inputs = tuple(map(self.read, eqn.inputs))
                results = self._unique(eqn, eqn.prim, inputs, eqn.params)
            else:
                inputs = tuple(map(self.read, eqn.inputs))
                results = (self._single(eqn, (eqn.prim, inputs, eqn.params)),)
            self._names.update(zip(eqn.outputs, results, strict=True))
        outputs = [self.read(atom) for atom in graph.outputs]
        return Graph(graph.inputs, self._equations, outputs, graph.name)

    def read(self, atom: Atom) -> Atom:
        return self._names.get(atom, atom) if isinstance(atom, Var) else atom

    def maker(self, atom: Atom, *prims: Primitive) -> Equation | None:
        """The equation that makes `atom`, if it is of one of these primitives."""
        eqn = self._made_by.get(atom) if isinstance(atom, Var) else None
        return eqn if eqn is not None and eqn.prim in prims else None

    def _single(self, eqn: Equation, parts: Parts) -> Atom:
        """An equation with one result."""
        while True:
            rule = _RULES.get(parts[0])
            found = rule(self, *parts[1:]) if rule is not None else None
            if found is None:
                break
            if not isinstance(found, tuple):
                return found
            parts = found
        prim, inputs, params = parts
        constant = _folded(prim, inputs, params, eqn.outputs[0].aval)
        if constant is not None:
            return constant
        return self._unique(eqn, prim, inputs, params)[0]

    def made(self, prim: Primitive, inputs: tuple[Atom, ...], params: dict[str, Any]) -> Atom:
        """The result of a new equation, simplified."""
        aval: Any = prim.abstract(*[a.aval for a in inputs], **params)
        return self._single(Equation(prim, inputs, params, (Var(aval),)), (prim, inputs, params))

    def _unique(
        self, eqn: Equation, prim: Primitive, inputs: tuple[Atom, ...], params: dict[str, Any]
    ) -> tuple[Atom, ...]:
        """The results of this equation, or of an equal one that came before."""
        values = tuple(sorted((name, exactly(value)) for name, value in params.items()))
        key: Any = None if prim is barrier_p else (prim, tuple(map(_identity, inputs)), values)
        if key in self._known:
            return self._known[key]
        new = Equation(prim, inputs, params, eqn.outputs, eqn.source)
        self._equations.append(new)
        self._made_by.update(dict.fromkeys(eqn.outputs, new))
        if key is not None:
            self._known[key] = eqn.outputs
        return eqn.outputs


def _identity(atom: Atom) -> Any:
    """Equal for atoms with equal values, as far as that is cheap to tell."""
    if isinstance(atom, Var):
        return atom
    if atom.size * atom.dtype.itemsize > COMPARED:
        return id(atom)
    return atom.shape, atom.dtype, atom.numpy().tobytes()


def _folded(
    prim: Primitive, inputs: tuple[Atom, ...], params: dict[str, Any], aval: Aval
) -> Tensor | None:
    """The value of an equation of constants, if it is small."""
    constants = [a for a in inputs if isinstance(a, Tensor)]
    if prim.numpy_rule is None or len(constants) < len(inputs):
        return None
    size = max([aval.size, *[a.size for a in constants]])
    if size * aval.dtype.itemsize > FOLDED or (not inputs and size > 1):
        return None  # what is made from nothing costs nothing where it is read
    device = constants[0].device if constants else params["device"]
    arrays = [a.numpy() for a in constants]
    try:
        with np.errstate(all="ignore"):
            value = np.asarray(prim.numpy_rule(*arrays, **params), aval.dtype)
    except IndexError:
        return None  # which whoever runs the graph is told
    return Tensor(device.from_numpy(np.ascontiguousarray(value).reshape(aval.shape)), device)


# ---- rules ---------------------------------------------------------------------------------------
# Each takes the pass, the inputs and the parameters of an equation, and gives an atom with its
# value, another equation for it as (primitive, inputs, parameters), or None.

_RULES: dict[Primitive, Callable[..., Any]] = {}


def _rule(*prims: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(rule: Callable[..., Any]) -> Callable[..., Any]:
        for prim in prims:
            _RULES[prim if isinstance(prim, Primitive) else prim.prim] = rule
        return rule

    return register


@_rule(stop_gradient_p, name_p)
def _(self: _Simplified, inputs: Any, params: Any) -> Any:
    return inputs[0]


@_rule(reshape_p)
def _(self: _Simplified, inputs: Any, params: Any) -> Any:
    x, shape = inputs[0], params["shape"]
    if x.aval.shape == shape:
        return x
    inner = self.maker(x, reshape_p, full_p)
    if inner is None:
        return None
    if inner.prim is full_p:
        return full_p, (), {**inner.params, "shape": shape}
    return reshape_p, inner.inputs, params


@_rule(permute_p)
def _(self: _Simplified, inputs: Any, params: Any) -> Any:
    x, axes = inputs[0], params["axes"]
    shape = tuple(x.aval.shape[a] for a in axes)
    moved = [a for a in axes if x.aval.shape[a] != 1]
    if moved == sorted(moved):
        return reshape_p, (x,), {"shape": shape}
    inner = self.maker(x, permute_p, full_p)
    if inner is None:
        return None
    if inner.prim is full_p:
        return full_p, (), {**inner.params, "shape": shape}
    return permute_p, inner.inputs, {"axes": tuple(inner.params["axes"][a] for a in axes)}


@_rule(broadcast_p)
def _(self: _Simplified, inputs: Any, params: Any) -> Any:
    x, shape = inputs[0], params["shape"]
    if math.prod(shape) == x.aval.size:
        return reshape_p, (x,), params
    inner = self.maker(x, broadcast_p, full_p)
    if inner is None:
        return None
    if inner.prim is full_p:
        return full_p, (), {**inner.params, "shape": shape}
    return broadcast_p, inner.inputs, params


@_rule(concat_p)
def _(self: _Simplified, inputs: Any, params: Any) -> Any:
    axis = params["axis"]
    parts = tuple(x for x in inputs if x.aval.shape[axis])
    if len(parts) == 1:
        return parts[0]
    return (concat_p, parts, params) if 0 < len(parts) < len(inputs) else None


@_rule(sum_p, max_p, min_p)
def _(self: _Simplified, inputs: Any, params: Any) -> Any:
    shape = inputs[0].aval.shape
    if all(shape[a] == 1 for a in params["axes"]):
        kept = tuple(n for a, n in enumerate(shape) if a not in params["axes"])
        return reshape_p, inputs, {"shape": kept}
    return None


@_rule(cast_p)
def _(self: _Simplified, inputs: Any, params: Any) -> Any:
    x, dtype = inputs[0], params["dtype"]
    if x.aval.dtype == dtype:
        return x
    inner = self.maker(x, cast_p)
    if inner is None:
        return None
    source = inner.inputs[0]
    return (cast_p, (source,), params) if _holds(x.aval.dtype, source.aval.dtype) else None


def _holds(wide: np.dtype[Any], narrow: np.dtype[Any]) -> bool:
    """Whether every value of `narrow` is one of `wide`, so that casting there and on is one
    cast."""
    if dtypes.is_float(narrow):
        return dtypes.is_float(wide) and wide.itemsize > narrow.itemsize
    return not dtypes.is_float(wide) and bool(np.can_cast(narrow, wide, "safe"))


@_rule(matmul_p)
def _(self: _Simplified, inputs: Any, params: Any) -> Any:
    straight = [_straightened(self, x) for x in inputs]
    if not any(turned for _, turned in straight):
        return None
    flags = {"transpose_a": straight[0][1], "transpose_b": straight[1][1]}
    return transposed_matmul_p, tuple(x for x, _ in straight), flags


def _straightened(self: _Simplified, x: Atom) -> tuple[Atom, bool]:
    """An operand of a product with its last two axes in the order in which they lie in memory, and
    whether they were exchanged for that."""
    inner = self.maker(x, permute_p)
    if inner is None or inner.params["axes"][-2] < inner.params["axes"][-1]:
        return x, False
    *rest, row, column = inner.params["axes"]
    return self.made(permute_p, inner.inputs, {"axes": (*rest, column, row)}), True


# ---- arithmetic ----------------------------------------------------------------------------------


def _number(atom: Atom) -> Any:
    """The value of a constant of one element; None for anything else."""
    return atom.numpy().reshape(())[()] if isinstance(atom, Tensor) and atom.size == 1 else None


def _if_alone(x: Atom, other: Atom) -> Atom | None:
    """`x`, if it has the shape of a result of `x` and `other`."""
    grows = len(other.aval.shape) > len(x.aval.shape)
    return None if grows else x


@_rule(e.add)
def _(self: _Simplified, inputs: Any, params: Any) -> Any:
    for x, y in (inputs, inputs[::-1]):
        zero = _number(y)
        # x + 0.0 is not x where x is -0.0, but x + -0.0 is.
        if zero is not None and zero == 0 and (zero.dtype.kind in "iub" or np.signbit(float(zero))):
            return _if_alone(x, y)
        negated = self.maker(y, e.negative.prim)
        if negated is not None:
            return e.subtract.prim, (x, negated.inputs[0]), {}
    return None


@_rule(e.subtract)
def _(self: _Simplified, inputs: Any, params: Any) -> Any:
    x, y = inputs
    zero = _number(y)
    if zero is not None and zero == 0 and (zero.dtype.kind in "iu" or not np.signbit(float(zero))):
        return _if_alone(x, y)
    negated = self.maker(y, e.negative.prim)
    return None if negated is None else (e.add.prim, (x, negated.inputs[0]), {})


@_rule(e.multiply)
def _(self: _Simplified, inputs: Any, params: Any) -> Any:
    for x, y in (inputs, inputs[::-1]):
        factor = _number(y)
        if factor is None or _if_alone(x, y) is None or x.aval.dtype == dtypes.bool_:
            continue
        if factor == 1:
            return x
        if factor == -1 and x.aval.dtype not in dtypes.UNSIGNED:
            return e.negative.prim, (x,), {}
    return None


@_rule(e.divide)
def _(self: _Simplified, inputs: Any, params: Any) -> Any:
    x, y = inputs
    divisor = _number(y)
    if divisor is None or _if_alone(x, y) is None:
        return None
    if divisor == 1:
        return x
    fraction, exponent = math.frexp(float(divisor))
    if abs(fraction) == 0.5 and -13 < exponent < 13:  # a power of two: its inverse is exact
        inverse = np.asarray(1 / float(divisor), x.aval.dtype).reshape(y.shape)
        return e.multiply.prim, (x, Tensor(y.device.from_numpy(inverse), y.device)), {}
    return None


@_rule(e.pow)
def _(self: _Simplified, inputs: Any, params: Any) -> Any:
    x, y = inputs
    exponent = _number(y)
    if exponent is None or _if_alone(x, y) is None:
        return None
    if exponent == 1:
        return x
    return (e.square.prim, (x,), {}) if exponent == 2 else None


@_rule(e.negative)
def _(self: _Simplified, inputs: Any, params: Any) -> Any:
    inner = self.maker(inputs[0], e.negative.prim)
    return None if inner is None else inner.inputs[0]
