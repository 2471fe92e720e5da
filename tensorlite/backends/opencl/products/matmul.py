"""Matrix products as contractions."""

from __future__ import annotations

from ....core import Aval
from .contraction import Contraction, Index, Move, Operand


def matmul(x: Aval, y: Aval, z: Aval, transpose_a: bool, transpose_b: bool) -> Contraction:
    """z = x y, of batches that broadcast; x and y as they lie in memory, their last two axes
    exchanged where a flag says so."""
    row_axis, inner_axis = (x.ndim - 1, x.ndim - 2) if transpose_a else (x.ndim - 2, x.ndim - 1)
    along_axis, column_axis = (y.ndim - 1, y.ndim - 2) if transpose_b else (y.ndim - 2, y.ndim - 1)
    indices = [
        Index(size, _batch_move(x, z, axis), _batch_move(y, z, axis), Move(axis, 1))
        for axis, size in enumerate(z.shape[:-2])
    ]
    # A batch that only y has makes more columns, of which there is one axis: it stays a batch, of
    # an x that does not move.
    indices = [i._replace(a=Move(0, 0)) if i.a is None else i for i in indices]
    indices += [
        Index(z.shape[-2], a=Move(row_axis, 1), c=Move(z.ndim - 2, 1)),
        Index(z.shape[-1], b=Move(column_axis, 1), c=Move(z.ndim - 1, 1)),
        Index(x.shape[inner_axis], a=Move(inner_axis, 1), b=Move(along_axis, 1)),
    ]
    a, b, c = [Operand(v.shape, v.dtype, (0,) * v.ndim) for v in (x, y, z)]
    return Contraction(a, b, c, tuple(indices))


def _batch_move(operand: Aval, z: Aval, axis: int) -> Move | None:
    """How the batch index of `axis` of z moves in an operand, whose leading axes broadcast."""
    own = axis - (z.ndim - operand.ndim)
    if own < 0 or operand.shape[own] == 1:
        return None
    return Move(own, 1)
