"""How the workers find each other: each opens a listening socket, all learn all addresses, then
they connect and prove themselves.

A worker binds before it publishes, and holds the socket until the ring stands, so no port is
probed, released and raced for. Addresses are exchanged once, through a function that Spark provides
(`BarrierTaskContext.allGather`; a local world has its own). Then every rank dials the next one (the
ring) and rank 0 (control), while a thread accepts the calls that it expects itself. The
listening socket is closed once they are complete: from then on a stranger finds nothing to connect
to."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any

from .errors import RendezvousError
from .handshake import WELCOME, Credentials, HandshakeError, Step, accept, converse, dial

PROTOCOL = 1
NONCE_BYTES = 16
_ADVICE = (
    "Check that these hosts may open TCP connections to each other; port_range=(first, last) keeps "
    "to ports that a firewall allows"
)
HANDSHAKE_SECONDS = 5.0
MAX_HALF_OPEN = 256  # half-open connections held at once; beyond that the oldest is dropped

Gather = Callable[[str], list[str]]  # one message from each rank, in rank order


@dataclasses.dataclass(frozen=True)
class Member:
    """A worker as the others see it."""

    rank: int
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"rank {self.rank} at {host}:{self.port}"


@dataclasses.dataclass
class Links:
    """The connections of one worker. `control` maps ranks to sockets: all of them on rank 0, only
    rank 0 elsewhere."""

    members: list[Member]
    credentials: Credentials
    next: socket.socket
    previous: socket.socket
    control: dict[int, socket.socket]


def meet(
    gather: Gather,
    rank: int,
    size: int,
    host: str,
    secret: bytes,
    attempt: int,
    *,
    hosts: Sequence[str] = (),
    bind: str | None = None,
    port_range: tuple[int, int] | None = None,
    timeout: float = 60.0,
) -> Links:
    """Connect this worker with the others. Every rank must call it.

    Args:
        gather: gives every rank the messages of all of them; called once.
        host: the address under which the other workers reach this one.
        hosts: the addresses of all workers as far as they are known, in rank order.
        attempt: a number that differs between attempts of one job; rank 0's counts.
        bind: the address to listen on, where that is not `host` ("0.0.0.0" and "::" are all of
            them).
        port_range: the first and the last port that may be used; None leaves the choice to the
            system.
        timeout: seconds until all connections must stand.

    Raises:
        RendezvousError: a worker has no free port, does not answer, or could not prove itself.
    """
    listener, mine = _open(rank, host, hosts, bind, port_range, attempt)
    with listener if listener is not None else contextlib.nullcontext():
        published = [_parse(text) for text in gather(json.dumps(mine))]
        published.sort(key=lambda entry: entry["rank"])
        _check(published, size)
        members = [Member(e["rank"], e["host"], e["port"]) for e in published]
        first = published[0]
        credentials = Credentials(secret, bytes.fromhex(first["nonce"]), first["attempt"])
        assert listener is not None  # otherwise _check found the error that this rank published
        return _connect(listener, members, rank, credentials, time.monotonic() + timeout)


def host_of(address: str) -> str:
    """The host in `host:port`, where the host may be an IPv6 address with or without brackets."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        host = address
    return host.strip("[]")


def listen(host: str, port_range: tuple[int, int] | None = None) -> socket.socket:
    """A listening socket on `host`, on a port of the range, or on one that the system chooses.

    Raises:
        OSError: no port is free, or the address is not one of this machine.
    """
    family, _, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
    low, high = port_range if port_range is not None else (0, 0)
    for port in range(low, high + 1):
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.bind((address[0], port, *address[2:]))
            listener.listen(128)
            return listener
        except OSError:
            listener.close()
            if port == high:
                raise
    raise OSError(f"the port range {low}-{high} is empty")


def _open(
    rank: int,
    host: str,
    hosts: Sequence[str],
    bind: str | None,
    port_range: tuple[int, int] | None,
    attempt: int,
) -> tuple[socket.socket | None, dict[str, Any]]:
    """The listening socket and what to publish about it. A failure is published too, or the others
    would wait for ever."""
    entry: dict[str, Any] = {
        "protocol": PROTOCOL,
        "byteorder": sys.byteorder,
        "rank": rank,
        "host": host,
        "port": 0,
        "attempt": attempt,
        "nonce": secrets.token_hex(NONCE_BYTES),
    }
    where = bind or host
    try:
        if bind is None and _is_loopback(host) and any(other != host for other in hosts):
            # Debian maps a machine's own name to 127.0.1.1, where the other hosts could not reach
            # us.
            where = "0.0.0.0"
        listener = listen(where, port_range)
    except OSError as error:
        ports = f" on ports {port_range[0]}-{port_range[1]}" if port_range else ""
        advice = "choose another port_range" if port_range else 'pass bind="0.0.0.0" or bind="::"'
        entry["error"] = f"cannot listen at {where}{ports}: {error}; {advice}"
        return None, entry
    entry["port"] = listener.getsockname()[1]
    return listener, entry


def _is_loopback(host: str) -> bool:
    address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0][4][0]
    return str(address).startswith("127.") or address == "::1"


def _parse(text: str) -> dict[str, Any]:
    entry = json.loads(text)
    if entry.get("protocol") != PROTOCOL:
        raise RendezvousError(
            f"rank {entry.get('rank')} speaks version {entry.get('protocol')} of the ring protocol "
            f"and this worker version {PROTOCOL}: install the same tensorlite on all hosts"
        )
    return entry


def _check(published: list[dict[str, Any]], size: int) -> None:
    ranks = [entry["rank"] for entry in published]
    if ranks != list(range(size)):
        raise RendezvousError(f"expected ranks 0 to {size - 1} to report, got {ranks}")
    problems = [
        f"rank {entry['rank']} (host {entry['host']}) {entry['error']}"
        for entry in published
        if "error" in entry
    ]
    if problems:
        raise RendezvousError("; ".join(problems))
    if len({entry["byteorder"] for entry in published}) > 1:
        raise RendezvousError("the workers' machines differ in byte order; use one kind of machine")


def _connect(
    listener: socket.socket,
    members: list[Member],
    rank: int,
    credentials: Credentials,
    deadline: float,
) -> Links:
    size = len(members)
    expected = {("ring", (rank - 1) % size)}
    if rank == 0:
        expected |= {("control", other) for other in range(1, size)}
    calls = _Calls(listener, credentials, rank, expected, deadline)
    thread = threading.Thread(target=calls.serve, name="tensorlite-accept", daemon=True)
    thread.start()
    dialled: list[socket.socket] = []
    try:
        dialled.append(_dial(members[(rank + 1) % size], "ring", rank, credentials, deadline))
        if rank != 0:
            dialled.append(_dial(members[0], "control", rank, credentials, deadline))
        thread.join(max(0.0, deadline - time.monotonic()) + HANDSHAKE_SECONDS)
        missing = expected - calls.accepted.keys()
        if missing:
            raise RendezvousError(_explain(members, rank, missing, calls))
    except BaseException:
        calls.stopped.set()
        thread.join()
        for connection in [*dialled, *calls.accepted.values()]:
            connection.close()
        raise
    for connection in [*dialled, *calls.accepted.values()]:
        _tune(connection)
    control = {0: dialled[1]} if rank != 0 else {}
    control |= {
        peer: link for (channel, peer), link in calls.accepted.items() if channel == "control"
    }
    previous = calls.accepted[("ring", (rank - 1) % size)]
    return Links(members, credentials, dialled[0], previous, control)


def _explain(members: list[Member], rank: int, missing: set[tuple[str, int]], calls: _Calls) -> str:
    who = ", ".join(f"{members[peer]} ({channel})" for channel, peer in sorted(missing))
    strangers = (
        f"; {calls.turned_away} other connections were turned away, the last: {calls.reason}"
        if calls.turned_away
        else ""
    )
    return f"{members[rank]} waited in vain for a connection from {who}{strangers}. {_ADVICE}"


def _tune(connection: socket.socket) -> None:
    connection.setblocking(True)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # A host that loses power or its network closes nothing: keepalive finds it within half a
    # minute.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _dial(
    peer: Member, channel: str, rank: int, credentials: Credentials, deadline: float
) -> socket.socket:
    problem = "no answer"
    while (left := deadline - time.monotonic()) > 0:
        connection: socket.socket | None = None
        try:
            connection = socket.create_connection(
                (peer.host, peer.port), min(HANDSHAKE_SECONDS, left)
            )
            converse(connection, dial(credentials, channel, rank, peer.rank))
            return connection
        except HandshakeError as error:
            connection.close()  # type: ignore[union-attr]
            raise RendezvousError(f"rank {rank} called {peer}, but {error}") from None
        except OSError as error:
            problem = str(error) or type(error).__name__
            if connection is not None:
                connection.close()
            time.sleep(min(0.1, max(0.0, left)))
    raise RendezvousError(f"rank {rank} could not reach {peer} ({channel}): {problem}. {_ADVICE}")


class _HalfOpen:
    """A connection whose caller has not yet proven itself."""

    def __init__(self, connection: socket.socket, steps: Generator[Step, bytes, tuple[str, int]]):
        self.connection = connection
        self.deadline = time.monotonic() + HANDSHAKE_SECONDS
        self._steps = steps
        self._received = b""
        _, self._wanted = next(steps)

    def advance(self) -> tuple[str, int] | None:
        """Take in what has arrived; channel and rank once the caller is proven. Raises when it
        should be dropped."""
        # Never more than the handshake needs: what follows belongs to the ring.
        part = self.connection.recv(self._wanted - len(self._received))
        if not part:
            raise HandshakeError("the caller hung up")
        self._received += part
        if len(self._received) < self._wanted:
            return None
        try:
            data, self._wanted = self._steps.send(self._received)
        except StopIteration as proven:
            self.connection.send(WELCOME)
            return proven.value
        self._received = b""
        if self.connection.send(data) < len(data):
            raise HandshakeError("the caller does not read")
        return None


class _Calls:
    """Accepts the expected connections in one thread, among any number of strangers."""

    def __init__(
        self,
        listener: socket.socket,
        credentials: Credentials,
        rank: int,
        expected: set[tuple[str, int]],
        deadline: float,
    ):
        self.accepted: dict[tuple[str, int], socket.socket] = {}
        self.turned_away = 0
        self.reason = ""
        self.stopped = threading.Event()
        self._listener = listener
        self._credentials = credentials
        self._rank = rank
        self._expected = expected
        self._deadline = deadline
        self._half_open: dict[int, _HalfOpen] = {}  # by file descriptor, oldest first
        self._selector = selectors.DefaultSelector()

    def serve(self) -> None:
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        try:
            while not self._complete() and not self.stopped.is_set():
                if time.monotonic() > self._deadline:
                    break
                for key, _ in self._selector.select(0.05):
                    if key.fileobj is self._listener:
                        self._welcome_caller()
                    elif key.fd in self._half_open:
                        self._advance(key.fd)
                self._drop_stalled()
        finally:
            for fd in list(self._half_open):
                self._drop(fd, "the ring was complete")
            self._selector.close()

    def _complete(self) -> bool:
        return self.accepted.keys() == self._expected

    def _welcome_caller(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return  # the caller hung up before we answered
        connection.setblocking(False)
        steps = accept(self._credentials, self._rank, lambda *who: who in self._expected)
        if len(self._half_open) >= MAX_HALF_OPEN:
            self._drop(next(iter(self._half_open)), "too many half-open connections")
        self._half_open[connection.fileno()] = _HalfOpen(connection, steps)
        self._selector.register(connection, selectors.EVENT_READ)

    def _advance(self, fd: int) -> None:
        caller = self._half_open[fd]
        try:
            who = caller.advance()
        except BlockingIOError:
            return
        except (HandshakeError, OSError) as error:
            self._drop(fd, str(error))
            return
        if who is not None:
            del self._half_open[fd]
            self._selector.unregister(caller.connection)
            if who in self.accepted:  # it did not see our welcome and called again
                self.accepted[who].close()
            self.accepted[who] = caller.connection

    def _drop_stalled(self) -> None:
        now = time.monotonic()
        for fd, caller in list(self._half_open.items()):
            if now < caller.deadline:
                break
            self._drop(fd, "the caller did not finish the handshake in time")

    def _drop(self, fd: int, reason: str) -> None:
        caller = self._half_open.pop(fd)
        self._selector.unregister(caller.connection)
        caller.connection.close()
        self.turned_away += 1
        self.reason = reason
