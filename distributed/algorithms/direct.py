"""Collectives among ranks that share memory, all with all.

Each rank reduces one chunk, straight from where the others have left their parts of it; so an array
crosses the memory once on its way in and once on its way out, however many ranks there are. It goes
piece by piece, small enough for a cache, in three stages: leave pieces for the others; reduce the
own chunk's piece; take the others' results. The stages overlap: in one round a rank leaves piece t,
reduces piece t - 1 and takes piece t - 2, so that ranks meet once a round.

The parts are added in the order in which they would meet on a ring: results have the same bits
as those of `around`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..agreement import HEADER, Signature, require_same, text_length
from ..reduction import Array, Reduction
from ..transport.memory import Board
from .cutting import chunks_of, is_small


class Direct:
    """The ranks of a board. `host` is this rank's, for error messages."""

    def __init__(self, board: Board, host: str):
        self._board = board
        self._host = host
        self._calls = 0
        self._scratch = np.empty(board.piece_bytes, np.uint8)

    def all_reduce(
        self, sig: Signature, flat: Array, how: Reduction, wire: np.dtype[Any] | None
    ) -> None:
        """See `Algorithm.all_reduce`. Nothing goes over a connection, so `wire` rounds nothing."""
        if is_small(flat):
            everyone = self.gather_small(sig, flat)
            how.reduce(everyone, into=flat)
            how.finish(flat, self._board.size)
        else:
            self._reduce(sig, chunks_of(flat, self._board.size), how, share=True)

    def reduce_scatter(self, sig: Signature, chunks: Sequence[Array], how: Reduction) -> None:
        """See `Algorithm.reduce_scatter`."""
        self._reduce(sig, chunks, how, share=False)

    def all_gather(self, sig: Signature, chunks: Sequence[Array]) -> None:
        """See `Algorithm.all_gather`."""
        mine = chunks[self._board.position]
        if is_small(mine):
            for chunk, left in zip(chunks, self.gather_small(sig, mine), strict=True):
                chunk[...] = left
            return
        self.agree(sig)
        rooms = self._rooms(mine.dtype)
        pieces = [_cut(chunk, rooms[0][0].size) for chunk in chunks]
        self._share(rooms, pieces, range(self._board.size))

    def broadcast(self, sig: Signature, flat: Array, root: int) -> None:
        """See `Algorithm.broadcast`."""
        self.agree(sig)
        rooms = self._rooms(flat.dtype)
        pieces = _cut(flat, rooms[0][0].size)
        self._share(rooms, [pieces] * self._board.size, [root])

    def agree(self, sig: Signature) -> None:
        """See `Algorithm.agree`."""
        board = self._board
        self._calls += 1
        headers = board.headers(self._calls % 2)
        mine = sig.header(self._calls)
        headers[board.position][: len(mine)] = memoryview(mine)
        board.post()
        board.wait()
        rank = board.ranks[board.position]
        for peer, room in zip(board.ranks, headers, strict=True):
            header = room[: HEADER.size].tobytes()
            if header != mine[: HEADER.size]:
                end = HEADER.size + text_length(header, peer)
                text = room[HEADER.size : end].tobytes()
                require_same(sig, rank, self._host, header, text, peer)

    def gather_small(self, sig: Signature, flat: Array) -> list[Array]:
        """Everyone's small array, in rank order: views, to be read before the next collective."""
        board = self._board
        rooms = board.small((self._calls + 1) % 2, flat.nbytes)
        rooms[board.position][...] = flat.view(np.uint8)
        self.agree(sig)
        return [room.view(flat.dtype) for room in rooms]

    # --- Large arrays

    def _reduce(self, sig: Signature, chunks: Sequence[Array], how: Reduction, share: bool) -> None:
        """Leave the reduction of this rank's chunk in place, and share it with the others."""
        board, size, own = self._board, self._board.size, self._board.position
        self.agree(sig)
        rooms = board.pieces(chunks[0].dtype)
        pieces = [_cut(chunk, rooms[0][0].shape[1]) for chunk in chunks]
        rounds = max(map(len, pieces))
        others = [p for p in range(size) if p != own]
        ring_order = [(own + 1 + k) % size for k in range(size - 1)]
        for t in range(rounds + 2 if share else rounds + 1):
            if t > 0:
                board.wait()
            for p in others:
                for piece in _at(pieces[p], t):
                    rooms[t % 2][own][p][: len(piece)] = piece
            for piece in _at(pieces[own], t - 1):
                room = rooms[(t - 1) % 2]
                parts = [room[p][own][: len(piece)] for p in ring_order]
                how.accumulate(self._reduced(parts, how), into=piece)
                how.finish(piece, size)
                if share:
                    room[own][own][: len(piece)] = piece
            if share:
                for p in others:
                    for piece in _at(pieces[p], t - 2):
                        piece[...] = rooms[t % 2][p][p][: len(piece)]
            if t <= rounds:
                board.post()

    def _reduced(self, parts: list[Array], how: Reduction) -> Array:
        total = parts[0]
        for part in parts[1:]:
            out = self._scratch[: total.nbytes].view(total.dtype)
            how.ufunc(total, part, out=out)
            total = out
        return total

    def _share(
        self, rooms: list[list[Array]], pieces: list[list[Array]], owners: Sequence[int]
    ) -> None:
        """Copy the pieces of the owners to the other ranks."""
        board, own = self._board, self._board.position
        rounds = max(map(len, pieces))
        for t in range(rounds + 1):
            if t > 0:
                board.wait()
            if own in owners:
                for piece in _at(pieces[own], t):
                    rooms[t % 2][own][: len(piece)] = piece
            for p in owners:
                if p != own:
                    for piece in _at(pieces[p], t - 1):
                        piece[...] = rooms[(t - 1) % 2][p][: len(piece)]
            if t < rounds:
                board.post()

    def _rooms(self, dtype: np.dtype[Any]) -> list[list[Array]]:
        """Everyone's room as one piece: `rooms[parity][owner]`."""
        pieces = self._board.pieces(dtype)
        return [[room.reshape(-1) for room in owners] for owners in pieces]


def _cut(chunk: Array, length: int) -> list[Array]:
    return [chunk[start : start + length] for start in range(0, len(chunk), length)]


def _at(pieces: list[Array], t: int) -> Iterator[Array]:
    return itertools.islice(pieces, t, t + 1) if t >= 0 else iter(())
