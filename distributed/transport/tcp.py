"""The ring over TCP, plain or encrypted: one connection to the next rank and one from the
previous, driven by one thread without blocking.

Sending and receiving are interleaved in one loop, so two ranks that both have megabytes to send
cannot wait for each other. While the program reduces a segment, the kernel goes on sending the last
one and receiving the next."""

from __future__ import annotations

import errno
import select
from collections import deque
from collections.abc import Iterator
from itertools import islice

from ..streams import Stream
from . import ConnectionLost, Stalled, TransportError, Unreachable

_PIECES = (
    8  # buffers handed to the kernel in one call, so that a header and a small body go out together
)
_AT_ONCE = (
    128 * 1024
)  # bytes that are worth a wake-up; less than what the kernel holds for a socket


_UNREACHABLE = (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH)


class TcpTransport:
    """The two connections of a rank. `previous` and `next` are ranks; the streams are owned by the
    transport."""

    def __init__(
        self,
        previous_rank: int,
        next_rank: int,
        incoming: Stream,
        outgoing: Stream,
    ):
        self._previous = previous_rank
        self._next = next_rank
        self._incoming = incoming
        self._outgoing = outgoing

    def exchange(
        self, sends: deque[memoryview], program: Iterator[memoryview], idle_seconds: float
    ) -> None:
        wanted = _advance(program)
        while wanted is not None or sends:
            moved = self._send(sends) if sends else False
            if wanted is not None:
                count = self._receive(wanted)
                if count == len(wanted):
                    wanted = _advance(program)
                elif count:
                    wanted = wanted[count:]
                moved = moved or count > 0
            if not moved:
                self._wait(bool(sends), len(wanted) if wanted is not None else 0, idle_seconds)

    def interrupt(self) -> None:
        for stream in (self._incoming, self._outgoing):
            stream.shutdown()

    def close(self) -> None:
        self._incoming.close()
        self._outgoing.close()

    def _send(self, sends: deque[memoryview]) -> bool:
        try:
            count = self._outgoing.send(islice(sends, _PIECES))
        except OSError as error:
            raise _broken(self._next, error) from None
        if count == 0:
            return False
        while sends and count >= len(sends[0]):
            count -= len(sends.popleft())
        if count:
            sends[0] = sends[0][count:]
        return True

    def _receive(self, wanted: memoryview) -> int:
        try:
            return self._incoming.receive(wanted)
        except OSError as error:
            raise _broken(self._previous, error) from None

    def _wait(self, sending: bool, wanted: int, idle_seconds: float) -> None:
        poll = select.poll()
        if sending:
            poll.register(self._outgoing, select.POLLOUT)
        if wanted:
            # One wake-up for many packets: a wake-up costs as much as the copy of several.
            self._expect(min(wanted, _AT_ONCE))
            poll.register(self._incoming, select.POLLIN)
        if poll.poll(idle_seconds * 1000):
            return
        if wanted:
            self._expect(1)
            if poll.poll(0):
                return  # a peer that sends slowly is there
        peer = self._previous if wanted else self._next
        verb = "arrived from" if wanted else "could be sent to"
        raise Stalled(peer, f"nothing {verb} it for {idle_seconds:g} s")

    def _expect(self, count: int) -> None:
        try:
            self._incoming.expect(count)
        except OSError as error:
            raise _broken(self._previous, error) from None


def _broken(peer: int, error: OSError) -> TransportError:
    """What is wrong with the connection to `peer`: it was closed, or leads nowhere."""
    kind = Unreachable if error.errno in _UNREACHABLE else ConnectionLost
    return kind(peer, str(error))


def _advance(program: Iterator[memoryview]) -> memoryview | None:
    """The next buffer to fill that is not empty, or None at the end."""
    return next((buffer for buffer in program if len(buffer)), None)
