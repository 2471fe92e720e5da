"""Work-groups of a GPU that fold: some members for each of some neighbouring kept points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from ....compiler.loops import Nest
from ..runtime import Traits
from .analysis import is_along_memory, kept_axes
from .reduce import Accumulator
from .text import Text

MOST = 256  # work-items of a group
FEW = 64  # of a group that folds a short row
LONG = 4096  # terms from which a row is worth more than FEW
TERMS = 16  # that each member should have to fold, before a reduction is split
PER_UNIT = 4  # work-groups that keep a unit busy


class Team(NamedTuple):
    """The work-items of a group: `members` for each of `columns` kept points that are neighbours in
    memory, of `points` in all. Work-items next to each other have points next to each other."""

    members: int
    columns: int
    points: int

    @property
    def size(self) -> int:
        return self.members * self.columns

    @property
    def groups(self) -> int:
        return -(-self.points // self.columns)

    @property
    def is_whole(self) -> bool:
        """Whether no group has columns without a point."""
        return self.points % self.columns == 0

    @property
    def leads(self) -> str:
        """The head of a block in which one work-item writes what a column has folded."""
        conditions = ["member == 0"] if self.members > 1 else []
        if not self.is_whole:
            conditions.append("exists")
        return f"if ({' && '.join(conditions)})" if conditions else ""

    def begin(self, text: Text, index: str) -> None:
        """Name this work-item's point and its place in the team."""
        text.line("const int item = get_local_id(0);")
        text.line(f"const int column = item % {self.columns}, member = item / {self.columns};")
        own = f"({index})get_group_id(0) * {self.columns} + column"
        if self.is_whole:
            text.line(f"const {index} point = {own};")
            return
        # One without a point computes with the last one, so that it comes to all barriers.
        text.line(f"const bool exists = {own} < {self.points};")
        text.line(f"const {index} point = exists ? {own} : {self.points - 1};")

    def merge(self, text: Text, accumulators: Sequence[Accumulator]) -> None:
        """Fold the members' accumulators in local memory. Every work-item has the outcome of its
        column afterwards, under the same names."""
        if self.members == 1:
            return
        for a in accumulators:
            a.to_local(text, self.size)
        text.line("barrier(CLK_LOCAL_MEM_FENCE);")
        half = self.members // 2
        while half:
            with text.block(f"if (member < {half})"):
                for a in accumulators:
                    a.merge(text, "s[item]", f"s[item + {half * self.columns}]")
            text.line("barrier(CLK_LOCAL_MEM_FENCE);")
            half //= 2
        for a in accumulators:
            a.from_local(text, "column")
        text.line("barrier(CLK_LOCAL_MEM_FENCE);")


def team_of(traits: Traits, nest: Nest) -> Team:
    """The work-groups that fold a nest."""
    kept = kept_axes(nest)
    points, terms = math.prod(nest.shape[:kept]), math.prod(nest.shape[kept:])
    if is_along_memory(nest):
        return Team(min(_most(traits), MOST if terms >= LONG else FEW), 1, points)
    return in_columns(traits, points, terms)


def in_columns(traits: Traits, points: int, terms: int) -> Team:
    """A team for points next to each other, whose terms are `points` apart."""
    columns = min(_power(points), _most(traits))
    members = min(_most(traits) // columns, max(1, _power(terms) // 2))
    return Team(members, columns, points)


def shares_of(traits: Traits, nest: Nest, team: Team) -> int:
    """In how many shares a reduction is split, so that all of the device works; 1 if that needs
    none."""
    kept = kept_axes(nest)
    wanted = -(-PER_UNIT * traits.units // team.groups)
    worth = math.prod(nest.shape[kept:]) // (team.members * TERMS)
    return max(1, min(wanted, worth, nest.shape[kept]))


def _most(traits: Traits) -> int:
    return 1 << (min(traits.max_work_group, MOST).bit_length() - 1)


def _power(number: int) -> int:
    """The least power of two that is not below a number."""
    return 1 << max(number - 1, 0).bit_length()
