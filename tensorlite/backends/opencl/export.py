"""Kernels of a jitted function as files, for devices whose compiler runs elsewhere."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

from ...compiler.launches import Launch
from ...device import default_device
from ...graph import Graph, make_graph
from . import programs
from .compile import launches_of
from .kernels import Kernel
from .programs import Entry
from .runtime import Traits, find


def export_kernels(
    function: Callable[..., Any],
    *args: Any,
    folder: str | os.PathLike[str],
    device: str = "opencl:0",
    **kwargs: Any,
) -> list[Entry]:
    """Write the OpenCL C that a jitted function needs for arguments such as `args`, with a
    manifest; nothing is compiled or run.

    For each program in the manifest, compile the source with the options that stand there and leave
    the binary under the name that stands there. A process that runs with
    TENSORLITE_OPENCL_KERNELS=folder compiles nothing and takes its kernels from these binaries.

    Args:
        args, kwargs: arguments of `function`; shapes, dtypes and structure count, values do not.
        folder: is made if it is missing; kernels that are in it already stay.
        device: whose traits decide what kernels look like.

    Returns:
        All that the manifest lists now.

    Raises:
        ValueError: there is no such device.
    """
    traits = find(device).traits
    with default_device(device):
        graph = make_graph(function)(*args, **kwargs)
    return programs.export(_kernels(graph, traits), folder)


def _kernels(graph: Graph, traits: Traits) -> Iterator[Kernel]:
    """The kernels of a graph, and of the graphs that its control flow runs."""
    builder = launches_of(graph, traits)
    for launch in builder.launches:
        if isinstance(launch, Launch):
            yield launch.code
    for eqn in builder.graph.equations:
        for inner in eqn.graphs.values():
            yield from _kernels(inner, traits)
