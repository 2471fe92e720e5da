"""Memory that the ranks of one host share.

Every rank makes one segment of its own, an anonymous file in memory (memfd), and publishes where
the others find it: its process id and file descriptor. Nothing has a name that could be left
behind, whoever is killed and whenever, and a container's small /dev/shm does not matter. The file
is sealed, so that a mapping cannot be shortened under its reader.

Whether two ranks really share memory is not believed but proved: the owner writes a random token
into its segment, and the other must quote it over an authenticated connection
(`distributed/fabric.py`). So process ids that mean something else in another container do no harm.

A segment holds a counter, the token, and room in which its owner leaves headers, small arrays and
pieces of large ones for the others. Nobody else writes there, except that waiters enter themselves
in the counter. Ranks use the room in turns: what is left before the t-th post of its owner may be
overwritten after all others have posted t + 1 times; hence two copies of everything.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import pathlib
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tensorlite import futex

from ..agreement import HEADER, MAX_TEXT
from ..reduction import Array
from . import ConnectionLost, Patience, Stalled

TOKEN_BYTES = 16
SMALL_ROOM = 32 * 1024  # for an array that is left whole
LARGE_ROOM = 1024 * 1024  # for pieces of arrays, one for each rank of the group
SLOT_BYTES = 256 * 1024  # or for segments, one after the other

_PAGE = 4096
_HEADER_ROOM = -(-(HEADER.size + MAX_TEXT) // _PAGE) * _PAGE
_HALF = _HEADER_ROOM + SMALL_ROOM + LARGE_ROOM
SEGMENT_BYTES = _PAGE + 2 * _HALF
_SEALS = getattr(fcntl, "F_SEAL_SHRINK", 0) | getattr(fcntl, "F_SEAL_GROW", 0)
_LOOKS = 1000  # before sleeping, where every rank has a processor of its own: about 20 microseconds
_LOOKS_CROWDED = 20


Address = Mapping[str, str | int]  # what JSON can carry


class Unshared(Exception):
    """Memory cannot be shared here; the message says why."""


class Segment:
    """This rank's own segment, until the others have mapped it.

    Raises:
        Unshared: there is no such memory on this machine, or not enough.
    """

    def __init__(self) -> None:
        problem = futex.missing()
        if problem is not None:
            raise Unshared(problem)
        try:
            self.descriptor = os.memfd_create("tensorlite", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except OSError as error:
            raise Unshared(f"no memory file: {error}") from None
        try:
            # Taken now: a page that is missing later would kill the process that touches it.
            os.posix_fallocate(self.descriptor, 0, SEGMENT_BYTES)
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, _SEALS)
            self.memory = _mapped(self.descriptor)
        except OSError as error:
            self.close()
            raise Unshared(f"no {SEGMENT_BYTES} bytes of shared memory: {error}") from None
        self.token = secrets.token_bytes(TOKEN_BYTES)
        _token(self.memory)[:] = np.frombuffer(self.token, np.uint8)

    def address(self) -> Address:
        """Where other processes find it."""
        return {"domain": domain(), "pid": os.getpid(), "descriptor": self.descriptor}

    def close(self) -> None:
        """Give back the descriptor; more than once does no harm. Mappings stay."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def offer() -> tuple[Segment | None, Address]:
    """A segment and its address. Where there can be none, the address says why."""
    try:
        segment = Segment()
    except Unshared as error:
        return None, {"domain": domain(), "problem": str(error)}
    return segment, segment.address()


def domain() -> str:
    """What processes have in common that may hope to share memory: the running kernel, its view
    of process ids and its view of the network, so that a network namespace counts as a host."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        spaces = [os.stat(f"/proc/self/ns/{name}").st_ino for name in ("pid", "net")]
    except OSError:
        return ""  # not Linux, and no segment either
    return f"{boot}/{spaces[0]}/{spaces[1]}"


def map_segment(address: Address) -> Array:
    """The segment of another rank, by the address that it published.

    Raises:
        Unshared: there is no segment, or this process may not open it.
    """
    path = f"/proc/{int(address['pid'])}/fd/{int(address['descriptor'])}"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise Unshared(f"cannot open the segment of another rank: {error}") from None
    try:
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)  # fails for all but memory files
        if os.fstat(descriptor).st_size != SEGMENT_BYTES or seals & _SEALS != _SEALS:
            raise Unshared(f"{path} is no segment of another rank")
        return _mapped(descriptor)
    except OSError as error:
        raise Unshared(f"cannot map the segment of another rank: {error}") from None
    finally:
        os.close(descriptor)


def token_of(memory: Array) -> bytes:
    """The token in a segment that was mapped."""
    return _token(memory).tobytes()


class Board:
    """The segments of a group of ranks, by position in the group.

    Every rank of the group posts equally often in each collective, so one number says how far the
    others must be.

    Args:
        ranks: the numbers of the ranks in the world, for errors.
        position: this rank's position.
        memories: all segments.
        patience: how long to wait for another rank.
    """

    def __init__(
        self, ranks: Sequence[int], position: int, memories: Sequence[Array], patience: Patience
    ):
        self.ranks = tuple(ranks)
        self.position = position
        self.size = len(ranks)
        self.posts = 0
        self.piece_bytes = LARGE_ROOM // self.size // futex.LINE * futex.LINE
        self._patience = patience
        self._memories = list(memories)
        self._typed: dict[np.dtype[Any], list[list[Array]]] = {}
        self._slots: dict[np.dtype[Any], list[list[Array]]] = {}
        self._line = _address(memories[position])
        self._others = [p for p in range(self.size) if p != position]
        crowded = self.size > len(os.sched_getaffinity(0))
        self._waiter = futex.Waiter(
            [_address(memories[p]) for p in self._others], _LOOKS_CROWDED if crowded else _LOOKS
        )

    def post(self) -> None:
        """Let the others see what this rank has left in its segment."""
        self.posts += 1
        futex.post(self._line)

    def wait(self, posts: int | None = None, only: int | None = None) -> None:
        """Wait until the others have posted `posts` times (None: as often as this rank), or the
        one at position `only`.

        Raises:
            ConnectionLost, Stalled: they will not, or took too long.
        """
        target = self.posts if posts is None else posts
        which = None if only is None else only - (only > self.position)
        seen = self._waiter.wait(target, which)
        if seen is not None:
            self._wait_longer(target, which, seen)

    def headers(self, parity: int) -> list[Array]:
        """Everyone's room for a header and its text; bytes."""
        return self._room(parity, 0, _HEADER_ROOM)

    def small(self, parity: int, nbytes: int) -> list[Array]:
        """Everyone's room for an array that is left whole, of `nbytes`."""
        return self._room(parity, _HEADER_ROOM, nbytes)

    def pieces(self, dtype: np.dtype[Any]) -> list[list[Array]]:
        """Everyone's room for pieces of `piece_bytes`, by parity and owner: arrays with a row for
        each rank."""
        if dtype not in self._typed:
            offset, shape = _HEADER_ROOM + SMALL_ROOM, (self.size, self.piece_bytes)
            self._typed[dtype] = [
                [
                    room.reshape(shape).view(dtype)
                    for room in self._room(parity, offset, self.size * self.piece_bytes)
                ]
                for parity in range(2)
            ]
        return self._typed[dtype]

    def slots(self, dtype: np.dtype[Any]) -> list[list[Array]]:
        """The same room, as a cycle of parts of `SLOT_BYTES` for ranks that do not move in step: by
        owner and number."""
        if dtype not in self._slots:
            halves = [
                self._room(parity, _HEADER_ROOM + SMALL_ROOM, LARGE_ROOM) for parity in range(2)
            ]
            self._slots[dtype] = [
                [
                    room[start : start + SLOT_BYTES].view(dtype)
                    for room in (halves[0][owner], halves[1][owner])
                    for start in range(0, LARGE_ROOM, SLOT_BYTES)
                ]
                for owner in range(self.size)
            ]
        return self._slots[dtype]

    def interrupt(self) -> None:
        """Make this rank's waits end with an error, now and for ever; from any thread."""
        self._waiter.stop()

    def close(self) -> None:
        """Tell the others that this rank will post no more. Its mappings last as long as arrays
        refer to them."""
        futex.close(self._line)
        self._waiter.stop()

    def _room(self, parity: int, offset: int, nbytes: int) -> list[Array]:
        start = _PAGE + parity * _HALF + offset
        return [memory[start : start + nbytes] for memory in self._memories]

    def _wait_longer(self, target: int, which: int | None, seen: tuple[int, int]) -> None:
        seconds = self._patience.seconds
        deadline = time.monotonic() + seconds
        last: tuple[int, int] | None = seen
        while last is not None:
            number, what = last
            peer = self.ranks[self._others[number]]
            if what == futex.CLOSED:
                raise ConnectionLost(peer, "it left")
            if what == futex.STOPPED:
                raise ConnectionLost(peer, "the wait for it was interrupted")
            if time.monotonic() > deadline:
                raise Stalled(peer, f"nothing arrived from it for {seconds:g} s")
            last = self._waiter.wait(target, which)


def _mapped(descriptor: int) -> Array:
    return np.frombuffer(mmap.mmap(descriptor, SEGMENT_BYTES), np.uint8)


def _token(memory: Array) -> Array:
    return memory[futex.LINE : futex.LINE + TOKEN_BYTES]


def _address(memory: Array) -> int:
    return int(memory.__array_interface__["data"][0])
