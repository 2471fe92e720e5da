"""Inlining: calls of graphs, and composites that the backend does not lower whole, become their
equations."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ..composite import Composite, checkpoint_p
from ..core import Aval, Primitive
from ..graph import Atom, Equation, Graph, Var
from ..jit import call_p


def inline(graph: Graph, lowered: Collection[Primitive]) -> Graph:
    """`graph` without `call`, and without composites that are not in `lowered`."""
    equations: list[Equation] = []
    outputs = _copy(graph, dict(zip(graph.inputs, graph.inputs, strict=True)), lowered, equations)
    return Graph(graph.inputs, equations, outputs, graph.name)


def _copy(
    graph: Graph, names: dict[Var, Atom], lowered: Collection[Primitive], out: list[Equation]
) -> list[Atom]:
    """Append the equations of `graph` to `out`, where `names` gives its inputs; return its
    outputs."""

    def read(atom: Atom) -> Atom:
        return names[atom] if isinstance(atom, Var) else atom

    for eqn in graph.equations:
        inputs = tuple(map(read, eqn.inputs))
        inner = _inner_graph(eqn, inputs, lowered)
        if inner is not None:
            results = _copy(inner, dict(zip(inner.inputs, inputs, strict=True)), lowered, out)
            names.update(zip(eqn.outputs, results, strict=True))
        else:
            fresh = tuple(Var(v.aval) for v in eqn.outputs)
            names.update(zip(eqn.outputs, fresh, strict=True))
            out.append(Equation(eqn.prim, inputs, eqn.params, fresh))
    return list(map(read, graph.outputs))


def _inner_graph(
    eqn: Equation, inputs: tuple[Atom, ...], lowered: Collection[Primitive]
) -> Graph | None:
    """The graph that `eqn` stands for, or None if it is to be run as it is."""
    prim: Any = eqn.prim
    if prim is call_p or prim is checkpoint_p:
        return eqn.params["graph"]
    if isinstance(prim, Composite) and prim not in lowered and prim.numpy_rule is None:
        avals: list[Aval] = [atom.aval for atom in inputs]
        return prim.graph(*avals, **eqn.params)[0]
    return None
