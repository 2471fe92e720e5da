"""A program for an OpenCL device: an in-order list of launches over one arena.

The kernels of a program are built and given their arguments once; what changes from call to call,
the buffers of arguments and results, is set before the launches are enqueued. Nothing waits for
the device: the next call is enqueued behind this one and may use the same arena. Only steps that
the host computes, such as sorting, wait for what they read.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ... import observe
from ...compiler.launches import Builder, HostStep, Launch, Value
from ...compiler.memory import Layout, place
from ...core import Aval
from ...device import get_device
from . import memory
from .kernels import Kernel
from .memory import Block, Buffer
from .runtime import Runtime


class OnDevice:
    """A kernel of a step that takes and gives buffers of the device, and launches by itself."""

    def __init__(self, kernel: Callable[..., Any]):
        self.kernel = kernel

    def __call__(self, *buffers: Buffer, **params: Any) -> Any:
        return self.kernel(*buffers, **params)


class Program:
    """Launches and the layout of their memory; call it with buffers."""

    def __init__(self, builder: Builder, runtime: Runtime):
        self.name = builder.graph.name
        self.runtime = runtime
        self.launches = builder.launches
        self.steps = builder.steps
        self.results = builder.results
        self.new_avals = builder.new_avals
        self.layout: Layout = place(builder.lives, runtime.traits.alignment)
        self._sizes = [max(life.size, 1) for life in builder.lives]
        self._constants = [memory.from_numpy(runtime, array) for array in builder.constants]
        shapes = [*builder.argument_shapes, *(aval.shape for aval in self.new_avals)]
        shapes += [constant.shape for constant in self._constants]
        self._reshaped = [i for i, (n, shape) in enumerate(self.results) if shapes[n] != shape]
        self._labels = self._named()
        self._arena: Block | None = None
        self._places: list[Any] = []  # of the values in the arena
        # The kernel of each launch, and its arguments that are buffers of the caller's.
        self._kernels: list[Any] = [
            None if isinstance(x, HostStep) else runtime.programs.kernel(x.code)
            for x in self.launches
        ]
        self._changing = [_external(launch) for launch in self.launches]
        # A kernel's arguments belong to the kernel, so setting them and launching it are one.
        self._lock = threading.RLock()
        runtime.pool.on_pressure(self)

    def __call__(self, *arguments: Buffer) -> tuple[Buffer, ...]:
        with self._lock:
            buffers = self._buffers(arguments)
            self._run(0, len(self.launches), buffers)
        return self._collect(buffers)

    def run_watched(self, *arguments: Buffer) -> tuple[Buffer, ...]:
        """The same, equation by equation, each waited for and reported to the watchers."""
        device = get_device(self.runtime.name)
        with self._lock:
            buffers = self._buffers(arguments)
            for eqn, first, end in self.steps:
                if first == end:
                    continue
                results = tuple(var.aval for var in eqn.outputs)

                def kernel(
                    *_: Any, span: tuple[int, int] = (first, end), out: Any = results
                ) -> Any:
                    self._run(*span, buffers)
                    self.runtime.finish()
                    return out

                inputs = [atom.aval for atom in eqn.inputs]
                observe.reported(kernel, eqn.prim, eqn.params, device, eqn.source)(*inputs)
        return self._collect(buffers)

    def release_memory(self) -> None:
        """Let go of the arena until the next call, unless the program runs right now."""
        if self._lock.acquire(blocking=False):
            try:
                self._arena, self._places = None, []
            finally:
                self._lock.release()

    def kernels(self) -> list[Kernel]:
        """What the program launches, in order."""
        return [x.code for x in self.launches if isinstance(x, Launch)]

    def _named(self) -> list[str]:
        """For errors: the operation of each launch, and the user's line that asked for it."""
        labels = [""] * len(self.launches)
        for eqn, first, end in self.steps:
            where = f" ({eqn.source.where})" if eqn.source is not None else ""
            for number in range(first, end):
                labels[number] = f"{eqn.prim.title(eqn.params)} of {self.name}{where}"
        return labels

    def _buffers(self, arguments: Sequence[Buffer]) -> list[Buffer]:
        if self._arena is None:
            self._take_arena()
        label = f"results of {self.name}"
        new = [memory.empty(self.runtime, *aval, label) for aval in self.new_avals]
        return [*arguments, *new, *self._constants]

    def _take_arena(self) -> None:
        self._arena = self.runtime.pool.allocate(self.layout.size, f"values of {self.name}")
        whole = self._arena.memory
        self._places = [
            whole.get_sub_region(offset, size)
            for offset, size in zip(self.layout.offsets, self._sizes, strict=True)
        ]
        for kernel, launch in zip(self._kernels, self.launches, strict=True):
            if isinstance(launch, HostStep):
                continue
            for index, value in enumerate(launch.values):
                if not value.external:
                    kernel.set_arg(index, self._places[value.number])
            for index, scalar in enumerate(launch.code.scalars, len(launch.values)):
                kernel.set_arg(index, np.int32(scalar))

    def _run(self, first: int, end: int, buffers: list[Buffer]) -> None:
        enqueue = self.runtime.enqueue
        for number in range(first, end):
            launch = self.launches[number]
            if isinstance(launch, HostStep):
                self._run_step(launch, buffers)
                continue
            kernel, code = self._kernels[number], launch.code
            for index, external in self._changing[number]:
                kernel.set_arg(index, buffers[external].memory)
            enqueue(kernel, code.global_size, code.local_size, self._labels[number])

    def _run_step(self, step: HostStep, buffers: list[Buffer]) -> None:
        views = [self._view(value, aval, buffers) for value, aval in step.inputs]
        targets = [self._view(value, aval, buffers) for value, aval in step.outputs]
        if isinstance(step.kernel, OnDevice):
            for target, source in zip(targets, step.kernel(*views, **step.params), strict=True):
                memory.copy(target, source)
            return
        out = step.kernel(*[memory.to_numpy(view) for view in views], **step.params)
        for target, array in zip(targets, out if isinstance(out, tuple) else (out,), strict=True):
            if array.size:
                memory.write(target, np.ascontiguousarray(array))

    def _view(self, value: Value, aval: Aval, buffers: list[Buffer]) -> Buffer:
        if value.external:
            return buffers[value.number].reshape(aval.shape)
        return Buffer(self.runtime, *aval, self._places[value.number], self._arena)

    def _collect(self, buffers: list[Buffer]) -> tuple[Buffer, ...]:
        found = [buffers[number] for number, _ in self.results]
        for i in self._reshaped:
            found[i] = found[i].reshape(self.results[i].shape)
        return tuple(found)


def _external(launch: Launch | HostStep) -> list[tuple[int, int]]:
    """The arguments of a launch that are buffers of the caller's: (position, number)."""
    if isinstance(launch, HostStep):
        return []
    return [(i, value.number) for i, value in enumerate(launch.values) if value.external]
