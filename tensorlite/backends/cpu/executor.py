"""Runs a graph on the CPU: the equations become a list of steps, each a kernel with the slots it
reads, writes and may forget."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ...compiler.inline import inline
from ...core import Primitive
from ...device import lowerings_of
from ...graph import Atom, Equation, Graph, Var
from ...ops.creation import transfer_p


class Step(NamedTuple):
    """One kernel call."""

    kernel: Callable[..., Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    last_reads: tuple[int, ...]  # slots that no later step reads


def compile_graph(
    graph: Graph, lowerings: Mapping[Primitive, Callable[..., Any]]
) -> Callable[..., tuple[np.ndarray, ...]]:
    """A function of the graph's inputs that returns its outputs, all NumPy arrays."""
    flat = inline(graph, lowerings)
    slots: dict[Atom, int] = {}
    constants: list[tuple[int, np.ndarray]] = []

    def slot(atom: Atom) -> int:
        key: Any = atom if isinstance(atom, Var) else id(atom)
        if key not in slots:
            slots[key] = len(slots)
            if not isinstance(atom, Var):
                constants.append((slots[key], atom.numpy()))
        return slots[key]

    inputs = [slot(v) for v in flat.inputs]
    planned = [
        (eqn, tuple(map(slot, eqn.inputs)), tuple(map(slot, eqn.outputs))) for eqn in flat.equations
    ]
    outputs = [slot(atom) for atom in flat.outputs]
    steps = _with_last_reads(
        planned, keep={*outputs, *(s for s, _ in constants)}, lowerings=lowerings
    )
    size = len(slots)

    def run(*buffers: np.ndarray) -> tuple[np.ndarray, ...]:
        memory: list[Any] = [None] * size
        for place, array in constants:
            memory[place] = array
        for place, array in zip(inputs, buffers, strict=True):
            memory[place] = array
        for kernel, reads, writes, last_reads in steps:
            out = kernel(*[memory[i] for i in reads])
            if isinstance(out, tuple):
                for place, array in zip(writes, out, strict=True):
                    memory[place] = array
            else:
                memory[writes[0]] = out
            for place in last_reads:
                memory[place] = None
        return tuple(memory[i] for i in outputs)

    return run


def executable(graph: Graph) -> Callable[..., tuple[np.ndarray, ...]]:
    """The compiled `graph`, compiled at its first use."""
    if "cpu" not in graph.derived:
        graph.derived["cpu"] = compile_graph(graph, lowerings_of("cpu"))
    return graph.derived["cpu"]


def _with_last_reads(
    planned: list[tuple[Equation, tuple[int, ...], tuple[int, ...]]],
    keep: set[int],
    lowerings: Mapping[Primitive, Callable[..., Any]],
) -> list[Step]:
    steps: list[Step] = []
    seen = set(keep)
    for eqn, reads, writes in reversed(planned):
        last = tuple({*reads, *writes} - seen)
        seen.update(reads)
        steps.append(Step(_kernel(eqn, lowerings), reads, writes, last))
    return steps[::-1]


def _kernel(eqn: Equation, lowerings: Mapping[Primitive, Callable[..., Any]]) -> Callable[..., Any]:
    kernel = lowerings.get(eqn.prim) or eqn.prim.numpy_rule
    if eqn.prim is transfer_p:
        raise ValueError(
            "transfer: a jitted function runs on one device, here the CPU, and cannot move a "
            f"tensor to {eqn.params['device']}; move it before or after the call"
        )
    if kernel is None:
        raise NotImplementedError(f"{eqn.prim.name} has no implementation for the CPU")
    if not eqn.params:
        return kernel
    params = eqn.params
    return lambda *arrays: kernel(*arrays, **params)
