"""Who is let in: one loop that holds a listening socket and the connections whose callers have not
yet proven themselves.

Anybody can connect. Until the handshake is done a caller gets a few hundred bytes of answers, a
bounded buffer and `HANDSHAKE_SECONDS` in all, however it spreads what it sends; and there is room
for `MAX_HALF_OPEN` callers, of whom the oldest has to go for a new one. So whoever stalls, sends
garbage or comes in thousands costs himself a connection, and those who belong here get through, at
the next try if need be."""

from __future__ import annotations

import errno
import selectors
import socket
import time
from collections.abc import Callable, Generator
from types import TracebackType

from .handshake import WELCOME, Credentials, HandshakeError, Step, accept
from .streams import Stream

HANDSHAKE_SECONDS = 5.0
MAX_HALF_OPEN = 256
BACKLOG = 4096  # connections that the kernel keeps until they are accepted, if it lets us
ACCEPTED_AT_ONCE = 16  # before those that are half open have their turn
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

Caller = tuple[str, int]  # channel and rank


class Acceptor:
    """Accepts callers on a listening socket, which stays its owner's.

    Args:
        rank: of the process that is called.
        is_expected: whether this channel and rank may call.
        wrap: makes the stream of a new connection.

    Attributes:
        turned_away: how many connections were dropped.
        reason: why the last one was.
    """

    def __init__(
        self,
        listener: socket.socket,
        credentials: Credentials,
        rank: int,
        is_expected: Callable[[str, int], bool],
        wrap: Callable[[socket.socket], Stream],
    ):
        self.turned_away = 0
        self.reason = ""
        self._listener = listener
        self._credentials = credentials
        self._rank = rank
        self._is_expected = is_expected
        self._wrap = wrap
        self._half_open: dict[int, _HalfOpen] = {}  # by file descriptor, oldest first
        self._selector = selectors.DefaultSelector()
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ)

    def __enter__(self) -> Acceptor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Drop all who are half open."""
        for fd in list(self._half_open):
            self._drop(fd, "nobody else is expected")
        self._selector.close()

    def wait(self, seconds: float) -> list[tuple[Caller, Stream]]:
        """Go on with those who call for at most `seconds`; whoever has proven himself meanwhile,
        with a stream to him that is the receiver's."""
        proven = []
        for key, _ in self._selector.select(seconds):
            if key.fileobj is self._listener:
                self._take_callers()
            elif key.fd in self._half_open:
                who = self._advance(key.fd)
                if who is not None:
                    proven.append((who, self._release(key.fd)))
        self._drop_stalled()
        return proven

    def _take_callers(self) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._make_room("this process has no more descriptors")
                    return
                continue  # the caller hung up before we answered
            if len(self._half_open) >= MAX_HALF_OPEN:
                self._make_room("too many half-open connections")
            try:
                stream = self._wrap(connection)
            except OSError:
                connection.close()
                continue
            self._half_open[stream.fileno()] = _HalfOpen(stream, self._steps(stream))
            self._selector.register(stream.fileno(), selectors.EVENT_READ)

    def _steps(self, stream: Stream) -> Generator[Step, bytes, Caller]:
        def may_call(channel: str, rank: int) -> bool:
            if not self._is_expected(channel, rank):
                return False
            stream.check_peer(rank)
            return True

        return accept(self._credentials, self._rank, may_call)

    def _make_room(self, reason: str) -> None:
        if self._half_open:
            self._drop(next(iter(self._half_open)), reason)
        else:
            time.sleep(0.05)  # the listener stays readable, and nothing here can be given up

    def _advance(self, fd: int) -> Caller | None:
        try:
            return self._half_open[fd].advance()
        except (HandshakeError, OSError) as error:
            self._drop(fd, str(error))
            return None

    def _drop_stalled(self) -> None:
        now = time.monotonic()
        for fd, caller in list(self._half_open.items()):
            if now < caller.deadline:
                break
            self._drop(fd, "the caller did not finish the handshake in time")

    def _drop(self, fd: int, reason: str) -> None:
        self._release(fd).close()
        self.turned_away += 1
        self.reason = reason

    def _release(self, fd: int) -> Stream:
        self._selector.unregister(fd)
        return self._half_open.pop(fd).stream


class _HalfOpen:
    """A connection whose caller has not yet proven himself."""

    def __init__(self, stream: Stream, steps: Generator[Step, bytes, Caller]):
        self.stream = stream
        self.deadline = time.monotonic() + HANDSHAKE_SECONDS
        self._secure = False  # whether the stream's own handshake is done
        self._steps = steps
        _, wanted = next(steps)
        self._received = bytearray(wanted)
        self._rest = memoryview(self._received)

    def advance(self) -> Caller | None:
        """Take in what has arrived; channel and rank once the caller is proven. Raises when it
        should be dropped."""
        self._secure = self._secure or self.stream.handshake()
        # Never more than the handshake needs: what follows belongs to the ring.
        while self._secure and (count := self.stream.receive(self._rest)):
            self._rest = self._rest[count:]
            if self._rest:
                continue
            try:
                data, wanted = self._steps.send(bytes(self._received))
            except StopIteration as proven:
                self._send(WELCOME)
                return proven.value
            self._send(data)
            self._received = bytearray(wanted)
            self._rest = memoryview(self._received)
        return None

    def _send(self, data: bytes) -> None:
        if self.stream.send((memoryview(data),)) < len(data):
            raise HandshakeError("the caller does not read")
