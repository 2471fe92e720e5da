"""The elementwise kind of primitive: how operands meet, and the rules that all of them share.

`elementwise` makes a primitive and its public function from one line of the table in
`elementwise.py`. The shape rule, the batching rule, and the sums that broadcasting asks of
derivatives are written once, here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from .. import dtypes
from ..core import Aval, Primitive, Tensor, bind, traces
from .creation import asarray, cast, constant
from .meanings import docstring
from .shape import broadcast_shapes, pad_rank, unbroadcast


class Elementwise(Primitive):
    """A primitive that computes each element of its result from one element of each argument, which
    broadcast.

    `scalar(k, *values)` is the expression for one element; `kinds` are the dtypes it takes.
    """

    def __init__(
        self,
        name: str,
        numpy: Callable[..., Any],
        scalar: Any,
        kinds: frozenset[Any],
        result: Any,
        differentiable: bool,
    ):
        super().__init__(name, differentiable=differentiable)
        self.numpy_rule = numpy
        self.scalar = scalar
        self.kinds = kinds
        self.result = result  # the dtype of the result where it is not that of the arguments

    def abstract(self, *avals: Aval, **params: Any) -> Aval:
        dtype = avals[-1].dtype
        for aval in avals[1:] if self.name == "where" else avals:
            if aval.dtype != dtype:
                raise TypeError(
                    f"{self.name}: dtypes {avals[0].dtype} and {dtype} differ; convert one with "
                    "astype"
                )
        if dtype not in self.kinds:
            raise TypeError(f"{self.name}: does not take dtype {dtype}")
        shape = broadcast_shapes(self.name, *[a.shape for a in avals])
        return Aval(shape, self.result or dtype)


ANY, BOOLEAN, INTEGER, FLOAT = dtypes.ALL, frozenset({dtypes.bool_}), dtypes.INTEGERS, dtypes.FLOATS
NUMERIC, BITS = INTEGER | FLOAT, INTEGER | BOOLEAN
SIGNED = dtypes.SIGNED | FLOAT

Line = Callable[..., Any]
_SCALARS = (bool, int, float)  # isinstance is faster with a tuple than with a union


def elementwise(
    name: str,
    numpy: Callable[..., Any],
    *,
    scalar: Callable[..., Any],
    vjp: Line | None = None,
    kinds: frozenset[Any] = NUMERIC,
    result: Any = None,
    doc: str = "",
) -> Any:
    """A new elementwise operation: the public function, whose `prim` is the primitive.

    Args:
        vjp: (ans, *args) -> the pull of each argument (bare for one argument); None: no derivative.
        kinds: the dtypes it takes. An operation of floats alone converts integers to the default
            float first, one that takes integers converts booleans to the default integer.
        result: the dtype of the result where it is not that of the arguments.
    """
    prim = Elementwise(name, numpy, scalar, kinds, result, vjp is not None)
    arity = scalar.__code__.co_argcount - 1
    if vjp is not None:
        prim.vjp_rule = with_sums(vjp)
    prim.batch_rule = functools.partial(batch_elementwise, prim)

    def unary(x: Any, /) -> Tensor:
        if type(x) is Tensor:  # the usual case, with few calls
            dtype = x.data.dtype
        else:
            x = asarray(x)
            dtype = x.dtype
        if dtype not in kinds:
            x = _convert(name, x, kinds)
        if type(x) is Tensor and traces.floor is None:  # what bind would find
            return x.device.run(prim, (x,), {})
        return bind(prim, x)

    def binary(x1: Any, x2: Any, /) -> Tensor:
        if type(x1) is Tensor and type(x2) is Tensor:  # the usual case, with few calls
            dtype = x1.data.dtype
            alike = dtype is x2.data.dtype
        else:
            alike = isinstance(x1, Tensor) and isinstance(x2, Tensor) and not (x1.weak or x2.weak)
            if alike:
                dtype = x1.dtype
                alike = dtype is x2.dtype
        if not alike:
            x1, x2 = meet(x1, x2, name)
            dtype = x1.dtype
        if dtype not in kinds:
            x1, x2 = _convert(name, x1, kinds), _convert(name, x2, kinds)
        if type(x1) is Tensor and type(x2) is Tensor and traces.floor is None:
            return x1.device.run(prim, (x1, x2), {})
        return bind(prim, x1, x2)

    function: Any = unary if arity == 1 else binary
    function.__name__ = function.__qualname__ = name
    function.__doc__ = docstring(name, doc, arity, kinds, result)
    function.__module__ = scalar.__module__  # where pickle finds it
    function.prim = prim
    return function


def _convert(name: str, x: Tensor, kinds: frozenset[Any]) -> Tensor:
    if kinds == FLOAT and x.dtype in INTEGER | BOOLEAN:
        return cast(x, dtypes.default_float)
    if kinds == BOOLEAN:
        raise TypeError(f"{name}: takes booleans, got {x.dtype}; compare with != 0 first")
    if x.dtype == dtypes.bool_ and dtypes.default_int in kinds:
        return cast(x, dtypes.default_int)
    raise TypeError(f"{name}: does not take dtype {x.dtype}")


def meet(x: Any, y: Any, op: str = "operator") -> tuple[Tensor, Tensor]:
    """Two operands at their common dtype; a Python scalar takes that of the other operand."""
    if isinstance(x, Tensor):
        if isinstance(y, Tensor):
            if x.weak and y.weak:
                x, y = asarray(x), asarray(y)
            if x.dtype == y.dtype:
                return x, y
            dtype = dtypes.result_type(x, y)
            return cast(x, dtype), cast(y, dtype)
        if isinstance(y, _SCALARS):
            if x.weak:
                x = asarray(x)
            own = x.dtype
            number = constant(y, own, x.device, op)
            return x if number.dtype is own else cast(x, number.dtype), number
    elif isinstance(y, Tensor) and isinstance(x, _SCALARS):
        if y.weak:
            y = asarray(y)
        number = constant(x, y.dtype, y.device, op)
        return number, cast(y, number.dtype)
    return meet(asarray(x), asarray(y), op)


# ---- the rules that all of them share ------------------------------------------------------------


def with_sums(vjp: Line) -> Line:
    """The derivative rule of a line, with the sums that broadcasting asks for."""

    def rule(ans: Tensor, *args: Tensor) -> Any:
        pulls = vjp(ans, *args)
        if type(pulls) is not tuple:
            return pulls  # of one argument, whose shape is that of the answer
        shape = ans.shape
        for arg in args:
            if arg.shape != shape:
                break
        else:
            return pulls
        return tuple(
            pull if pull is None or arg.shape == shape else _summed(pull, arg.shape)
            for pull, arg in zip(pulls, args, strict=True)
        )

    return rule


def _summed(pull: Line, shape: tuple[int, ...]) -> Line:
    def summed(g: Tensor) -> Tensor | None:
        cotangent = pull(g)
        return None if cotangent is None else unbroadcast(cotangent, shape)

    return summed


def batch_elementwise(prim: Primitive, args: list[Tensor], batched: list[bool]) -> Tensor:
    """The batching rule: the examples' own axes line up from the right, behind the batch."""
    ndim = max(x.ndim - b for x, b in zip(args, batched, strict=True))
    return bind(prim, *[pad_rank(x, ndim) if b else x for x, b in zip(args, batched, strict=True)])
