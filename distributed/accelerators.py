"""Which device a worker computes on, where Spark's scheduler gives its tasks accelerators.

Spark hands a task addresses of a resource (`spark.task.resource.gpu.amount`, or any other name, or
a `ResourceProfile`). An address is the number of an OpenCL device, as `tensorlite devices` counts
them on the host, or a device's name; cpu, cpu1, cpu2 and so on are all the processor, so that hosts
without an accelerator can offer the same resource. Tasks that share an address, as they do with
fractional amounts, get equal parts of the device where it can be divided, and else share all of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import tensorlite as tl

from .errors import DistributedError

Resources = Mapping[str, Sequence[str]]


def chosen(resources: Resources) -> str:
    """The address that counts: the first of the first resource, by name; "" without any."""
    for name in sorted(resources):
        if resources[name]:
            return str(resources[name][0])
    return ""


def device_of(rank: int, given: Sequence[tuple[str, str]]) -> str:
    """The name of the device for worker `rank`.

    Args:
        given: host and address ("" for none) of each worker, in rank order.

    Raises:
        DistributedError: the host has no such device.
    """
    host, address = given[rank]
    if not address:
        return "cpu"
    name = _named(host, address)
    sharing = [other for other, place in enumerate(given) if place == (host, address)]
    if len(sharing) == 1:
        return name
    part = f"{name}/{len(sharing)}:{sharing.index(rank)}"
    try:
        return str(tl.device.get_device(part))
    except ValueError:
        return name  # GPUs, for example, cannot be divided: their driver lets workers take turns


def device_of_task(context: Any) -> str:
    """The device of a task that knows nothing of others, from its `TaskContext`, if it has one: the
    accelerator that Spark gave it, whole, or the CPU."""
    if context is None:
        return "cpu"
    address = chosen({name: r.addresses for name, r in context.resources().items()})
    return _named("this host", address) if address else "cpu"


def _named(host: str, address: str) -> str:
    names = [str(device) for device in tl.devices()]
    if re.fullmatch(r"cpu\d*", address):
        return "cpu"
    wanted = address if ":" in address else f"opencl:{address}"
    if wanted not in names:
        raise DistributedError(
            f"Spark gave a worker on {host} the address {address!r} of a resource, and tensorlite "
            f"finds {', '.join(names)} there; addresses are numbers of OpenCL devices, their "
            "names, or cpu. `tensorlite devices` lists them; device='cpu' computes without"
        )
    return wanted
