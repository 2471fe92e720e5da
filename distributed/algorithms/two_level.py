"""Collectives of hosts with several ranks each: within hosts through memory, among them over one
ring of connections, in which the first rank of each host, its leader, stands for all.

Each array crosses a host's link once in each direction, however many ranks the host has. A large
one is handed over segment by segment while the ring moves: the other ranks leave their parts in the
order in which their leader needs them, the leader adds them just before a segment's first use, and
leaves the segments of the result for them as they arrive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..agreement import Signature
from ..reduction import Array, Reduction
from ..transport.memory import Board
from .around import Around, Others, contributions, results
from .cutting import chunks_of, is_small
from .direct import Direct

LEADER = 0  # the position of a leader among the ranks of its host


class TwoLevel:
    """All ranks, as one of them sees it.

    Args:
        groups: the ranks of each host, in rank order; a host's first rank is its leader.
        rank: this rank.
        host: its host, for error messages.
        board: the memory of its host's ranks; None where it is the only one.
        leaders: the ring of the leaders, on these only.
        everyone: the ring of all ranks.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[int]],
        rank: int,
        host: str,
        board: Board | None,
        leaders: Around | None,
        everyone: Around,
    ):
        self._groups = groups
        self._number = next(n for n, group in enumerate(groups) if rank in group)
        self._board = board
        self._leaders = leaders
        self._everyone = everyone
        self._within = None if board is None else Direct(board, host)

    def all_reduce(
        self, sig: Signature, flat: Array, how: Reduction, wire: np.dtype[Any] | None
    ) -> None:
        """See `Algorithm.all_reduce`."""
        if is_small(flat):
            self._reduce_small(sig, flat, how)
            return
        if self._within is not None:
            self._within.agree(sig)
        if self._leaders is not None:
            others = Others() if self._board is None else _Followers(self._board, how)
            self._leaders.all_reduce(sig, flat, how, wire, others)
        else:
            self._follow(flat)

    def reduce_scatter(self, sig: Signature, chunks: Sequence[Array], how: Reduction) -> None:
        """See `Algorithm.reduce_scatter`. Goes around all ranks, as the next two do."""
        self.agree(sig)  # the same beginning for all collectives, or a mismatch would go unseen
        self._everyone.reduce_scatter(sig, chunks, how)

    def all_gather(self, sig: Signature, chunks: Sequence[Array]) -> None:
        """See `Algorithm.all_gather`."""
        self.agree(sig)
        self._everyone.all_gather(sig, chunks)

    def broadcast(self, sig: Signature, flat: Array, root: int) -> None:
        """See `Algorithm.broadcast`."""
        self.agree(sig)
        self._everyone.broadcast(sig, flat, root)

    def agree(self, sig: Signature) -> None:
        """See `Algorithm.agree`."""
        if self._within is not None:
            self._within.agree(sig)
        if self._leaders is not None:
            self._leaders.agree(sig)
        if self._board is not None:
            self._board.post()
            if self._leaders is None:
                self._board.wait(only=LEADER)

    def _reduce_small(self, sig: Signature, flat: Array, how: Reduction) -> None:
        """The leaders gather everyone's arrays and reduce them in rank order."""
        mine = [flat] if self._within is None else self._within.gather_small(sig, flat)
        if self._leaders is not None:
            everyone = [np.empty((len(group), flat.size), flat.dtype) for group in self._groups]
            everyone[self._number][...] = mine
            self._leaders.all_gather(sig, [block.reshape(-1) for block in everyone])
            ranks = [rank for group in self._groups for rank in group]
            parts = dict(zip(ranks, (part for block in everyone for part in block), strict=True))
            how.reduce((parts[rank] for rank in sorted(parts)), into=flat)
            how.finish(flat, len(ranks))
        if self._board is not None:
            result = self._board.slots(flat.dtype)[LEADER][0][: flat.size]
            if self._leaders is not None:
                result[...] = flat
                self._board.post()
            else:
                self._board.post()
                self._board.wait(only=LEADER)
                flat[...] = result

    def _follow(self, flat: Array) -> None:
        """Hand the leader what it needs, in its order, and take the result as it comes."""
        board = self._board
        assert board is not None
        mine, leaders = board.slots(flat.dtype)[board.position], board.slots(flat.dtype)[LEADER]
        chunks = chunks_of(flat, len(self._groups))
        start = board.posts
        for number, segment in enumerate(contributions(chunks, self._number)):
            if number >= len(mine):
                board.wait(start + number - len(mine) + 1, only=LEADER)
            mine[number % len(mine)][: segment.size] = segment
            board.post()
        handed_over = board.posts
        for number, segment in enumerate(results(chunks, self._number)):
            board.wait(handed_over + number + 1, only=LEADER)
            segment[...] = leaders[number % len(leaders)][: segment.size]
            board.post()


class _Followers(Others):
    """The other ranks of a leader's host, during one collective."""

    def __init__(self, board: Board, how: Reduction):
        self._board = board
        self._how = how
        self._start = board.posts
        self._taken = 0
        self._left = 0

    def contribute(self, segment: Array) -> None:
        slots = self._board.slots(segment.dtype)
        self._board.wait(self._start + self._taken + 1)
        for position in range(1, self._board.size):
            part = slots[position][self._taken % len(slots[position])][: segment.size]
            self._how.ufunc(segment, part, out=segment)
        self._taken += 1
        self._board.post()

    def finished(self, segment: Array) -> None:
        slots = self._board.slots(segment.dtype)[LEADER]
        if self._left >= len(slots):
            self._board.wait(self._start + self._taken + self._left - len(slots) + 1)
        slots[self._left % len(slots)][: segment.size] = segment
        self._left += 1
        self._board.post()
