"""From a traced graph to a program: the passes of the CPU, in order.

inline -> bucketed (collectives) -> simplify -> slide (bands) -> absorb (epilogues) -> fill_scatters
-> fuse (loop nests) -> arranged (collectives) -> launches and memory. Where the native compiler is
missing, `executor` has NumPy run the same graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ... import observe
from ...compiler.absorb import absorb, absorbed_p
from ...compiler.bands import slide
from ...compiler.fuse import fuse, nest_p
from ...compiler.inline import inline
from ...compiler.launches import Builder, Call, Kernel, Plan, Ref, host_kernel
from ...compiler.scatters import fill_scatters, filled_scatter_p
from ...compiler.schedule import arranged, bucketed
from ...compiler.simplify import simplify, transposed_matmul_p
from ...core import Primitive
from ...graph import Equation, Graph
from ...ops.conv import conv_input_grad_p, conv_p
from ...ops.index import scatter_p
from ...ops.linalg import matmul_p
from ...ops.random import bits_p
from . import llvm, onednn
from .onednn.matmul import plan_matmul
from .program import Execution, Program, RandomBits

_PRODUCTS = (matmul_p, transposed_matmul_p)
HEAVY = (conv_p, conv_input_grad_p, *_PRODUCTS)  # what may have an epilogue


def compile_program(graph: Graph, lowerings: Mapping[Primitive, Kernel]) -> Program:
    """`graph` as a program for the CPU, for the number of threads that is set now."""
    flat = bucketed(inline(graph, ()))
    lean = slide(simplify(flat))
    absorbed = absorb(lean, HEAVY, lambda eqn: plan_for(eqn) is not None)
    fused = arranged(fuse(fill_scatters(absorbed), guards=True), split=True)
    builder = Builder(fused, _plan, lambda eqn: host_kernel(eqn, lowerings), llvm.may_share)
    program = Program(builder)
    if observe.verbosity.level >= 2:
        nests = sum(eqn.prim is nest_p for eqn in fused.equations)
        python = len(program.python_sections())
        observe.logger.debug(
            f"compile {graph.name} for the CPU: {len(flat.equations)} equations after inlining, "
            f"{len(lean.equations)} simplified, {len(absorbed.equations)} with epilogues, "
            f"{len(fused.equations)} fused, {nests} of them loop nests; {len(program.launches)} "
            f"launches, {python} of them in Python; {program.layout.size:,} bytes of memory"
        )
    return program


def _plan(eqn: Equation) -> Plan | None:
    """The launches of an equation: our own code, or oneDNN's."""
    if eqn.prim is nest_p:
        return _single(eqn, eqn.params["nest"])
    if eqn.prim is bits_p and eqn.outputs[0].aval.size > 0:
        return _single(eqn, RandomBits(eqn.inputs[0].aval.size // 4, **eqn.params))
    if eqn.prim in (scatter_p, filled_scatter_p):
        return _plan_scatter(eqn)
    found = plan_for(eqn)
    if found is None:
        return None
    calls = [Call(Execution(found, c), tuple(a.ref for a in c.arguments)) for c in found.calls]
    return Plan(found.op, tuple(calls), found.temporaries)


def _plan_scatter(eqn: Equation) -> Plan | None:
    """One launch; NumPy's rule where nothing is scattered, or into nothing."""
    result = eqn.outputs[0].aval
    fill = eqn.params.get("value")
    indices = [atom.aval for atom in eqn.inputs[1 if fill is not None else 2 :]]
    if not result.size or not indices[0].size:
        return None
    kinds = tuple(aval.dtype for aval in indices)
    code = llvm.Scatter(
        result.shape, result.dtype, kinds, indices[0].size, eqn.params["mode"], fill
    )
    return _single(eqn, code)


def _single(eqn: Equation, code: Any) -> Plan:
    """One launch that takes all inputs, then all outputs."""
    arguments = [Ref("input", i) for i in range(len(eqn.inputs))]
    arguments += [Ref("output", i) for i in range(len(eqn.outputs))]
    return Plan(eqn.prim.name, (Call(code, tuple(arguments)),))


def plan_for(eqn: Equation) -> onednn.Plan | None:
    """How oneDNN runs an equation, or None."""
    inner: Equation = eqn.params["eqn"] if eqn.prim is absorbed_p else eqn
    epilogue = eqn.params["epilogue"] if eqn.prim is absorbed_p else ()
    in_avals = [atom.aval for atom in eqn.inputs]
    out_avals = [var.aval for var in eqn.outputs]
    if inner.prim in _PRODUCTS:
        return plan_matmul(
            *in_avals[:2], out_avals[0], *in_avals[2:], **inner.params, epilogue=epilogue
        )
    return onednn.plan(inner.prim, in_avals, out_avals, inner.params, epilogue=epilogue)
