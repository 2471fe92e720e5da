"""From a traced graph to a program for an OpenCL device: the passes of the CPU with other launches.

inline -> simplify -> slide (bands) -> absorb (epilogues) -> fuse (loop nests) -> launches and
memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ... import observe
from ...compiler.absorb import absorb, absorbed_p
from ...compiler.bands import slide
from ...compiler.fuse import fuse, nest_p
from ...compiler.inline import inline
from ...compiler.launches import Builder, HostStep, Kernel, Plan, host_kernel
from ...compiler.simplify import simplify, transposed_matmul_p
from ...device import lowerings_of
from ...graph import Equation, Graph
from ...ops.conv import conv_input_grad_p, conv_p, conv_weight_grad_p
from ...ops.linalg import matmul_p
from ...ops.random import bits_p
from . import products, render
from .program import OnDevice, Program
from .random_bits import plan_bits
from .runtime import Runtime, Traits

_PRODUCTS = (matmul_p, transposed_matmul_p)
HEAVY = (conv_p, conv_input_grad_p, *_PRODUCTS)  # what may have an epilogue
_CONVOLUTIONS: dict[Any, Callable[..., Plan | None]] = {
    conv_p: products.plan_conv,
    conv_input_grad_p: products.plan_conv_input_grad,
    conv_weight_grad_p: products.plan_conv_weight_grad,
}


def compile_program(graph: Graph, runtime: Runtime) -> Program:
    """`graph` as a program for the device of `runtime`."""
    builder = launches_of(graph, runtime.traits)
    program = Program(builder, runtime)
    if observe.verbosity.level >= 2:
        nests = sum(eqn.prim is nest_p for eqn in builder.graph.equations)
        host = sum(isinstance(launch, HostStep) for launch in builder.launches)
        observe.logger.debug(
            f"compile {graph.name} for {runtime.name}: {len(builder.graph.equations)} equations "
            f"when fused, {nests} of them loop nests; {len(builder.launches)} launches, {host} of "
            f"them on the host; {program.layout.size:,} bytes of memory"
        )
    return program


def launches_of(graph: Graph, traits: Traits) -> Builder:
    """What a device with these traits does to compute `graph`."""
    lean = slide(simplify(inline(graph, ())))
    absorbed = absorb(lean, HEAVY, lambda eqn: plan_product(traits, eqn) is not None)
    fused = fuse(absorbed, guards=True)
    return Builder(fused, lambda eqn: plan(traits, eqn), _host_kernel, render.may_share)


def plan(traits: Traits, eqn: Equation) -> Plan | None:
    """The kernels of an equation; None if the host computes it."""
    if eqn.prim is nest_p:
        return render.plan_nest(traits, eqn.params["nest"], [a.aval.size for a in eqn.inputs])
    if eqn.prim is bits_p and eqn.outputs[0].aval.size > 0:
        return plan_bits(traits, eqn.inputs[0].aval.size // 4, **eqn.params)
    return plan_product(traits, eqn)


def plan_product(traits: Traits, eqn: Equation) -> Plan | None:
    """The kernels of a product or a convolution with its epilogue; None if `eqn` is neither."""
    inner: Equation = eqn.params["eqn"] if eqn.prim is absorbed_p else eqn
    epilogue = eqn.params["epilogue"] if eqn.prim is absorbed_p else ()
    planner = products.plan_matmul if inner.prim in _PRODUCTS else _CONVOLUTIONS.get(inner.prim)
    if planner is None:
        return None
    in_avals = [atom.aval for atom in eqn.inputs]
    out = eqn.outputs[0].aval
    return planner(traits, *in_avals[:2], out, *in_avals[2:], **inner.params, epilogue=epilogue)


def _host_kernel(eqn: Equation) -> Kernel:
    on_device = lowerings_of("opencl").get(eqn.prim)
    if on_device is not None:
        return OnDevice(on_device)
    return host_kernel(eqn, {}, "OpenCL device")
