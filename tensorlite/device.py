"""Devices, the protocol that every backend implements, and the registry of backends.

A backend owns buffers of its own kind and knows how to run one primitive on them; jit is one
primitive too, `call`, whose parameter is a graph to compile. Backends register themselves when they
are imported; a heavy kernel is registered from the backend's own files with `@lowering(primitive,
backend)`, and everything else runs through the primitive's NumPy rule or its decomposition.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import importlib
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from .core import Primitive, Tensor, tracing_graph


class Backend(Protocol):
    """What a kind of device can do. Buffers are opaque but have a `shape` and a `dtype`."""

    name: str

    def devices(self) -> list[Device]:
        """The devices of this backend that can be used now, in a stable order."""

    def device(self, name: str) -> Device | None:
        """The device of that name, which may also be part of one. None if there is none, or a
        ValueError that says more."""

    def from_numpy(self, array: np.ndarray, device: Device) -> Any:
        """A buffer on `device` that holds the values of `array`; it may share memory with a
        read-only `array`."""

    def to_numpy(self, buffer: Any) -> np.ndarray:
        """The values of `buffer` as a NumPy array; waits until they are computed."""

    def run(
        self, device: Device, prim: Primitive, args: tuple[Tensor, ...], params: dict[str, Any]
    ) -> Any:
        """Run one primitive on concrete tensors: a Tensor, or a tuple of them. A jitted function
        is the primitive `call`, whose graph the backend compiles when it first meets it."""


class Device:
    """One device, such as `cpu`. Devices are singletons; `device == "cpu"` compares the name."""

    __slots__ = ("backend", "description", "name", "run")

    def __init__(self, name: str, backend: Backend, description: str = ""):
        self.name = name
        self.backend = backend
        self.description = description
        # run(prim, args, params) is the backend's, without a Python frame in between.
        self.run = functools.partial(backend.run, self)

    def from_numpy(self, array: np.ndarray) -> Any:
        """A buffer of this device with the values of `array`; see `Backend.from_numpy`."""
        return self.backend.from_numpy(array, self)

    def to_numpy(self, buffer: Any) -> np.ndarray:
        """The values of a buffer of this device; waits until they are computed."""
        return self.backend.to_numpy(buffer)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, str) and self.name == other)

    def __hash__(self) -> int:
        return hash(self.name)

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return (
            f"Device({self.name!r}, {self.description!r})"
            if self.description
            else f"Device({self.name!r})"
        )

    def __reduce__(self) -> Any:
        return get_device, (self.name,)


_backends: dict[str, Backend] = {}
_modules = {  # imported when a device of that name is first asked for
    "cpu": "tensorlite.backends.cpu",
    "opencl": "tensorlite.backends.opencl",
}
_default: contextvars.ContextVar[Device | None] = contextvars.ContextVar(
    "default_device", default=None
)

Kernel = Callable[..., Any]
_lowerings: dict[str, dict[Primitive, Kernel]] = {}


def register_backend(backend: Backend) -> None:
    """Make the devices of `backend` available under its name."""
    _backends[backend.name] = backend


def lowering(prim: Primitive, backend: str) -> Callable[[Kernel], Kernel]:
    """Register a function of buffers and parameters as the way `backend` runs `prim`."""

    def attach(kernel: Kernel) -> Kernel:
        lowerings_of(backend)[prim] = kernel
        return kernel

    return attach


def lowerings_of(backend: str) -> dict[Primitive, Kernel]:
    """The kernels registered for `backend`, by primitive."""
    return _lowerings.setdefault(backend, {})


def devices() -> list[Device]:
    """All devices of this machine that tensorlite can use; the CPU is the first."""
    return [device for name in _modules for device in _backend(name).devices()]


def get_device(device: str | Device | None = None) -> Device:
    """The device of that name; None is the default device.

    Raises:
        ValueError: there is no such device; the message lists those there are.
    """
    if device is None:
        return default_device.current()
    if isinstance(device, Device):
        return device
    if isinstance(device, str):
        name = device.partition(":")[0]
        found = _backend(name).device(device) if name in _modules else None
        if found is not None:
            return found
    known = ", ".join(d.name for d in devices())
    raise ValueError(f"there is no device {device!r}; this machine has {known}")


def _backend(name: str) -> Backend:
    if name not in _backends:
        importlib.import_module(_modules[name])
    return _backends[name]


class default_device(contextlib.ContextDecorator):
    """`with tl.default_device("opencl:0"): ...` makes new tensors there. Without a block, the
    default is the CPU."""

    def __init__(self, device: str | Device):
        self.device = get_device(device)
        self._tokens: list[contextvars.Token[Device | None]] = []

    def _recreate_cm(self) -> default_device:
        """A decorated function may call itself: each call has a block of its own."""
        return default_device(self.device)

    @staticmethod
    def current() -> Device:
        return _default.get() or get_device("cpu")

    def __enter__(self) -> Device:
        self._tokens.append(_default.set(self.device))
        return self.device

    def __exit__(self, *exc: Any) -> None:
        _default.reset(self._tokens.pop())


def current_device() -> Device:
    """Where a new tensor goes: the device of the graph being traced, else the default device."""
    trace: Any = tracing_graph()
    return trace.device if trace is not None else default_device.current()


def gather_on_one_device(
    prim: Primitive, args: tuple[Tensor, ...]
) -> tuple[Device, tuple[Tensor, ...]]:
    """The device of the first argument that has dimensions, and all arguments there.

    A tensor without dimensions may live elsewhere: it is a scalar and is sent along.

    Raises:
        ValueError: two tensors with dimensions live on different devices.
    """
    home = next((a for a in args if a.shape), args[0]).device
    moved = []
    for arg in args:
        if arg.device is not home and arg.shape:
            raise ValueError(
                f"{prim.name}: arguments live on {home} and on {arg.device}; "
                "move one with tl.asarray(x, device=...) first"
            )
        moved.append(arg if arg.device is home else Tensor(home.from_numpy(arg.numpy()), home))
    return home, tuple(moved)
