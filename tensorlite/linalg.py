"""Linear algebra: the `linalg` extension of the Python array API standard, as `tl.linalg`.

Functions take stacks of matrices, (..., m, n), of floats (integers become the default float) and
have derivatives, except for `matrix_rank`, which is an integer. A derivative that does not exist,
such as that of the eigenvectors of equal eigenvalues, is infinite or NaN.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

from . import dtypes
from .core import Tensor, bind
from .ops import decompositions as d
from .ops import elementwise as e
from .ops import reduce
from .ops.creation import asarray, cast, eye, iota
from .ops.elementwise import meet
from .ops.linalg import exact_matmul, matmul, outer, tensordot, vecdot
from .ops.shape import (
    Axes,
    broadcast_arrays,
    broadcast_to,
    expand_dims,
    matrix_transpose,
    normalize_axes,
    reshape,
    squeeze,
    stack,
)

__all__ = [
    "cholesky",
    "cross",
    "det",
    "diagonal",
    "eigh",
    "eigvalsh",
    "inv",
    "matmul",
    "matrix_norm",
    "matrix_power",
    "matrix_rank",
    "matrix_transpose",
    "outer",
    "pinv",
    "qr",
    "slogdet",
    "solve",
    "svd",
    "svdvals",
    "tensordot",
    "trace",
    "vecdot",
    "vector_norm",
]


class EighResult(NamedTuple):
    """What `eigh` finds."""

    eigenvalues: Tensor
    eigenvectors: Tensor


class QRResult(NamedTuple):
    """What `qr` finds."""

    Q: Tensor
    R: Tensor


class SlogdetResult(NamedTuple):
    """What `slogdet` finds."""

    sign: Tensor
    logabsdet: Tensor


class SVDResult(NamedTuple):
    """What `svd` finds."""

    U: Tensor
    S: Tensor
    Vh: Tensor


# ---- factorizations ------------------------------------------------------------------------------


def cholesky(x: Tensor, /, *, upper: bool = False) -> Tensor:
    """The triangular factor L of the symmetric positive definite x = L L^T (U of x = U^T U if
    `upper`). Of an x that is not symmetric, the symmetric part (x + x^T) / 2 is taken.

    Raises:
        numpy.linalg.LinAlgError: a matrix is not positive definite.
    """
    lower = bind(d.cholesky_p, _matrices("cholesky", x))
    return matrix_transpose(lower) if upper else lower


def qr(x: Tensor, /, *, mode: Literal["reduced", "complete"] = "reduced") -> QRResult:
    """x = Q R with orthonormal columns in Q and upper triangular R. Q is (m, k) and R (k, n), with
    k = min(m, n), or k = m if `mode` is "complete"."""
    if mode not in ("reduced", "complete"):
        raise ValueError(f'qr: mode is "reduced" or "complete", got {mode!r}')
    return QRResult(*bind(d.qr_p, _matrices("qr", x, square=False), mode=mode))


def eigh(x: Tensor, /) -> EighResult:
    """Eigenvalues (..., n) in ascending order and orthonormal eigenvectors in the columns of
    (..., n, n), of the symmetric part of x."""
    return EighResult(*bind(d.eigh_p, _matrices("eigh", x)))


def eigvalsh(x: Tensor, /) -> Tensor:
    """The eigenvalues (..., n) of the symmetric part of x, in ascending order."""
    return bind(d.eigh_p, _matrices("eigvalsh", x))[0]


def svd(x: Tensor, /, *, full_matrices: bool = True) -> SVDResult:
    """x = U diag(S) Vh, with the singular values S (..., k) in descending order, k = min(m, n). U
    is (m, m) and Vh (n, n), or (m, k) and (k, n) without `full_matrices`."""
    found = bind(d.svd_p, _matrices("svd", x, square=False), full_matrices=bool(full_matrices))
    return SVDResult(*found)


def svdvals(x: Tensor, /) -> Tensor:
    """The singular values (..., min(m, n)) of x in descending order."""
    return bind(d.svd_p, _matrices("svdvals", x, square=False), full_matrices=False)[1]


# ---- inverses and determinants -------------------------------------------------------------------


def solve(x1: Tensor, x2: Tensor, /) -> Tensor:
    """The x of x1 x = x2. `x1` is (..., n, n); `x2` is one vector (n,) or matrices (..., n, k).

    Raises:
        numpy.linalg.LinAlgError: a matrix is singular.

    Example:
        >>> a, b = tl.asarray([[2.0, 0.0], [0.0, 4.0]]), tl.asarray([1.0, 1.0])
        >>> print(tl.linalg.solve(a, b))
        [0.5  0.25]
    """
    x1, x2 = meet(_matrices("solve", x1), _floating(x2), "solve")
    vector = x2.ndim == 1
    right = expand_dims(x2, axis=-1) if vector else x2
    d.solve_p.abstract(x1.aval, right.aval)
    result = bind(d.solve_p, x1, right)
    return squeeze(result, axis=-1) if vector else result


def inv(x: Tensor, /) -> Tensor:
    """The inverse.

    Raises:
        numpy.linalg.LinAlgError: a matrix is singular.
    """
    return bind(d.inv_p, _matrices("inv", x))


def pinv(x: Tensor, /, *, rtol: float | Tensor | None = None) -> Tensor:
    """The Moore-Penrose pseudoinverse (..., n, m). Singular values of at most `rtol` (a number or
    one for each matrix; default max(m, n) * eps) times the largest count as zero."""
    x = _matrices("pinv", x, square=False)
    return bind(d.pinv_p, x, _cutoff("pinv", x, rtol))


def det(x: Tensor, /) -> Tensor:
    """The determinant (...,). Its derivative, the cofactors, exists everywhere; those of higher
    order need the inverse, and raise `numpy.linalg.LinAlgError` at a singular matrix."""
    return bind(d.det_p, _matrices("det", x))


def slogdet(x: Tensor, /) -> SlogdetResult:
    """The sign of the determinant and the logarithm of its absolute value; 0 and -inf for a
    singular matrix, where there is no derivative."""
    return SlogdetResult(*bind(d.slogdet_p, _matrices("slogdet", x)))


def matrix_rank(x: Tensor, /, *, rtol: float | Tensor | None = None) -> Tensor:
    """The number of singular values larger than `rtol` (default max(m, n) * eps) times the
    largest, int64."""
    x = _matrices("matrix_rank", x, square=False)
    cutoff = expand_dims(_cutoff("matrix_rank", x, rtol), axis=-1)
    values = svdvals(x)
    if values.shape[-1] == 0:
        return reduce.count_nonzero(values, axis=-1)
    return reduce.count_nonzero(values > cutoff * values[..., :1], axis=-1)


def matrix_power(x: Tensor, n: int, /) -> Tensor:
    """`x` multiplied by itself n times; the inverse for negative n, the identity for n = 0."""
    x = _matrices("matrix_power", x)
    if not isinstance(n, int):
        raise TypeError(f"matrix_power: n is an integer, got {type(n).__name__}")
    if n == 0:
        return broadcast_to(eye(x.shape[-1], dtype=x.dtype, device=x.device), x.shape)
    square, exponent = (inv(x), -n) if n < 0 else (x, n)
    result = None
    while exponent:
        if exponent % 2:
            result = square if result is None else exact_matmul(result, square)
        exponent //= 2
        if exponent:
            square = exact_matmul(square, square)
    assert result is not None
    return result


# ---- norms ---------------------------------------------------------------------------------------


def vector_norm(
    x: Tensor, /, *, axis: int | Axes | None = None, keepdims: bool = False, ord: float = 2
) -> Tensor:
    """(sum |x|^ord)^(1/ord) over `axis`, all axes by default; the largest |x| for inf, the smallest
    for -inf, the number of nonzero elements for 0. The gradient of the 2-norm at 0 is 0."""
    x = _floating(x)
    size = e.abs(x)
    if ord in (math.inf, -math.inf):
        extremum = _largest if ord > 0 else reduce.min
        return extremum(size, axis=axis, keepdims=keepdims)
    if ord == 0:
        return cast(reduce.count_nonzero(x, axis=axis, keepdims=keepdims), x.dtype)
    if ord == 1:
        return reduce.sum(size, axis=axis, keepdims=keepdims)
    if ord == 2:
        total = reduce.sum(e.square(x), axis=axis, keepdims=keepdims)
        return e.where(total == 0, total, e.sqrt(e.where(total == 0, 1.0, total)))
    return reduce.sum(size**ord, axis=axis, keepdims=keepdims) ** (1 / ord)


def _largest(sizes: Tensor, *, axis: int | Axes | None, keepdims: bool) -> Tensor:
    """The largest of values that are not negative, 0 if there are none."""
    axes = normalize_axes("norm", axis, sizes.ndim)
    if any(sizes.shape[a] == 0 for a in axes):
        return reduce.sum(sizes, axis=axes, keepdims=keepdims)
    return reduce.max(sizes, axis=axes, keepdims=keepdims)


def matrix_norm(
    x: Tensor, /, *, keepdims: bool = False, ord: float | Literal["fro", "nuc"] | None = "fro"
) -> Tensor:
    """A norm of each matrix: "fro", the root of the sum of squares; "nuc", the sum of the singular
    values; 2 and -2, the largest and smallest singular value; 1 and -1, the largest and smallest
    sum of absolute values in a column; inf and -inf, in a row."""
    x = _matrices("matrix_norm", x, square=False)
    if ord in ("fro", None):
        return vector_norm(x, axis=(-2, -1), keepdims=keepdims)
    if ord in (1, -1, math.inf, -math.inf):
        along = -2 if ord in (1, -1) else -1
        sums = reduce.sum(e.abs(x), axis=along, keepdims=True)
        extremum = _largest if ord in (1, math.inf) else reduce.min
        result = extremum(sums, axis=(-2, -1), keepdims=True)
    elif ord in ("nuc", 2, -2):
        reduction: Any = {"nuc": reduce.sum, 2: _largest, -2: reduce.min}[ord]
        result = expand_dims(reduction(svdvals(x), axis=-1, keepdims=True), axis=-1)
    else:
        raise ValueError(
            f"matrix_norm: ord is 'fro', 'nuc', 1, 2, inf or their negatives, got {ord!r}"
        )
    return result if keepdims else squeeze(result, axis=(-2, -1))


# ---- diagonals and products ----------------------------------------------------------------------


def diagonal(x: Tensor, /, *, offset: int = 0) -> Tensor:
    """The elements x[..., i, i + offset], along a new last axis."""
    x = asarray(x)
    if x.ndim < 2:
        raise ValueError(f"diagonal: needs at least two dimensions, got shape {x.shape}")
    m, n = x.shape[-2:]
    size = max(min(m, n - offset) if offset >= 0 else min(m + offset, n), 0)
    start = max(-offset, 0) * n + max(offset, 0) if size else 0
    flat = reshape(x, (*x.shape[:-2], m * n))
    return flat[..., iota((size,), 0) * (n + 1) + start]


def trace(x: Tensor, /, *, offset: int = 0, dtype: Any = None) -> Tensor:
    """The sum of the elements x[..., i, i + offset]. Integers are summed as int64 (uint64)."""
    return reduce.sum(diagonal(x, offset=offset), axis=-1, dtype=dtype)


def cross(x1: Tensor, x2: Tensor, /, *, axis: int = -1) -> Tensor:
    """The cross product of vectors with three components along `axis`; the other axes broadcast."""
    x1, x2 = meet(x1, x2, "cross")
    for x in (x1, x2):
        (place,) = normalize_axes("cross", axis, x.ndim)
        if x.shape[place] != 3:
            raise ValueError(f"cross: axis {axis} of {x.aval} has size {x.shape[place]}, not 3")
    x1, x2 = broadcast_arrays(x1, x2)
    (place,) = normalize_axes("cross", axis, x1.ndim)
    before = (slice(None),) * place
    a, b = ([x[(*before, i)] for i in range(3)] for x in (x1, x2))
    parts = [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]
    return stack(parts, axis=place)


# ---- helpers -------------------------------------------------------------------------------------


def _floating(x: Tensor) -> Tensor:
    x = asarray(x)
    return cast(x, dtypes.default_float) if x.dtype in dtypes.INTEGERS else x


def _matrices(op: str, x: Tensor, square: bool = True) -> Tensor:
    x = _floating(x)
    d.matrix(op, x, square)
    return x


def _cutoff(op: str, x: Tensor, rtol: float | Tensor | None) -> Tensor:
    if rtol is None:
        rtol = max(x.shape[-2:]) * dtypes.finfo(x.dtype).eps
    result = asarray(rtol, dtype=x.dtype, device=x.device)
    if result.ndim and result.shape != x.shape[:-2]:
        raise ValueError(
            f"{op}: rtol is one number or one for each matrix of {x.aval}; got shape {result.shape}"
        )
    return result
