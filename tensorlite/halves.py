"""The derivative of a graph as two graphs, which run at different times.

Forward and backward computation are traced jointly, and that graph is cut by dependence on the
cotangents: what depends on one goes into the backward half, and what this half reads from the other
is a residual. So each half is an ordinary graph, which can be compiled, batched and differentiated
again.
"""

from __future__ import annotations

from typing import NamedTuple

from . import dtypes
from .boxes import flat_vjp
from .core import Tensor
from .device import Device
from .graph import Atom, Equation, Graph, Var, trace_graph
from .ops.creation import zeros_like


class Halves(NamedTuple):
    """`forward(*args) -> (*outputs, *residuals)` and `backward(*residuals, *cotangents) ->
    cotangents of the needed args`."""

    forward: Graph
    backward: Graph


def differentiate(graph: Graph, needs: tuple[bool, ...], device: Device) -> Halves:
    """The halves of the derivative of `graph` with respect to the inputs that `needs` marks."""
    key = ("derivative", needs)
    if key not in graph.derived:
        n_args, n_outs = len(graph.inputs), len(graph.outputs)
        floats = [dtypes.is_float(aval.dtype) for aval in graph.out_avals]

        def joint(*xs: Tensor) -> tuple[Tensor, ...]:
            args, cts = xs[:n_args], xs[n_args:]
            values, pull = flat_vjp(graph.run, args, needs)
            gradients = pull(
                [ct if is_float else None for ct, is_float in zip(cts, floats, strict=True)]
            )
            wanted = [x for x, need in zip(args, needs, strict=True) if need]
            return values + tuple(
                zeros_like(x) if g is None else g for g, x in zip(gradients, wanted, strict=True)
            )

        traced = trace_graph(
            joint, graph.in_avals + graph.out_avals, device=device, name=graph.name
        )
        graph.derived[key] = split(traced.graph, n_args, n_outs)
    return graph.derived[key]


def split(joint: Graph, n_args: int, n_outs: int) -> Halves:
    """Cut a graph of (args, cotangents) -> (outputs, gradients) in two: what depends on a cotangent
    goes into the second half.

    What is computed from constants alone goes into both rather than being kept in between.
    """
    late: set[Atom] = set(joint.inputs[n_args:])
    free: set[Atom] = set()
    first: list[Equation] = []
    second: list[Equation] = []
    for eqn in joint.equations:
        reads = {a for a in eqn.inputs if isinstance(a, Var)}
        if not late.isdisjoint(reads):
            second.append(eqn)
            late.update(eqn.outputs)
            continue
        first.append(eqn)
        if reads <= free:
            second.append(eqn)
            free.update(eqn.outputs)
    gradients = joint.outputs[n_outs:]
    read = [a for eqn in second for a in eqn.inputs] + list(gradients)
    kept = dict.fromkeys(a for a in read if isinstance(a, Var) and a not in late and a not in free)
    forward = Graph(
        joint.inputs[:n_args], first, [*joint.outputs[:n_outs], *kept], f"{joint.name} forward"
    )
    backward = Graph([*kept, *joint.inputs[n_args:]], second, gradients, f"{joint.name} backward")
    return Halves(forward, backward)
