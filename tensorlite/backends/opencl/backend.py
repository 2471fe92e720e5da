"""The OpenCL backend: eager operations and jitted graphs both become programs of one device.

An eager operation is a graph of one equation, compiled when it is first met with these shapes,
dtypes and parameters.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

import numpy as np

from ... import observe
from ...core import Aval, Primitive, Tensor, exactly
from ...device import Device, gather_on_one_device
from ...graph import Equation, Graph, Var
from ...jit import call_p
from ...ops.creation import transfer_p
from . import memory
from .compile import compile_program
from .memory import Buffer
from .program import Program
from .runtime import Found, find, find_all, runtime

_REMEMBERED = 4096  # eager programs


class OpenCL:
    """All OpenCL devices of this machine."""

    name = "opencl"

    def __init__(self) -> None:
        self._devices: dict[str, Device] = {}
        self._eager: OrderedDict[Any, tuple[Program, bool]] = OrderedDict()
        self._lock = threading.Lock()

    def devices(self) -> list[Device]:
        return [self._device(found) for found in find_all()]

    def device(self, name: str) -> Device:
        return self._device(find(name))

    def _device(self, found: Found) -> Device:
        with self._lock:
            if found.name not in self._devices:
                self._devices[found.name] = Device(found.name, self, found.description)
            return self._devices[found.name]

    def from_numpy(self, array: np.ndarray, device: Device) -> Buffer:
        return memory.from_numpy(runtime(device.name), array)

    def to_numpy(self, buffer: Buffer) -> np.ndarray:
        return memory.to_numpy(buffer)

    def run(
        self, device: Device, prim: Primitive, args: tuple[Tensor, ...], params: dict[str, Any]
    ) -> Any:
        for arg in args:
            if arg.device is not device:
                home, args = gather_on_one_device(prim, args)
                return home.run(prim, args, params)
        buffers = [arg.data for arg in args]
        if prim is call_p:
            results = executable(params["graph"], device)(*buffers)
            return tuple(Tensor(buffer, device) for buffer in results)
        if prim is transfer_p:
            target = params["device"]
            return Tensor(target.from_numpy(args[0].numpy()), target)
        program, is_single = self._eager_program(device, prim, args, params)
        results = program(*buffers)
        if is_single:
            return Tensor(results[0], device)
        return tuple(Tensor(buffer, device) for buffer in results)

    def _eager_program(
        self, device: Device, prim: Primitive, args: tuple[Tensor, ...], params: dict[str, Any]
    ) -> tuple[Program, bool]:
        avals = tuple(Aval(arg.shape, arg.dtype) for arg in args)
        fixed = tuple((name, exactly(value)) for name, value in params.items())
        key = (device.name, prim, avals, fixed)
        found = self._eager.get(key)
        if found is None:
            graph, is_single = _single_equation(prim, avals, params)
            found = compile_program(graph, runtime(device.name)), is_single
            self._eager[key] = found
            while len(self._eager) > _REMEMBERED:
                self._eager.popitem(last=False)
        return found


def _single_equation(
    prim: Primitive, avals: tuple[Aval, ...], params: dict[str, Any]
) -> tuple[Graph, bool]:
    """A graph of one equation, and whether it has one result rather than a tuple of them."""
    out = prim.abstract(*avals, **params)
    outputs = tuple(map(Var, [out] if isinstance(out, Aval) else out))
    inputs = tuple(map(Var, avals))
    equation = Equation(prim, inputs, params, outputs, None)
    return Graph(list(inputs), [equation], list(outputs), prim.name), isinstance(out, Aval)


def executable(graph: Graph, device: Device) -> Any:
    """`graph` compiled for `device`, at its first use. Under a watcher it reports its steps, or
    runs equation by equation as eager operations do."""
    if observe.watchers and observe.is_stepwise():
        return lambda *buffers: tuple(
            t.data for t in graph.run(*[Tensor(b, device) for b in buffers])
        )
    key = device.name
    program = graph.derived.get(key)
    if program is None:
        with observe.span(f"compile {graph.name}"):
            program = graph.derived[key] = compile_program(graph, runtime(device.name))
    return program.run_watched if observe.watchers else program
