"""Which equations share a loop nest.

Every equation that a nest can compute starts as a group of its own, with an axis for each axis of
its loop. Two groups become one if their loops are the same: that is found from the places at which
they read and write the same values, which have to agree once axes of the one are taken for axes of
the other. A group may fold some of its axes; then its members stand either at all of its points, or
at the kept ones. Groups are joined where that saves memory traffic, those first that save the most,
and never so that the groups would wait for each other in a circle.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from ..graph import Var
from .affine import Affine, Axes, Matching

MAX_BUFFERS = 24
MAX_INSTRUCTIONS = 150
MAX_PASSES = 4  # over the folded axes
FEW_KEPT = 16  # kept points: with fewer, threads would share a fold and have to wait for it
SMALL = 1 << 16  # points that one thread does by itself
CACHED = 1 << 17  # bytes of a row that stay in the cache from one pass to the next
REREAD = 0.1  # what a byte costs that is read from the cache
SIBLINGS = 12  # readers of a value of which each is tried with each
LAUNCH = 4096  # bytes that could be moved while a nest is started


class Member(NamedTuple):
    """An equation in a nest."""

    number: int
    loop: tuple[Affine, ...]
    axes: frozenset[int]
    folded: frozenset[int]
    reads: tuple[tuple[Var, Affine | None], ...]  # buffers, with the address if it is affine
    stores: tuple[tuple[Var, Affine], ...]
    varies: tuple[frozenset[int], ...]  # the axes that each of its values depends on
    instructions: int
    weight: float  # bytes that could be moved while one point is computed
    order: Affine | None  # the number of a folded point, if their order matters


class Group:
    """Members of one nest, over `axes`, of which some are folded. `full` are the numbers of members
    that stand at all points; the others stand at the kept ones."""

    def __init__(
        self, members: list[Member], axes: set[int], folded: set[int], full: set[int]
    ) -> None:
        self.members = members
        self.axes, self.folded, self.full = axes, folded, full
        self.reads: dict[Var, list[Affine | None]] = {}
        for member in members:
            for var, address in member.reads:
                self.reads.setdefault(var, []).append(address)
        self.stores = {var: address for m in members for var, address in m.stores}
        self.traffic: float | None = None
        self.bits = sum(1 << m.number for m in members)

    @property
    def first(self) -> int:
        return self.members[0].number

    @property
    def last(self) -> int:
        return self.members[-1].number


class Clusters:
    """Groups of members.

    `needs[k]` are the equations that equation k waits for (views and what is computed wherever it
    is read left out), `stored` the values that are needed outside of nests.
    """

    def __init__(
        self,
        members: Sequence[Member],
        axes: Axes,
        needs: dict[int, list[int]],
        stored: set[Var],
        nbytes: dict[Var, int],
    ):
        self._axes = axes
        self._needs = needs
        self._stored = stored
        self._nbytes = nbytes
        self.groups: dict[int, Group] = {
            m.number: Group([m], set(m.axes), set(m.folded), {m.number}) for m in members
        }
        self._members = {m.number: m for m in members}
        self._producer = {var: m.number for m in members for var, _ in m.stores}
        self._apart: set[tuple[int, int]] = set()  # groups that cannot be one, by their bits
        self._before: dict[int, int] = {}  # what each equation waits for, as a set of bits
        self._waiting: dict[int, list[int]] = {k: [] for k in needs}  # what needs each equation
        for k in sorted(needs):
            before = 0
            for n in needs[k]:
                before |= self._before[n] | 1 << n
                self._waiting[n].append(k)
            self._before[k] = before
        self._readers: dict[Var, list[int]] = {}
        for m in members:
            for var in dict.fromkeys(v for v, _ in m.reads):
                self._readers.setdefault(var, []).append(m.number)

    def join(self) -> None:
        """Join what is worth it."""
        candidates = self._candidates()
        joined = True
        while joined:
            joined = False
            for first, second in candidates:
                joined |= self._try(first, second)
        scalars = [group.first for group in self.distinct() if not group.axes]
        for first, second in itertools.combinations(scalars, 2):
            self._try(first, second)

    def _candidates(self) -> list[tuple[int, int]]:
        """Pairs of members of which one reads the other or both read the same: first those after
        which a value need not be stored, otherwise those that save the most."""
        saved: dict[tuple[int, int], int] = {}
        unstored: set[tuple[int, int]] = set()
        for var, readers in self._readers.items():
            pairs = list(itertools.combinations(readers[:SIBLINGS], 2))
            pairs += itertools.pairwise(readers[SIBLINGS - 1 :])
            if var in self._producer:
                edges = [(self._producer[var], reader) for reader in readers]
                pairs += edges
                if len(readers) == 1 and var not in self._stored:
                    unstored.update(edges)
            for pair in pairs:
                saved[pair] = saved.get(pair, 0) + self._nbytes[var]
        return sorted(saved, key=lambda p: (p not in unstored, -saved[p], p[1], p[0]))

    def distinct(self) -> list[Group]:
        """Every group once, in the order of their first members."""
        return list({id(g): g for _, g in sorted(self.groups.items())}.values())

    def outputs(self, group: Group) -> list[Var]:
        """The values of a group that are stored."""
        inside = {m.number for m in group.members}
        return [var for var in group.stores if self._leaves(var, inside)]

    def _leaves(self, var: Var, inside: set[int]) -> bool:
        return var in self._stored or any(k not in inside for k in self._readers.get(var, ()))

    def _try(self, first: int, second: int) -> bool:
        left, right = self.groups[first], self.groups[second]
        if left is right or (left.bits, right.bits) in self._apart:
            return False
        joined = None if self._in_a_circle(left, right) else self._joined(left, right)
        if joined is None:
            self._apart.add((left.bits, right.bits))
            return False
        for member in joined.members:
            self.groups[member.number] = joined
        self._wait_together(joined)
        return True

    # ---- are the loops the same? -----------------------------------------------------------------

    def _match(self, left: Group, right: Group) -> Matching | None:
        """The axes of the two, taken for the same as far as they have to be; or None."""
        if (
            sum(m.instructions for m in (*left.members, *right.members)) > MAX_INSTRUCTIONS
            or len(left.reads.keys() | right.reads.keys()) > MAX_BUFFERS
        ):
            return None
        matching = self._axes.matching(left.axes, right.axes)
        passed = [(v, a, b) for v, b in left.stores.items() for a in right.reads.get(v, ())]
        back = [(v, a, b) for v, b in right.stores.items() for a in left.reads.get(v, ())]
        for _, read, stored in sorted(passed, key=self._large_first):
            if read is None or not matching.unify(stored, read):
                return None
        for _, read, stored in sorted(back, key=self._large_first):
            if read is None or not matching.unify(read, stored):
                return None
        shared = [v for v in left.reads if v in right.reads]
        for var in sorted(shared, key=lambda v: -self._nbytes[v]):
            ours, theirs = left.reads[var][0], right.reads[var][0]
            if ours is not None and theirs is not None:
                matching.unify(ours, theirs)
        return matching

    def _large_first(self, entry: tuple[Var, Affine | None, Affine]) -> int:
        return -self._nbytes[entry[0]]

    def _joined(self, left: Group, right: Group) -> Group | None:
        """The group of both, or None if their loops differ or it is not worth it."""
        matching = self._match(left, right)
        if matching is None:
            return None
        if not left.folded and right.folded:
            left, right = right, left
        axes, others = matching.resolved(left.axes), matching.resolved(right.axes)
        folded = matching.resolved(left.folded)
        right_full = set(right.full)
        if right.folded:
            if axes != others or folded != matching.resolved(right.folded):
                return None
            if not self._one_order(left, right, matching):
                return None
        elif others == axes - folded:
            right_full = set(right.full) if not folded else set()
        elif others != axes:
            return None
        # What is the same at all folded points belongs to the kept ones.
        varying = [v for m in right.members for v in m.varies]
        spread = folded and right_full and not right.folded
        if spread and any(folded.isdisjoint(matching.resolved(v)) for v in varying):
            return None
        members = sorted([*left.members, *right.members], key=lambda m: m.number)
        group = Group(members, axes, folded, left.full | right_full)
        group.traffic = self._traffic(group)
        if group.traffic is None:
            return None
        apart = self._traffic_of(left) + self._traffic_of(right)
        if group.traffic > apart + LAUNCH:
            return None
        self._axes.commit(matching)
        return group

    def _one_order(self, left: Group, right: Group, matching: Matching) -> bool:
        """Whether all members to which the order of folded axes matters agree about it."""
        members = (*left.members, *right.members)
        orders = {matching.resolve(m.order) for m in members if m.order is not None}
        return len(orders) < 2

    # ---- is it worth it? -------------------------------------------------------------------------

    def _traffic_of(self, group: Group) -> float:
        if group.traffic is None:
            group.traffic = self._traffic(group)
        return math.inf if group.traffic is None else group.traffic

    def _traffic(self, group: Group) -> float | None:
        """About how many bytes a nest moves; None if it cannot be."""
        inside = {m.number for m in group.members}
        outputs = [var for var in group.stores if self._leaves(var, inside)]
        if len(outputs) + len(group.reads) > MAX_BUFFERS:
            return None
        written = float(sum(self._nbytes[v] for v in outputs))
        outer = [v for v in group.reads if self._producer.get(v) not in inside]
        read = float(sum(self._nbytes[v] for v in outer))
        if not group.folded:
            return written + read
        ready: dict[int, int] = {}  # the pass in which a value is known
        needed: dict[int, set[int]] = {}  # members that a pass computes
        for m in group.members:
            before = [ready[k] for v, _ in m.reads if (k := self._producer.get(v, -1)) in inside]
            start = max(before, default=0)
            ready[m.number] = start + 1 if m.folded else start
            stores = any(v in outputs for v, _ in m.stores)
            if m.number in group.full and (m.folded or stores):
                needed.setdefault(start, set()).add(m.number)
        if len(needed) < 2:
            return written + read
        points = math.prod(self._axes.sizes[a] for a in self._axes.resolved(group.axes))
        folded = math.prod(self._axes.sizes[a] for a in self._axes.resolved(group.folded))
        if len(needed) > MAX_PASSES or (points // folded < FEW_KEPT and points > SMALL):
            return None
        return written + self._passes(group, needed, outer, points, folded)

    def _passes(
        self,
        group: Group,
        needed: dict[int, set[int]],
        outer: list[Var],
        points: int,
        folded: int,
    ) -> float:
        """The bytes read by several passes, and the time to compute values again, in bytes."""
        outside = set(outer)
        seen: set[Var] = set()
        computed: set[int] = set()
        total = 0.0
        row = folded * sum(v.aval.dtype.itemsize for v in outer if v.aval.size >= points)
        price = REREAD if row <= CACHED else 1.0
        for number in sorted(needed):
            pending, done = sorted(needed[number]), set()
            loads: dict[Var, None] = {}
            while pending:
                k = pending.pop()
                if k in done:
                    continue
                done.add(k)
                for var, _ in self._members[k].reads:
                    if var in outside:
                        loads[var] = None
                    elif self._producer[var] in group.full and not (
                        self._members[self._producer[var]].folded
                    ):
                        pending.append(self._producer[var])
            total += sum(self._nbytes[v] * (price if v in seen else 1.0) for v in loads)
            again = sum(self._members[k].weight for k in done & computed)
            total += again * points * (0.0 if price < 1 else 1.0)
            seen.update(loads)
            computed |= done
        return total

    # ---- circles ---------------------------------------------------------------------------------

    def _in_a_circle(self, left: Group, right: Group) -> bool:
        """Whether something outside of the two waits for one of them while the other waits for
        it."""
        for one, other in ((left, right), (right, left)):
            for member in one.members:
                for k in self._needs[member.number]:
                    outside = self.groups.get(k) not in (left, right)
                    if outside and self._before[k] & other.bits:
                        return True
        return False

    def _wait_together(self, group: Group) -> None:
        """Members of a group, and what waits for one of them, wait for what any of them does. What
        does so already is not followed further: mostly one of the two groups waited for the
        other."""
        before = group.bits
        for member in group.members:
            before |= self._before[member.number]
        pending = self._waits_for_all(group.members, before)
        while pending:
            k = pending.pop()
            known = self._before[k]
            together = known | before
            if together == known:
                continue
            other = self.groups.get(k)
            if other is None:  # it stays outside of nests
                self._before[k] = together
                pending += self._waiting[k]
            else:
                pending += self._waits_for_all(other.members, together)

    def _waits_for_all(self, members: Sequence[Member], before: int) -> list[int]:
        """Note that all of these wait for `before`; what needs one of them."""
        waiting: list[int] = []
        for member in members:
            self._before[member.number] = before
            waiting += self._waiting[member.number]
        return waiting
