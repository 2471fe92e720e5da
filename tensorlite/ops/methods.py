"""The operators and methods of `Tensor`, attached to the class that `core` leaves bare."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .. import dtypes
from ..core import Tensor
from ..dtypes import float64
from . import elementwise as e
from . import index, linalg, reduce, shape
from .creation import asarray

_SCALARS = (bool, int, float)
_OPERANDS = (Tensor, *_SCALARS, np.ndarray, np.generic)  # the likeliest first


def _accepts(other: Any) -> bool:
    return isinstance(other, _OPERANDS)


def _operator(function: Callable[..., Tensor]) -> tuple[Any, Any]:
    """The method of an operator and its reflected form, which leave unknown operands to the other
    side.

    What Python scalars that jit traces make among themselves is such a scalar again, as it is when
    nothing traces.
    """

    def forward(self: Tensor, other: Any) -> Any:
        if not _accepts(other):
            return NotImplemented
        if self.weak and _is_weak(other):
            return _among_scalars(function, self, other)
        return function(self, other)

    def reflected(self: Tensor, other: Any) -> Any:
        if not _accepts(other):
            return NotImplemented
        if self.weak and _is_weak(other):
            return _among_scalars(function, other, self)
        return function(other, self)

    return forward, reflected


def _is_weak(other: Any) -> bool:
    return other.weak if isinstance(other, Tensor) else isinstance(other, _SCALARS)


def _among_scalars(function: Callable[..., Tensor], *scalars: Any) -> Tensor:
    """`function` of scalars, at least one of them traced, with the precision that Python has."""
    wide = [
        x.as_weak(False)  # type: ignore[attr-defined]
        if isinstance(x, Tensor)
        else asarray(x, dtype=float64 if isinstance(x, float) else None)
        for x in scalars
    ]
    result: Any = function(*wide)
    return result.as_weak(True)


def _unary_operator(function: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: _among_scalars(function, x) if x.weak else function(x)


_BINARY: dict[str, Callable[..., Tensor]] = {
    "add": e.add,
    "sub": e.subtract,
    "mul": e.multiply,
    "truediv": e.divide,
    "floordiv": e.floor_divide,
    "mod": e.remainder,
    "pow": e.pow,
    "matmul": linalg.matmul,
    "and": e.bitwise_and,
    "or": e.bitwise_or,
    "xor": e.bitwise_xor,
    "lshift": e.bitwise_left_shift,
    "rshift": e.bitwise_right_shift,
}
_COMPARE: dict[str, Callable[..., Tensor]] = {
    "eq": e.equal,
    "ne": e.not_equal,
    "lt": e.less,
    "le": e.less_equal,
    "gt": e.greater,
    "ge": e.greater_equal,
}


def astype(self: Tensor, dtype: Any, /, *, copy: bool = True) -> Tensor:
    """This tensor as another dtype."""
    return asarray(self, dtype=dtype)


def reshape(self: Tensor, *sizes: Any) -> Tensor:
    """This tensor with another shape, given as a tuple or as several ints."""
    return shape.reshape(self, sizes[0] if len(sizes) == 1 else sizes)


def _iterate(self: Tensor) -> Iterator[Tensor]:
    if not self.shape:
        raise TypeError("iteration over a 0-d tensor")
    return (self[i] for i in range(self.shape[0]))


def _permute_all(self: Tensor) -> Tensor:
    if self.ndim != 2:
        raise ValueError(
            f"x.T: needs two dimensions, got shape {self.shape}; use x.mT or permute_dims"
        )
    return shape.matrix_transpose(self)


def _square(x: Tensor, exponent: Any) -> Tensor:
    """`x ** exponent`, with the squares and roots that models are full of by their cheaper
    names."""
    if isinstance(exponent, int | float) and not isinstance(exponent, bool):
        if exponent == 2 and (isinstance(exponent, int) or dtypes.is_float(x.dtype)):
            return e.square(x)
        if exponent == 0.5:
            return e.sqrt(x)
    return e.pow(x, exponent)


def _rebuild(array: np.ndarray) -> Tensor:
    return asarray(array, copy=False)


def _reduce_for_pickle(self: Tensor) -> Any:
    """Pickles travel as NumPy arrays: a tensor is rebuilt on the default device of the process that
    loads it."""
    return _rebuild, (self.concrete("pickling").numpy(),)


def attach() -> None:
    """Give `Tensor` its operators and methods."""
    cls: Any = Tensor
    for name, function in _BINARY.items():
        forward, reflected = _operator(_square if name == "pow" else function)
        setattr(cls, f"__{name}__", forward)
        setattr(cls, f"__r{name}__", _operator(function)[1] if name == "pow" else reflected)
    for name, function in _COMPARE.items():
        setattr(cls, f"__{name}__", _operator(function)[0])
    cls.__neg__ = _unary_operator(e.negative)
    cls.__abs__ = _unary_operator(e.abs)
    cls.__pos__ = lambda x: x
    cls.__invert__ = lambda x: e.bitwise_invert(x)
    cls.__getitem__ = index.getitem
    cls.__iter__ = _iterate
    cls.__reduce__ = _reduce_for_pickle
    cls.__copy__ = lambda x: x
    cls.__deepcopy__ = lambda x, memo: x
    cls.at = property(
        index.At, doc="`x.at[index].set(v)`, `.add`, `.multiply`, `.min`, `.max`: updated copies."
    )
    cls.T = property(_permute_all, doc="The transpose of a matrix.")
    cls.mT = property(shape.matrix_transpose, doc="The last two axes exchanged.")
    cls.astype, cls.reshape = astype, reshape
    for function in (
        reduce.sum,
        reduce.mean,
        reduce.prod,
        reduce.max,
        reduce.min,
        reduce.var,
        reduce.std,
        reduce.argmax,
        reduce.argmin,
        reduce.all,
        reduce.any,
        shape.squeeze,
    ):
        setattr(cls, function.__name__, _positional_axis(function))


def _positional_axis(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A reduction as a method: `x.sum(0)` and `x.sum(axis=0)`."""

    def method(self: Tensor, axis: Any = None, **options: Any) -> Tensor:
        return function(self, axis=axis, **options)

    method.__name__, method.__doc__ = function.__name__, function.__doc__
    return method


attach()
