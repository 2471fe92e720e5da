"""Scatters into an array of one value, such as gradients of what was looked up in a table: the
array is not made first and then copied, but by the scatter itself."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..core import Aval
from ..graph import Equation, Graph, Var
from ..ops.creation import full_p
from ..ops.index import scatter_p
from .unregistered import Unregistered

filled_scatter_p = Unregistered(  # (updates, *indices): scattered into an array full of `value`
    "filled_scatter"
)


@filled_scatter_p.shape
def _(updates: Aval, *indices: Aval, shape: tuple[int, ...], value: Any, mode: str) -> Aval:
    return Aval(shape, updates.dtype)


@filled_scatter_p.numpy
def _(
    updates: np.ndarray, *indices: np.ndarray, shape: tuple[int, ...], value: Any, mode: str
) -> np.ndarray:
    base = np.full(shape, value, updates.dtype)
    assert scatter_p.numpy_rule is not None
    return scatter_p.numpy_rule(base, updates, *indices, mode=mode)


def fill_scatters(graph: Graph) -> Graph:
    """`graph` with equations of `filled_scatter_p` where the base of a scatter is `full`."""
    made = {eqn.outputs[0]: eqn for eqn in graph.equations if eqn.prim is full_p}

    def filled(eqn: Equation) -> Equation:
        base = eqn.inputs[0] if eqn.prim is scatter_p else None
        if not isinstance(base, Var) or base not in made:
            return eqn
        params = {"shape": base.aval.shape, "value": made[base].params["value"], **eqn.params}
        return eqn._replace(prim=filled_scatter_p, inputs=eqn.inputs[1:], params=params)

    equations = [filled(eqn) for eqn in graph.equations]
    read = {a for eqn in equations for a in eqn.inputs if isinstance(a, Var)}
    read.update(a for a in graph.outputs if isinstance(a, Var))
    kept = [eqn for eqn in equations if eqn.prim is not full_p or eqn.outputs[0] in read]
    return Graph(graph.inputs, kept, graph.outputs, graph.name)
