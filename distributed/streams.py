"""A connection as the rest of the runtime sees it: bytes in both directions, never blocking.

`Stream` is what the ring, the control channel and the monitor drive. `PlainStream` is a bare
socket; `tls.TlsStream` encrypts. Both answer 0 where a socket would block, so that one loop serves
either: call `receive` or `send` until it answers 0, and only then wait for the descriptor, for a
stream may hold bytes that the descriptor has already given away. One thread may send while another
receives."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Iterable
from typing import Protocol

Buffer = bytes | bytearray | memoryview


class Stream(Protocol):
    """Two directions of bytes to one peer.

    All methods but `close` and `shutdown` raise `OSError` when the connection has ended.
    """

    def handshake(self) -> bool:
        """Carry on with what must happen before the first byte; True once it is done. While it is
        not, call again when the descriptor is readable.

        Raises:
            HandshakeError: the other end is not who it should be.
        """

    def check_peer(self, rank: int) -> None:
        """Make sure, after the handshake, that the other end holds the key of `rank`, where keys
        are in use.

        Raises:
            HandshakeError: it holds another one.
        """

    def send(self, buffers: Iterable[memoryview]) -> int:
        """Send some of the buffers' bytes, in order; how many are on their way. After an answer of
        0 the next call must bring the same bytes again."""

    def receive(self, buffer: memoryview) -> int:
        """Fill some of `buffer`, which is not empty; how many bytes, 0 if none have arrived."""

    def expect(self, count: int) -> None:
        """Let the descriptor become readable when `count` bytes are there, or the end, rather than
        at each packet. A hint: it may become readable earlier."""

    def fileno(self) -> int:
        """The descriptor to wait for: readable for `receive`, writable for `send`."""

    def shutdown(self) -> None:
        """End both directions, so that whoever waits for the descriptor wakes up. From any
        thread."""

    def close(self) -> None:
        """Give back the descriptor."""


class PlainStream:
    """The stream of a connected socket, which it owns."""

    def __init__(self, connection: socket.socket):
        connection.setblocking(False)
        self._socket = connection
        self._expected = 1

    def handshake(self) -> bool:
        return True

    def check_peer(self, rank: int) -> None:
        pass  # nothing but the secret tells ranks apart here

    def send(self, buffers: Iterable[memoryview]) -> int:
        try:
            return self._socket.sendmsg(buffers)
        except BlockingIOError:
            return 0

    def receive(self, buffer: memoryview) -> int:
        try:
            count = self._socket.recv_into(buffer)
        except BlockingIOError:
            return 0
        if count == 0:
            raise ConnectionError("it closed the connection")
        return count

    def expect(self, count: int) -> None:
        if count != self._expected:
            self._expected = count
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)

    def fileno(self) -> int:
        return self._socket.fileno()

    def shutdown(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()


def send_all(stream: Stream, data: Buffer, deadline: float) -> None:
    """Send all of `data`, waiting where the peer is slow.

    Args:
        deadline: a time of `time.monotonic()`.

    Raises:
        TimeoutError: the deadline has passed.
        OSError: the connection ended.
    """
    rest = memoryview(data)
    while rest:
        count = stream.send((rest,))
        if count == 0:
            _wait(stream, select.POLLOUT, deadline)
        rest = rest[count:]


def receive_exactly(stream: Stream, count: int, deadline: float) -> bytes:
    """The next `count` bytes; raises as `send_all` does."""
    received = bytearray(count)
    rest = memoryview(received)
    while rest:
        arrived = stream.receive(rest)
        if arrived == 0:
            _wait(stream, select.POLLIN, deadline)
        rest = rest[arrived:]
    return bytes(received)


def finish_handshake(stream: Stream, deadline: float) -> None:
    """Call `handshake` until it is done; raises as it does, and as `send_all` does."""
    while not stream.handshake():
        _wait(stream, select.POLLIN, deadline)


def _wait(stream: Stream, event: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(stream.fileno(), event)
    left = deadline - time.monotonic()
    if left <= 0 or not poll.poll(left * 1000):
        raise TimeoutError("timed out")
