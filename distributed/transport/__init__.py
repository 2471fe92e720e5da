"""How bytes get from a rank to the next one. `tcp` is one way; others need only the methods
below."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator
from typing import Protocol


class TransportError(Exception):
    """The bytes stopped flowing. `peer` is the rank on the other end of the connection
    concerned."""

    def __init__(self, peer: int, reason: str):
        super().__init__(reason)
        self.peer = peer


class ConnectionLost(TransportError):
    """The connection ended."""


class Unreachable(TransportError):
    """The network has not carried anything to the peer, or from it, for seconds."""


class Stalled(TransportError):
    """Nothing moved for as long as the deadline allows."""


@dataclasses.dataclass
class Patience:
    """How many seconds a collective waits for another rank while nothing moves. All that waits in
    one process shares it, and it may change between two collectives."""

    seconds: float


class Transport(Protocol):
    """Two ordered streams of bytes: to the next rank, and from the previous one."""

    def exchange(
        self, sends: deque[memoryview], program: Iterator[memoryview], idle_seconds: float
    ) -> None:
        """Send and receive at the same time until `program` has ended and `sends` is empty.

        Args:
            sends: what to send, in order. The program may append to it while it runs; it is
                emptied.
            program: yields the buffer that the next bytes from the previous rank should fill, and
                is resumed when it is full. What it raises is passed on.
            idle_seconds: how long nothing may move in the direction that is waited for.

        Raises:
            ConnectionLost, Unreachable, Stalled: the streams cannot be used any more.
        """

    def interrupt(self) -> None:
        """End both streams, so that an `exchange` in another thread raises at once."""

    def close(self) -> None:
        """Give back sockets, memory and whatever else is held."""
