"""Matrix products. matmul, permute and sum are closed under differentiation, so every order of
derivative is a matmul."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import dtypes
from ..core import Aval, Primitive, Tensor, bind
from ..precision import operands
from .creation import Shape
from .elementwise import meet
from .shape import (
    broadcast_shapes,
    expand_dims,
    matrix_transpose,
    normalize_axes,
    pad_rank,
    permute_dims,
    reshape,
    squeeze,
    unbroadcast,
)

matmul_p = Primitive("matmul")  # (..., m, k) x (..., k, n), leading axes broadcast


@matmul_p.shape
def _(x: Aval, y: Aval) -> Aval:
    if x.ndim < 2 or y.ndim < 2 or x.shape[-1] != y.shape[-2]:
        raise ValueError(f"matmul: {x} and {y} do not fit: x.shape[-1] must equal y.shape[-2]")
    if x.dtype != y.dtype:
        raise TypeError(f"matmul: dtypes {x.dtype} and {y.dtype} differ")
    if x.dtype == dtypes.bool_:
        raise TypeError("matmul: does not take booleans; convert with astype first")
    batch = broadcast_shapes("matmul", x.shape[:-2], y.shape[:-2])
    return Aval((*batch, x.shape[-2], y.shape[-1]), x.dtype)


@matmul_p.numpy
def _(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    if x.dtype in (dtypes.float16, dtypes.bfloat16):  # accumulate in float32
        return np.matmul(x.astype(np.float32), y.astype(np.float32)).astype(x.dtype)
    if y.ndim == 2 and x.ndim > 2:  # one large product instead of many small ones
        rows = math.prod(x.shape[:-1])
        return np.matmul(x.reshape(rows, x.shape[-1]), y).reshape(*x.shape[:-1], y.shape[-1])
    return np.matmul(x, y)


@matmul_p.vjp
def _(z: Tensor, x: Tensor, y: Tensor) -> Any:
    return (
        lambda g: _sum_of_products(g, matrix_transpose(y), x.shape),
        lambda g: _weight_product(x, g, y.shape),
    )


@matmul_p.batch
def _(args: list[Tensor], batched: list[bool]) -> Tensor:
    ndim = max(x.ndim - b for x, b in zip(args, batched, strict=True))
    return bind(
        matmul_p, *[pad_rank(x, ndim) if b else x for x, b in zip(args, batched, strict=True)]
    )


def _sum_of_products(x: Tensor, y: Tensor, shape: Shape) -> Tensor:
    return unbroadcast(bind(matmul_p, x, y), shape)


def _weight_product(x: Tensor, g: Tensor, shape: Shape) -> Tensor:
    """x^T g summed to `shape`: for a plain weight matrix the batch is folded into the
    contraction."""
    if len(shape) == 2 and x.ndim > 2 and x.shape[:-1] == g.shape[:-1]:
        rows = math.prod(x.shape[:-1])
        x, g = reshape(x, (rows, x.shape[-1])), reshape(g, (rows, g.shape[-1]))
    return _sum_of_products(matrix_transpose(x), g, shape)


def matmul(x1: Tensor, x2: Tensor, /) -> Tensor:
    """The matrix product over the last two axes; leading axes broadcast, a vector is taken as a row
    (x1) or a column (x2).

    Example:
        >>> x, w = tl.ones((5, 2, 3)), tl.ones((3, 4))
        >>> (x @ w).shape
        (5, 2, 4)
    """
    return exact_matmul(*operands(x1, x2))


def exact_matmul(x1: Tensor, x2: Tensor, /) -> Tensor:
    """`matmul` of the operands as they are, whatever `tl.precision` says: for the rules of
    primitives, and for algorithms that small errors would lead astray."""
    x1, x2 = meet(x1, x2, "matmul")
    if x1.dtype == dtypes.bool_:
        raise TypeError("matmul: does not take booleans; convert with astype first")
    if x1.ndim == 0 or x2.ndim == 0:
        raise ValueError(f"matmul: does not take scalars, got {x1.aval} and {x2.aval}; use *")
    row, column = x1.ndim == 1, x2.ndim == 1
    result = bind(
        matmul_p, expand_dims(x1, axis=0) if row else x1, expand_dims(x2, axis=1) if column else x2
    )
    if column:
        result = squeeze(result, axis=-1)
    return squeeze(result, axis=-1 if column else -2) if row else result


def tensordot(
    x1: Tensor, x2: Tensor, /, *, axes: int | tuple[Sequence[int], Sequence[int]] = 2
) -> Tensor:
    """The sum of products over the last `axes` axes of x1 and the first of x2, or over the named
    axes of each."""
    x1, x2 = meet(*operands(x1, x2))
    if isinstance(axes, int):
        if not 0 <= axes <= min(x1.ndim, x2.ndim):
            raise ValueError(f"tensordot: axes={axes} does not fit {x1.aval} and {x2.aval}")
        first = tuple(range(x1.ndim - axes, x1.ndim))
        second = tuple(range(axes))
    else:
        first = normalize_axes("tensordot", axes[0], x1.ndim)
        second = normalize_axes("tensordot", axes[1], x2.ndim)
    if [x1.shape[a] for a in first] != [x2.shape[a] for a in second]:
        raise ValueError(
            f"tensordot: axes {first} of {x1.aval} and {second} of {x2.aval} differ in size"
        )
    rows = tuple(a for a in range(x1.ndim) if a not in first)
    columns = tuple(a for a in range(x2.ndim) if a not in second)
    shape = tuple(x1.shape[a] for a in rows) + tuple(x2.shape[a] for a in columns)
    inner = math.prod(x1.shape[a] for a in first)
    left = reshape(permute_dims(x1, rows + first), (math.prod(x1.shape[a] for a in rows), inner))
    right = reshape(
        permute_dims(x2, second + columns), (inner, math.prod(x2.shape[a] for a in columns))
    )
    return reshape(bind(matmul_p, left, right), shape)


def vecdot(x1: Tensor, x2: Tensor, /, *, axis: int = -1) -> Tensor:
    """The sum of products along `axis`; the other axes broadcast."""
    from .reduce import sum

    x1, x2 = meet(x1, x2)
    size1 = x1.shape[normalize_axes("vecdot", axis, x1.ndim)[0]]
    size2 = x2.shape[normalize_axes("vecdot", axis, x2.ndim)[0]]
    if size1 != size2:
        raise ValueError(
            f"vecdot: axis {axis} has size {size1} in {x1.aval} and {size2} in {x2.aval}"
        )
    return sum(x1 * x2, axis=axis, dtype=x1.dtype)


def outer(x1: Tensor, x2: Tensor, /) -> Tensor:
    """All products of the elements of two vectors: shape (n, m)."""
    x1, x2 = meet(x1, x2)
    if x1.ndim != 1 or x2.ndim != 1:
        raise ValueError(f"outer: takes two vectors, got {x1.aval} and {x2.aval}")
    return reshape(x1, (-1, 1)) * reshape(x2, (1, -1))
