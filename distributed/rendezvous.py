"""How the workers find each other: each opens a listening socket, all learn all addresses, then
they connect and prove themselves.

A worker binds before it publishes, and holds the socket until the ring stands, so no port is
probed, released and raced for. Addresses are exchanged once, through a function that Spark provides
(`BarrierTaskContext.allGather`; a local world has its own). Then every rank dials the next one (the
ring) and rank 0 (control), while a thread accepts the calls that it expects itself. The
listening socket is closed once they are complete: from then on a stranger finds nothing to connect
to."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .acceptor import BACKLOG, HANDSHAKE_SECONDS, Acceptor, Caller
from .errors import DistributedError, RendezvousError
from .handshake import Credentials, HandshakeError, call
from .streams import PlainStream, Stream
from .tls import Identity, TlsAcceptor, dial_tls

PROTOCOL = 2
NONCE_BYTES = 16
_ADVICE = (
    "Check that these hosts may open TCP connections to each other; port_range=(first, last) keeps "
    "to ports that a firewall allows"
)

Gather = Callable[[str], list[str]]  # one message from each rank, in rank order


@dataclasses.dataclass(frozen=True)
class Member:
    """A worker as the others see it. `memory` is where they find memory of it, if they can share
    any."""

    rank: int
    host: str
    port: int
    certificate: bytes | None = dataclasses.field(default=None, repr=False)
    memory: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"rank {self.rank} at {host}:{self.port}"


@dataclasses.dataclass
class Links:
    """The connections of one worker. `control` maps ranks to streams: all of them on rank 0, only
    rank 0 elsewhere. `leaders` are those to the next and from the previous first rank of a group,
    on these, where there are groups of several ranks; see `groups_of`."""

    members: list[Member]
    credentials: Credentials
    next: Stream
    previous: Stream
    control: dict[int, Stream]
    leaders: tuple[Stream, Stream] | None = None


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
    encrypt: bool = False,
    memory: Mapping[str, Any] | None = None,
    silence: float = 6.0,
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
        encrypt: whether they speak TLS, with keys that are made here.
        memory: what to publish as `Member.memory`.
        silence: seconds, about, after which a connection counts as broken that leads nowhere.

    Raises:
        RendezvousError: a worker has no free port, does not answer, or could not prove itself.
    """
    listener, identity, mine = _open(rank, host, hosts, bind, port_range, attempt, encrypt)
    mine["memory"] = dict(memory or {})
    with listener if listener is not None else contextlib.nullcontext():
        published = sorted(((_parse(text), text) for text in gather(json.dumps(mine))), key=_rank)
        entries = [entry for entry, _ in published]
        _check(entries, size)
        members = [_member(entry) for entry in entries]
        # Every rank's own random number is in it.
        nonce = hashlib.sha256("\n".join(text for _, text in published).encode()).digest()
        credentials = Credentials(secret, nonce, entries[0]["attempt"])
        assert listener is not None  # otherwise _check found the error that this rank published
        deadline = time.monotonic() + timeout
        return _connect(listener, members, rank, credentials, identity, deadline, silence)


def groups_of(members: Sequence[Member]) -> list[list[int]]:
    """The ranks that hope to share memory, group by group, each in rank order, ordered by their
    first ranks."""
    groups: dict[str, list[int]] = {}
    for member in members:
        domain = member.memory.get("domain") or f"rank {member.rank}"
        groups.setdefault(domain, []).append(member.rank)
    return list(groups.values())


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
            listener.listen(BACKLOG)
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
    encrypt: bool,
) -> tuple[socket.socket | None, Identity | None, dict[str, Any]]:
    """The listening socket, this rank's key, and what to publish about them. A failure is published
    too, or the others would wait for ever."""
    entry: dict[str, Any] = {
        "protocol": PROTOCOL,
        "byteorder": sys.byteorder,
        "rank": rank,
        "host": host,
        "port": 0,
        "attempt": attempt,
        "nonce": secrets.token_hex(NONCE_BYTES),
        "certificate": None,
    }
    identity = None
    if encrypt:
        try:
            identity = Identity.make(f"rank {rank}")
        except DistributedError as error:
            entry["error"] = str(error)
            return None, None, entry
        entry["certificate"] = base64.b64encode(identity.certificate).decode()
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
        return None, None, entry
    entry["port"] = listener.getsockname()[1]
    return listener, identity, entry


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


def _rank(published: tuple[dict[str, Any], str]) -> int:
    return published[0]["rank"]


def _member(entry: dict[str, Any]) -> Member:
    certificate = entry["certificate"]
    pin = base64.b64decode(certificate) if certificate is not None else None
    return Member(entry["rank"], entry["host"], entry["port"], pin, entry["memory"])


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
    if len({entry["certificate"] is None for entry in published}) > 1:
        raise RendezvousError("some workers encrypt and others do not; pass encrypt to all alike")
    if len({entry["byteorder"] for entry in published}) > 1:
        raise RendezvousError("the workers' machines differ in byte order; use one kind of machine")


def _connect(
    listener: socket.socket,
    members: list[Member],
    rank: int,
    credentials: Credentials,
    identity: Identity | None,
    deadline: float,
    silence: float,
) -> Links:
    size = len(members)
    expected = {("ring", (rank - 1) % size)}
    if rank == 0:
        expected |= {("control", other) for other in range(1, size)}
    leaders = [group[0] for group in groups_of(members)]
    leads = 1 < len(leaders) < size and rank in leaders
    if leads:
        position = leaders.index(rank)
        expected |= {("leaders", leaders[position - 1])}
    wrap: Callable[[socket.socket], Stream] = PlainStream
    if identity is not None:
        pins = {member.rank: member.certificate or b"" for member in members}
        wrap = TlsAcceptor(identity, pins)
    calls = _Calls(
        listener, credentials, rank, expected, lambda c: wrap(_tuned(c, silence)), deadline
    )
    reach = functools.partial(
        _dial,
        rank=rank,
        credentials=credentials,
        identity=identity,
        deadline=deadline,
        silence=silence,
    )
    thread = threading.Thread(target=calls.serve, name="tensorlite-accept", daemon=True)
    thread.start()
    dialled: list[Stream] = []
    try:
        dialled.append(reach(members[(rank + 1) % size], "ring"))
        if rank != 0:
            dialled.append(reach(members[0], "control"))
        if leads:
            dialled.append(reach(members[leaders[(position + 1) % len(leaders)]], "leaders"))
        thread.join(max(0.0, deadline - time.monotonic()) + HANDSHAKE_SECONDS)
        missing = expected - calls.accepted.keys()
        if missing:
            raise RendezvousError(_explain(members, rank, missing, calls))
    except BaseException:
        calls.stopped.set()
        thread.join()
        for stream in [*dialled, *calls.accepted.values()]:
            stream.close()
        raise
    control = {0: dialled[1]} if rank != 0 else {}
    control |= {
        peer: link for (channel, peer), link in calls.accepted.items() if channel == "control"
    }
    previous = calls.accepted[("ring", (rank - 1) % size)]
    links = Links(members, credentials, dialled[0], previous, control)
    if leads:
        links.leaders = dialled[-1], calls.accepted[("leaders", leaders[position - 1])]
    return links


class _Calls:
    """Accepts the expected connections, in a thread of its own."""

    def __init__(
        self,
        listener: socket.socket,
        credentials: Credentials,
        rank: int,
        expected: set[Caller],
        wrap: Callable[[socket.socket], Stream],
        deadline: float,
    ):
        self.accepted: dict[Caller, Stream] = {}
        self.stopped = threading.Event()
        self.acceptor = Acceptor(
            listener,
            credentials,
            rank,
            lambda *caller: caller in expected,
            wrap,
        )
        self._expected = expected
        self._deadline = deadline

    def serve(self) -> None:
        with self.acceptor:
            while self.accepted.keys() != self._expected and not self.stopped.is_set():
                if time.monotonic() > self._deadline:
                    break
                for caller, stream in self.acceptor.wait(0.05):
                    if caller in self.accepted:  # it did not see our welcome and called again
                        self.accepted[caller].close()
                    self.accepted[caller] = stream


def _explain(members: list[Member], rank: int, missing: set[Caller], calls: _Calls) -> str:
    who = ", ".join(f"{members[peer]} ({channel})" for channel, peer in sorted(missing))
    acceptor = calls.acceptor
    strangers = (
        f"; {acceptor.turned_away} other connections were turned away, the last: {acceptor.reason}"
        if acceptor.turned_away
        else ""
    )
    return f"{members[rank]} waited in vain for a connection from {who}{strangers}. {_ADVICE}"


def _tuned(connection: socket.socket, silence: float) -> socket.socket:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # A host that loses power or its network closes nothing. Who waits for it in the ring hears of
    # it by this, also where both can still be reached by rank 0. The other host's kernel answers,
    # so slow input and a process that is stopped are no silence.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    pause = max(1, math.ceil(silence / 4))  # before the first of three probes, and after each
    for option, value in (("TCP_KEEPIDLE", pause), ("TCP_KEEPINTVL", pause), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return connection


def _dial(
    peer: Member,
    channel: str,
    *,
    rank: int,
    credentials: Credentials,
    identity: Identity | None,
    deadline: float,
    silence: float,
) -> Stream:
    problem = "no answer"
    while (left := deadline - time.monotonic()) > 0:
        try:
            connection = socket.create_connection(
                (peer.host, peer.port), min(HANDSHAKE_SECONDS, left)
            )
        except OSError as error:
            problem = str(error) or type(error).__name__
            time.sleep(min(0.1, left))
            continue
        if identity is None:
            stream: Stream = PlainStream(_tuned(connection, silence))
        else:
            stream = dial_tls(
                _tuned(connection, silence), identity, peer.rank, peer.certificate or b""
            )
        try:
            patience = time.monotonic() + min(HANDSHAKE_SECONDS, left)
            call(stream, credentials, channel, rank, peer.rank, patience)
            return stream
        except HandshakeError as error:
            stream.close()
            raise RendezvousError(f"rank {rank} called {peer}, but {error}") from None
        except OSError as error:
            problem = str(error) or type(error).__name__
            stream.close()
            time.sleep(min(0.1, left))
    raise RendezvousError(f"rank {rank} could not reach {peer} ({channel}): {problem}. {_ADVICE}")
