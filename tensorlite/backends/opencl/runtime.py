"""OpenCL devices: which there are, what they can do, and the queue that each is driven by.

Devices are found when one is first asked for. They are numbered in an order that does not depend on
the order in which drivers are installed: GPUs, then accelerators, then CPUs, each by the names of
platform and device; equal devices stay in the order of their driver. `opencl:0/2:1` is the second
of two equal parts of device 0.

Each device has one context and one in-order queue in a process. Launches return at once; since
they run in order, memory may be given to the next user while the last one still runs.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import os
import re
import threading
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import numpy as np

from ... import observe
from ...origin import here
from .pool import OUT_OF_MEMORY, Pool, Statistics, code_of, limit_of
from .programs import Programs

_import_problem = ""
try:
    import pyopencl as cl
except ModuleNotFoundError:
    cl: Any = None  # type: ignore[no-redef]
    _import_problem = "PyOpenCL is not installed"
except ImportError as error:
    cl = None  # type: ignore[assignment]
    _import_problem = f"PyOpenCL cannot be imported ({error})"


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


# ---- what there is -------------------------------------------------------------------------------


class Found(NamedTuple):
    """A device, or a part of one, that may be opened."""

    name: str
    device: Any  # pyopencl.Device; of a part that the driver cannot make, the whole
    share: float  # of the memory of the whole device
    traits: Traits

    @property
    def description(self) -> str:
        """`AMD EPYC (Portable Computing Language), 2 units`, for people."""
        units = f"{self.traits.units} unit{'s' * (self.traits.units != 1)}"
        return f"{self.device.name.strip()} ({self.device.platform.name.strip()}), {units}"


def find_all() -> tuple[Found, ...]:
    """All devices, in the order of their numbers; none without PyOpenCL or a driver."""
    return _survey().found


def problems() -> tuple[str, ...]:
    """What kept other devices from being found."""
    return _survey().problems


def why_none() -> str:
    """Why there are no devices, and what to do."""
    if problems():
        return "; ".join(problems())
    reason = _import_problem or "no OpenCL driver was found"
    return f'{reason}; pip install "tensorlite[opencl]" brings PyOpenCL and a driver for the CPU'


class _Survey(NamedTuple):
    found: tuple[Found, ...]
    problems: tuple[str, ...]


_KINDS = ("gpu", "accelerator", "cpu")


@functools.cache
def _survey() -> _Survey:
    if cl is None:
        return _Survey((), ())
    _process.check()
    problems: list[str] = []
    usable: list[tuple[Any, Any, Traits]] = []
    try:
        platforms = cl.get_platforms()
    except cl.Error as error:
        none = code_of(error) == cl.status_code.PLATFORM_NOT_FOUND_KHR
        return _Survey((), () if none else (f"OpenCL cannot start: {error}",))
    for number, platform in enumerate(platforms):
        # A broken driver must not hide those of others.
        name = f"platform {number}"
        try:
            name = platform.name.strip()
            seen = [_seen(device, problems) for device in platform.get_devices()]
        except cl.Error as error:
            if code_of(error) != cl.status_code.DEVICE_NOT_FOUND:
                problems.append(f"the driver of {name} fails: {error}")
            continue
        usable += [device for device in seen if device is not None]
    usable.sort(key=lambda ranked: ranked[0])
    found = [
        Found(f"opencl:{number}", device, 1.0, traits)
        for number, (_, device, traits) in enumerate(usable)
    ]
    return _Survey(tuple(found), tuple(problems))


def _seen(device: Any, problems: list[str]) -> tuple[Any, Any, Traits] | None:
    """The rank of a device among all, the device, and its traits; None if it cannot be used."""
    name = device.name.strip()
    # Some devices, such as FPGAs, run only what was compiled ahead of time.
    compiled = os.environ.get("TENSORLITE_OPENCL_KERNELS")
    if not (device.compiler_available or compiled):
        problems.append(
            f"{name} has no compiler: set TENSORLITE_OPENCL_KERNELS to a folder of kernels that "
            "were compiled ahead of time"
        )
        return None
    if not device.available:
        problems.append(f"{name} is not available now")
        return None
    traits = _traits(device)
    if traits.kind == "cpu" and not compiled and (said := _refusal(device)):
        problems.append(
            f"the compiler of {name} ({device.platform.name.strip()}) does not work on this "
            f"processor: {said}. Install a newer one, of PoCL or Intel"
        )
        return None
    platform = device.platform
    rank = (_KINDS.index(traits.kind), platform.name, platform.version, device.name)
    return rank, device, traits


def _refusal(device: Any) -> str:
    """What a compiler says that cannot compile anything: one that is older than the processor may
    not know it."""
    program = cl.Program(cl.Context([device]), "__kernel void nothing(void) {}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that PyOpenCL keeps no copy of it
            program.compile()
    except cl.Error as error:
        log = program.get_build_info(device, cl.program_build_info.LOG)
        return str(next(iter(log.splitlines()), error))
    return ""


def _traits(device: Any) -> Traits:
    extensions = device.extensions.split()
    if device.type & cl.device_type.CPU:
        kind = "cpu"
    else:
        kind = "gpu" if device.type & cl.device_type.GPU else "accelerator"
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


# ---- names ---------------------------------------------------------------------------------------

_NAME = re.compile(r"opencl(?::(\d+)(?:/(\d+)(?::(\d+))?)?)?")


@functools.cache
def find(name: str) -> Found:
    """The device or the part called `name`.

    Raises:
        ValueError: there is none; the message says what there is, and how names are written.
        DeviceError: the driver cannot make the part, or this process was forked from one that uses
            OpenCL.
    """
    _process.check()
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(
            f"{name!r} is no name of an OpenCL device; write opencl:N for device N, "
            "opencl:N/P for the first of P equal parts of it, opencl:N/P:K for part K from 0 on"
        )
    everything = find_all()
    if not everything:
        raise ValueError(f"there is no device {name!r}; this machine has cpu only: {why_none()}")
    number, parts, part = (int(text) if text else None for text in match.groups())
    if (number or 0) >= len(everything):
        known = ", ".join(["cpu", *[found.name for found in everything]])
        others = "".join(f"; {problem}" for problem in problems())
        raise ValueError(f"there is no device {name!r}; this machine has {known}{others}")
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
        try:
            device = device.create_sub_devices([cl.device_partition_property.EQUALLY, units])[part]
        except cl.Error as error:
            raise DeviceError(f"{whole.name} cannot be divided by {parts}: {error}") from error
        traits = traits._replace(units=units)
    return Found(written, device, 1 / parts, traits)


# ---- devices at work -----------------------------------------------------------------------------


class _Process:
    """The process that uses OpenCL. Drivers have threads, which a forked child does not inherit:
    there it would wait for them for ever."""

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
            _refuse()


def _refuse(*args: Any, **kwargs: Any) -> NoReturn:
    raise DeviceError(
        "OpenCL was used before this process was forked, and drivers do not survive a fork; "
        "start the process by spawn, or ask for devices in the child only"
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
        # By default it would be for the first device of the context, which PoCL says is the whole
        # even where the context is that of a part.
        self.queue = cl.CommandQueue(self.context, found.device)
        self.programs = Programs(self.context, found.device, found.traits.key)
        self.pool = Pool(self, limit_of(found.name, found.device.global_mem_size, found.share))
        self.waits = os.environ.get("TENSORLITE_OPENCL_SYNC", "") not in ("", "0")
        self.failed = ""  # what failed last
        self._recent: collections.deque[tuple[Any, str]] = collections.deque(maxlen=256)
        self._uploads: collections.deque[Any] = collections.deque()
        self._uploading = threading.Lock()

    def enqueue(
        self,
        kernel: Any,
        global_size: tuple[int, ...],
        local_size: tuple[int, ...] | None,
        label: str,
    ) -> None:
        """Launch a kernel whose arguments are set, behind everything launched before.

        With TENSORLITE_OPENCL_SYNC=1, and while somebody watches (profiles, debugs), it is waited
        for.

        Raises:
            DeviceError: the device refuses it. What fails later is raised where the host waits,
                with the label of the launch that failed.
            DeviceMemoryError: the device has no memory left to run it.
        """
        try:
            event = cl.enqueue_nd_range_kernel(self.queue, kernel, global_size, local_size)
        except cl.Error as error:
            event = self._enqueue_again(error, kernel, global_size, local_size, label)
        self._recent.append((event, label))
        if self.waits or observe.watchers:
            self.wait(event.wait)

    def upload(self, target: Any, source: np.ndarray) -> None:
        """Copy the bytes of `source`, which nobody changes any more, to the buffer `target` behind
        everything launched before, without waiting for that."""
        event = self.wait(lambda: cl.enqueue_copy(self.queue, target, source, is_blocking=False))
        # PyOpenCL's event keeps the source, and waits for the copy when it is dropped.
        with self._uploading:
            uploads = self._uploads
            uploads.append(event)
            while uploads and (len(uploads) > _UPLOADS or _is_over(uploads[0])):
                uploads.popleft()

    def is_idle(self) -> bool:
        """Whether everything that was launched is over; a guess while other threads launch."""
        try:
            last = self._recent[-1][0]
        except IndexError:
            return True
        return _is_over(last)

    def finish(self) -> None:
        """Wait for everything that was launched."""
        self.wait(self.queue.finish)

    def wait(self, action: Callable[[], Any]) -> Any:
        """Run an action that waits; if something has failed, say which operation it was.

        Raises:
            DeviceError: the action, or what was launched before it, has failed.
        """
        try:
            return action()
        except cl.Error as error:
            launched = [(_status(event), label) for event, label in self._recent]
            self._recent.clear()
            failed = [label for status, label in launched if status is not None and status < 0]
            # A driver whose context died of a fault may say nothing of any event.
            unknown = list(dict.fromkeys(label for status, label in launched if status is None))
            self.failed = failed[0] if failed else "waiting"
            if unknown and not failed:
                self.failed = f"one of the last launches ({', '.join(unknown[-5:])})"
            raise self.failure(self.failed, error) from error

    def unmap(self, mapping: Any) -> None:
        """Give back the mapping of a buffer to the host."""
        mapping.release(self.queue)

    def failure(self, what: str, error: Exception) -> DeviceError:
        """The error to raise when `what` has failed. It says at which line of the user's that was
        noticed."""
        text = f"{what} failed on {self.name} ({self.traits.key}): {error}"
        line = here()
        if line is not None:
            text += f"\n  noticed at {line}"
        if not self.waits:
            text += "\n  TENSORLITE_OPENCL_SYNC=1 waits for each launch and notices failures there"
        return DeviceError(text)

    def abandon(self) -> None:
        """Refuse to work any more: this is the child of the process that uses the device."""
        methods = {
            self: ("enqueue", "upload", "finish", "wait"),
            self.pool: ("allocate", "trim", "statistics"),
            self.programs: ("kernel",),
        }
        for owner, names in methods.items():
            for name in names:
                setattr(owner, name, _refuse)
        # Dropped objects would ask the driver to let them go. They stay until the child ends.
        _abandoned.append((self, *self._recent, *self._uploads))
        self.unmap = _abandoned.append  # type: ignore[method-assign,assignment]

    def _enqueue_again(
        self,
        error: Any,
        kernel: Any,
        global_size: tuple[int, ...],
        local_size: tuple[int, ...] | None,
        label: str,
    ) -> Any:
        """Try once more if it was for lack of memory."""
        sizes = f"global size {global_size}, local size {local_size}"
        what = f"{label}: kernel {kernel.function_name}, {sizes}"
        if code_of(error) not in OUT_OF_MEMORY:
            raise self.failure(what, error) from error
        self.pool.trim()
        try:
            return cl.enqueue_nd_range_kernel(self.queue, kernel, global_size, local_size)
        except cl.Error as again:
            if code_of(again) == cl.status_code.MEM_OBJECT_ALLOCATION_FAILURE:
                raise self.pool.exhausted(f"{what}: {self.name} has no memory left") from again
            raise self.failure(what, again) from again


_UPLOADS = 16  # copies from the host that may be under way
_abandoned: list[Any] = []


def _is_over(event: Any) -> bool:
    return event.command_execution_status <= 0


def _status(event: Any) -> int | None:
    """How a launch stands, below 0 if it failed; None if the driver does not say."""
    try:
        return int(event.command_execution_status)
    except cl.Error:
        return None


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
    return found


def memory_statistics(device: str = "opencl:0") -> Statistics:
    """How much of a device's memory is in use, and for what.

    Raises:
        ValueError: there is no such device.
    """
    return runtime(find(str(device)).name).pool.statistics()


def _before_fork() -> None:
    # What runs now holds locks of the driver, which would stay locked in the child.
    for found in list(_runtimes.values()):
        with contextlib.suppress(cl.Error):
            found.queue.finish()


def _after_fork_in_child() -> None:
    for found in list(_runtimes.values()):
        found.abandon()


os.register_at_fork(before=_before_fork, after_in_child=_after_fork_in_child)
