"""The CPU backend. Buffers are NumPy arrays; a primitive runs through its lowering for the CPU, its
NumPy rule, or its body."""

from __future__ import annotations

import contextvars
from typing import Any

import numpy as np

from ...core import Primitive, Tensor
from ...device import Device, gather_on_one_device, lowering, lowerings_of
from ...graph import Graph
from ...jit import call_p
from ...ops.creation import transfer_p
from .executor import executable


def _silent_floating_point() -> tuple[contextvars.ContextVar[Any], Any]:
    """The context variable in which NumPy keeps its floating-point error handling, and its value
    for "ignore everything".

    An operation on a tensor gives inf and nan without a warning. Entering `np.errstate` costs more
    than a small operation, so its effect on the context is found here once and then set directly.
    """
    before = dict(contextvars.copy_context().items())
    with np.errstate(all="ignore"):
        inside = dict(contextvars.copy_context().items())
    (changed,) = [var for var, value in inside.items() if before.get(var) is not value]
    return changed, inside[changed]


_errors, _ignore = _silent_floating_point()


class CPU:
    """The host's processor."""

    name = "cpu"

    def __init__(self) -> None:
        self.device = Device("cpu", self)
        self.lowerings = lowerings_of("cpu")

    def devices(self) -> list[Device]:
        return [self.device]

    def from_numpy(self, array: np.ndarray, device: Device) -> np.ndarray:
        return array

    def to_numpy(self, buffer: np.ndarray) -> np.ndarray:
        return buffer

    def run(
        self, device: Device, prim: Primitive, args: tuple[Tensor, ...], params: dict[str, Any]
    ) -> Any:
        buffers = []
        for arg in args:
            if arg.device is not device:
                home, args = gather_on_one_device(prim, args)
                return home.run(prim, args, params)
            buffers.append(arg.data)
        kernel = self.lowerings.get(prim) or prim.numpy_rule
        if kernel is None:
            return self._run_body(prim, args, params)
        token = _errors.set(_ignore)
        try:
            out = kernel(*buffers, **params)
        except (TypeError, ValueError, IndexError):
            prim.abstract(
                *[arg.aval for arg in args], **params
            )  # says what is wrong in the op's own words
            raise
        finally:
            _errors.reset(token)
        if isinstance(out, tuple):
            return tuple(Tensor(o, device) for o in out)
        return Tensor(out, device)

    def _run_body(self, prim: Primitive, args: tuple[Tensor, ...], params: dict[str, Any]) -> Any:
        if prim is transfer_p:
            target = params["device"]
            return Tensor(target.from_numpy(args[0].numpy()), target)
        if prim.body is None:
            raise NotImplementedError(f"{prim.name} has no implementation for the CPU")
        return prim.body(*args, **params)


@lowering(call_p, "cpu")
def _(*buffers: np.ndarray, graph: Graph, device: Device | None = None) -> tuple[np.ndarray, ...]:
    return executable(graph)(*buffers)
