"""OpenCL devices: which there are, what they can do, and the queue that each is driven by.

Devices are found when one is first asked for. They are numbered in an order that does not depend on
the order in which drivers are installed: GPUs, then accelerators, then CPUs, each by the names of
platform and device. `opencl:0/2:1` is the second of two equal parts of device 0.

Each device has one context and one in-order queue in a process. Launches return at once; since
they run in order, memory may be given to the next user while the last one still runs.
"""

from __future__ import annotations

import collections
import functools
import os
import re
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from .memory import Pool, limit_of
from .programs import Programs

try:
    import pyopencl as cl
except ImportError:
    cl: Any = None  # type: ignore[no-redef]


class Traits(NamedTuple):
    """What code generators have to know of a device."""

    kind: str  # "cpu", "gpu" or "accelerator"
    units: int  # compute units
    local_memory: int  # bytes that a work-group may have
    dedicated_local: bool  # it is faster than global memory
    max_work_group: int
    vector: int  # float32 lanes that suit the device
    float64: bool
    float16: bool  # arithmetic; storage needs nothing
    address_bits: int
    alignment: int  # bytes, what parts of a buffer must start at
    max_allocation: int  # bytes
    key: str  # platform, device and driver: what compiled code and tunings are good for


class DeviceError(RuntimeError):
    """An OpenCL device or its driver failed."""


class Found(NamedTuple):
    """A device, or a part of one, that may be opened."""

    name: str
    device: Any  # pyopencl.Device; of a part that the driver cannot make, the whole
    share: float  # of the memory of the whole device
    traits: Traits

    @property
    def description(self) -> str:
        """`PoCL 3.0 pthread-AMD EPYC, 2 units`, for people."""
        units = f"{self.traits.units} unit{'s' * (self.traits.units != 1)}"
        return f"{self.device.name.strip()} ({self.device.platform.name.strip()}), {units}"


_KINDS = ("gpu", "accelerator", "cpu")


@functools.cache
def find_all() -> tuple[Found, ...]:
    """All devices, in the order of their numbers; none without PyOpenCL or a driver."""
    devices = sorted(_devices(), key=_rank)
    return tuple(
        Found(f"opencl:{number}", device, 1.0, _traits(device))
        for number, device in enumerate(devices)
    )


def why_none() -> str:
    """Why there are no devices, and what to do."""
    why = "PyOpenCL is not installed" if cl is None else "no OpenCL driver was found"
    return f'{why}; pip install "tensorlite[opencl]" brings PyOpenCL and a driver for the CPU'


def _devices() -> list[Any]:
    if cl is None:
        return []
    _process.check()
    try:
        platforms = cl.get_platforms()
    except cl.Error:  # there is no driver at all
        return []
    found: list[Any] = []
    for platform in platforms:
        try:
            found += platform.get_devices()
        except cl.Error:  # a broken driver must not hide those of others
            continue
    # Some devices, such as FPGAs, run only what was compiled ahead of time.
    ahead = "TENSORLITE_OPENCL_KERNELS" in os.environ
    return [d for d in found if d.available and (d.compiler_available or ahead)]


def _rank(device: Any) -> tuple[Any, ...]:
    return (_KINDS.index(_kind(device)), device.platform.name, device.platform.version, device.name)


def _kind(device: Any) -> str:
    if device.type & cl.device_type.CPU:
        return "cpu"
    return "gpu" if device.type & cl.device_type.GPU else "accelerator"


def _traits(device: Any) -> Traits:
    extensions = device.extensions.split()
    kind = _kind(device)
    local = device.local_mem_type == cl.device_local_mem_type.LOCAL
    identity = (device.platform.name, device.platform.version, device.name, device.driver_version)
    return Traits(
        kind=kind,
        units=device.max_compute_units,
        local_memory=device.local_mem_size,
        dedicated_local=local and kind != "cpu",
        max_work_group=device.max_work_group_size,
        vector=device.native_vector_width_float if kind == "cpu" else 1,
        float64="cl_khr_fp64" in extensions,
        float16="cl_khr_fp16" in extensions,
        address_bits=device.address_bits,
        alignment=max(device.mem_base_addr_align // 8, 64),
        max_allocation=device.max_mem_alloc_size,
        key=" | ".join(part.strip() for part in identity),
    )


_NAME = re.compile(r"opencl(?::(\d+)(?:/(\d+)(?::(\d+))?)?)?")


@functools.cache
def find(name: str) -> Found:
    """The device or the part called `name`.

    Raises:
        ValueError: there is none; the message says what there is, and how names are written.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(
            f"{name!r} is no name of an OpenCL device; write opencl:N for device N, "
            "opencl:N/P for the first of P equal parts of it, opencl:N/P:K for part K from 0 on"
        )
    everything = find_all()
    if not everything:
        raise ValueError(f"there is no device {name!r}: {why_none()}")
    number, parts, part = (int(text) if text else None for text in match.groups())
    if (number or 0) >= len(everything):
        known = ", ".join(["cpu", *[found.name for found in everything]])
        raise ValueError(f"there is no device {name!r}; this machine has {known}")
    whole = everything[number or 0]
    return whole if parts is None else _part(whole, parts, part or 0)


def _part(whole: Found, parts: int, part: int) -> Found:
    written = f"{whole.name}/{parts}:{part}"
    if parts < 1 or part >= parts:
        raise ValueError(
            f"there is no device {written!r}: parts are numbered from 0, and there are {parts}"
        )
    if parts == 1:
        return whole
    units = whole.traits.units // parts
    device, traits = whole.device, whole.traits
    if cl.device_partition_property.EQUALLY in (device.partition_properties or ()):
        if units == 0:
            raise ValueError(
                f"there is no device {written!r}: {whole.name} has {traits.units} compute units, "
                f"which cannot make {parts} parts"
            )
        device = device.create_sub_devices([cl.device_partition_property.EQUALLY, units])[part]
        traits = traits._replace(units=units)
    return Found(written, device, 1 / parts, traits)


class _Process:
    """Drivers have threads, which a forked child does not inherit."""

    def __init__(self) -> None:
        self._owner: int | None = None

    def check(self) -> None:
        """Remember that this process uses OpenCL.

        Raises:
            DeviceError: its parent did, before this process was forked.
        """
        if self._owner is None:
            self._owner = os.getpid()
        elif self._owner != os.getpid():
            raise DeviceError(
                "OpenCL was used before this process was forked, and drivers do not survive a "
                "fork; start the process by spawn, or ask for devices in the child only"
            )


_process = _Process()


class Runtime:
    """A device at work: a context, a queue, a pool of memory."""

    def __init__(self, found: Found):
        _process.check()
        self.name = found.name
        self.traits = found.traits
        self.device = found.device
        self.context = cl.Context([found.device])
        self.queue = cl.CommandQueue(self.context)
        self.programs = Programs(self.context, found.device, found.traits.key)
        self.pool = Pool(self, limit_of(found.name, found.device.global_mem_size, found.share))
        self._recent: collections.deque[tuple[Any, str]] = collections.deque(maxlen=256)
        self.waits = bool(os.environ.get("TENSORLITE_OPENCL_SYNC"))

    def enqueue(
        self,
        kernel: Any,
        global_size: tuple[int, ...],
        local_size: tuple[int, ...] | None,
        label: str,
    ) -> None:
        """Launch a kernel whose arguments are set, behind everything launched before.

        Raises:
            DeviceError: the device refuses it. What fails later is raised where the host waits,
                with the label of the launch that failed.
        """
        try:
            event = cl.enqueue_nd_range_kernel(self.queue, kernel, global_size, local_size)
        except cl.Error as error:
            sizes = f"global size {global_size}, local size {local_size}"
            raise self.failure(f"{label}: kernel {kernel.function_name}, {sizes}", error) from error
        self._recent.append((event, label))
        if self.waits:
            self.wait(event.wait)

    def finish(self) -> None:
        """Wait for everything that was launched."""
        self.wait(self.queue.finish)

    def wait(self, action: Callable[[], Any]) -> Any:
        """Run an action that waits; if something has failed, say which operation it was."""
        try:
            return action()
        except cl.Error as error:
            for event, label in self._recent:
                if event.command_execution_status < 0:
                    raise self.failure(label, error) from error
            raise self.failure("an unknown operation", error) from error

    def failure(self, what: str, error: Exception) -> DeviceError:
        """The error to raise when `what` has failed."""
        return DeviceError(f"{what} failed on {self.name} ({self.traits.key}): {error}")


_runtimes: dict[str, Runtime] = {}
_lock = threading.Lock()


def runtime(name: str) -> Runtime:
    """The runtime of a device, which is opened at its first use."""
    found = _runtimes.get(name)
    if found is None:
        with _lock:
            found = _runtimes.get(name)
            if found is None:
                found = _runtimes[name] = Runtime(find(name))
    elif _process._owner != os.getpid():
        _process.check()
    return found
