"""Collectives around a ring of connections, in which each rank sends to the next and receives from
the previous.

A collective is written as a generator: `yield buffer` means "go on when the previous rank has
filled this buffer", and whatever is appended to `sends` meanwhile goes to the next rank. The
transport does both at the same time.

Large arrays are cut into one chunk per rank. In N - 1 steps each chunk travels once around the ring
while every rank adds its own part (reduce-scatter), and in N - 1 more the finished chunks travel to
everyone (all-gather): 2 (N - 1) / N of the bytes per rank, whatever N (Patarasuk and Yuan, 2009).
Chunks move in segments, so that one segment is reduced while the next arrives. Small arrays are
gathered whole and reduced in rank order, for that takes half as many steps. Both orders are fixed
by rank and size alone, and a chunk is finished by one rank whose bytes all others receive: results
are bit-identical on every rank and from run to run.

With a wire dtype, segments are rounded to it when they leave and added in their own dtype where
they arrive. The rank that finishes a chunk rounds it once more and keeps what it sends."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ..agreement import HEADER, Signature, require_same, text_length
from ..reduction import Array, Reduction
from ..transport import Patience, Transport
from .cutting import as_bytes, chunks_of, is_small, segments

AHEAD = 4  # segments of a rank's first chunk that are on their way before the first one arrives

Sends = deque[memoryview]
Program = Callable[[Sends], Iterator[memoryview]]


class Others:
    """Ranks behind a member of the ring, which bring arrays of their own. These are none."""

    def contribute(self, segment: Array) -> None:
        """Reduce their parts into a segment of this member's array, before its first use. Called in
        the order of `contributions`."""

    def finished(self, segment: Array) -> None:
        """Take a segment of the result. Called in the order of `results`, when all are
        contributed."""


def contributions(chunks: Sequence[Array], position: int) -> Iterator[Array]:
    """The segments of an array in the order in which a member first needs them."""
    size = len(chunks)
    first = segments(chunks[position - 1])
    yield from itertools.islice(first, AHEAD)
    for step in range(size - 1):
        for segment in segments(chunks[(position - 2 - step) % size]):
            yield from itertools.islice(first, 1)
            yield segment
        if step == 0:
            yield from first


def results(chunks: Sequence[Array], position: int) -> Iterator[Array]:
    """The segments of an array in the order in which a member hands on the result."""
    size = len(chunks)
    own = segments(chunks[position])
    for step in range(size - 1):
        for segment in segments(chunks[(position - 1 - step) % size]):
            yield from itertools.islice(own, 1)
            yield segment
    yield from own


class Around:
    """A ring of some or all ranks.

    Args:
        members: their numbers, in the order of the ring.
        position: this rank's position there.
        host: this rank's host, for error messages.
        transport: to the next member and from the previous one.
        patience: how long nothing may arrive.
        total: number of ranks that a mean is taken over, with those behind the members.
    """

    def __init__(
        self,
        members: Sequence[int],
        position: int,
        host: str,
        transport: Transport,
        patience: Patience,
        total: int,
    ):
        self.size = len(members)
        self.position = position
        self._members = members
        self._host = host
        self._transport = transport
        self._patience = patience
        self._total = total
        self._calls = 0
        self._scratch: Array = np.empty(0, np.uint8)
        self._wire: Array = np.empty(0, np.uint8)

    def all_reduce(
        self,
        sig: Signature,
        flat: Array,
        how: Reduction,
        wire: np.dtype[Any] | None,
        others: Others | None = None,
    ) -> None:
        """See `Algorithm.all_reduce`; `others` take part through this member, in large ones."""
        if is_small(flat) and others is None:
            everyone = np.empty((self.size, *flat.shape), flat.dtype)
            everyone[self.position] = flat
            self.all_gather(sig, list(everyone))
            how.reduce(everyone, into=flat)
            how.finish(flat, self._total)
            return
        others = others or Others()
        chunks = chunks_of(flat, self.size)
        travelling = chunks
        if wire is not None:
            travelling = chunks_of(self._wire_room(flat.size, wire), self.size)

        def program(sends: Sends) -> Iterator[memoryview]:
            yield from self._reduce_scatter(sends, chunks, travelling, how, others, on=True)
            yield from self._all_gather(sends, chunks, travelling, others, started=True)

        self._run(sig, program)

    def reduce_scatter(self, sig: Signature, chunks: Sequence[Array], how: Reduction) -> None:
        """See `Algorithm.reduce_scatter`."""
        self._run(
            sig, lambda sends: self._reduce_scatter(sends, chunks, chunks, how, Others(), on=False)
        )

    def all_gather(self, sig: Signature, chunks: Sequence[Array]) -> None:
        """See `Algorithm.all_gather`. The chunks may differ in length."""
        self._run(sig, lambda sends: self._all_gather(sends, chunks, chunks, Others()))

    def broadcast(self, sig: Signature, flat: Array, root: int) -> None:
        """See `Algorithm.broadcast`."""
        # Bytes run one way here, so the root would learn of a disagreement too late: agree first.
        self.agree(sig)
        self._run(sig, lambda sends: self._pass_on(sends, flat, root))

    def agree(self, sig: Signature) -> None:
        """Pass a byte around, so that every rank knows that all of them are here and mean the
        same."""
        self.all_gather(sig, list(np.zeros((self.size, 1), np.uint8)))

    # --- The collectives as programs

    def _reduce_scatter(
        self,
        sends: Sends,
        chunks: Sequence[Array],
        travelling: Sequence[Array],
        how: Reduction,
        others: Others,
        on: bool,
    ) -> Iterator[memoryview]:
        """Leave the reduction of this rank's chunk in place; `on` starts its way to the others."""
        first = self._first(chunks, travelling, others)
        sends.extend(itertools.islice(first, AHEAD))
        held: list[memoryview] = []  # what may not overtake the first chunk
        for step in range(self.size - 1):
            last = step == self.size - 2
            number = (self.position - 2 - step) % self.size
            for mine, out in _pairs(chunks[number], travelling[number]):
                received = self._room(out)
                yield as_bytes(received)
                sends.extend(itertools.islice(first, 1))
                others.contribute(mine)
                how.accumulate(received, into=mine)
                if last:
                    how.finish(mine, self._total)
                    if out is not mine:
                        out[...] = mine
                        mine[...] = out
                elif out is not mine:
                    out[...] = mine
                if on or not last:
                    (held if step == 0 else sends).append(as_bytes(out))
            if step == 0:
                sends.extend(first)
                sends.extend(held)

    def _first(
        self, chunks: Sequence[Array], travelling: Sequence[Array], others: Others
    ) -> Iterator[memoryview]:
        """The segments of the chunk that this rank sends first, each made ready when its turn
        comes."""
        number = (self.position - 1) % self.size
        for mine, out in _pairs(chunks[number], travelling[number]):
            others.contribute(mine)
            if out is not mine:
                out[...] = mine
            yield as_bytes(out)

    def _all_gather(
        self,
        sends: Sends,
        chunks: Sequence[Array],
        travelling: Sequence[Array],
        others: Others,
        started: bool = False,
    ) -> Iterator[memoryview]:
        if not started:
            sends.extend(map(as_bytes, segments(chunks[self.position])))
        own = segments(chunks[self.position])
        for step in range(self.size - 1):
            number = (self.position - 1 - step) % self.size
            for mine, out in _pairs(chunks[number], travelling[number]):
                yield as_bytes(out)
                if step < self.size - 2:
                    sends.append(as_bytes(out))
                if out is not mine:
                    mine[...] = out
                for segment in itertools.islice(own, 1):
                    others.finished(segment)
                others.finished(mine)
        for segment in own:
            others.finished(segment)

    def _pass_on(self, sends: Sends, flat: Array, root: int) -> Iterator[memoryview]:
        if self.position == root:
            sends.extend(map(as_bytes, segments(flat)))
            return
        for segment in segments(flat):
            yield as_bytes(segment)
            if (self.position + 1) % self.size != root:
                sends.append(as_bytes(segment))

    # --- Running a program

    def _run(self, sig: Signature, program: Program) -> None:
        sends: Sends = deque()
        self._transport.exchange(sends, self._checked(sig, program, sends), self._patience.seconds)

    def _checked(self, sig: Signature, program: Program, sends: Sends) -> Iterator[memoryview]:
        """The program, once the header of the previous rank has shown that it is about to run the
        same."""
        self._calls += 1
        sends.append(memoryview(sig.header(self._calls)))
        body = program(sends)
        first = next(body, None)  # the program's first sends go out with the header
        header = bytearray(HEADER.size)
        yield memoryview(header)
        previous = self._members[self.position - 1]
        text = bytearray(text_length(header, previous))
        yield memoryview(text)
        rank = self._members[self.position]
        require_same(sig, rank, self._host, header, text, previous)
        if first is not None:
            yield first
            yield from body

    def _room(self, like: Array) -> Array:
        if self._scratch.nbytes < like.nbytes:
            self._scratch = np.empty(like.nbytes, np.uint8)
        return self._scratch[: like.nbytes].view(like.dtype)

    def _wire_room(self, length: int, dtype: np.dtype[Any]) -> Array:
        nbytes = length * dtype.itemsize
        if self._wire.nbytes < nbytes:
            self._wire = np.empty(nbytes, np.uint8)
        return self._wire[:nbytes].view(dtype)


def _pairs(mine: Array, travelling: Array) -> Iterator[tuple[Array, Array]]:
    """Segments of a chunk, and what of it travels: the same object, where that is the chunk
    itself."""
    if travelling is mine:
        return ((segment, segment) for segment in segments(mine))
    return zip(segments(mine), segments(travelling, mine.itemsize), strict=True)
