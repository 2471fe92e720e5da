"""One run of device code: what generators write, programs launch, and exports put in files."""

from __future__ import annotations

from typing import NamedTuple


class Kernel(NamedTuple):
    """A launch of an OpenCL kernel. Its arguments are one buffer for each argument of the call,
    then the scalars."""

    name: str  # of the __kernel function
    source: str  # a complete program in OpenCL C; equal sources are built once
    global_size: tuple[int, ...]
    local_size: tuple[int, ...] | None
    scalars: tuple[int, ...] = ()  # of type int
    options: str = ""  # for the device's compiler
