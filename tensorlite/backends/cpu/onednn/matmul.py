"""Matrix products, of two matrices or of batches of them that broadcast."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ....compiler.launches import Ref
from ....core import Aval
from ....ops.linalg import matmul_p
from . import memory
from .epilogue import attach
from .memory import Desc
from .plan import Draft, Epilogue, Plan, plan, planner
from .primitives import ARG_DST, ARG_SRC, ARG_WEIGHTS, describe


def plan_matmul(
    x: Aval,
    y: Aval,
    z: Aval,
    *others: Aval,
    transpose_a: bool = False,
    transpose_b: bool = False,
    epilogue: Epilogue = (),
    threads: int | None = None,
) -> Plan | None:
    """A plan for `matmul`, the buffers of whose operands hold their transposes, as they lie before
    a permutation that swaps the last two axes.

    Args:
        x, y, z: the operands and the result of `matmul`, x and y as they are in memory: (..., k, m)
            if `transpose_a`, (..., n, k) if `transpose_b`.
        others: the inputs that the epilogue names, from index 2 on.
        epilogue, threads: as in `plan`.
    """
    params = {"transpose_a": bool(transpose_a), "transpose_b": bool(transpose_b)}
    return plan(matmul_p, (x, y, *others), (z,), params, epilogue=epilogue, threads=threads)


def _work(in_avals: Sequence[Aval], out_avals: Sequence[Aval], params: Mapping[str, Any]) -> int:
    inner = in_avals[0].shape[-2 if params.get("transpose_a") else -1]
    return out_avals[0].size * inner


@planner(matmul_p, work=_work)
def _(
    draft: Draft,
    in_avals: tuple[Aval, ...],
    out_avals: tuple[Aval, ...],
    params: Mapping[str, Any],
    epilogue: Epilogue,
) -> None:
    if any(aval.dtype not in memory.FLOATS for aval in (*in_avals, *out_avals)):
        raise draft.unsupported(f"matmul of {in_avals[0].dtype}")
    swapped_x, swapped_y = params.get("transpose_a", False), params.get("transpose_b", False)
    (x, y, *others), z = in_avals, out_avals[0]
    if y.ndim == 2 and x.ndim > 2 and not swapped_x:
        x, z, *others = [_folded(aval, z) for aval in (x, z, *others)]
    source, weights = _operand(x, z.ndim, swapped_x), _operand(y, z.ndim, swapped_y)
    target = memory.of_array(z.shape, z.dtype)
    attributes, extra = attach(draft, epilogue, (x, y, *others), z, range(z.ndim))
    desc = describe(draft.op, "matmul", source, weights, None, target, attributes=attributes)
    draft.call(
        desc,
        (ARG_SRC, source, Ref("input", 0)),
        (ARG_WEIGHTS, weights, Ref("input", 1)),
        (ARG_DST, target, Ref("output", 0)),
        *extra,
    )


def _folded(aval: Aval, z: Aval) -> Aval:
    """`aval` with all its axes but the last as one, since one large product is faster than many;
    a vector or scalar stays as it is, and what broadcasts otherwise will not fit."""
    if aval.ndim < 2 or aval.shape[:-1] != z.shape[:-1]:
        return aval
    return Aval((math.prod(aval.shape[:-1]), aval.shape[-1]), aval.dtype)


def _operand(aval: Aval, ndim: int, transposed: bool) -> Desc:
    """An operand with leading axes of size 1 in front, as oneDNN broadcasts only these."""
    shape = (1,) * (ndim - aval.ndim) + aval.shape
    order = list(range(ndim))
    if transposed:
        order[-2:] = order[:-3:-1]
    return memory.of_array(shape, aval.dtype, order)
