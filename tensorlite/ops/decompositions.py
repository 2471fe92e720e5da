"""Factorizations of matrices and what follows from them: Cholesky, QR, eigenvalues, singular
values, inverses, determinants, linear systems.

Every primitive takes stacks of matrices, (..., m, n). NumPy's routines (LAPACK) do the work, in
float32 for the 16-bit floats. `cholesky` and `eigh` take the symmetric part of their argument, so
that their derivative is that of a function of the whole matrix. The derivatives are the textbook
ones: M. Giles, "An extended collection of matrix derivative results for forward and reverse mode
algorithmic differentiation" (2008); J. Townsend, "Differentiating the singular value decomposition"
(2016); S. Walter and L. Lehmann, "Algorithmic differentiation of linear algebra functions with
application in optimum experimental design" (2010).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import dtypes
from ..core import Aval, Primitive, Tensor, bind
from .creation import eye
from .elementwise import where
from .linalg import exact_matmul as matmul
from .rearrange import tril, triu
from .shape import (
    broadcast_shapes,
    broadcast_to,
    expand_dims,
    pad_rank,
    sum_p,
    unbroadcast,
)
from .shape import matrix_transpose as transpose

Routine = Callable[..., Any]


def _lapack(op: str, routine: Routine) -> Routine:
    """A NumPy routine, in float32 for 16-bit floats, whose failures name `op`."""

    def run(*arrays: np.ndarray, **options: Any) -> Any:
        dtype = arrays[0].dtype
        narrow = dtype in (dtypes.float16, dtypes.bfloat16)
        wide = [a.astype(np.float32) for a in arrays] if narrow else arrays
        try:
            out = routine(*wide, **options)
        except np.linalg.LinAlgError as error:
            raise np.linalg.LinAlgError(f"{op}: {error}") from None
        if isinstance(out, tuple):
            return tuple(np.asarray(o).astype(dtype, copy=False) for o in out)
        return np.asarray(out).astype(dtype, copy=False)

    return run


def _symmetric(x: np.ndarray) -> np.ndarray:
    return (x + np.swapaxes(x, -1, -2)) / 2


def symmetric_part(x: Tensor) -> Tensor:
    """(x + x^T) / 2."""
    return (x + transpose(x)) / 2


def matrix(op: str, x: Aval | Tensor, square: bool = True) -> None:
    """Raise unless `x` is a stack of floating-point matrices, square ones if asked."""
    aval = x.aval if isinstance(x, Tensor) else x
    if aval.ndim < 2 or (square and aval.shape[-1] != aval.shape[-2]):
        kind = "square matrices" if square else "matrices"
        raise ValueError(f"{op}: takes (stacks of) {kind}, got {aval}")
    if not dtypes.is_float(aval.dtype):
        raise TypeError(f"{op}: takes floating-point matrices, got {aval}; use astype first")


def _stacked(prim: Primitive) -> None:
    """The batching rule of a primitive of one stack: the batch is another axis of it."""

    @prim.batch
    def _(args: Sequence[Tensor], batched: Sequence[bool], **params: Any) -> Any:
        return bind(prim, *args, **params)


# ---- Cholesky ------------------------------------------------------------------------------------

cholesky_p = Primitive("cholesky")  # the lower factor


@cholesky_p.shape
def _(x: Aval) -> Aval:
    matrix("cholesky", x)
    return x


cholesky_p.numpy(_lapack("cholesky", lambda x: np.linalg.cholesky(_symmetric(x))))


@cholesky_p.vjp
def _(y: Tensor, x: Tensor) -> Any:
    def pull(g: Tensor) -> Tensor:
        product = tril(matmul(transpose(y), tril(g)))
        half = product - 0.5 * product * eye(y.shape[-1], dtype=y.dtype, device=y.device)
        upper = transpose(y)
        return symmetric_part(solve(upper, transpose(solve(upper, transpose(half)))))

    return pull


_stacked(cholesky_p)


# ---- linear systems ------------------------------------------------------------------------------

solve_p = Primitive("solve")  # (..., n, n), (..., n, k) -> (..., n, k); leading axes broadcast
inv_p = Primitive("inv")


@solve_p.shape
def _(a: Aval, b: Aval) -> Aval:
    matrix("solve", a)
    if b.ndim < 2 or b.shape[-2] != a.shape[-1] or a.dtype != b.dtype:
        raise ValueError(f"solve: {a} and {b} do not fit: b.shape[-2] must equal a.shape[-1]")
    stack = broadcast_shapes("solve", a.shape[:-2], b.shape[:-2])
    return Aval((*stack, *b.shape[-2:]), b.dtype)


solve_p.numpy(_lapack("solve", np.linalg.solve))


@solve_p.vjp
def _(y: Tensor, a: Tensor, b: Tensor) -> Any:
    def pull_a(g: Tensor) -> Tensor:
        return unbroadcast(-matmul(solve(transpose(a), g), transpose(y)), a.shape)

    return pull_a, lambda g: unbroadcast(solve(transpose(a), g), b.shape)


@solve_p.batch
def _(args: Sequence[Tensor], batched: Sequence[bool]) -> Tensor:
    ndim = max(x.ndim - b for x, b in zip(args, batched, strict=True))
    return bind(
        solve_p, *[pad_rank(x, ndim) if b else x for x, b in zip(args, batched, strict=True)]
    )


def solve(a: Tensor, b: Tensor) -> Tensor:
    """x with a x = b, for stacks of matrices."""
    return bind(solve_p, a, b)


@inv_p.shape
def _(x: Aval) -> Aval:
    matrix("inv", x)
    return x


inv_p.numpy(_lapack("inv", np.linalg.inv))


@inv_p.vjp
def _(y: Tensor, x: Tensor) -> Any:
    return lambda g: -matmul(transpose(y), matmul(g, transpose(y)))


_stacked(inv_p)

# (matrices, cutoffs (...)): singular values of at most cutoff * the largest count as zero.
pinv_p = Primitive("pinv")


@pinv_p.shape
def _(x: Aval, rtol: Aval) -> Aval:
    matrix("pinv", x, square=False)
    if broadcast_shapes("pinv", rtol.shape, x.shape[:-2]) != x.shape[:-2]:
        raise ValueError(f"pinv: rtol {rtol} does not fit {x}")
    return Aval((*x.shape[:-2], x.shape[-1], x.shape[-2]), x.dtype)


def _pseudoinverse(x: np.ndarray, rtol: np.ndarray) -> np.ndarray:
    if x.size == 0:
        return np.zeros((*x.shape[:-2], x.shape[-1], x.shape[-2]), x.dtype)
    return np.linalg.pinv(x, rcond=rtol)


pinv_p.numpy(_lapack("pinv", _pseudoinverse))


@pinv_p.vjp
def _(y: Tensor, x: Tensor, rtol: Tensor) -> Any:
    def pull(g: Tensor) -> Tensor:
        yt, gt = transpose(y), transpose(g)
        rows = eye(x.shape[-2], dtype=x.dtype, device=x.device) - matmul(x, y)
        columns = eye(x.shape[-1], dtype=x.dtype, device=x.device) - matmul(y, x)
        return (
            matmul(matmul(rows, gt), matmul(y, yt))
            + matmul(matmul(yt, y), matmul(gt, columns))
            - matmul(yt, matmul(g, yt))
        )

    return pull, None


@pinv_p.batch
def _(args: Sequence[Tensor], batched: Sequence[bool]) -> Tensor:
    x, rtol = args
    if not batched[0]:
        x = broadcast_to(x, (rtol.shape[0], *x.shape))
    return bind(pinv_p, x, pad_rank(rtol, x.ndim - 3) if batched[1] else rtol)


# ---- determinants --------------------------------------------------------------------------------

det_p = Primitive("det")
cofactor_p = Primitive("cofactor")  # the derivative of det: the transposed adjugate
slogdet_p = Primitive("slogdet")  # (sign, log of the absolute value)


@det_p.shape
def _(x: Aval) -> Aval:
    matrix("det", x)
    return Aval(x.shape[:-2], x.dtype)


det_p.numpy(_lapack("det", np.linalg.det))


@det_p.vjp
def _(y: Tensor, x: Tensor) -> Any:
    return lambda g: _as_matrix(g) * bind(cofactor_p, x)


_stacked(det_p)


@cofactor_p.shape
def _(x: Aval) -> Aval:
    matrix("cofactor", x)
    return x


def _cofactors(x: np.ndarray) -> np.ndarray:
    """det(x) x^-T, and what is its limit where x has no inverse."""
    determinants = np.linalg.det(x)
    if np.all(determinants):
        return determinants[..., None, None] * np.swapaxes(np.linalg.inv(x), -1, -2)
    u, s, vh = np.linalg.svd(x)
    n = x.shape[-1]
    others = np.where(np.eye(n, dtype=bool), 1, s[..., None, :]).prod(axis=-1, dtype=x.dtype)
    sign = np.linalg.det(u) * np.linalg.det(vh)
    return sign[..., None, None] * np.matmul(u * others[..., None, :], vh)


cofactor_p.numpy(_lapack("cofactor", _cofactors))


@cofactor_p.vjp
def _(y: Tensor, x: Tensor) -> Any:
    def pull(g: Tensor) -> Tensor:
        inner = eye(x.shape[-1], dtype=x.dtype, device=x.device)
        total = bind(sum_p, g * y, axes=(x.ndim - 2, x.ndim - 1))
        return transpose(solve(x, transpose(_as_matrix(total) * inner - matmul(y, transpose(g)))))

    return pull


_stacked(cofactor_p)


@slogdet_p.shape
def _(x: Aval) -> tuple[Aval, Aval]:
    matrix("slogdet", x)
    return Aval(x.shape[:-2], x.dtype), Aval(x.shape[:-2], x.dtype)


slogdet_p.numpy(_lapack("slogdet", lambda x: tuple(np.linalg.slogdet(x))))


@slogdet_p.fwd
def _(needs: Sequence[bool], x: Tensor) -> Any:
    def pull(cts: Sequence[Tensor | None]) -> tuple[Tensor | None]:
        return (None if cts[1] is None else _as_matrix(cts[1]) * transpose(bind(inv_p, x)),)

    return bind(slogdet_p, x), pull


_stacked(slogdet_p)


def _as_matrix(x: Tensor) -> Tensor:
    """One number for each matrix of a stack, ready to be multiplied with them."""
    return expand_dims(x, axis=(-2, -1))


# ---- eigenvalues of symmetric matrices -----------------------------------------------------------

eigh_p = Primitive("eigh")  # (eigenvalues ascending, eigenvectors in columns)


@eigh_p.shape
def _(x: Aval) -> tuple[Aval, Aval]:
    matrix("eigh", x)
    return Aval(x.shape[:-1], x.dtype), x


eigh_p.numpy(_lapack("eigh", lambda x: tuple(np.linalg.eigh(_symmetric(x)))))


@eigh_p.fwd
def _(needs: Sequence[bool], x: Tensor) -> Any:
    values, vectors = bind(eigh_p, x)

    def pull(cts: Sequence[Tensor | None]) -> tuple[Tensor | None]:
        inner: Any = 0
        if cts[0] is not None:
            inner = _diagonal(cts[0])
        if cts[1] is not None:
            inner = inner + _inverse_gaps(values) * matmul(transpose(vectors), cts[1])
        return (symmetric_part(matmul(vectors, matmul(inner, transpose(vectors)))),)

    return (values, vectors), pull


_stacked(eigh_p)


def _diagonal(x: Tensor) -> Tensor:
    """Matrices with the vectors `x` on the diagonal."""
    return expand_dims(x, axis=-1) * eye(x.shape[-1], dtype=x.dtype, device=x.device)


def _inverse_gaps(x: Tensor) -> Tensor:
    """1 / (x_j - x_i) at (i, j), 0 on the diagonal. Infinite where two are equal, since the vectors
    that belong to them are not determined."""
    gaps = expand_dims(x, axis=-2) - expand_dims(x, axis=-1)
    on_diagonal = eye(x.shape[-1], dtype=dtypes.bool_, device=x.device)
    return where(on_diagonal, 0.0, 1 / where(on_diagonal, 1.0, gaps))


# ---- singular values -----------------------------------------------------------------------------

svd_p = Primitive("svd")  # (u, s descending, v^T), either thin or with full square u and v


@svd_p.shape
def _(x: Aval, *, full_matrices: bool) -> tuple[Aval, Aval, Aval]:
    matrix("svd", x, square=False)
    *stack, m, n = x.shape
    k = min(m, n)
    left, right = (m, n) if full_matrices else (k, k)
    shapes = (*stack, m, left), (*stack, k), (*stack, right, n)
    first, second, third = (Aval(shape, x.dtype) for shape in shapes)
    return first, second, third


svd_p.numpy(
    _lapack("svd", lambda x, full_matrices: tuple(np.linalg.svd(x, full_matrices=full_matrices)))
)


@svd_p.fwd
def _(needs: Sequence[bool], x: Tensor, *, full_matrices: bool) -> Any:
    if full_matrices and x.shape[-1] != x.shape[-2]:
        raise NotImplementedError(
            "svd: with full_matrices=True the additional vectors of a matrix that is not square "
            f"have no derivative, and x is {x.aval}; use full_matrices=False"
        )
    u, s, vt = bind(svd_p, x, full_matrices=full_matrices)

    def pull(cts: Sequence[Tensor | None]) -> tuple[Tensor | None]:
        gu, gs, gvt = cts
        ut, v = transpose(u), transpose(vt)
        scale = expand_dims(s, axis=-2)
        gaps = _inverse_gaps(s * s)
        total: Any = 0
        if gs is not None:
            total = matmul(u * expand_dims(gs, axis=-2), vt)
        if gu is not None:
            turn = matmul(ut, gu)
            inside = matmul(u, gaps * (turn - transpose(turn)) * scale)
            outside = (gu - matmul(u, turn)) / scale
            total = total + matmul(inside + outside, vt)
        if gvt is not None:
            turn = matmul(vt, transpose(gvt))
            inside = matmul(v, gaps * (turn - transpose(turn)) * scale)
            outside = (transpose(gvt) - matmul(v, turn)) / scale
            total = total + matmul(u, transpose(inside + outside))
        return (total,)

    return (u, s, vt), pull


_stacked(svd_p)


# ---- QR ------------------------------------------------------------------------------------------

qr_p = Primitive("qr")


@qr_p.shape
def _(x: Aval, *, mode: str) -> tuple[Aval, Aval]:
    matrix("qr", x, square=False)
    *stack, m, n = x.shape
    k = m if mode == "complete" else min(m, n)
    return Aval((*stack, m, k), x.dtype), Aval((*stack, k, n), x.dtype)


qr_p.numpy(_lapack("qr", lambda x, mode: tuple(np.linalg.qr(x, mode))))


@qr_p.fwd
def _(needs: Sequence[bool], x: Tensor, *, mode: str) -> Any:
    m, n = x.shape[-2:]
    if m < n or (mode == "complete" and m != n):
        raise NotImplementedError(
            f"qr: has a derivative for mode='reduced' and matrices that are not wider than high; "
            f"got mode={mode!r} and {x.aval}"
        )
    q, r = bind(qr_p, x, mode=mode)

    def pull(cts: Sequence[Tensor | None]) -> tuple[Tensor | None]:
        gq, gr = cts
        middle: Any = 0
        if gr is not None:
            middle = matmul(r, transpose(triu(gr)))
        if gq is not None:
            middle = middle - matmul(transpose(gq), q)
        mirrored = tril(middle) + transpose(tril(middle, k=-1))
        left = matmul(q, mirrored) if gq is None else gq + matmul(q, mirrored)
        return (transpose(solve(r, transpose(left))),)

    return (q, r), pull


_stacked(qr_p)
