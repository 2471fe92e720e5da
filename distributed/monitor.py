"""Watching a run: rank 0 sends records of its progress over one authenticated connection to the
process that started it, which shows them as a progress bar, and may answer that it wants the end.

Watching is a courtesy. When the connection cannot be made or breaks, training goes on and says so
once. Records are frames of JSON with a bounded length.

The monitor listens for as long as the run lasts, so it has to bear whoever calls: one thread holds
all callers until they are proven, and only a proven one gets a thread that reads its records."""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
import select
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import Any

from tqdm import tqdm

from .acceptor import HANDSHAKE_SECONDS, Acceptor
from .frames import Frames, Message, frame
from .handshake import Credentials, HandshakeError, call
from .rendezvous import NONCE_BYTES, listen
from .streams import PlainStream, Stream, send_all
from .tls import Identity, TlsAcceptor, dial_tls

Record = Message

RECORD_BYTES = 64 * 1024  # no record is longer
SECONDS_BETWEEN_RECORDS = 0.1
SEND_SECONDS = 5.0
ATTEMPTS = 3  # to connect: a flood of strangers may have cost the first one its place
SECONDS_BETWEEN_ATTEMPTS = 0.1
DRIVER, REPORTER = 0, 0  # the ranks that the handshake names


@dataclasses.dataclass(frozen=True)
class MonitorAddress:
    """Where a `Monitor` listens, and how to prove oneself to it. Travels inside the job.

    `certificate` is the monitor's, and None where nothing is encrypted.
    """

    host: str
    port: int
    credentials: Credentials
    certificate: bytes | None = dataclasses.field(default=None, repr=False)


class Monitor:
    """Listens for the records of one run and hands each to `watch`, in a thread of its own.

    Args:
        encrypt: whether records come over TLS. The reporter knows the monitor by its certificate,
            and the monitor knows the reporter by the handshake inside.

    Raises:
        OSError: `host` is not an address of this machine.
        DistributedError: encryption needs a package that is missing.
    """

    def __init__(self, host: str, watch: Callable[[Record], None], encrypt: bool = False):
        self._watch = watch
        self._wrap: Callable[[socket.socket], Stream] = PlainStream
        certificate = None
        if encrypt:
            identity = Identity.make("monitor")
            certificate = identity.certificate
            self._wrap = TlsAcceptor(identity, certificates=None)
        credentials = Credentials(secrets.token_bytes(32), secrets.token_bytes(NONCE_BYTES), 0)
        self._listener = listen(host)
        port = self._listener.getsockname()[1]
        self.address = MonitorAddress(host, port, credentials, certificate)
        self._ended = threading.Event()
        self._stopping = False
        self._readers: dict[Stream, threading.Thread] = {}
        self._thread = threading.Thread(target=self._serve, name="tensorlite-monitor", daemon=True)

    def __enter__(self) -> Monitor:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._listener.close()
        for stream, reader in self._readers.items():
            reader.join(1.0)  # the last record may still be on its way
            stream.shutdown()
            reader.join(1.0)
            stream.close()

    def stop(self) -> None:
        """Ask whoever reports to end. Who reports later is asked then."""
        self._stopping = True
        for stream in list(self._readers):
            self._ask_to_stop(stream)

    def go_on(self) -> None:
        """Ask nobody any more."""
        self._stopping = False

    def _ask_to_stop(self, stream: Stream) -> None:
        with contextlib.suppress(OSError):  # it has gone, and with it what was to be stopped
            send_all(stream, frame({"stop": True}), time.monotonic() + SEND_SECONDS)

    def _serve(self) -> None:
        credentials = self.address.credentials
        with Acceptor(self._listener, credentials, DRIVER, _is_reporter, self._wrap) as acceptor:
            while not self._ended.is_set():
                for _, stream in acceptor.wait(0.1):
                    reader = threading.Thread(target=self._read, args=(stream,), daemon=True)
                    self._readers[stream] = reader
                    reader.start()
                    if self._stopping:
                        self._ask_to_stop(stream)

    def _read(self, stream: Stream) -> None:
        frames = Frames(RECORD_BYTES)
        buffer = memoryview(bytearray(RECORD_BYTES))
        poll = select.poll()
        poll.register(stream.fileno(), select.POLLIN)
        # The reporter is gone, or sends what is no record; its failure is reported elsewhere.
        with contextlib.suppress(OSError, ValueError):
            while True:
                while count := stream.receive(buffer):
                    for record in frames.feed(buffer[:count]):
                        self._watch(record)
                poll.poll()


def _is_reporter(channel: str, rank: int) -> bool:
    return channel == "monitor" and rank == REPORTER


class Reporter:
    """Sends records to a `Monitor`, from any thread; without an address, or once the connection is
    lost, nowhere."""

    def __init__(self, address: MonitorAddress | None):
        self._sending = threading.Lock()
        self._stopping = False
        self._frames = Frames(RECORD_BYTES)
        self._buffer = memoryview(bytearray(1024))
        self._stream: Stream | None = None
        self._last = 0.0
        if address is None:
            return
        for left in reversed(range(ATTEMPTS)):
            try:
                self._stream = _connect(address)
                return
            except (HandshakeError, OSError) as error:
                problem = f"cannot reach the driver at {address.host}:{address.port}: {error}"
            if left:
                time.sleep(SECONDS_BETWEEN_ATTEMPTS)
        self._give_up(problem)

    def __call__(self, record: Record, last: bool = False) -> None:
        """Send `record`, unless one was sent a moment ago and this is not the last."""
        with self._sending:
            self._send(record, last)

    def _send(self, record: Record, last: bool) -> None:
        now = time.monotonic()
        if self._stream is None or (now - self._last < SECONDS_BETWEEN_RECORDS and not last):
            return
        self._last = now
        try:
            send_all(self._stream, frame(record), now + SEND_SECONDS)
        except OSError as error:
            self._give_up(str(error))

    def asked_to_stop(self) -> bool:
        """Whether the driver wants the training to end."""
        stream = self._stream  # which another thread may give up meanwhile
        if stream is not None and not self._stopping:
            try:
                while count := stream.receive(self._buffer):
                    for message in self._frames.feed(self._buffer[:count]):
                        self._stopping |= message.get("stop") is True
            except (OSError, ValueError):
                pass  # that the connection is gone, the next record will notice
        return self._stopping

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _give_up(self, problem: str) -> None:
        warnings.warn(f"progress is no longer shown: {problem}", RuntimeWarning, stacklevel=3)
        self.close()


def _connect(address: MonitorAddress) -> Stream:
    deadline = time.monotonic() + HANDSHAKE_SECONDS
    connection = socket.create_connection((address.host, address.port), HANDSHAKE_SECONDS)
    stream: Stream
    if address.certificate is None:
        stream = PlainStream(connection)
    else:
        stream = dial_tls(connection, None, DRIVER, address.certificate)
    try:
        call(stream, address.credentials, "monitor", REPORTER, DRIVER, deadline)
    except BaseException:
        stream.close()
        raise
    return stream


class ProgressBar:
    """Shows records on a terminal as a bar, elsewhere as a line every few seconds."""

    SECONDS_BETWEEN_LINES = 10.0

    def __init__(self, stream: Any = None):
        self._stream = stream if stream is not None else sys.stderr
        self._bar: Any = None
        self._last_line = 0.0
        self._first: tuple[int, float] | None = None
        if self._stream.isatty():
            self._bar = tqdm(file=self._stream, unit="step", dynamic_ncols=True)

    def __call__(self, record: Record) -> None:
        total = record["steps"]
        if self._bar is not None:
            self._bar.total = total  # of a DataFrame the workers count the rows
            self._bar.set_postfix_str(_figures(record), refresh=False)
            self._bar.update(record["step"] - self._bar.n)
            return
        now = time.monotonic()
        if self._first is None:
            self._first = record["step"], now
        is_due = now - self._last_line >= self.SECONDS_BETWEEN_LINES or _measures(record)
        if record["step"] < total and not is_due:
            return
        self._last_line = now
        left = self._left(record, now)
        print(f"step {record['step']}/{total}  {_figures(record)}{left}", file=self._stream)
        self._stream.flush()

    def _left(self, record: Record, now: float) -> str:
        """How long the rest will take, once that can be told."""
        assert self._first is not None
        step, begun = self._first
        done, left = record["step"] - step, record["steps"] - record["step"]
        if done <= 0 or left <= 0:
            return ""
        return f"  {tqdm.format_interval((now - begun) / done * left)} left"

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _figures(record: Record) -> str:
    figures = f"epoch {record['epoch']}  loss {record['loss']:.4f}"
    if record["images_per_second"]:  # not known before the first step is compiled
        figures += f"  {record['images_per_second']:.0f} images/s"
        figures += f"  communication {record['communication']:.0%}"
    return figures + "".join(f"  {name} {value:.4f}" for name, value in _measures(record).items())


def _measures(record: Record) -> dict[str, float]:
    """What a record says of validation rows, by name."""
    return {
        name.replace("_", " "): value
        for name, value in record.items()
        if name.startswith("validation_")
    }
