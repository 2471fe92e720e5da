"""A program for the CPU: launches over one arena, run by one native function.

Launches are fused nests, random bits and scatters that our compiler makes, and calls of oneDNN;
what has only a NumPy rule is a step of Python between them. Values that live between launches have
places in an arena; arguments and results are buffers that change with each call. A `Program` is run
by instances, each with an arena and tables of its own, so that threads can run one program at the
same time.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ... import observe
from ...compiler.launches import Builder, Copy, HostStep, Launch, Start, Value, Wait
from ...compiler.loops import Nest
from ...compiler.memory import ALIGNMENT, Layout, place
from ...core import Aval
from ...device import get_device
from . import llvm, native, onednn
from .allocator import empty
from .exchange import Exchanges
from .onednn.library import library
from .onednn.memory import make_memory
from .onednn.plan import ExecArg
from .openmp import num_threads


class RandomBits(NamedTuple):
    """Uniform integers of `shape` for each of `keys` keys."""

    keys: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def key(self) -> Any:
        return self


class Execution(NamedTuple):
    """An execution of a oneDNN primitive. The plan owns the handles of its calls."""

    plan: onednn.Plan
    call: onednn.Call


_Given = Copy | Start | Wait  # codes that need no compiler: the C library has them


class Program:
    """Launches and the layout of their memory; call it with NumPy arrays."""

    def __init__(self, builder: Builder):
        self.name = builder.graph.name
        self.launches = builder.launches
        self.steps = builder.steps
        self.constants = builder.constants
        self.results = builder.results
        self.argument_count = builder.argument_count
        self.new_avals = builder.new_avals
        self.replaceable = builder.replaceable
        self._replaced: dict[tuple[int, ...], dict[int, int]] = {}
        self.layout: Layout = place(builder.lives)
        launches = [x for x in self.launches if isinstance(x, Launch)]
        own = [x.code for x in launches if not isinstance(x.code, Execution | _Given)]
        codes = {code.key(): code for code in own}
        self.functions = {key: _compiled(code) for key, code in codes.items()}
        self.sections = _sections(self.launches)
        shapes = [*builder.argument_shapes, *(aval.shape for aval in self.new_avals)]
        shapes += [constant.shape for constant in self.constants]
        # Results that are seen with another shape than their buffer has.
        self._reshaped = [i for i, (n, shape) in enumerate(self.results) if shapes[n] != shape]
        self._idle: list[_Instance] = []

    def __call__(
        self, *arguments: np.ndarray, donated: tuple[int, ...] = ()
    ) -> tuple[np.ndarray, ...]:
        """The results. They may be written over the arguments that `donated` names."""
        buffers = self._buffers(arguments, donated)
        if self.sections:
            instance = self._idle_instance()
            instance.start(buffers)
            try:
                for first, end in self.sections:
                    instance.run(first, end, buffers)
            finally:
                instance.finish()
            self._idle.append(instance)
        return self._collect(buffers)

    def run_watched(
        self, *arguments: np.ndarray, donated: tuple[int, ...] = ()
    ) -> tuple[np.ndarray, ...]:
        """The same, equation by equation, each reported to the watchers."""
        instance = self._idle_instance()
        buffers = self._buffers(arguments, ())  # watchers look at arguments afterwards
        device = get_device("cpu")
        instance.start(buffers)
        try:
            for eqn, first, end in self.steps:
                if first == end:
                    continue
                results = tuple(var.aval for var in eqn.outputs)

                def kernel(
                    *_: Any, span: tuple[int, int] = (first, end), out: Any = results
                ) -> Any:
                    for number in range(*span):
                        instance.run(number, number + 1, buffers)
                    return out

                inputs = [atom.aval for atom in eqn.inputs]
                observe.reported(kernel, eqn.prim, eqn.params, device, eqn.source)(*inputs)
        finally:
            instance.finish()
        self._idle.append(instance)
        return self._collect(buffers)

    def _idle_instance(self) -> _Instance:
        try:
            return self._idle.pop()
        except IndexError:
            pass
        return _Instance(self)

    def python_sections(self) -> list[tuple[int, int]]:
        """The sections that run in Python, each one step."""
        return [s for s in self.sections if isinstance(self.launches[s[0]], HostStep)]

    def _buffers(
        self, arguments: tuple[np.ndarray, ...], donated: tuple[int, ...]
    ) -> list[np.ndarray]:
        buffers = [
            a if type(a) is np.ndarray and a.flags.c_contiguous else np.require(a, None, "C")
            for a in arguments
        ]
        if not donated:
            buffers += [empty(aval) for aval in self.new_avals]
            return buffers + self.constants
        replaced = self._replaced.get(donated)
        if replaced is None:
            replaced = self._replaced[donated] = _matched(self.replaceable, donated)
        for number, aval in enumerate(self.new_avals):
            argument = replaced.get(number)
            buffers.append(
                empty(aval) if argument is None else buffers[argument].reshape(aval.shape)
            )
        return buffers + self.constants

    def _collect(self, buffers: list[np.ndarray]) -> tuple[np.ndarray, ...]:
        found = [buffers[number] for number, _ in self.results]
        for i in self._reshaped:
            found[i] = found[i].reshape(self.results[i].shape)
        return tuple(found)


def _matched(replaceable: dict[int, list[int]], donated: tuple[int, ...]) -> dict[int, int]:
    """For each result an argument that is given away and over which it may be written, if there is
    one left; those with the least choice come first."""
    matched: dict[int, int] = {}
    choices = {n: [a for a in given if a in donated] for n, given in replaceable.items()}
    for number in sorted(choices, key=lambda n: (len(choices[n]), n)):
        left = [a for a in choices[number] if a not in matched.values()]
        if left:
            matched[number] = left[0]
    return matched


def _compiled(code: Nest | RandomBits | llvm.Scatter) -> int:
    """The address of the compiled code."""
    if isinstance(code, RandomBits):
        return llvm.compile_random_bits(*code)
    if isinstance(code, llvm.Scatter):
        return llvm.compile_scatter(code)
    return llvm.compile_nests([code])[0]


def _sections(launches: Sequence[Launch | HostStep]) -> list[tuple[int, int]]:
    """Runs of native launches, and Python steps one by one."""
    sections: list[tuple[int, int]] = []
    previous_is_native = False
    for number, launch in enumerate(launches):
        is_native = not isinstance(launch, HostStep)
        if is_native and previous_is_native:
            sections[-1] = (sections[-1][0], number + 1)
        else:
            sections.append((number, number + 1))
        previous_is_native = is_native
    return sections


class _Instance:
    """An arena and the tables that go with it."""

    def __init__(self, program: Program):
        self._program = program
        self._arena = np.empty(program.layout.size + ALIGNMENT, np.uint8)
        self._base = -(-_address(self._arena) // ALIGNMENT) * ALIGNMENT
        self._table = np.zeros(len(program.launches), native.LAUNCH)
        self._keep: list[Any] = []  # what the tables point to
        self._cells: list[tuple[int, int, int]] = []
        self._memories: list[tuple[int, int, int]] = []
        self._exchanges = self._make_exchanges()
        uses_onednn = False
        for line, launch in enumerate(program.launches):
            if isinstance(launch, HostStep):
                continue
            if isinstance(launch.code, _Given):
                self._table[line] = self._given(launch)
            elif not isinstance(launch.code, Execution):
                cells = self._pointers(launch.values)
                function = program.functions[launch.code.key()]
                self._table[line] = (native.NEST, len(launch.values), function, _address(cells))
            else:
                uses_onednn = True
                arguments = self._arguments(launch)
                count, at = len(launch.values), ctypes.addressof(arguments)
                self._table[line] = (native.ONEDNN, count, launch.code.call.primitive, at)
        patches = [np.array(lines, native.PATCH) for lines in (self._cells, self._memories)]
        self._keep += patches
        # Asking an array for its address takes microseconds.
        self._table_at = _address(self._table)
        self._cells_at, self._memories_at = map(_address, patches)
        count = program.argument_count + len(program.new_avals) + len(program.constants)
        self._externals = native.Pointers(count)
        self._drive, self._bind = native.functions()
        self._execute = self._stream = self._set_handle = 0
        if uses_onednn:
            found = library()
            self._execute = found.address("primitive_execute")
            self._set_handle = found.address("memory_set_data_handle")
            self._stream = found.stream

    def _at(self, value: Value) -> int:
        """The address of a value in the arena; 0 for a buffer, which `bind` writes."""
        if value.external:
            return 0
        return self._base + self._program.layout.offsets[value.number] + value.offset

    def _make_exchanges(self) -> Exchanges | None:
        launches = [x for x in self._program.launches if isinstance(x, Launch)]
        started = [x for x in launches if isinstance(x.code, Start)]
        if not started:
            return None
        buckets = [x.code.bucket for x in started]
        arrays = [
            self._view(x.values[0], Aval((b.nbytes // b.dtype.itemsize,), b.dtype), [])
            for x, b in zip(started, buckets, strict=True)
        ]
        return Exchanges(self._program.name, buckets, arrays)

    def _given(self, launch: Launch) -> tuple[int, int, int, int]:
        """The line in the table of a launch of the C library's."""
        code = launch.code
        if isinstance(code, Copy):
            cells = self._pointers(launch.values, code.nbytes)
            return native.COPY, 2, native.address("memcpy"), _address(cells)
        assert self._exchanges is not None
        if isinstance(code, Start):
            arguments = self._exchanges.start(code.bucket)
            return native.START, 1, native.address("write"), _address(arguments)
        arguments = self._exchanges.wait(code.bucket)
        return native.WAIT, 1, native.address("read"), _address(arguments)

    def _pointers(self, values: tuple[Value, ...], *more: int) -> np.ndarray:
        cells = np.array([*[self._at(value) for value in values], *more], np.uint64)
        start = _address(cells)
        for i, value in enumerate(values):
            if value.external:
                self._cells.append((start + 8 * i, value.number, value.offset))
        self._keep.append(cells)
        return cells

    def _arguments(self, launch: Launch) -> Any:
        array = (ExecArg * len(launch.values))()
        triples = zip(array, launch.code.call.arguments, launch.values, strict=True)
        for slot, argument, value in triples:
            handle = make_memory(argument.desc, self._at(value))
            self._keep.append(handle)
            slot.number, slot.memory = argument.number, handle.value
            if value.external:
                self._memories.append((handle.value, value.number, value.offset))
        self._keep.append(array)
        return array

    def start(self, buffers: list[np.ndarray]) -> None:
        """Take the caller's buffers for the next run."""
        num_threads()  # tells OpenMP, which keeps this for each calling thread
        self._externals.set(buffers)
        self._bind(
            self._cells_at,
            len(self._cells),
            self._memories_at,
            len(self._memories),
            self._externals.table,
            self._set_handle,
        )
        if self._exchanges is not None:
            self._exchanges.open()

    def finish(self) -> None:
        """The run is over, well or not."""
        if self._exchanges is not None:
            self._exchanges.close()

    def run(self, first: int, end: int, buffers: list[np.ndarray]) -> None:
        """Run launches first to end - 1, all native or one Python step."""
        launch = self._program.launches[first]
        if isinstance(launch, HostStep):
            self._run_python(launch, buffers)
            return
        while (failed := self._drive(self._table_at, first, end, self._execute, self._stream)) >= 0:
            first, status = native.describe_failure(failed)
            culprit = self._program.launches[first]
            assert isinstance(culprit, Launch)
            if isinstance(culprit.code, Execution):
                library().fail(culprit.op, "primitive_execute", status)
            assert self._exchanges is not None
            self._exchanges.explain(status)

    def _run_python(self, step: HostStep, buffers: list[np.ndarray]) -> None:
        arrays = [self._view(value, aval, buffers) for value, aval in step.inputs]
        out = step.kernel(*arrays, **step.params)
        results = out if isinstance(out, tuple) else (out,)
        for result, (value, aval) in zip(results, step.outputs, strict=True):
            np.copyto(self._view(value, aval, buffers), result)

    def _view(self, value: Value, aval: Aval, buffers: list[np.ndarray]) -> np.ndarray:
        if value.external:
            return buffers[value.number].reshape(aval.shape)
        start = self._at(value) - _address(self._arena)
        return self._arena[start : start + aval.nbytes].view(aval.dtype).reshape(aval.shape)


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]
