"""When to communicate: which collectives travel together, and where their start and end stand among
the computations.

`bucketed` comes first, on the graph as it was traced. It packs all-reduces of one kind into buckets
in the order in which their operands become ready, and numbers everything that communicates; what is
only returned comes last. Sizes of batches play no part in that, so that ranks with different
numbers of rows send the same buckets in the same order. Each then takes a token from the one
before, so that no pass in between makes an earlier one wait for a later one. `arranged` comes last:
a bucket is started as soon as its last operand is there, and waited for when nothing else is left
to do.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..communication import exchange
from ..core import Aval
from ..graph import Equation, Graph, Var
from ..ops.broadcasting import Elementwise
from ..ops.collective import all_gather_p, all_reduce_p, reduce_scatter_p
from ..ops.control import barrier_p, stop_gradient_p
from ..ops.creation import cast_p
from ..ops.shape import broadcast_p, permute_p, reshape_p
from .memory import ALIGNMENT
from .unregistered import Unregistered

# Bytes from which a bucket is complete, beside what `communication.bucketing` says: a part of all
# that is reduced, so that the last one, which nothing is left to hide, is small; not so few that
# latency counts; and less for the first one, so that communication begins early.
PARTS, LEAST_BYTES, FIRST_BYTES = 16, 256 << 10, 1 << 20

_COLLECTIVES = (all_reduce_p, all_gather_p, reduce_scatter_p)
# What takes so little time that its result counts as ready when its operands are.
_CHEAP = (barrier_p, stop_gradient_p, cast_p, broadcast_p, permute_p, reshape_p)


class Bucket(NamedTuple):
    """Tensors that are reduced as one array: where they lie in it.

    Attributes:
        number: its place among all that communicates.
        size: the number of ranks.
        wire: the dtype to which float32 is rounded where it travels; None: not rounded.
        offsets: of the tensors, in bytes, multiples of `ALIGNMENT`.
    """

    number: int
    op: str
    size: int
    wire: str | None
    avals: tuple[Aval, ...]
    offsets: tuple[int, ...]
    nbytes: int

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.avals[0].dtype

    @property
    def leaves(self) -> list[tuple[str, str, tuple[int, ...]]]:
        """What the ranks compare."""
        return [("", aval.dtype.name, aval.shape) for aval in self.avals]

    def gaps(self, flat: np.ndarray) -> list[np.ndarray]:
        """The parts of the array between the tensors."""
        item = self.dtype.itemsize
        ends = [o + a.nbytes for o, a in zip(self.offsets, self.avals, strict=True)]
        starts = zip(ends, self.offsets[1:], strict=False)
        return [flat[a // item : b // item] for a, b in starts if a < b]

    def __str__(self) -> str:
        rounded = f" as {self.wire}" if self.wire else ""
        return f"{self.op} of {len(self.avals)} tensors, {self.nbytes:,} bytes{rounded}"


# Until they are arranged, these two have one more result, a token, and but for the first one more
# operand, the token of the one before.
bucket_p = Unregistered("all_reduce", lambda params: f"all_reduce {params['bucket']}")
# What communicates and is no all_reduce: an equation of `prim`, whose parameters are `options`.
exchange_p = Unregistered("exchange", lambda params: params["prim"].title(dict(params["options"])))
# The two halves of a bucket: operands -> token, token -> results.
start_p = Unregistered("all_reduce_start", lambda params: f"start {params['bucket']}")
wait_p = Unregistered("all_reduce_wait", lambda params: f"wait for {params['bucket']}")


def run_bucket(*xs: np.ndarray, bucket: Bucket) -> tuple[np.ndarray, ...]:
    """Reduce these arrays together, in new memory."""
    flat = np.zeros(bucket.nbytes // bucket.dtype.itemsize, bucket.dtype)
    starts = [offset // bucket.dtype.itemsize for offset in bucket.offsets]
    parts = [flat[s : s + x.size].reshape(x.shape) for s, x in zip(starts, xs, strict=True)]
    for part, x in zip(parts, xs, strict=True):
        part[...] = x
    exchange(
        "all_reduce",
        bucket.size,
        lambda c: c.all_reduce_(flat, bucket.op, wire=bucket.wire, leaves=bucket.leaves),
    )
    return tuple(parts)


def communicates(eqn: Equation) -> bool:
    """Whether running `eqn` means to communicate."""
    if eqn.prim in _COLLECTIVES:
        return eqn.params["size"] > 1
    return any(any(map(communicates, graph.equations)) for graph in eqn.graphs.values())


# ---- which travel together -----------------------------------------------------------------------


def bucketed(graph: Graph) -> Graph:
    """`graph` with buckets in place of its all-reduces, and an `exchange` around what else
    communicates, in the order of their numbers. Without collectives, `graph` itself."""
    if not any(communicates(eqn) for eqn in graph.equations):
        return graph
    equations = list(graph.equations)
    groups = _grouped(equations)
    replaced = {k for group in groups for k in group}
    kept = [eqn for k, eqn in enumerate(equations) if k not in replaced]
    made = [_together(number, [equations[k] for k in group]) for number, group in enumerate(groups)]
    tokens = [_token() for _ in made]
    chained = {
        id(eqn): eqn._replace(
            inputs=(*eqn.inputs, *tokens[number - 1 : number]),
            outputs=(*eqn.outputs, tokens[number]),
        )
        for number, eqn in enumerate(made)
    }
    ordered = [chained.get(id(eqn), eqn) for eqn in _Order(kept, made, split=False).run()]
    return Graph(graph.inputs, ordered, graph.outputs, graph.name)


def _token() -> Var:
    return Var(Aval((), np.dtype(np.bool_)))


def _together(number: int, group: list[Equation]) -> Equation:
    first = group[0]
    if first.prim is not all_reduce_p:
        options = tuple(sorted(first.params.items()))
        params = {"number": number, "prim": first.prim, "options": options}
        return Equation(exchange_p, first.inputs, params, first.outputs, first.source)
    avals = tuple(eqn.outputs[0].aval for eqn in group)
    ends = list(itertools.accumulate((_aligned(a.nbytes) for a in avals), initial=0))
    nbytes = ends[-2] + avals[-1].nbytes
    op, size, wire = (first.params[name] for name in ("op", "size", "wire"))
    bucket = Bucket(number, op, size, wire, avals, tuple(ends[:-1]), nbytes)
    inputs = tuple(eqn.inputs[0] for eqn in group)
    outputs = tuple(eqn.outputs[0] for eqn in group)
    return Equation(bucket_p, inputs, {"bucket": bucket}, outputs, group[-1].source)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


class _Open(NamedTuple):
    """A bucket to which more is added until it has `limit` bytes."""

    members: list[int]
    limit: float


def _grouped(equations: Sequence[Equation]) -> list[list[int]]:
    """The positions of what communicates, those that travel together in one list, in an order in
    which none depends on a later one."""
    ready = _readiness(equations)
    places = [k for k, eqn in enumerate(equations) if communicates(eqn)]
    needs = _dependences(equations, set(places))
    totals: dict[Any, int] = {}
    for k in places:
        if equations[k].prim is all_reduce_p:
            key = _kind(equations[k])
            totals[key] = totals.get(key, 0) + equations[k].outputs[0].aval.nbytes
    groups: list[list[int]] = []
    buckets: dict[Any, _Open] = {}

    def close(key: Any) -> None:
        groups.append(buckets.pop(key).members)

    read = {a for eqn in equations for a in eqn.inputs if isinstance(a, Var)}
    # What is only returned, such as a loss, is not worth that anything waits for it.
    urgent = {k for k in places if not read.isdisjoint(equations[k].outputs)}
    seen: set[Any] = set()
    for k in sorted(places, key=lambda k: (k not in urgent, ready[k], k)):
        for key in [key for key, b in buckets.items() if not needs[k].isdisjoint(b.members)]:
            close(key)
        eqn = equations[k]
        if eqn.prim is not all_reduce_p:
            groups.append([k])
            continue
        key = _kind(eqn)
        if key not in buckets:
            limit = _limit(eqn.params["bucket_bytes"], totals[key], first=key not in seen)
            buckets[key] = _Open([], limit)
            seen.add(key)
        members = buckets[key].members
        members.append(k)
        if sum(equations[m].outputs[0].aval.nbytes for m in members) >= buckets[key].limit:
            close(key)
    for key in sorted(buckets, key=lambda key: (ready[buckets[key].members[-1]], buckets[key])):
        close(key)
    return groups


def _kind(eqn: Equation) -> Any:
    """Equal for all-reduces that may travel together."""
    return (eqn.outputs[0].aval.dtype, *sorted(eqn.params.items()))


def _limit(chosen: int | None, total: int, first: bool) -> float:
    if chosen is None:
        return float("inf")
    part = min(chosen, max(total // PARTS, LEAST_BYTES))
    return min(part, FIRST_BYTES) if first else part


def _readiness(equations: Sequence[Equation]) -> list[int]:
    """For each equation, the position of the last one of some weight that it waits for."""
    of: dict[Var, int] = {}
    result = []
    for k, eqn in enumerate(equations):
        latest = max((of.get(a, -1) for a in eqn.inputs if isinstance(a, Var)), default=-1)
        result.append(latest)
        cheap = eqn.prim in _CHEAP or isinstance(eqn.prim, Elementwise)
        of.update(dict.fromkeys(eqn.outputs, latest if cheap else k))
    return result


def _dependences(equations: Sequence[Equation], places: set[int]) -> list[frozenset[int]]:
    """For each equation, those at `places` whose results it needs, directly or not."""
    nothing: frozenset[int] = frozenset()
    of: dict[Var, frozenset[int]] = {}
    result = []
    for k, eqn in enumerate(equations):
        found = {of.get(a, nothing) for a in eqn.inputs if isinstance(a, Var)}
        needs = next(iter(found)) if len(found) == 1 else nothing.union(*found)
        result.append(needs)
        of.update(dict.fromkeys(eqn.outputs, needs | {k} if k in places else needs))
    return result


# ---- when ----------------------------------------------------------------------------------------


def arranged(graph: Graph, *, split: bool) -> Graph:
    """`graph` in an order in which communication has most time to go on behind computation.

    What communicates keeps the order of its numbers. A bucket's operands are computed before what
    only later ones need; it is waited for when all is done that needs no more than the buckets
    before it.

    Args:
        split: make a start and a wait of each bucket; else it is run where it would start.
    """
    made = [eqn for eqn in graph.equations if _number(eqn) is not None]
    if not made:
        return graph
    kept = [eqn for eqn in graph.equations if _number(eqn) is None]
    made.sort(key=_number)  # type: ignore[arg-type]
    freed = [_freed(eqn, first=k == 0) for k, eqn in enumerate(made)]
    return Graph(graph.inputs, _Order(kept, freed, split).run(), graph.outputs, graph.name)


def _freed(eqn: Equation, first: bool) -> Equation:
    """`eqn` without its tokens, and as it was traced if it is an exchange."""
    free = eqn._replace(inputs=eqn.inputs if first else eqn.inputs[:-1], outputs=eqn.outputs[:-1])
    if eqn.prim is not exchange_p:
        return free
    return free._replace(prim=eqn.params["prim"], params=dict(eqn.params["options"]))


def _number(eqn: Equation) -> int | None:
    if eqn.prim is bucket_p:
        return eqn.params["bucket"].number
    return eqn.params["number"] if eqn.prim is exchange_p else None


class _Order:
    """Puts the equations `kept`, in their order as far as can be, among those that communicate,
    `made`, which keep theirs."""

    def __init__(self, kept: list[Equation], made: Sequence[Equation], split: bool):
        self._made = made
        self._split = split
        self._out: list[Equation] = []
        self._tokens: list[Var | None] = []
        self._waited = 0  # how many of `made` have results by now
        maker = {var: eqn for eqn in (*kept, *made) for var in eqn.outputs}
        self._makers = {
            id(eqn): [maker[a] for a in eqn.inputs if isinstance(a, Var) and a in maker]
            for eqn in (*kept, *made)
        }
        self._level: dict[int, int] = {}  # of an equation, how many of `made` it must wait for
        numbers = {id(eqn): n for n, eqn in enumerate(made)}
        for eqn in _topological([*kept, *made], self._makers):
            waits = [
                numbers[id(m)] + 1 if id(m) in numbers else self._level[id(m)]
                for m in self._makers[id(eqn)]
            ]
            self._level[id(eqn)] = max(waits, default=0)
        self._kept = _topological(kept, self._makers)
        self._place = {id(eqn): k for k, eqn in enumerate(self._kept)}
        self._left = dict.fromkeys(range(len(self._kept)))  # positions in `_kept`, in order

    def run(self) -> list[Equation]:
        for eqn in self._made:
            while self._waited < self._level[id(eqn)]:
                self._compute_what_can_be()
                self._wait()
            self._emit(self._needed_by(eqn))
            self._start(eqn)
        self._compute_what_can_be()
        while self._waited < len(self._made):
            self._wait()
            self._compute_what_can_be()
        return self._out

    def _needed_by(self, eqn: Equation) -> list[int]:
        """The positions of all that `eqn` still waits for."""
        found: set[int] = set()
        stack = list(self._makers[id(eqn)])
        while stack:
            maker = stack.pop()
            place = self._place.get(id(maker))
            if place in self._left and place not in found:
                found.add(place)
                stack += self._makers[id(maker)]
        return sorted(found)

    def _compute_what_can_be(self) -> None:
        self._emit([k for k in self._left if self._level[id(self._kept[k])] <= self._waited])

    def _emit(self, places: list[int]) -> None:
        for place in places:
            self._out.append(self._kept[place])
            del self._left[place]

    def _start(self, eqn: Equation) -> None:
        token = None
        if self._split and eqn.prim is bucket_p:
            token = _token()
            self._out.append(eqn._replace(prim=start_p, outputs=(token,)))
        else:
            self._out.append(eqn)
        self._tokens.append(token)

    def _wait(self) -> None:
        eqn, token = self._made[self._waited], self._tokens[self._waited]
        if token is not None:
            self._out.append(eqn._replace(prim=wait_p, inputs=(token,)))
        self._waited += 1


def _topological(equations: list[Equation], makers: dict[int, list[Equation]]) -> list[Equation]:
    """`equations` in an order in which each comes after those that make its operands, and in the
    given one as far as can be. Makers that are not among them are left out."""
    own = {id(eqn) for eqn in equations}
    done: set[int] = set()
    result: list[Equation] = []
    for root in equations:
        stack: list[tuple[Equation, Any]] = [(root, iter(makers[id(root)]))]
        while stack:
            eqn, rest = stack[-1]
            if id(eqn) in done:
                stack.pop()
                continue
            following = next((m for m in rest if id(m) not in done and id(m) in own), None)
            if following is not None:
                stack.append((following, iter(makers[id(following)])))
                continue
            done.add(id(eqn))
            result.append(eqn)
            stack.pop()
    return result
