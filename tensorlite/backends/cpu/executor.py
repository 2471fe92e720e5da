"""Runs a graph on the CPU: as a native program where there is a compiler, else through NumPy.

The program is what `compile` makes. Through NumPy the equations become a list of steps, each a
kernel with the slots it reads, writes and may forget.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ... import observe
from ...compiler.inline import inline
from ...compiler.launches import host_kernel
from ...compiler.schedule import arranged, bucketed
from ...core import Primitive, Tensor, primitives
from ...device import get_device, lowerings_of
from ...graph import Atom, Equation, Graph, Var
from ...threads import get_num_threads
from . import llvm
from .compile import compile_program
from .quiet import nested


class Step(NamedTuple):
    """One kernel call."""

    kernel: Callable[..., Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    last_reads: tuple[int, ...]  # slots that no later step reads


def compile_graph(
    graph: Graph, lowerings: Mapping[Primitive, Callable[..., Any]], watched: bool = False
) -> Callable[..., tuple[np.ndarray, ...]]:
    """A function of the graph's inputs that returns its outputs, all NumPy arrays; if it is to be
    `watched`, it reports its steps."""
    whole = {p for p in primitives.values() if p.numpy_rule or p in lowerings}
    flat = arranged(bucketed(inline(graph, whole)), split=False)
    if observe.verbosity.level >= 2:
        observe.logger.debug(
            f"compile {graph.name} for the CPU: {len(graph.equations)} equations, "
            f"{len(flat.equations)} steps after inlining"
        )
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
    steps = _with_last_reads(planned, {*outputs, *(s for s, _ in constants)}, lowerings, watched)
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
    """The compiled `graph`, compiled at its first use. Under a watcher it reports its steps, or
    runs equation by equation as eager operations do."""
    if observe.watchers and observe.is_stepwise():
        return _equation_by_equation(graph)
    if not compiles_natively():
        return _through_numpy(graph)
    key = ("cpu", get_num_threads())
    program = graph.derived.get(key)
    if program is None:
        with observe.span(f"compile {graph.name}"):
            program = graph.derived[key] = compile_program(graph, lowerings_of("cpu"))
    return program.run_watched if observe.watchers else program


@functools.cache
def compiles_natively() -> bool:
    """Whether graphs become native programs: the compiler is there, and TENSORLITE_COMPILER does
    not say "numpy".

    Raises:
        ValueError: TENSORLITE_COMPILER names no compiler.
    """
    chosen = os.environ.get("TENSORLITE_COMPILER", "llvm")
    if chosen not in ("llvm", "numpy"):
        raise ValueError(f'TENSORLITE_COMPILER is "llvm" or "numpy", got {chosen!r}')
    return chosen == "llvm" and llvm.available()


def _through_numpy(graph: Graph) -> Callable[..., tuple[np.ndarray, ...]]:
    watched = bool(observe.watchers)
    key = "numpy watched" if watched else "numpy"
    if key not in graph.derived:
        with observe.span(f"compile {graph.name}"):
            graph.derived[key] = compile_graph(graph, lowerings_of("cpu"), watched)
    return graph.derived[key]


def _equation_by_equation(graph: Graph) -> Callable[..., tuple[np.ndarray, ...]]:
    device = get_device("cpu")

    def run(*buffers: np.ndarray) -> tuple[np.ndarray, ...]:
        with nested():
            return tuple(t.data for t in graph.run(*[Tensor(b, device) for b in buffers]))

    return run


def _with_last_reads(
    planned: list[tuple[Equation, tuple[int, ...], tuple[int, ...]]],
    keep: set[int],
    lowerings: Mapping[Primitive, Callable[..., Any]],
    watched: bool,
) -> list[Step]:
    steps: list[Step] = []
    seen = set(keep)
    for eqn, reads, writes in reversed(planned):
        last = tuple({*reads, *writes} - seen)
        seen.update(reads)
        kernel = _kernel(eqn, lowerings)
        if watched:
            place = get_device("cpu")
            kernel = observe.reported(kernel, eqn.prim, eqn.params, place, eqn.source)
        steps.append(Step(kernel, reads, writes, last))
    return steps[::-1]


def _kernel(eqn: Equation, lowerings: Mapping[Primitive, Callable[..., Any]]) -> Callable[..., Any]:
    kernel = host_kernel(eqn, lowerings)
    if not eqn.params:
        return kernel
    params = eqn.params
    return lambda *arrays: kernel(*arrays, **params)
