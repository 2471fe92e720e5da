"""Fusion: what a loop nest can compute becomes equations of one primitive, `nest`.

Views (reshape, permute, broadcast, ...) and cheap operations that read no more than they write are
computed wherever they are read; all else is computed once, in the group that `cluster` finds for
it. Buffers between equations are contiguous. What stays outside of nests reads values that are
stored; a reshape of such a value stays an equation, since it moves nothing.

A gather in a nest does not look for indices out of range: it takes the nearest element. Which nests
come out depends on the graph alone, not on the process, so that compiled ones can be kept on disk.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Sequence
from typing import Any

from ..core import Aval, Primitive, Tensor
from ..graph import Atom, Equation, Graph, Var
from ..ops.broadcasting import Elementwise
from ..ops.creation import cast_p
from ..ops.reduce import argmax_p, argmin_p
from ..ops.shape import concat_p, pad_p, reshape_p
from . import structure, windows
from .affine import Affine, Axes, Split, flatten
from .body import Body, Place, folds, points, views
from .cluster import Clusters, Group, Member
from .loops import Instruction
from .nesting import live, make_nest
from .unregistered import Unregistered

LONG = 40  # instructions from which on a view of views (concatenations) is stored
CHEAP = 4.0  # the weight up to which a value is computed again rather than loaded
# Bytes that could be moved in the time of one operation, where that is not about 1.
_WEIGHTS = {
    **dict.fromkeys(("load", "constant", "index", "reduce"), 0.0),
    **dict.fromkeys(("divide", "sqrt", "rsqrt", "floor_divide", "remainder"), 5.0),
    **dict.fromkeys(("gather", "exp", "expm1", "log", "log1p", "log2", "log10", "erf"), 8.0),
    **dict.fromkeys(("tan", "asin", "acos", "atan", "asinh", "acosh", "atanh", "erfinv"), 20.0),
    **dict.fromkeys(("tanh", "sin", "cos", "pow", "atan2", "hypot", "sinh", "cosh"), 12.0),
}


nest_p = Unregistered("nest", lambda params: params["nest"].name.rpartition("/")[2])


@nest_p.shape
def _(*inputs: Aval, nest: Any, avals: tuple[Aval, ...]) -> tuple[Aval, ...]:
    return avals


def fuse(graph: Graph, keep: Collection[Primitive] = (), *, guards: bool = False) -> Graph:
    """`graph` with loop nests: equations of `nest_p` with the parameters `nest`, a `loops.Nest`,
    and `avals`, those of its outputs.

    Args:
        graph: without calls and composites that are to be fused (see `inline`), and simplified.
        keep: primitives that nests are not to compute, since the backend has something better.
        guards: nests may have guarded loads.
    """
    return _Fusion(graph, frozenset(keep), guards).run()


class _Fusion:
    def __init__(self, graph: Graph, keep: frozenset[Primitive], guards: bool):
        self._graph = graph
        self._guards = guards
        self._keep = keep
        self._constants: dict[Var, Tensor] = {}
        self._variables: dict[int, Var] = {}
        self._equations = [
            eqn._replace(inputs=tuple(map(self._variable, eqn.inputs))) for eqn in graph.equations
        ]
        self._producers = {
            var: (k, i)
            for k, eqn in enumerate(self._equations)
            for i, var in enumerate(eqn.outputs)
        }
        self._axes = Axes()
        self._loops: dict[int, tuple[Affine, ...]] = {}
        self._inline: set[int] = set()  # equations computed wherever they are read
        self._stays: set[int] = set()  # equations that stay as they are
        self._stored: set[Var] = set()  # values that these and the caller read

    def run(self) -> Graph:
        self._sort_out()
        members = self._analyze()
        nbytes = {v: v.aval.size * v.aval.dtype.itemsize for m in members for v, _ in m.reads}
        nbytes |= {v: v.aval.size * v.aval.dtype.itemsize for m in members for v, _ in m.stores}
        needs = {m.number: self._producers_of([v for v, _ in m.reads]) for m in members}
        needs |= {k: self._producers_of(self._equations[k].inputs) for k in self._stays}
        clusters = Clusters(members, self._axes, needs, self._stored, nbytes)
        clusters.join()
        return self._written(clusters, needs)

    def _variable(self, atom: Atom) -> Atom:
        """A variable in place of a constant of several elements, which is an input like others."""
        if isinstance(atom, Var) or atom.size == 1:
            return atom
        if id(atom) not in self._variables:
            var = self._variables[id(atom)] = Var(atom.aval)
            self._constants[var] = atom
        return self._variables[id(atom)]

    def _producers_of(self, atoms: Sequence[Atom]) -> list[int]:
        found = {
            self._producers[a][0] for a in atoms if isinstance(a, Var) and a in self._producers
        }
        return sorted(found)

    # ---- what becomes of each equation -----------------------------------------------------------

    def _sort_out(self) -> None:
        """From the last equation to the first, whether an equation stays, and what is stored."""
        self._stored.update(a for a in self._graph.outputs if isinstance(a, Var))
        for k in reversed(range(len(self._equations))):
            eqn = self._equations[k]
            wanted = not self._stored.isdisjoint(eqn.outputs)
            if not self._can(eqn) or (wanted and eqn.prim is reshape_p):
                self._stays.add(k)
                self._stored.update(a for a in eqn.inputs if isinstance(a, Var))
                if eqn.prim is reshape_p and self._can(eqn):
                    self._inline.add(k)
            elif eqn.prim in views:
                self._inline.add(k)

    def _can(self, eqn: Equation) -> bool:
        """Whether a nest can compute this equation."""
        if eqn.prim in self._keep or any(a.aval.size == 0 for a in (*eqn.inputs, *eqn.outputs)):
            return False
        if "window" in eqn.params:
            known = eqn.prim in folds or eqn.prim in points
            return known and windows.fits(eqn.params["window"])
        if eqn.prim is concat_p:
            return len(eqn.inputs) <= structure.PARTS
        known = any(eqn.prim in table for table in (views, points, folds))
        return known or isinstance(eqn.prim, Elementwise)

    def _analyze(self) -> list[Member]:
        """The equations that nests compute once. Those that are cheap are not among them."""
        members = []
        for k, eqn in enumerate(self._equations):
            if k in self._stays:
                continue
            stored = not self._stored.isdisjoint(eqn.outputs)
            if k in self._inline and not stored and eqn.prim not in (concat_p, pad_p):
                continue
            member = self._member(k)
            if eqn.prim in views:
                if stored or member.instructions > LONG:
                    members.append(member)
                if member.instructions > LONG:
                    self._inline.discard(k)
            elif self._is_cheap(eqn, member):
                self._inline.add(k)
            else:
                members.append(member)
        return members

    def _is_cheap(self, eqn: Equation, member: Member) -> bool:
        """Whether it is better to compute a value again than to store and load it."""
        if not (isinstance(eqn.prim, Elementwise) or eqn.prim is cast_p):
            return False
        if not self._stored.isdisjoint(eqn.outputs) or member.weight > CHEAP:
            return False
        out = eqn.outputs[0].aval
        read = sum(v.aval.size * v.aval.dtype.itemsize for v, _ in member.reads)
        return read <= 1.25 * out.size * out.dtype.itemsize

    def _member(self, k: int) -> Member:
        """What a nest of this equation alone reads and computes."""
        eqn = self._equations[k]
        if eqn.prim in folds:
            sizes, folded = folds[eqn.prim].axes(eqn)
        else:
            sizes, folded = eqn.outputs[0].aval.shape, ()
        first = tuple(map(self._axes.new, sizes))
        self._loops[k] = first
        while True:
            loop = tuple(map(self._axes.resolve, first))
            try:
                body = self._body({k}, may_split=True)
                results = [
                    body.compute(k, output, self._place(k, output)).position
                    for output in range(len(eqn.outputs))
                ]
                break
            except Split as split:
                self._axes.split(split.axis, split.inner)
        instructions, _, numbers = live(body, results)
        reads = [
            (body.operands[n][0], None if n in body.gathered else body.operands[n][1])
            for n in numbers
        ]
        ordered = eqn.prim in (argmax_p, argmin_p) or len(eqn.outputs) > 1
        order = flatten([loop[a] for a in folded], [sizes[a] for a in folded])
        return Member(
            number=k,
            loop=loop,
            axes=_axes_of(loop),
            folded=_axes_of(loop[a] for a in folded),
            reads=tuple(dict.fromkeys(reads)),
            stores=tuple((var, self._address(k, i)) for i, var in enumerate(eqn.outputs)),
            varies=tuple(_varies(body, position) for position in results),
            instructions=sum(i.op not in ("constant", "index") for i in instructions),
            weight=sum(map(_weight, instructions)),
            order=order if ordered and order.terms else None,
        )

    def _body(self, inside: Collection[int], may_split: bool = False) -> Body:
        return Body(
            self._axes,
            self._producers,
            self._equations,
            lambda k: k in inside or k in self._inline,
            self._loops.__getitem__,
            may_split=may_split,
            guards=self._guards,
        )

    def _place(self, k: int, output: int) -> Place:
        """The point of a result of equation k at a point of its loop."""
        eqn = self._equations[k]
        loop = [self._axes.resolve(index) for index in self._loops[k]]
        if eqn.prim in folds:
            folded = folds[eqn.prim].axes(eqn)[1]
            loop = [index for axis, index in enumerate(loop) if axis not in folded]
        return Place(eqn.outputs[output].aval.shape, loop)

    def _address(self, k: int, output: int) -> Affine:
        address = self._place(k, output).address
        assert isinstance(address, Affine)
        return address

    # ---- the new graph ---------------------------------------------------------------------------

    def _written(self, clusters: Clusters, needs: dict[int, list[int]]) -> Graph:
        units: dict[int, tuple[Equation, int, list[int]]] = {}  # by the last equation of each
        unit_of: dict[int, int] = {}
        for k in self._stays:
            units[k] = self._equations[k], k, [k]
        for group in clusters.distinct():
            numbers = [m.number for m in group.members]
            units[group.last] = self._nest(group, clusters.outputs(group)), group.first, numbers
        for name, (_, _, numbers) in units.items():
            unit_of.update(dict.fromkeys(numbers, name))
        equations = []
        for name in _in_order(
            {
                name: {unit_of[n] for k in numbers for n in needs[k]} - {name}
                for name, (_, _, numbers) in units.items()
            }
        ):
            eqn = units[name][0]
            inputs = tuple(
                self._constants.get(a, a) if isinstance(a, Var) else a for a in eqn.inputs
            )
            equations.append(eqn._replace(inputs=inputs))
        return Graph(self._graph.inputs, equations, self._graph.outputs, self._graph.name)

    def _nest(self, group: Group, outputs: list[Var]) -> Equation:
        inside = {m.number for m in group.members}
        body = self._body(inside)
        results = []
        for var in outputs:
            place, address = (
                self._place(*self._producers[var]),
                self._address(*self._producers[var]),
            )
            results.append((body.value(var, place), var.aval.dtype, address))
        computed = [self._equations[k] for k in sorted(body.computed)]
        order = next((m.order for m in group.members if m.order is not None), None)
        nest, inputs = make_nest(
            self._axes,
            self._axes.resolved(group.axes),
            self._axes.resolved(group.folded),
            None if order is None else self._axes.resolve(order),
            body,
            results,
            _name(computed),
        )
        source = next((eqn.source for eqn in computed if eqn.source is not None), None)
        return Equation(
            nest_p,
            inputs,
            {"nest": nest, "avals": tuple(v.aval for v in outputs)},
            tuple(outputs),
            source,
        )


def _varies(body: Body, position: int) -> frozenset[int]:
    """The axes that a value depends on."""
    instructions, _, numbers = live(body, [position])
    read = {a for n in numbers for a, _ in body.operands[n][1].terms}
    return frozenset(read | {i.attribute for i in instructions if i.op == "index"})


def _axes_of(loop: Any) -> frozenset[int]:
    return frozenset(a for index in loop for a, _ in index.terms)


def _weight(instruction: Instruction) -> float:
    return _WEIGHTS.get(instruction.op, 1.0)


def _in_order(needs: dict[int, set[int]]) -> list[int]:
    """The units, each after those that it needs, otherwise by number."""
    readers: dict[int, list[int]] = {}
    missing = {unit: len(needed) for unit, needed in needs.items()}
    for unit, needed in needs.items():
        for other in needed:
            readers.setdefault(other, []).append(unit)
    ready = [unit for unit, count in missing.items() if not count]
    heapq.heapify(ready)
    order = []
    while ready:
        unit = heapq.heappop(ready)
        order.append(unit)
        for reader in readers.get(unit, ()):
            missing[reader] -= 1
            if not missing[reader]:
                heapq.heappush(ready, reader)
    assert len(order) == len(needs), "nests wait for each other"
    return order


def _name(equations: Sequence[Equation], limit: int = 40) -> str:
    """The user's scope, and what is done there: "conv1/add_relu"."""
    origins = [eqn.source for eqn in equations if eqn.source is not None]
    scopes = {o.scope for o in origins}
    scope = ""
    if origins:
        common = list(origins[0].scope)
        for other in scopes:
            while common != list(other[: len(common)]):
                common.pop()
        scope = common[-1] + "/" if common else ""
    quiet = {cast_p, *views} - {pad_p, concat_p}
    names = dict.fromkeys(e.prim.name for e in equations if e.prim not in quiet)
    ops = "_".join(names) or "copy"
    return (scope + ops)[:limit]
