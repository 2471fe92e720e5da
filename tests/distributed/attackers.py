"""Who attacks in the tests: men in the middle and strangers in great number; and a door to try."""

import contextlib
import select
import socket
import ssl
import threading
import time

from tensorlite.distributed.acceptor import Acceptor
from tensorlite.distributed.handshake import Credentials, HandshakeError, call, dial
from tensorlite.distributed.rendezvous import listen
from tensorlite.distributed.streams import PlainStream, finish_handshake, send_all
from tensorlite.distributed.tls import Identity, TlsAcceptor, dial_tls

from .worlds import soon

GOOD = Credentials(secret=b"s" * 32, nonce=b"n" * 32, attempt=4)


class Door:
    """Rank 0 of a ring, which expects a call of rank 1 on the ring channel.

    `identities` maps ranks to keys; without them nothing is encrypted.
    """

    def __init__(self, identities=None):
        self.accepted = []
        self.reasons = set()  # why callers were turned away
        self.identities = identities
        self._listener = listen("127.0.0.1")
        self.address = self._listener.getsockname()
        wrap = PlainStream
        if identities is not None:
            pins = {rank: identity.certificate for rank, identity in identities.items()}
            wrap = TlsAcceptor(identities[0], pins)
        expected = ("ring", 1)
        self._acceptor = Acceptor(self._listener, GOOD, 0, lambda *who: who == expected, wrap)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self):
        with self._acceptor:
            while not self._stopped.is_set():
                self.accepted += self._acceptor.wait(0.02)
                self.reasons.add(self._acceptor.reason)

    def close(self):
        self._stopped.set()
        self._thread.join()
        self._listener.close()
        for _, stream in self.accepted:
            stream.close()

    def knock(self, credentials=GOOD, rank=1, address=None):
        """Call as a worker does; raises if it is not let in."""
        connection = socket.create_connection(address or self.address)
        if self.identities is None:
            stream = PlainStream(connection)
        else:
            stream = dial_tls(connection, self.identities[rank], 0, self.identities[0].certificate)
        with contextlib.closing(stream):
            call(stream, credentials, "ring", rank, 0, soon())

    def refuses(self, attacker):
        """Make sure that the attacker's connection is closed, that nobody was let in for it, and
        that an honest caller still is. Returns what the attacker has read."""
        before = len(self.accepted)
        answer = was_closed(attacker)
        assert len(self.accepted) == before
        self.knock()
        give_up = soon()
        while len(self.accepted) == before and time.monotonic() < give_up:
            time.sleep(0.01)
        assert [who for who, _ in self.accepted[before:]] == [("ring", 1)]
        return answer


def was_closed(connection):
    """Read until the other end has closed `connection`; what came before."""
    connection.settimeout(20)
    received = b""
    # An alert of TLS is an end like another.
    with contextlib.suppress(ConnectionResetError, BrokenPipeError, ssl.SSLError), connection:
        while part := connection.recv(65536):
            received += part
    return received


def hello_of(credentials=GOOD, channel="ring", rank=1, callee=0):
    """The first message of a handshake, and the generator that goes on with it."""
    steps = dial(credentials, channel, rank, callee)
    return next(steps)[0], steps


class Relay:
    """A man in the middle: forwards connections to `target` and records what goes through.

    Args:
        tamper: `tamper(direction, data)` may change what goes "there" or "back".
    """

    def __init__(self, target, tamper=lambda direction, data: data):
        self.recorded = {"there": bytearray(), "back": bytearray()}
        self._target = target
        self._tamper = tamper
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.address = self._listener.getsockname()
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._serve)]
        self._threads[0].start()

    def close(self):
        self._stopped.set()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _serve(self):
        while not self._stopped.is_set():
            if not select.select([self._listener], [], [], 0.05)[0]:
                continue
            caller, _ = self._listener.accept()
            called = socket.create_connection(self._target)
            thread = threading.Thread(target=self._forward, args=(caller, called))
            self._threads.append(thread)
            thread.start()

    def _forward(self, caller, called):
        ways = {caller: ("there", called), called: ("back", caller)}
        with contextlib.suppress(OSError), caller, called:
            while ways and not self._stopped.is_set():
                for source in select.select(list(ways), [], [], 0.05)[0]:
                    direction, target = ways[source]
                    data = source.recv(1 << 18)
                    if not data:
                        target.shutdown(socket.SHUT_WR)
                        del ways[source]
                        continue
                    self.recorded[direction] += data
                    target.sendall(self._tamper(direction, data))


class TlsRelay:
    """A man in the middle of one TLS connection: he answers with a key of his own, calls rank 0
    with it, and passes on what he reads."""

    def __init__(self, target, certificate):
        self.identity = Identity.make("rank 1")
        self.read = bytearray()  # what he could read of the caller's words
        self._target, self._certificate = target, certificate
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = self._listener.getsockname()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self):
        self._stopped.set()
        self._thread.join()
        self._listener.close()

    def _serve(self):
        while not self._stopped.is_set():
            if select.select([self._listener], [], [], 0.02)[0]:
                caller = TlsAcceptor(self.identity, None)(self._listener.accept()[0])
                connection = socket.create_connection(self._target)
                called = dial_tls(connection, self.identity, 0, self._certificate)
                with (
                    contextlib.closing(caller),
                    contextlib.closing(called),
                    contextlib.suppress(HandshakeError, OSError),
                ):
                    finish_handshake(caller, soon())
                    finish_handshake(called, soon())
                    self._forward(caller, called)

    def _forward(self, caller, called):
        buffer = memoryview(bytearray(65536))
        while not self._stopped.wait(0.005):
            for source, target in ((caller, called), (called, caller)):
                while count := source.receive(buffer):
                    if source is caller:
                        self.read += buffer[:count]
                    send_all(target, buffer[:count], soon())


@contextlib.contextmanager
def relays(**options):
    """Puts a `Relay` in front of every rank: a function for `meddle`, and the relays."""
    made = []

    def meddle(entries):
        for entry in entries:
            made.append(Relay((entry["host"], entry["port"]), **options))
            entry["port"] = made[-1].address[1]

    try:
        yield meddle, made
    finally:
        for relay in made:
            relay.close()


class Strangers:
    """Connections of people who have no business here: silent ones, liars, and those who speak
    another protocol. Each behaviour has its turn; a third hangs up at once, the rest stay."""

    def __init__(self):
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        outgoing = ssl.MemoryBIO()
        with contextlib.suppress(ssl.SSLWantReadError):
            client.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="a").do_handshake()
        hello, _ = hello_of(Credentials(b"x" * 32, b"x" * 32, 0))
        self._words = [
            b"",
            b"GET / HTTP/1.1\r\n\r\n" + b"x" * 100,
            hello,
            hello[:20],
            outgoing.read(),
            b"\x16\x03\x01\xff\xff" + bytes(300),
            b"\xff" * 5000,
        ]
        self._open = []
        self.made = 0

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for connection in self._open:
            connection.close()

    def come(self, addresses, count):
        """Make `count` connections, in turn to each of the addresses."""
        for number in range(count):
            connection = socket.create_connection(addresses[number % len(addresses)], 20)
            self.made += 1
            with contextlib.suppress(ConnectionError):
                connection.sendall(self._words[number % len(self._words)])
            if number % 3 == 0:
                connection.close()
            else:
                self._open.append(connection)
