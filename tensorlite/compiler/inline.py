"""Inlining: calls of graphs, and composites that the backend does not lower whole, become their
equations."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from ..composite import Composite, checkpoint_p
from ..core import Aval, Primitive, primitives
from ..graph import Atom, Equation, Graph, Var
from ..jit import call_p
from ..origin import Origin


def inline(graph: Graph, whole: Collection[Primitive] = ()) -> Graph:
    """`graph` without `call`, and without composites that are not in `whole`."""
    equations: list[Equation] = []
    names: dict[Var, Atom] = dict(zip(graph.inputs, graph.inputs, strict=True))
    outputs = _copy(graph, names, whole, equations, _unchanged)
    return Graph(graph.inputs, equations, outputs, graph.name)


def _copy(
    graph: Graph,
    names: dict[Var, Atom],
    whole: Collection[Primitive],
    out: list[Equation],
    place: Callable[[Origin | None], Origin | None],
) -> list[Atom]:
    """Append the equations of `graph` to `out`, where `names` gives its inputs and `place` makes of
    an equation's origin in `graph` that in the whole; return its outputs."""

    def read(atom: Atom) -> Atom:
        return names[atom] if isinstance(atom, Var) else atom

    for eqn in graph.equations:
        inputs = tuple(map(read, eqn.inputs))
        inner = _inner_graph(eqn, inputs, whole)
        if inner is not None:
            within = _placing(eqn.prim, place(eqn.source))
            bound = dict(zip(inner.inputs, inputs, strict=True))
            results = _copy(inner, bound, whole, out, within)
            names.update(zip(eqn.outputs, results, strict=True))
        else:
            fresh = tuple(Var(v.aval) for v in eqn.outputs)
            names.update(zip(eqn.outputs, fresh, strict=True))
            out.append(Equation(eqn.prim, inputs, eqn.params, fresh, place(eqn.source)))
    return list(map(read, graph.outputs))


def _unchanged(own: Origin | None) -> Origin | None:
    return own


def _placing(prim: Primitive, outer: Origin | None) -> Callable[[Origin | None], Origin | None]:
    """A composite's equations come from the line that calls it, since its graph is traced once for
    all of them; other graphs hold the user's own lines."""
    alike = primitives.get(prim.name) is prim and prim not in (call_p, checkpoint_p)

    def place(own: Origin | None) -> Origin | None:
        return outer if alike or own is None else own.inside(outer)

    return place


def _inner_graph(
    eqn: Equation, inputs: tuple[Atom, ...], whole: Collection[Primitive]
) -> Graph | None:
    """The graph that `eqn` stands for, or None if it is to be run as it is."""
    prim: Any = eqn.prim
    if prim is call_p or prim is checkpoint_p:
        return eqn.params["graph"]
    if isinstance(prim, Composite) and prim not in whole:
        avals: list[Aval] = [atom.aval for atom in inputs]
        return prim.graph(*avals, **eqn.params)[0]
    return None
