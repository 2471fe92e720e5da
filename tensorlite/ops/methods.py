"""The operators and methods of `Tensor`, attached to the class that `core` leaves bare."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .. import dtypes, tree
from ..core import Tensor, TracerError
from ..device import Device
from ..dtypes import float64
from ..names import METHODS, absent_method
from . import elementwise as e
from . import index, linalg, reduce, shape
from .creation import asarray

_DLPACK_CPU = 1
_SCALARS = (bool, int, float)
_OPERANDS = (Tensor, *_SCALARS, np.ndarray, np.generic)  # the likeliest first


def _operator(function: Callable[..., Tensor]) -> tuple[Any, Any]:
    """The method of an operator and its reflected form, which leave unknown operands to the other
    side.

    What Python scalars that jit traces make among themselves is such a scalar again, as it is when
    nothing traces.
    """

    def forward(self: Tensor, other: Any, /) -> Any:
        if not isinstance(other, _OPERANDS):
            return NotImplemented
        if self.weak and _is_weak(other):
            return _among_scalars(function, self, other)
        return function(self, other)

    def reflected(self: Tensor, other: Any, /) -> Any:
        if not isinstance(other, _OPERANDS):
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


def astype(
    x: Tensor, dtype: Any, /, *, copy: bool = True, device: str | Device | None = None
) -> Tensor:
    """`x` as another dtype, on another device if one is given. Tensors are immutable, so nothing is
    copied that has the dtype already, whatever `copy` says."""
    return asarray(x, dtype=dtypes.canonical(dtype), device=device)


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
            return e.pow_half(x)
    return e.pow(x, exponent)


def _rebuild(array: np.ndarray) -> Tensor:
    return asarray(array, copy=False)


def _reduce_for_pickle(self: Tensor) -> Any:
    """Pickles travel as NumPy arrays: a tensor is rebuilt on the default device of the process that
    loads it."""
    return _rebuild, (self.concrete("pickling").numpy(),)


# ---- the Python array API standard ---------------------------------------------------------------


def array_namespace(self: Tensor, /, *, api_version: str | None = None) -> types.ModuleType:
    """The module that holds the functions of the Python array API standard: `tensorlite`.

    Raises:
        ValueError: a version of the standard is asked for that it does not implement.
    """
    known = ("2021.12", "2022.12", "2023.12", "2024.12")
    if api_version is not None and api_version not in known:
        raise ValueError(
            f"__array_namespace__: no version {api_version!r} of the standard; "
            f"there are {', '.join(known)}"
        )
    return sys.modules[__package__.partition(".")[0]]


def to_device(self: Tensor, device: Any, /, *, stream: None = None) -> Tensor:
    """This tensor on another device; devices have no streams."""
    if stream is not None:
        raise ValueError(f"to_device: devices have no streams, got stream={stream!r}")
    return asarray(self, device=device)


def dlpack(
    self: Tensor,
    /,
    *,
    stream: None = None,
    max_version: tuple[int, int] | None = None,
    dl_device: tuple[int, int] | None = None,
    copy: bool | None = None,
) -> Any:
    """A DLPack capsule of this tensor in host memory, which the CPU shares. It is marked read-only
    for consumers that know what that means (DLPack 1.0); others must not write to it.

    Raises:
        BufferError: DLPack has no such dtype (bfloat16), or another device is asked for.
        TracerError: a transform traces the tensor.
    """
    if stream is not None:
        raise ValueError(f"__dlpack__: host memory has no streams, got stream={stream!r}")
    if self.trace is not None:
        raise TracerError(
            f"export by DLPack of {self.aval} that {self.trace} traces would lose what the "
            "transform needs to know; use tensorlite's own functions inside it"
        )
    array = np.asarray(self.device.to_numpy(self.data))
    if max_version is not None and max_version >= (1, 0):
        array = self.numpy()
    elif not array.flags.writeable and copy is not False:
        array = array.copy()  # older versions have no mark for read-only memory
    return array.__dlpack__(max_version=max_version, dl_device=dl_device, copy=copy)


def dlpack_device(self: Tensor, /) -> tuple[int, int]:
    """DLPack's name of the memory that `__dlpack__` gives: the host's."""
    return _DLPACK_CPU, 0


def array_function(self: Tensor, function: Any, kinds: Any, args: Any, kwargs: Any) -> Any:
    """NumPy's functions see tensors as the arrays that `np.asarray` makes of them, and return
    arrays. Tracers raise, as they do there: use the function of tensorlite instead."""
    args, kwargs = tree.map(lambda x: np.asarray(x) if isinstance(x, Tensor) else x, (args, kwargs))
    return function(*args, **kwargs)


def _names(self: Tensor) -> list[str]:
    """What `dir` lists: not the methods of other libraries, which only say what to write."""
    return [name for name in object.__dir__(self) if name not in METHODS]


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
    cls.to_device, cls.__array_namespace__ = to_device, array_namespace
    cls.__dlpack__, cls.__dlpack_device__ = dlpack, dlpack_device
    cls.__array_function__ = array_function
    cls.__dir__ = _names
    for name in METHODS:
        setattr(cls, name, absent_method(name))
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
