"""Plans: what oneDNN does for one primitive of tensorlite at given shapes.

A plan is a list of calls of oneDNN primitives on buffers that it names only: input i, output j,
temporary t. Inputs and outputs are plain C-contiguous arrays in tensorlite's own layout; where
oneDNN wants another one, the plan holds the copy into it, in a temporary. `run` carries a plan out
on NumPy arrays. A compiled graph gives the same calls memory of its own.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ....compiler.launches import Ref
from ....core import Aval, Primitive, exactly
from ..openmp import num_threads, use_threads
from .library import Handle, Unsupported, library, load
from .memory import ALIGNMENT, DATA_TYPES, Desc, make_memory
from .primitives import (
    ARG_DST,
    ARG_SCRATCHPAD,
    ARG_SRC,
    SCRATCHPAD,
    Attributes,
    PrimitiveDesc,
    describe,
)

PostOp = tuple[Any, ...]
Epilogue = tuple[PostOp, ...]


class Argument(NamedTuple):
    """What a call passes: the DNNL_ARG number, the handle of the memory descriptor, the buffer."""

    number: int
    desc: int
    ref: Ref


class Call(NamedTuple):
    """One dnnl_primitive_execute; `primitive` is its handle."""

    primitive: int
    arguments: tuple[Argument, ...]


class Plan:
    """The calls, in order, and the sizes in bytes of the temporaries they share, which start at
    multiples of 64 bytes. The handles are valid as long as the plan.

    `threads` is how many threads the calls must run with.
    """

    __slots__ = ("_owned", "calls", "idle", "implementations", "op", "temporaries", "threads")

    def __init__(
        self,
        op: str,
        threads: int,
        calls: Sequence[Call],
        temporaries: Sequence[int],
        implementations: Sequence[str],
        owned: Sequence[Handle],
    ):
        self.op = op
        self.threads = threads
        self.calls = tuple(calls)
        self.temporaries = tuple(temporaries)
        self.implementations = tuple(implementations)  # oneDNN's name for each call's code
        self._owned = tuple(owned)
        self.idle: list[_Prepared] = []  # ready for the next run; see `run`


def plan(
    prim: Primitive,
    in_avals: Sequence[Aval],
    out_avals: Sequence[Aval],
    params: Mapping[str, Any],
    *,
    epilogue: Epilogue = (),
    assume_finite: bool = False,
    threads: int | None = None,
) -> Plan | None:
    """How oneDNN runs `prim`, or None if it does not: then NumPy answers.

    Plans are kept, one for each signature and number of threads, and may be run by any thread.

    Args:
        in_avals: those of the primitive, then those that the epilogue names by their index.
        out_avals: what the primitive gives, after the epilogue.
        epilogue: what is done to the result before it is stored, in order: ("bias", i) adds input
            i of shape (channels,); ("add", i) and ("mul", i) add or multiply by input i, of the
            shape of the result or broadcast to it; ("relu",) and other functions listed in
            `epilogue.FUNCTIONS`. For conv_weight_grad there is ("bias_grad",): a second output of
            shape (channels,) gets the sum of the second input over all but its last axis.
        assume_finite: the caller knows that there is no NaN or infinity in the inputs. Without it
            there are no plans for what oneDNN computes differently there: softmax, log_softmax,
            pool_argmax, max_pool.
        threads: how many the calls will run with; None is all that may be used.
    """
    if prim not in _planners or load() is None or (prim in _finite_only and not assume_finite):
        return None
    avals = (*in_avals, *out_avals)
    if any(aval.size == 0 or aval.dtype not in DATA_TYPES for aval in avals):
        return None
    items = tuple((name, exactly(value), value) for name, value in sorted(params.items()))
    keyed = _Params(tuple(item[:2] for item in items), dict(params))
    count = num_threads() if threads is None else threads
    return _planned(prim, tuple(in_avals), tuple(out_avals), keyed, epilogue, count)


class _Params:
    """Parameters as a key that tells 1 from 1.0."""

    __slots__ = ("key", "values")

    def __init__(self, key: Any, values: dict[str, Any]):
        self.key, self.values = key, values

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Params) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


Planner = Callable[..., None]
Work = Callable[[Sequence[Aval], Sequence[Aval], Mapping[str, Any]], int]


def _traffic(in_avals: Sequence[Aval], out_avals: Sequence[Aval], params: Mapping[str, Any]) -> int:
    """The work of an operation that is bound by memory: an element takes as long as 16
    multiplications."""
    return 16 * sum(aval.size for aval in (*in_avals, *out_avals))


_planners: dict[Primitive, Planner] = {}
_works: dict[Primitive, Work] = {}
_finite_only: set[Primitive] = set()


def planner(
    *prims: Primitive, finite_only: bool = False, work: Work = _traffic
) -> Callable[[Planner], Planner]:
    """Register a function `(draft, in_avals, out_avals, params, epilogue)` that writes the calls
    for a primitive into a `Draft`, or raises Unsupported. `finite_only` says that the results are
    right for finite numbers only; `work(in_avals, out_avals, params)` counts multiplications.
    """

    def attach(function: Planner) -> Planner:
        for prim in prims:
            _planners[prim] = function
            _works[prim] = work
            if finite_only:
                _finite_only.add(prim)
        return function

    return attach


# Multiplications, or memory traffic that takes as long, that one thread does in the few
# microseconds that it takes to wake another.
_LITTLE = 1 << 19


def enough_threads(
    prim: Primitive,
    in_avals: Sequence[Aval],
    out_avals: Sequence[Aval],
    params: Mapping[str, Any],
) -> int:
    """How many threads are worth their while: 1 for little work, else all that may be used. For
    calls by themselves; a native program keeps its threads awake."""
    if prim in _works and _works[prim](in_avals, out_avals, params) <= _LITTLE:
        return 1
    return num_threads()


@functools.lru_cache(maxsize=4096)
def _planned(
    prim: Primitive,
    in_avals: tuple[Aval, ...],
    out_avals: tuple[Aval, ...],
    params: _Params,
    epilogue: Epilogue,
    threads: int,
) -> Plan | None:
    draft = Draft(prim.name, threads)
    use_threads(threads)
    try:
        _planners[prim](draft, in_avals, out_avals, params.values, epilogue)
    except Unsupported:
        return None
    finally:
        num_threads()
    return draft.plan()


class Draft:
    """A plan that is being written."""

    def __init__(self, op: str, threads: int):
        self.op = op
        self.threads = threads
        self._calls: list[Call] = []
        self._temporaries: list[int] = []
        self._owned: list[Handle] = []
        self._implementations: list[str] = []

    def plan(self) -> Plan:
        """The finished plan."""
        return Plan(
            self.op,
            self.threads,
            self._calls,
            self._temporaries,
            self._implementations,
            self._owned,
        )

    def attributes(self) -> Attributes:
        """Attributes for a primitive of this plan."""
        return Attributes(self.op)

    def no_epilogue(self, epilogue: Epilogue) -> None:
        """Raise Unsupported if there is one."""
        if epilogue:
            raise self.unsupported(f"an epilogue: {epilogue}")

    def unsupported(self, why: str) -> Unsupported:
        """The error that makes `plan` answer None."""
        return Unsupported(self.op, "plan", why)

    def temporary(self, size: int) -> Ref:
        """A new temporary of `size` bytes."""
        self._temporaries.append(size)
        return Ref("temporary", len(self._temporaries) - 1)

    def call(self, desc: PrimitiveDesc, *arguments: tuple[int, Desc, Ref]) -> None:
        """Append a call; it gets a scratchpad if it wants one."""
        primitive = desc.primitive()
        passed = list(arguments)
        scratchpad = desc.layout(SCRATCHPAD)
        if scratchpad.size:
            passed.append((ARG_SCRATCHPAD, scratchpad, self.temporary(scratchpad.size)))
        self._owned += [primitive, *[layout for _, layout, _ in passed]]
        self._calls.append(
            Call(primitive.value, tuple(Argument(n, d.value, ref) for n, d, ref in passed))
        )
        self._implementations.append(desc.implementation)

    def reorder(self, source: Desc, at: Ref, target: Desc, to: Ref) -> None:
        """Append a copy from one layout (or dtype) to another."""
        found = library()
        desc = describe(
            self.op, "reorder", source, found.engine, target, found.engine, may_be_slow=True
        )
        self.call(desc, (ARG_SRC, source, at), (ARG_DST, target, to))

    def brought(self, plain: Desc, at: Ref, wanted: Desc) -> Ref:
        """The buffer `at`, or a temporary with its values in the layout `wanted`."""
        if plain == wanted:
            return at
        copy = self.temporary(wanted.size)
        self.reorder(plain, at, wanted, copy)
        return copy

    def place_for(self, plain: Desc, at: Ref, given: Desc) -> Ref:
        """Where a primitive that gives the layout `given` puts a result meant for `at`; after its
        call, `deliver` takes it there."""
        return at if plain == given else self.temporary(given.size)

    def deliver(self, plain: Desc, at: Ref, given: Desc, place: Ref) -> None:
        """Take a result from its `place_for` to where it belongs."""
        if place != at:
            self.reorder(given, place, plain, at)


# ---- running -------------------------------------------------------------------------


class ExecArg(ctypes.Structure):
    """dnnl_exec_arg_t: what dnnl_primitive_execute takes an array of."""

    _fields_ = (("number", ctypes.c_int), ("memory", ctypes.c_void_p))


def run(plan: Plan, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> None:
    """Carry out `plan` on C-contiguous arrays; `outputs` are overwritten. Any thread may call it at
    any time.

    Raises:
        DnnlError: oneDNN failed.
    """
    use_threads(plan.threads)
    try:
        prepared = plan.idle.pop()
    except IndexError:
        prepared = _Prepared(plan)
    prepared.run(inputs, outputs)
    plan.idle.append(prepared)
    num_threads()


class _Prepared:
    """A plan with memory objects of its own, which one thread at a time can run."""

    def __init__(self, plan: Plan):
        found = library()
        self._op = plan.op
        self._execute = found.functions["primitive_execute"]
        self._move = found.functions["memory_set_data_handle"]
        self._stream = found.stream
        self._offsets, self._size = _offsets(plan.temporaries)
        self._arena = 0
        self._owned: list[Handle] = []
        # Of each kind of buffer: memory objects, the number of the buffer, bytes behind its start.
        self._places: dict[str, list[tuple[int, int, int]]] = {
            kind: [] for kind in ("input", "output", "temporary")
        }
        self._calls = [(c.primitive, len(c.arguments), self._arguments(c)) for c in plan.calls]

    def _arguments(self, call: Call) -> Any:
        array = (ExecArg * len(call.arguments))()
        for slot, (number, desc, ref) in zip(array, call.arguments, strict=True):
            handle = make_memory(desc, 0)
            self._owned.append(handle)
            slot.number, slot.memory = number, handle.value
            self._places[ref.kind].append((handle.value, ref.place, ref.offset))
        return array

    def run(self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> None:
        for handle, index, offset in self._places["input"]:
            self._move(handle, inputs[index].ctypes.data + offset)
        for handle, index, offset in self._places["output"]:
            self._move(handle, outputs[index].ctypes.data + offset)
        if self._size:
            arena = _scratch.at_least(self._size)
            if arena != self._arena:
                for handle, index, offset in self._places["temporary"]:
                    self._move(handle, arena + self._offsets[index] + offset)
                self._arena = arena
        for primitive, count, arguments in self._calls:
            status = self._execute(primitive, self._stream, count, arguments)
            if status:
                library().fail(self._op, "primitive_execute", status)


class _Scratch(threading.local):
    """Memory for temporaries. They only live during a run, so all plans of a thread share it."""

    def __init__(self) -> None:
        self._buffer = np.empty(0, np.uint8)
        self._start = 0

    def at_least(self, size: int) -> int:
        """The aligned address of at least `size` bytes, until the next call."""
        if size + ALIGNMENT > self._buffer.nbytes:
            self._buffer = np.empty(size + ALIGNMENT, np.uint8)
            self._start = -(-self._buffer.ctypes.data // ALIGNMENT) * ALIGNMENT
        return self._start


_scratch = _Scratch()


def _offsets(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Where each temporary starts in one block of memory, and the size of that."""
    offsets, total = [], 0
    for size in sizes:
        offsets.append(total)
        total += -(-size // ALIGNMENT) * ALIGNMENT
    return offsets, total
