"""From a traced graph to a program for an OpenCL device: the passes of the CPU with other launches.

inline -> bucketed (collectives) -> simplify -> slide (bands) -> absorb (epilogues) -> fuse (loop
nests) -> arranged (collectives) -> launches and memory. The host runs collectives.
"""

from __future__ import annotations

from collections.abc import Iterator

from ... import observe
from ...compiler.absorb import absorb
from ...compiler.bands import slide
from ...compiler.fuse import fuse, nest_p
from ...compiler.inline import inline
from ...compiler.launches import Builder, HostStep, Kernel, Plan, host_kernel
from ...compiler.schedule import arranged, bucketed
from ...compiler.simplify import simplify
from ...device import lowerings_of
from ...graph import Equation, Graph
from ...ops.conv import conv_input_grad_p, conv_p
from ...ops.random import bits_p
from . import products, render
from .program import OnDevice, Program
from .random_bits import plan_bits
from .runtime import Runtime, Traits

HEAVY = (conv_p, conv_input_grad_p, *products.MATMULS)  # what may have an epilogue


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
    lean = slide(simplify(bucketed(inline(graph, ()))))
    absorbed = absorb(lean, HEAVY, lambda eqn: plan_product(traits, eqn) is not None)
    fused = arranged(fuse(absorbed, guards=True), split=False)
    return Builder(fused, lambda eqn: plan(traits, eqn), _host_kernel, render.may_share)


def all_launches_of(graph: Graph, traits: Traits) -> Iterator[Builder]:
    """The same for `graph` and for the graphs that its control flow runs."""
    builder = launches_of(graph, traits)
    yield builder
    for eqn in builder.graph.equations:
        for inner in eqn.graphs.values():
            yield from all_launches_of(inner, traits)


def plan(traits: Traits, eqn: Equation) -> Plan | None:
    """The kernels of an equation; None if the host computes it."""
    if eqn.prim is nest_p:
        return render.plan_nest(traits, eqn.params["nest"], [a.aval.size for a in eqn.inputs])
    if eqn.prim is bits_p and eqn.outputs[0].aval.size > 0:
        return plan_bits(traits, eqn.inputs[0].aval.size // 4, **eqn.params)
    return plan_product(traits, eqn)


def plan_product(traits: Traits, eqn: Equation) -> Plan | None:
    """The kernels of a product or a convolution with its epilogue; None if `eqn` is neither."""
    problem = products.problem_of(eqn)
    return None if problem is None else products.plan(traits, problem)


def _host_kernel(eqn: Equation) -> Kernel:
    on_device = lowerings_of("opencl").get(eqn.prim)
    if on_device is not None:
        return OnDevice(on_device)
    return host_kernel(eqn, {}, "OpenCL device")
