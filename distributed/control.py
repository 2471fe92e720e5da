"""The control channel: who failed and why, told to every rank at once, and a common end.

Every rank keeps one connection to rank 0, watched by a thread of its own, so that a failure arrives
while the main thread waits in a collective or computes. Rank 0 passes on what it hears. Four
messages exist: ABORT (a `Failure`), BYE (this rank is done, well or not), DONE (rank 0: all ranks
are done) and ALIVE, once in a second. A connection that ends before BYE means a dead process; one
on which nothing arrives, a process that is stopped, or a network that is gone. The thread does
nothing else, so slow input and long computations are no silence. The first failure counts; it wakes
a blocked collective through the callback, and every later one raises it.

Messages are frames of JSON with a bounded length, and are read only from connections that passed
the handshake."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator

from .errors import Failure
from .frames import Frames, Message, frame
from .rendezvous import Member
from .streams import Stream, send_all

MAX_MESSAGE = 1024 * 1024  # room for a failure of `errors.TEXT_LIMIT` characters, all escaped
SEND_SECONDS = 5.0
BEAT_SECONDS = 1.0
ASLEEP_SECONDS = 2.5  # without a beat of its own: then this process stood still, not the others
RECEIVE_BYTES = 64 * 1024


class Control:
    """One rank's end of the control channel.

    Args:
        links: streams by rank: all ranks' on rank 0, rank 0's on the others. `Control` owns them.
        on_failure: called once, from any thread, when the first failure is known.
        silence: seconds without a sign of life after which a rank is lost.
    """

    def __init__(
        self,
        rank: int,
        members: list[Member],
        links: dict[int, Stream],
        on_failure: Callable[[], None],
        silence: float,
    ):
        self.failure: Failure | None = None
        self._rank = rank
        self._members = members
        self._links = {peer: _Link(link) for peer, link in links.items()}
        self._on_failure = on_failure
        self._silence = silence
        self._lock = threading.Lock()
        self._failed = threading.Event()
        self._all_done = threading.Event()
        self._waiting_for = set(
            range(len(members))
        )  # rank 0's list of ranks that have not said BYE
        self._closing = False
        self._waker, self._wake = socket.socketpair()
        self._thread = threading.Thread(target=self._watch, name="tensorlite-control", daemon=True)
        self._thread.start()

    def abort(self, failure: Failure) -> None:
        """Tell all ranks that this one failed. Of several failures the first one counts."""
        self._fail(failure, heard_from=self._rank)

    def wait_failure(self, seconds: float) -> Failure | None:
        """The failure that stopped the ring; waits for the news, which may arrive later than its
        effects."""
        self._failed.wait(seconds)
        return self.failure

    def leave(self, seconds: float | None) -> bool:
        """Say that this rank is done and wait until all ranks are, or one has failed; whether all
        have ended.

        Args:
            seconds: how long to wait for the others to end; None waits for as long as they live and
                none fails.
        """
        if self._rank == 0:
            self._said_bye(0)
        else:
            self._send(0, {"kind": "bye"})
        deadline = None if seconds is None else time.monotonic() + seconds
        while not self._all_done.wait(0.05):
            if deadline is None and self._failed.is_set():
                return False
            if deadline is not None and time.monotonic() > deadline:
                return False
        return True

    def close(self) -> None:
        """Close all connections and end the thread."""
        self._closing = True
        with contextlib.suppress(OSError):
            self._wake.send(b"\0")
        self._thread.join()
        for link in self._links.values():
            link.stream.close()
        self._wake.close()
        self._waker.close()

    def _fail(self, failure: Failure, heard_from: int) -> None:
        with self._lock:
            if self.failure is not None:
                return
            self.failure = failure
        for peer in list(self._links):
            if peer != heard_from:
                self._send(peer, {"kind": "abort", "failure": failure.to_json()})
        self._failed.set()
        self._on_failure()

    def _send(self, peer: int, message: Message) -> None:
        # A peer that cannot be told is dead or stuck; its own connection or deadline will say so.
        with contextlib.suppress(OSError):
            self._links[peer].send(message)

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._waker, selectors.EVENT_READ)
            for peer, link in self._links.items():
                # What came with the end of the handshake has left the socket and would not wake us.
                if self._read(peer):
                    selector.register(link.stream.fileno(), selectors.EVENT_READ, peer)
            beat = time.monotonic()
            heard = dict.fromkeys(self._links, beat)
            while not self._closing:
                ready = selector.select(max(0.0, beat + BEAT_SECONDS - time.monotonic()))
                now = time.monotonic()
                if now - beat > ASLEEP_SECONDS:
                    heard = dict.fromkeys(heard, now)
                for key, _ in ready:
                    if key.data is None:
                        continue
                    heard[key.data] = now
                    if not self._read(key.data):
                        selector.unregister(key.fileobj)
                        del heard[key.data]
                if now - beat >= BEAT_SECONDS:
                    beat = now
                    self._beat(heard, now)

    def _beat(self, heard: dict[int, float], now: float) -> None:
        """Give a sign of life, and see from whom none has come."""
        for peer, last in list(heard.items()):
            self._send(peer, {"kind": "alive"})
            if now - last > self._silence:
                del heard[peer]
                # It has not ended: who waits for all to end waits in vain, and stops it by force.
                self._lost(
                    peer,
                    f"there has been no sign of life from it for {now - last:.0f} s; its process "
                    "is stopped, or the network to its host is down",
                )

    def _read(self, peer: int) -> bool:
        """Take in what `peer` sent; False when its connection has ended."""
        try:
            for message in self._links[peer].receive():
                self._handle(peer, message)
            return True
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._lost(
                peer,
                f"its control connection ended without a farewell ({error}); the process was "
                "probably killed (out of memory?) or its host went away",
            )
            if self._rank == 0:
                self._said_bye(peer)
            return False

    def _handle(self, peer: int, message: Message) -> None:
        kind = message["kind"]
        if kind == "abort":
            self._fail(Failure.from_json(message["failure"]), heard_from=peer)
        elif kind == "bye" and self._rank == 0:
            self._said_bye(peer)
        elif kind == "done" and self._rank != 0:
            self._all_done.set()
        elif kind == "alive":
            pass
        else:
            raise ValueError(f"unknown control message {kind!r}")

    def _lost(self, peer: int, message: str) -> None:
        ended = self._all_done.is_set() if self._rank != 0 else peer not in self._waiting_for
        if ended or self._closing:
            return
        host = self._members[peer].host
        self._fail(Failure(peer, host, "lost", "PeerError", message), heard_from=peer)

    def _said_bye(self, peer: int) -> None:
        with self._lock:
            self._waiting_for.discard(peer)
            if self._waiting_for:
                return
        for other in self._links:
            self._send(other, {"kind": "done"})
        self._all_done.set()


class _Link:
    """Messages over one stream. Any thread may send; only the watching one receives."""

    def __init__(self, stream: Stream):
        self.stream = stream
        self._sending = threading.Lock()
        self._frames = Frames(MAX_MESSAGE)
        self._buffer = memoryview(bytearray(RECEIVE_BYTES))

    def send(self, message: Message) -> None:
        with self._sending:
            send_all(self.stream, frame(message), time.monotonic() + SEND_SECONDS)

    def receive(self) -> Iterator[Message]:
        """The messages that are complete now. Raises `OSError` at the end, `ValueError` on
        garbage."""
        while count := self.stream.receive(self._buffer):
            yield from self._frames.feed(self._buffer[:count])
