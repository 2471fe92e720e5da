"""The fused loop nest: the one thing that the fusion pass makes and that every renderer prints.

A nest runs over a rectangular space of points. At each point it loads elements of its inputs and
computes scalars from them, instruction by instruction; each instruction names earlier ones by
position. Some axes may be *reduced*: `reduce` folds a value over all of them, and what is computed
from the result alone exists once for each point of the *kept* axes. A later instruction may mix
such a value with those of single points, which is how softmax and layer norm are one nest: the
renderer runs over the reduced axes as often as reductions depend on each other.

Nothing here knows a device. The CPU backend renders nests as LLVM IR, OpenCL as kernels. The
arithmetic of an operation comes from its scalar expression in `ops/`, which `Scalars` records.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .. import dtypes
from ..core import exactly


class Operand(NamedTuple):
    """A buffer that a nest reads or writes: the element of a point is at
    `offset + sum(strides * point)`, counted in elements."""

    dtype: np.dtype[Any]
    strides: tuple[int, ...]  # one for each axis of the nest; 0 repeats an element along an axis
    offset: int = 0


class Instruction(NamedTuple):
    """One scalar. `args` are positions of earlier instructions.

    Besides the scalar operations (`OPERATIONS`) there are

    - `load`, attribute: which input. The element of this point. With an argument, a bool, it is a
      guarded load: where that is false, nothing is read (the address may be outside of the buffer)
      and the value is 0;
    - `gather`, attribute (which input, strides): the element `sum(strides * args)` further on; args
      are integers. Whoever makes the nest sees to it that the address is within the buffer;
    - `constant`, attribute: a Python scalar;
    - `index`, attribute: an axis. The position along it, int64;
    - `cast`: the value as `dtype`, as NumPy's astype does it;
    - `reduce`, attribute: "sum", "prod", "max", "min", "any", "all" or "argmax". Over the reduced
      axes, in row-major order of these: `max` and `min` are NaN if an element is; `argmax` is the
      int64 number of the first point that has the maximum, a NaN being larger than all numbers.

    float16 and bfloat16 are dtypes of storage: arithmetic on them is done in float32, sums too, and
    rounded where a value is stored or cast.
    """

    op: str
    args: tuple[int, ...]
    dtype: np.dtype[Any]
    attribute: Any = None


class Output(NamedTuple):
    """The value at position `value` goes to `operand`. Of a value that is kept, strides along
    reduced axes are 0 and it is written once."""

    value: int
    operand: Operand


class Nest(NamedTuple):
    """A loop nest over `shape`, all of whose axes `reduced` names are folded. Nests are hashable,
    and equal nests compute alike (see `key`)."""

    shape: tuple[int, ...]
    reduced: tuple[int, ...]
    inputs: tuple[Operand, ...]
    body: tuple[Instruction, ...]
    outputs: tuple[Output, ...]
    name: str = "nest"

    def key(self) -> Any:
        """What distinguishes nests that compute differently: everything but the name, with
        constants told apart exactly."""
        body = tuple((*i[:3], exactly(i.attribute)) for i in self.body)
        return (self.shape, self.reduced, self.inputs, body, self.outputs)

    def kept(self) -> list[bool]:
        """Whether each instruction's value is the same at all points that differ in reduced axes
        only."""
        result: list[bool] = []
        for op, args, _, attribute in self.body:
            if op == "reduce":
                result.append(True)
            elif op == "index":
                result.append(attribute not in self.reduced)
            elif op in ("load", "gather"):
                number = attribute if op == "load" else attribute[0]
                strides = self.inputs[number].strides
                still = all(strides[axis] == 0 for axis in self.reduced)
                result.append(still and all(result[a] for a in args))
            else:
                result.append(all(result[a] for a in args))
        return result

    def __str__(self) -> str:
        lines = [f"{self.name}: over {list(self.shape)}, reducing {list(self.reduced)}"]
        for i, (op, args, dtype, attribute) in enumerate(self.body):
            shown = [f"%{a}" for a in args] + ([] if attribute is None else [repr(attribute)])
            lines.append(f"  %{i}: {dtype.name} = {op} {', '.join(shown)}")
        lines += [f"  out{j} = %{o.value}" for j, o in enumerate(self.outputs)]
        return "\n".join(lines)


# Scalar operations: what a renderer has to know, and the dtype that each gives: that of its last
# argument, or bool. `floor_divide`, `remainder` and `pow` are those of `ops.special`; `round` is to
# even; `max` and `min` give NaN if an argument is NaN; `shift_right` keeps the sign.
SAME, BOOL = "same", "bool"
_SAME = (
    "add subtract multiply divide negative and or xor invert shift_left shift_right max min abs "
    "sign sqrt rsqrt floor_divide remainder pow copysign nextafter exp expm1 log log1p log2 log10 "
    "sin cos tan asin acos atan atan2 hypot sinh cosh tanh asinh acosh atanh erf erfinv floor ceil "
    "trunc round where"
)
_BOOL = (
    "equal not_equal less less_equal greater greater_equal isnan isinf isfinite signbit logical_not"
)
OPERATIONS = {**dict.fromkeys(_SAME.split(), SAME), **dict.fromkeys(_BOOL.split(), BOOL)}


class Recorder:
    """The body of a nest while it is written: equal instructions become one."""

    def __init__(self) -> None:
        self.body: list[Instruction] = []
        self._known: dict[Any, int] = {}

    def emit(
        self, op: str, args: Sequence[Scalar], dtype: np.dtype[Any], attribute: Any = None
    ) -> Scalar:
        """Append an instruction, or find the one that computes the same."""
        instruction = Instruction(op, tuple(a.position for a in args), dtype, attribute)
        key = (*instruction[:3], exactly(attribute))
        position = self._known.get(key)
        if position is None:
            position = self._known[key] = len(self.body)
            self.body.append(instruction)
        return Scalar(self, position, dtype)

    def constant(self, value: Any, dtype: np.dtype[Any]) -> Scalar:
        """A Python scalar as `dtype`, which it is rounded to."""
        wide = np.asarray(value).astype(dtype)
        return self.emit("constant", (), dtype, _python(wide))

    def cast(self, x: Scalar, dtype: np.dtype[Any]) -> Scalar:
        """`x` as `dtype`."""
        return x if x.dtype == dtype else self.emit("cast", (x,), dtype)

    def expression(self, scalar: Callable[..., Any], args: Sequence[Scalar]) -> Scalar:
        """The scalar expression of an elementwise primitive, applied to `args`."""
        result = scalar(Scalars(self), *args)
        if isinstance(result, Scalar):
            return result
        return self.constant(result, args[-1].dtype)


class Scalar:
    """A value of a nest under construction; operators append instructions. A Python scalar takes
    the dtype of the value that it meets."""

    __slots__ = ("dtype", "position", "recorder")
    __hash__ = None  # type: ignore[assignment]

    if TYPE_CHECKING:  # what `_attach` adds below
        __add__: Any
        __radd__: Any
        __sub__: Any
        __rsub__: Any
        __mul__: Any
        __rmul__: Any
        __truediv__: Any
        __rtruediv__: Any
        __and__: Any
        __rand__: Any
        __or__: Any
        __ror__: Any
        __xor__: Any
        __rxor__: Any
        __lshift__: Any
        __rlshift__: Any
        __rshift__: Any
        __rrshift__: Any
        __eq__: Any
        __ne__: Any
        __lt__: Any
        __le__: Any
        __gt__: Any
        __ge__: Any
        __neg__: Any
        __invert__: Any

    def __init__(self, recorder: Recorder, position: int, dtype: np.dtype[Any]):
        self.recorder = recorder
        self.position = position
        self.dtype = dtype


class Scalars:
    """The `k` of scalar expressions: one method for each scalar operation, by the names of C's math
    library where it has them."""

    def __init__(self, recorder: Recorder):
        self._recorder = recorder

    def __getattr__(self, name: str) -> Callable[..., Scalar]:
        op = {"rint": "round"}.get(name, name)
        if op not in OPERATIONS:
            raise AttributeError(f"there is no scalar operation {name!r}")
        return lambda *args: _apply(op, *args)


def _python(value: np.ndarray) -> Any:
    """A 0-d array as a Python scalar; those of ml_dtypes have none of their own."""
    return float(value) if dtypes.is_float(value.dtype) else value.item()


def _apply(op: str, *args: Any) -> Scalar:
    scalars = [a for a in args if isinstance(a, Scalar)]
    recorder = scalars[0].recorder
    # The condition of `where` is a bool of its own; other operands share one dtype.
    dtype = next((a.dtype for a in reversed(args) if isinstance(a, Scalar)), scalars[0].dtype)
    if op == "where" and not any(isinstance(a, Scalar) for a in args[1:]):
        raise TypeError("where: one of the two values must be computed, to give the dtype")
    values = [a if isinstance(a, Scalar) else recorder.constant(a, dtype) for a in args]
    return recorder.emit(op, values, dtypes.bool_ if OPERATIONS[op] == BOOL else dtype)


def _binary(op: str) -> tuple[Callable[..., Scalar], Callable[..., Scalar]]:
    return (lambda x, y: _apply(op, x, y)), (lambda x, y: _apply(op, y, x))


def _attach() -> None:
    cls: Any = Scalar
    for name, op in {
        "add": "add",
        "sub": "subtract",
        "mul": "multiply",
        "truediv": "divide",
        "and": "and",
        "or": "or",
        "xor": "xor",
        "lshift": "shift_left",
        "rshift": "shift_right",
    }.items():
        forward, reflected = _binary(op)
        setattr(cls, f"__{name}__", forward)
        setattr(cls, f"__r{name}__", reflected)
    for name, op in {
        "eq": "equal",
        "ne": "not_equal",
        "lt": "less",
        "le": "less_equal",
        "gt": "greater",
        "ge": "greater_equal",
    }.items():
        setattr(cls, f"__{name}__", _binary(op)[0])
    cls.__neg__ = lambda x: _apply("negative", x)
    cls.__invert__ = lambda x: _apply("invert", x)


_attach()


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides, in elements, of a contiguous buffer of that shape; 0 where an axis has one
    point."""
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    return tuple(0 if n == 1 else s for n, s in zip(shape, strides, strict=True))


def identity(how: str, dtype: np.dtype[Any]) -> Any:
    """What changes nothing when `reduce` folds it in; of argmax, the least value."""
    if how in ("sum", "any"):
        return 0
    if how in ("prod", "all"):
        return 1
    if dtype == dtypes.bool_:
        return how == "min"
    if dtype.kind == "f":
        return float("inf") if how == "min" else -float("inf")
    limits = np.iinfo(dtype)
    return int(limits.max if how == "min" else limits.min)
