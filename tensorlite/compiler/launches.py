"""A graph as a list of launches: what a program for a device is made of, the device left open.

A backend gives a `Plan` for each equation: calls of its own code on buffers that the plan only
names. `Builder` walks the equations of a graph whose passes are done, gives every value that lives
between launches a place in an arena, and binds each call to places. What a backend has no code for
becomes a `HostStep`, a function of NumPy arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from ..core import Aval, Primitive
from ..graph import Atom, Equation, Graph, Var
from ..ops.control import barrier_p, stop_gradient_p
from ..ops.creation import transfer_p
from ..ops.shape import reshape_p
from .fuse import nest_p
from .loops import Nest
from .memory import Life
from .schedule import Bucket, bucket_p, run_bucket, start_p, wait_p

Kernel = Callable[..., Any]


class Ref(NamedTuple):
    """A buffer of a plan, from `offset` bytes on."""

    kind: Literal["input", "output", "temporary"]
    place: int
    offset: int = 0


class Call(NamedTuple):
    """One run of `code`, which is the backend's own; `arguments` are the buffers it is given."""

    code: Any
    arguments: tuple[Ref, ...]


class Plan(NamedTuple):
    """How a device computes one equation: calls, in order, and the sizes in bytes of the
    temporaries that they share."""

    op: str
    calls: tuple[Call, ...]
    temporaries: tuple[int, ...] = ()


class Value(NamedTuple):
    """Memory that launches read and write: a buffer of the caller's, or a place in the arena, from
    `offset` bytes on."""

    external: bool
    number: int
    offset: int = 0


class Copy(NamedTuple):
    """Code of a launch that copies bytes from its first value to its second."""

    nbytes: int


class Start(NamedTuple):
    """Code of a launch that hands a bucket, its only value, to the communication thread."""

    bucket: Bucket


class Wait(NamedTuple):
    """Code of a launch that waits until a bucket, its only value, is reduced."""

    bucket: Bucket


class Launch(NamedTuple):
    """A call that is bound to its memory."""

    op: str
    code: Any
    values: tuple[Value, ...]


class HostStep(NamedTuple):
    """A kernel that is called with NumPy arrays, and whose results are copied to their places."""

    kernel: Kernel
    params: dict[str, Any]
    inputs: tuple[tuple[Value, Aval], ...]
    outputs: tuple[tuple[Value, Aval], ...]


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
    """Turns the equations of a graph into launches.

    Args:
        planner: how the device computes an equation; None if the host has to.
        host: the kernel of an equation for the host.
        may_share: whether output i of a nest may lie in the memory of its input j.
    """

    def __init__(
        self,
        graph: Graph,
        planner: Callable[[Equation], Plan | None],
        host: Callable[[Equation], Kernel],
        may_share: Callable[[Nest, int, int], bool],
    ) -> None:
        self.graph = graph
        self.launches: list[Launch | HostStep] = []
        self.steps: list[Step] = []
        self.constants: list[np.ndarray] = []
        self.lives: list[Life] = []  # of the values in the arena
        # Of new results, by number, the arguments over which they may be written, one over each.
        self.replaceable: dict[int, list[int]] = {}
        self._planner = planner
        self._host = host
        self._may_share = may_share
        self._roots = _aliases(graph)
        self._values: dict[Any, Value] = {}
        self._ends = {a for a in map(self._root, graph.outputs) if isinstance(a, Var)}
        self._last_reads = self._find_last_reads()
        self.results = self._place_ends()
        self._members: dict[int, list[Value]] = {}  # of each bucket, by its number
        self._bucket_values: set[int] = set()
        self._place_buckets()
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

    def _place_buckets(self) -> None:
        """A bucket is one value of the arena, in which its operands are made and its results are
        read. What somebody else has made, or reads after the start, is copied."""
        equations = self.graph.equations
        made = {v: n for n, eqn in enumerate(equations) for v in eqn.outputs}
        starts = {eqn.outputs[0]: eqn for eqn in equations if eqn.prim is start_p}
        for wait in (eqn for eqn in equations if eqn.prim is wait_p):
            start, bucket = starts[wait.inputs[0]], wait.params["bucket"]  # type: ignore[index]
            at = first = made[start.outputs[0]]
            members = [Value(False, len(self.lives), offset) for offset in bucket.offsets]
            for atom, member in zip(start.inputs, members, strict=True):
                root = self._root(atom)
                if not isinstance(root, Var) or root not in made or root in self._values:
                    continue
                if self._last_reads[root] == at:
                    self._values[root] = member
                    first = min(first, made[root])
            for result, member in zip(wait.outputs, members, strict=True):
                self._values.setdefault(result, member)
            last = max(self._last_reads[result] for result in wait.outputs)
            self._members[bucket.number] = members
            self._bucket_values.add(len(self.lives))
            self.lives.append(Life(max(bucket.nbytes, 1), first, last))

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
            if not self._values[var].external:  # in a bucket
                return self._values[var]
            new = self._values[var].number - self.argument_count
            given = [value.number for value in self._dying_inputs(number, eqn, var, True)]
            if given:
                self.replaceable[new] = given
            return self._values[var]
        last = self._last_reads[var]
        recycled = next(iter(self._dying_inputs(number, eqn, var, False)), None)
        if recycled is not None:
            life = self.lives[recycled.number]
            self.lives[recycled.number] = life._replace(last=last)
            self._values[var] = recycled
            return recycled
        self._values[var] = self._new(var.aval.nbytes, number, last)
        return self._values[var]

    def _new(self, size: int, first: int, last: int) -> Value:
        self.lives.append(Life(max(size, 1), first, last))
        return Value(False, len(self.lives) - 1)

    def _dying_inputs(
        self, number: int, eqn: Equation, var: Var, external: bool
    ) -> Iterator[Value]:
        """The inputs in whose memory a result of a nest may lie: arguments, or values in the
        arena."""
        if eqn.prim is not nest_p:
            return
        nest: Nest = eqn.params["nest"]
        taken = {self._values.get(v) for v in eqn.outputs}
        taken |= {self._values.get(v) for v in self._ends}
        roots = [self._root(atom) for atom in eqn.inputs]
        for source, root in enumerate(roots):
            if not isinstance(root, Var) or self._last_reads[root] != number:
                continue
            value = self._values[root]
            if value.external != external or value in taken or roots.count(root) > 1:
                continue
            if not external and value.number in self._bucket_values:
                continue  # its neighbours may still be read
            same_size = root.aval.nbytes == var.aval.nbytes
            if same_size and self._may_share(nest, eqn.outputs.index(var), source):
                yield value

    def _launch(self, number: int, eqn: Equation) -> None:
        if eqn.prim is start_p or eqn.prim is wait_p:
            self._launch_bucket(eqn)
            return
        inputs = [self._value(atom) for atom in eqn.inputs]
        outputs = [self._result(number, eqn, var) for var in eqn.outputs]
        plan = self._planner(eqn)
        if plan is None:
            self.launches.append(
                HostStep(
                    self._host(eqn),
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
        for code, arguments in plan.calls:
            values = tuple(_behind(places[kind][place], n) for kind, place, n in arguments)
            self.launches.append(Launch(plan.op, code, values))

    def _launch_bucket(self, eqn: Equation) -> None:
        """A start, behind the copies that it needs, or a wait, before those that others need."""
        bucket: Bucket = eqn.params["bucket"]
        members = self._members[bucket.number]
        whole = (members[0]._replace(offset=0),)
        sizes = [aval.nbytes for aval in bucket.avals]
        name = eqn.prim.name
        if eqn.prim is start_p:
            sources = [self._value(atom) for atom in eqn.inputs]
            self._copy(name, sizes, sources, members)
            self.launches.append(Launch(name, Start(bucket), whole))
        else:
            self.launches.append(Launch(name, Wait(bucket), whole))
            self._copy(name, sizes, members, [self._values[var] for var in eqn.outputs])

    def _copy(self, op: str, sizes: list[int], sources: list[Value], targets: list[Value]) -> None:
        for nbytes, source, target in zip(sizes, sources, targets, strict=True):
            if source != target and nbytes:
                self.launches.append(Launch(op, Copy(nbytes), (source, target)))


def _behind(value: Value, offset: int) -> Value:
    return value._replace(offset=value.offset + offset) if offset else value


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


def host_kernel(
    eqn: Equation, lowerings: Mapping[Primitive, Kernel], device: str = "CPU"
) -> Kernel:
    """The function of NumPy arrays and parameters that computes `eqn`: the backend's, or the
    primitive's NumPy rule.

    Raises:
        ValueError: the equation moves a tensor to another device.
        NotImplementedError: there is no such function.
    """
    if eqn.prim is bucket_p:
        return run_bucket
    if eqn.prim is transfer_p:
        raise ValueError(
            f"transfer: a jitted function runs on one device, here the {device}, and cannot move a "
            f"tensor to {eqn.params['device']}; move it before or after the call"
        )
    kernel = lowerings.get(eqn.prim) or eqn.prim.numpy_rule
    if kernel is None:
        raise NotImplementedError(f"{eqn.prim.name} has no implementation for the {device}")
    return kernel
