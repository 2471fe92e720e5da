"""What the kernels of a jitted function are, without running it: written to files for devices whose
compiler runs elsewhere, or tuned for a device."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from ...compiler.launches import Builder, Launch
from ...device import default_device
from ...graph import make_graph
from . import products, programs
from .compile import all_launches_of
from .programs import Entry
from .runtime import find, runtime


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
    builders = _traced(function, args, kwargs, device)
    launches = [launch for builder in builders for launch in builder.launches]
    kernels = [launch.code for launch in launches if isinstance(launch, Launch)]
    return programs.export(kernels, folder)


def tune_kernels(
    function: Callable[..., Any],
    *args: Any,
    device: str = "opencl:0",
    report: Callable[[products.Tuned], Any] | None = None,
    **kwargs: Any,
) -> list[products.Tuned]:
    """Search for the tiles that are fastest on a device, for every matrix product and convolution
    of a jitted function, and keep them below tensorlite's cache folder. Whatever is compiled for
    that device afterwards uses them, in this process and in others.

    Takes seconds for each class of products (see `products.tune`); the function itself is not run.

    Args:
        args, kwargs: arguments of `function`; shapes, dtypes and structure count, values do not.
        report: is given each result as soon as it is there.

    Raises:
        ValueError: there is no such device.
        OSError: the cache folder cannot be written to.
    """
    at = runtime(find(device).name)
    builders = _traced(function, args, kwargs, device)
    equations = [eqn for builder in builders for eqn in builder.graph.equations]
    problems = [p for p in map(products.problem_of, equations) if p is not None]
    return products.tune(at, problems, report)


def _traced(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], device: str
) -> list[Builder]:
    traits = find(device).traits
    with default_device(device):
        graph = make_graph(function)(*args, **kwargs)
    return list(all_launches_of(graph, traits))
