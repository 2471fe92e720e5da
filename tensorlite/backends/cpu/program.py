"""A graph as a program: a list of launches over one arena.

`Builder` walks the equations of a graph whose passes are done and turns each into launches: a fused
nest, calls of oneDNN, or a Python step for what has only a NumPy rule. Values that live between
launches get places in an arena; arguments and results are buffers that change with each call. A
`Program` is run by instances, each with an arena and tables of its own, so that threads can run one
program at the same time.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ... import observe
from ...compiler.fuse import nest_p
from ...compiler.loops import Nest
from ...compiler.memory import ALIGNMENT, Layout, Life, place
from ...core import Aval, Primitive
from ...device import get_device
from ...graph import Atom, Equation, Graph, Var
from ...ops.control import barrier_p, stop_gradient_p
from ...ops.creation import transfer_p
from ...ops.random import bits_p
from ...ops.shape import reshape_p
from . import llvm, native
from .allocator import empty
from .onednn import library as onednn
from .onednn.memory import make_memory
from .onednn.plan import Call, ExecArg, Plan
from .openmp import num_threads

Kernel = Callable[..., Any]
Planner = Callable[[Equation], Plan | None]


class Value(NamedTuple):
    """Memory that launches read and write: a buffer of the caller's, or a place in the arena."""

    external: bool
    number: int


class NativeLaunch(NamedTuple):
    """A call of compiled code with the pointers of its inputs and outputs; `code` is what to
    compile, a nest or an equation of random bits."""

    code: Nest | RandomBits
    values: tuple[Value, ...]


class RandomBits(NamedTuple):
    """Uniform integers of `shape` for each of `keys` keys."""

    keys: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def key(self) -> Any:
        return self


class CallLaunch(NamedTuple):
    """An execution of a oneDNN primitive; one value for each of its arguments."""

    op: str
    call: Call
    values: tuple[Value, ...]


class PythonStep(NamedTuple):
    """A kernel that is called with NumPy arrays, and whose results are copied to their places."""

    kernel: Kernel
    params: dict[str, Any]
    inputs: tuple[tuple[Value, Aval], ...]
    outputs: tuple[tuple[Value, Aval], ...]


Launch = NativeLaunch | CallLaunch | PythonStep


class Step(NamedTuple):
    """The launches of one equation: numbers first to end - 1."""

    equation: Equation
    first: int
    end: int


class Result(NamedTuple):
    """Where an output of the graph is found: in external buffer `buffer`, seen with a shape."""

    buffer: int
    shape: tuple[int, ...]


class Builder:
    """Turns the equations of a graph into launches."""

    def __init__(
        self, graph: Graph, planner: Planner, lowerings: Mapping[Primitive, Kernel]
    ) -> None:
        self.graph = graph
        self.launches: list[Launch] = []
        self.steps: list[Step] = []
        self.constants: list[np.ndarray] = []
        self.lives: list[Life] = []  # of the values in the arena
        self._planner = planner
        self._lowerings = lowerings
        self._roots = _aliases(graph)
        self._values: dict[Any, Value] = {}
        self._last_reads = self._find_last_reads()
        self.results = self._place_ends()
        for number, eqn in enumerate(graph.equations):
            first = len(self.launches)
            if not _is_alias(eqn):
                self._launch(number, eqn)
            self.steps.append(Step(eqn, first, len(self.launches)))

    # External buffers are numbered: arguments, then new results, then constants.

    def _place_ends(self) -> list[Result]:
        self.argument_count = len(self.graph.inputs)
        self.argument_shapes = [var.aval.shape for var in self.graph.inputs]
        for number, var in enumerate(self.graph.inputs):
            self._values[var] = Value(True, number)
        self.new_avals: list[Aval] = []
        for atom in self.graph.outputs:
            root = self._root(atom)
            if isinstance(root, Var) and root not in self._values:
                self._values[root] = Value(True, self.argument_count + len(self.new_avals))
                self.new_avals.append(root.aval)
        self.constants_start = self.argument_count + len(self.new_avals)
        return [Result(self._value(a).number, a.aval.shape) for a in self.graph.outputs]

    def _root(self, atom: Atom) -> Atom:
        while isinstance(atom, Var) and atom in self._roots:
            atom = self._roots[atom]
        return atom

    def _value(self, atom: Atom) -> Value:
        root = self._root(atom)
        key: Any = root if isinstance(root, Var) else id(root)
        if key not in self._values and not isinstance(root, Var):
            self._values[key] = Value(True, self.constants_start + len(self.constants))
            self.constants.append(np.require(root.numpy(), requirements="C"))
        return self._values[key]

    def _find_last_reads(self) -> dict[Var, int]:
        last: dict[Var, int] = {}
        for number, eqn in enumerate(self.graph.equations):
            for atom in (*eqn.inputs, *eqn.outputs):
                root = self._root(atom)
                if isinstance(root, Var):
                    last[root] = number
        return last

    def _result(self, number: int, eqn: Equation, var: Var) -> Value:
        """The value of a result of equation `number`: a new one in the arena, or that of an input
        which nobody reads afterwards and which the equation reads only where it writes."""
        if var in self._values:
            return self._values[var]
        last = self._last_reads[var]
        recycled = self._dying_input(number, eqn, var)
        if recycled is not None:
            life = self.lives[recycled.number]
            self.lives[recycled.number] = life._replace(last=last)
            self._values[var] = recycled
            return recycled
        self._values[var] = self._new(_bytes(var.aval), number, last)
        return self._values[var]

    def _new(self, size: int, first: int, last: int) -> Value:
        self.lives.append(Life(max(size, 1), first, last))
        return Value(False, len(self.lives) - 1)

    def _dying_input(self, number: int, eqn: Equation, var: Var) -> Value | None:
        if eqn.prim is not nest_p:
            return None
        nest: Nest = eqn.params["nest"]
        taken = {self._values.get(v) for v in eqn.outputs}
        roots = [self._root(atom) for atom in eqn.inputs]
        for source, root in enumerate(roots):
            if not isinstance(root, Var) or self._last_reads[root] != number:
                continue
            value = self._values[root]
            if value.external or value in taken or roots.count(root) > 1:
                continue
            same_size = self.lives[value.number].size == _bytes(var.aval)
            if same_size and llvm.may_share(nest, eqn.outputs.index(var), source):
                return value
        return None

    def _launch(self, number: int, eqn: Equation) -> None:
        inputs = [self._value(atom) for atom in eqn.inputs]
        outputs = [self._result(number, eqn, var) for var in eqn.outputs]
        code = _native_code(eqn)
        if code is not None:
            self.launches.append(NativeLaunch(code, (*inputs, *outputs)))
            return
        plan = self._planner(eqn)
        if plan is None:
            self.launches.append(
                PythonStep(
                    self._kernel(eqn),
                    eqn.params,
                    tuple(zip(inputs, [a.aval for a in eqn.inputs], strict=True)),
                    tuple(zip(outputs, [v.aval for v in eqn.outputs], strict=True)),
                )
            )
            return
        places = {
            "input": inputs,
            "output": outputs,
            "temporary": [self._new(size, number, number) for size in plan.temporaries],
        }
        for call in plan.calls:
            values = tuple(places[a.ref.kind][a.ref.place] for a in call.arguments)
            self.launches.append(CallLaunch(plan.op, call, values))

    def _kernel(self, eqn: Equation) -> Kernel:
        if eqn.prim is transfer_p:
            raise ValueError(
                "transfer: a jitted function runs on one device, here the CPU, and cannot move a "
                f"tensor to {eqn.params['device']}; move it before or after the call"
            )
        kernel = self._lowerings.get(eqn.prim) or eqn.prim.numpy_rule
        if kernel is None:
            raise NotImplementedError(f"{eqn.prim.name} has no implementation for the CPU")
        return kernel


def _native_code(eqn: Equation) -> Nest | RandomBits | None:
    """What to compile for an equation, if our own compiler is to run it."""
    if eqn.prim is nest_p:
        return eqn.params["nest"]
    if eqn.prim is bits_p and eqn.outputs[0].aval.size > 0:
        return RandomBits(eqn.inputs[0].aval.size // 4, **eqn.params)
    return None


_ALIASES = (reshape_p, stop_gradient_p, barrier_p)


def _is_alias(eqn: Equation) -> bool:
    """Whether the results of `eqn` are its inputs, seen with other shapes."""
    if eqn.prim is barrier_p:
        return True
    return eqn.prim in _ALIASES and eqn.inputs[0].aval.size > 0


def _aliases(graph: Graph) -> dict[Var, Atom]:
    return {
        out: atom
        for eqn in graph.equations
        if _is_alias(eqn)
        for out, atom in zip(eqn.outputs, eqn.inputs, strict=False)
    }


def _bytes(aval: Aval) -> int:
    return aval.size * aval.dtype.itemsize


class Program:
    """Launches and the layout of their memory; call it with NumPy arrays."""

    def __init__(self, builder: Builder, plans: Sequence[Plan]):
        self.name = builder.graph.name
        self.launches = builder.launches
        self.steps = builder.steps
        self.constants = builder.constants
        self.results = builder.results
        self.argument_count = builder.argument_count
        self.new_avals = builder.new_avals
        self.layout: Layout = place(builder.lives)
        self.plans = list(plans)  # which own the handles of their calls
        codes = {x.code.key(): x.code for x in self.launches if isinstance(x, NativeLaunch)}
        self.functions = {key: _compiled(code) for key, code in codes.items()}
        self.sections = _sections(self.launches)
        shapes = [*builder.argument_shapes, *(aval.shape for aval in self.new_avals)]
        shapes += [constant.shape for constant in self.constants]
        # Results that are seen with another shape than their buffer has.
        self._reshaped = [i for i, (n, shape) in enumerate(self.results) if shapes[n] != shape]
        self._idle: list[_Instance] = []

    def __call__(self, *arguments: np.ndarray) -> tuple[np.ndarray, ...]:
        buffers = self._buffers(arguments)
        if self.sections:
            instance = self._idle_instance()
            instance.start(buffers)
            for first, end in self.sections:
                instance.run(first, end, buffers)
            self._idle.append(instance)
        return self._collect(buffers)

    def run_watched(self, *arguments: np.ndarray) -> tuple[np.ndarray, ...]:
        """The same, equation by equation, each reported to the watchers."""
        instance = self._idle_instance()
        buffers = self._buffers(arguments)
        instance.start(buffers)
        device = get_device("cpu")
        for eqn, first, end in self.steps:
            if first == end:
                continue
            results = tuple(var.aval for var in eqn.outputs)

            def kernel(*_: Any, span: tuple[int, int] = (first, end), out: Any = results) -> Any:
                for number in range(*span):
                    instance.run(number, number + 1, buffers)
                return out

            inputs = [atom.aval for atom in eqn.inputs]
            observe.reported(kernel, eqn.prim, eqn.params, device, eqn.source)(*inputs)
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
        return [s for s in self.sections if isinstance(self.launches[s[0]], PythonStep)]

    def _buffers(self, arguments: tuple[np.ndarray, ...]) -> list[np.ndarray]:
        buffers = [
            a if type(a) is np.ndarray and a.flags.c_contiguous else np.require(a, None, "C")
            for a in arguments
        ]
        buffers += [empty(aval) for aval in self.new_avals]
        return buffers + self.constants

    def _collect(self, buffers: list[np.ndarray]) -> tuple[np.ndarray, ...]:
        found = [buffers[number] for number, _ in self.results]
        for i in self._reshaped:
            found[i] = found[i].reshape(self.results[i].shape)
        return tuple(found)


def _compiled(code: Nest | RandomBits) -> int:
    """The address of the compiled code."""
    if isinstance(code, RandomBits):
        return llvm.compile_random_bits(*code)
    return llvm.compile_nests([code])[0]


def _sections(launches: Sequence[Launch]) -> list[tuple[int, int]]:
    """Runs of native launches, and Python steps one by one."""
    sections: list[tuple[int, int]] = []
    previous_is_native = False
    for number, launch in enumerate(launches):
        is_native = not isinstance(launch, PythonStep)
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
        self._cells: list[tuple[int, int]] = []
        self._memories: list[tuple[int, int]] = []
        uses_onednn = False
        for line, launch in enumerate(program.launches):
            if isinstance(launch, NativeLaunch):
                cells = self._pointers(launch.values)
                function = program.functions[launch.code.key()]
                self._table[line] = (native.NEST, len(launch.values), function, _address(cells))
            elif isinstance(launch, CallLaunch):
                uses_onednn = True
                arguments = self._arguments(launch)
                count, at = len(launch.values), ctypes.addressof(arguments)
                self._table[line] = (native.ONEDNN, count, launch.call.primitive, at)
        self._cell_table = np.array(self._cells, np.uint64).reshape(-1, 2)
        self._memory_table = np.array(self._memories, np.uint64).reshape(-1, 2)
        count = program.argument_count + len(program.new_avals) + len(program.constants)
        self._externals = native.Pointers(count)
        self._drive, self._bind = native.functions()
        self._execute = self._stream = self._set_handle = 0
        if uses_onednn:
            found = onednn.library()
            self._execute = found.address("primitive_execute")
            self._set_handle = found.address("memory_set_data_handle")
            self._stream = found.stream

    def _at(self, value: Value) -> int:
        """The address of a value in the arena; 0 for a buffer, which `bind` writes."""
        return 0 if value.external else self._base + self._program.layout.offsets[value.number]

    def _pointers(self, values: tuple[Value, ...]) -> np.ndarray:
        cells = np.array([self._at(value) for value in values], np.uint64)
        start = _address(cells)
        for i, value in enumerate(values):
            if value.external:
                self._cells.append((start + 8 * i, value.number))
        self._keep.append(cells)
        return cells

    def _arguments(self, launch: CallLaunch) -> Any:
        array = (ExecArg * len(launch.values))()
        triples = zip(array, launch.call.arguments, launch.values, strict=True)
        for slot, argument, value in triples:
            handle = make_memory(argument.desc, self._at(value))
            self._keep.append(handle)
            slot.number, slot.memory = argument.number, handle.value
            if value.external:
                self._memories.append((handle.value, value.number))
        self._keep.append(array)
        return array

    def start(self, buffers: list[np.ndarray]) -> None:
        """Take the caller's buffers for the next run."""
        num_threads()  # tells OpenMP, which keeps this for each calling thread
        self._externals.set(buffers)
        self._bind(
            _address(self._cell_table),
            len(self._cells),
            _address(self._memory_table),
            len(self._memories),
            self._externals.table,
            self._set_handle,
        )

    def run(self, first: int, end: int, buffers: list[np.ndarray]) -> None:
        """Run launches first to end - 1, all native or one Python step."""
        launch = self._program.launches[first]
        if isinstance(launch, PythonStep):
            self._run_python(launch, buffers)
            return
        failed = self._drive(_address(self._table), first, end, self._execute, self._stream)
        if failed >= 0:
            number, status = native.describe_failure(failed)
            culprit = self._program.launches[number]
            assert isinstance(culprit, CallLaunch)
            onednn.library().fail(culprit.op, "primitive_execute", status)

    def _run_python(self, step: PythonStep, buffers: list[np.ndarray]) -> None:
        arrays = [self._view(value, aval, buffers) for value, aval in step.inputs]
        out = step.kernel(*arrays, **step.params)
        results = out if isinstance(out, tuple) else (out,)
        for result, (value, aval) in zip(results, step.outputs, strict=True):
            np.copyto(self._view(value, aval, buffers), result)

    def _view(self, value: Value, aval: Aval, buffers: list[np.ndarray]) -> np.ndarray:
        if value.external:
            return buffers[value.number].reshape(aval.shape)
        start = self._at(value) - _address(self._arena)
        return self._arena[start : start + _bytes(aval)].view(aval.dtype).reshape(aval.shape)


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]
