"""What connects one worker with the others: which transports there are, and which algorithm uses
them.

At first there is a ring of connections among all ranks. Over it the ranks find out who shares
memory with whom. Those that hope to (the same kernel, the same process ids) map each other's
segments, and each quotes the tokens that it finds there. If every owner recognizes its own, memory
is shared. If all ranks share it, they reduce directly there; if those of each host do, in two
levels. If one proof fails, all stay with the ring of connections, and rank 0 logs why."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np

from .algorithms import Algorithm
from .algorithms.around import Around
from .algorithms.direct import Direct
from .algorithms.two_level import TwoLevel
from .reduction import Array
from .rendezvous import Links, groups_of
from .streams import Stream
from .transport import Patience
from .transport.memory import TOKEN_BYTES, Board, Segment, Unshared, map_segment, token_of
from .transport.tcp import TcpTransport

_REASON_BYTES = 256
_logger = logging.getLogger("tensorlite.distributed")

Gather = Callable[[Array], Array]  # all_gather of small arrays


class Fabric:
    """The transports of one rank.

    Args:
        segment: memory of this rank that the others may map, if there is any; `Fabric` owns it.
        patience: how long a collective waits for another rank.

    Attributes:
        algorithm: how collectives run, for now.
    """

    def __init__(self, rank: int, links: Links, segment: Segment | None, patience: Patience):
        self._rank = rank
        self._members = links.members
        self._segment = segment
        self._patience = patience
        self._host = links.members[rank].host
        self._transports: list[TcpTransport | Board] = []
        self._everyone = self._ring(range(len(links.members)), links.next, links.previous)
        self._leaders: Around | None = None
        if links.leaders is not None:
            leaders = [group[0] for group in groups_of(links.members)]
            self._leaders = self._ring(leaders, *links.leaders)
        self.algorithm: Algorithm = self._everyone

    def share_memory(self, all_gather: Gather) -> None:
        """Go over to shared memory where the ranks can prove that they have it. Every rank calls
        this, with the collective of the ring that uses this fabric."""
        groups = groups_of(self._members)
        group = next(group for group in groups if self._rank in group)
        if max(map(len, groups)) > 1:
            memories, problem = self._prove(all_gather, group, max(map(len, groups)))
            problem = _first(all_gather(_text(problem)))
            if not problem:
                self._use(groups, group, memories)
            elif self._rank == 0:
                _logger.warning("workers of one host exchange data over connections: %s", problem)
        self._let_go_of_segment()

    def interrupt(self) -> None:
        """Make what waits for other ranks raise, now and for ever; from any thread."""
        for transport in list(self._transports):
            transport.interrupt()

    def close(self) -> None:
        """Give back connections and memory."""
        for transport in self._transports:
            transport.close()
        self._let_go_of_segment()

    def _let_go_of_segment(self) -> None:
        """Close the way in: whoever maps the segment keeps it, and nobody else needs it."""
        if self._segment is not None:
            self._segment.close()
            self._segment = None

    def _ring(self, ranks: Sequence[int], outgoing: Stream, incoming: Stream) -> Around:
        position = ranks.index(self._rank)
        previous, following = ranks[position - 1], ranks[(position + 1) % len(ranks)]
        transport = TcpTransport(previous, following, incoming, outgoing)
        self._transports.append(transport)
        total = len(self._members)
        return Around(ranks, position, self._host, transport, self._patience, total)

    def _prove(self, all_gather: Gather, group: list[int], largest: int) -> tuple[list[Array], str]:
        """The memory of this rank's group, and why it cannot be used, or nothing."""
        quotes = np.zeros((largest, TOKEN_BYTES), np.uint8)
        memories: list[Array] = []
        problem = ""
        try:
            memories = self._map(group)
        except Unshared as error:
            problem = f"rank {self._rank}: {error}"
        for quote, memory in zip(quotes, memories, strict=False):
            quote[...] = np.frombuffer(token_of(memory), np.uint8)
        everyone = all_gather(quotes)
        if self._segment is not None and memories:
            quoted = everyone[group, group.index(self._rank)]
            for rank, quote in zip(group, quoted, strict=True):
                if quote.tobytes() != self._segment.token:
                    problem = f"rank {rank} does not see the memory of rank {self._rank}"
        return memories, problem

    def _map(self, group: list[int]) -> list[Array]:
        if len(group) == 1:
            return []
        memories = []
        for member in (self._members[rank] for rank in group):
            if "problem" in member.memory:
                raise Unshared(f"rank {member.rank} has {member.memory['problem']}")
            if member.rank == self._rank:
                assert self._segment is not None
                memories.append(self._segment.memory)
            else:
                memories.append(map_segment(member.memory))
        return memories

    def _use(self, groups: list[list[int]], group: list[int], memories: list[Array]) -> None:
        board = None
        if memories:
            board = Board(group, group.index(self._rank), memories, self._patience)
            self._transports.append(board)
        if board is not None and len(groups) == 1:
            self.algorithm = Direct(board, self._host)
        else:
            self.algorithm = TwoLevel(
                groups, self._rank, self._host, board, self._leaders, self._everyone
            )


def _text(message: str) -> Array:
    room = np.zeros(_REASON_BYTES, np.uint8)
    encoded = message.encode()[:_REASON_BYTES]
    room[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    return room


def _first(texts: Array) -> str:
    """The first message that is not empty."""
    messages = [text.tobytes().rstrip(b"\0").decode(errors="replace") for text in texts]
    return next(filter(None, messages), "")
