"""The CPU backend. Buffers are NumPy arrays; a primitive runs through its lowering for the CPU, its
NumPy rule, or its body."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...core import Primitive, Tensor
from ...device import Device, gather_on_one_device, lowering, lowerings_of
from ...graph import Graph
from ...jit import call_p
from ...ops.creation import transfer_p
from .allocator import is_seen_by_none
from .executor import compiles_natively, executable
from .quiet import quiet


class CPU:
    """The host's processor."""

    name = "cpu"

    def __init__(self) -> None:
        self._device = Device("cpu", self)
        self.lowerings = lowerings_of("cpu")

    def devices(self) -> list[Device]:
        return [self._device]

    def device(self, name: str) -> Device | None:
        return self._device if name in ("cpu", "cpu:0") else None

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
        if "donated" in params:
            alone = tuple([i for i in params["donated"] if is_seen_by_none(buffers, i)])
            params = {**params, "donated": alone}
        kernel = self.lowerings.get(prim) or prim.numpy_rule
        if kernel is None:
            return self._run_body(prim, args, params)
        try:
            # Without keywords a call is cheaper.
            out = quiet.run(kernel, *buffers, **params) if params else quiet.run(kernel, *buffers)
        except (TypeError, ValueError, IndexError):
            prim.abstract(
                *[arg.aval for arg in args], **params
            )  # says what is wrong in the op's own words
            raise
        if type(out) is tuple:
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
def _(
    *buffers: np.ndarray,
    graph: Graph,
    device: Device | None = None,
    donated: tuple[int, ...] = (),
) -> tuple[np.ndarray, ...]:
    if donated and compiles_natively():
        return executable(graph)(*buffers, donated=donated)
    return executable(graph)(*buffers)
