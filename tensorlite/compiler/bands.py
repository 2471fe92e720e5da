"""Products with a band of ones, as local response normalization has them, as sliding sums.

A product needs its operand in memory and stores its result; a sliding sum of a few elements is part
of a nest, which reads what the operand is made of and goes on with the sum. That is a third of the
memory traffic, and less arithmetic. It pays where a nest can load neighbours under a guard, see
`fuse`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import dtypes
from ..core import Aval, Primitive, Tensor
from ..graph import Atom, Equation, Graph, Var
from ..ops.linalg import matmul_p
from ..ops.pool import pool_sum_p
from ..ops.shape import reshape_p
from ..ops.window import Window

WIDEST = 16  # elements that a sum has at most
SHARE = 4  # how many times longer than the sum the axis is, at least


def slide(graph: Graph) -> Graph:
    """`graph` with a sliding sum (`pool_sum`) for each product with a narrow band of ones."""
    equations: list[Equation] = []
    for eqn in graph.equations:
        window = _band_of(eqn)
        if window is None:
            equations.append(eqn)
            continue
        x, out = eqn.inputs[0], eqn.outputs[0]
        *rows, n = x.aval.shape
        aligned = (math.prod(rows), n, 1)
        flat = _added(equations, eqn, reshape_p, x, {"shape": aligned})
        total = _added(equations, eqn, pool_sum_p, flat, {"window": window})
        equations.append(Equation(reshape_p, (total,), {"shape": x.aval.shape}, (out,), eqn.source))
    return Graph(graph.inputs, equations, graph.outputs, graph.name)


def _added(
    equations: list[Equation], origin: Equation, prim: Primitive, x: Atom, params: dict[str, Any]
) -> Var:
    aval = prim.abstract(x.aval, **params)
    assert isinstance(aval, Aval)
    var = Var(aval)
    equations.append(Equation(prim, (x,), params, (var,), origin.source))
    return var


def _band_of(eqn: Equation) -> Window | None:
    """The window whose sums are the product of this equation, if its second operand is a band."""
    if eqn.prim is not matmul_p or not isinstance(eqn.inputs[1], Tensor):
        return None
    band = eqn.inputs[1].numpy()
    if (
        band.ndim != 2
        or not band.size
        or band.shape[0] != band.shape[1]
        or band.dtype not in dtypes.FLOATS
    ):
        return None
    n = len(band)
    before = int(np.count_nonzero(band[:, -1])) - 1  # elements of the last sum, but its own
    after = int(np.count_nonzero(band[:, 0])) - 1
    size = before + after + 1
    if min(before, after) < 0 or size > WIDEST or n < SHARE * size:
        return None
    ahead = np.arange(n)[:, None] - np.arange(n)
    if not np.array_equal(band, ((-before <= ahead) & (ahead <= after)).astype(band.dtype)):
        return None
    return Window((size,), (1,), ((before, after),), (1,))
