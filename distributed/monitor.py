"""Watching a run: rank 0 sends records of its progress over one authenticated connection to the
process that started it, which shows them as a progress bar.

Watching is a courtesy. When the connection cannot be made or breaks, training goes on and says so
once. Records are JSON objects of bounded length; nothing is unpickled."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import secrets
import socket
import struct
import sys
import threading
import time
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import Any

from tqdm import tqdm

from .handshake import WELCOME, Credentials, HandshakeError, accept, converse, dial
from .rendezvous import HANDSHAKE_SECONDS, NONCE_BYTES, listen

Record = dict[str, Any]

RECORD_BYTES = 64 * 1024  # no record is longer
SECONDS_BETWEEN_RECORDS = 0.1
CALLERS_AT_ONCE = 16  # connections that may be half open at a time
DRIVER, REPORTER = 0, 0  # the ranks that the handshake names

_LENGTH = struct.Struct("!I")


@dataclasses.dataclass(frozen=True)
class MonitorAddress:
    """Where a `Monitor` listens, and how to prove oneself to it. Travels inside the job."""

    host: str
    port: int
    credentials: Credentials = dataclasses.field(repr=False)


class Monitor:
    """Listens for the records of one run and hands each to `watch`, in a thread of its own.

    Raises:
        OSError: `host` is not an address of this machine.
    """

    def __init__(self, host: str, watch: Callable[[Record], None]):
        self._listener = listen(host)
        self._watch = watch
        credentials = Credentials(secrets.token_bytes(32), secrets.token_bytes(NONCE_BYTES), 0)
        self.address = MonitorAddress(host, self._listener.getsockname()[1], credentials)
        self._slots = threading.BoundedSemaphore(CALLERS_AT_ONCE)
        self._readers: list[threading.Thread] = []
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
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits in accept
        self._listener.close()
        self._thread.join(HANDSHAKE_SECONDS)
        for reader in self._readers:
            reader.join(1.0)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return  # closed
            if not self._slots.acquire(blocking=False):
                connection.close()
                continue
            reader = threading.Thread(target=self._read, args=(connection,), daemon=True)
            reader.start()
            self._readers = [t for t in self._readers if t.is_alive()] + [reader]

    def _read(self, connection: socket.socket) -> None:
        try:
            with connection:
                connection.settimeout(HANDSHAKE_SECONDS)
                credentials = self.address.credentials
                converse(connection, accept(credentials, DRIVER, _is_reporter))
                connection.sendall(WELCOME)
                connection.settimeout(None)
                while (record := _receive(connection)) is not None:
                    self._watch(record)
        except (HandshakeError, OSError, ValueError):
            return  # a stranger, or a worker that is gone; its failure is reported elsewhere
        finally:
            self._slots.release()


def _is_reporter(channel: str, rank: int) -> bool:
    return channel == "monitor" and rank == REPORTER


def _receive(connection: socket.socket) -> Record | None:
    """The next record, or None at the end. Raises `ValueError` for what is no record."""
    header = _exactly(connection, _LENGTH.size)
    if header is None:
        return None
    (length,) = _LENGTH.unpack(header)
    if length > RECORD_BYTES:
        raise ValueError(f"a record of {length} bytes")
    body = _exactly(connection, length)
    record = json.loads(body) if body is not None else None
    if not isinstance(record, dict):
        raise ValueError("a record is a JSON object")
    return record


def _exactly(connection: socket.socket, count: int) -> bytes | None:
    received = b""
    while len(received) < count:
        part = connection.recv(count - len(received))
        if not part:
            return None
        received += part
    return received


class Reporter:
    """Sends records to a `Monitor`; without an address, or once the connection is lost, nowhere."""

    def __init__(self, address: MonitorAddress | None):
        self._connection: socket.socket | None = None
        self._last = 0.0
        if address is None:
            return
        try:
            place = (address.host, address.port)
            self._connection = socket.create_connection(place, HANDSHAKE_SECONDS)
            converse(self._connection, dial(address.credentials, "monitor", REPORTER, DRIVER))
        except (HandshakeError, OSError) as error:
            self._give_up(f"cannot reach the driver at {address.host}:{address.port}: {error}")

    def __call__(self, record: Record, last: bool = False) -> None:
        """Send `record`, unless one was sent a moment ago and this is not the last."""
        now = time.monotonic()
        if self._connection is None or (now - self._last < SECONDS_BETWEEN_RECORDS and not last):
            return
        self._last = now
        body = json.dumps(record).encode()
        try:
            self._connection.sendall(_LENGTH.pack(len(body)) + body)
        except OSError as error:
            self._give_up(str(error))

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _give_up(self, problem: str) -> None:
        warnings.warn(f"progress is no longer shown: {problem}", RuntimeWarning, stacklevel=3)
        self.close()


class ProgressBar:
    """Shows records on a terminal as a bar, elsewhere as a line every few seconds."""

    SECONDS_BETWEEN_LINES = 10.0

    def __init__(self, total: int, stream: Any = None):
        self._stream = stream if stream is not None else sys.stderr
        self._total = total
        self._bar: Any = None
        self._last_line = 0.0
        if self._stream.isatty():
            self._bar = tqdm(total=total, file=self._stream, unit="step", dynamic_ncols=True)

    def __call__(self, record: Record) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(_figures(record), refresh=False)
            self._bar.update(record["step"] - self._bar.n)
            return
        now = time.monotonic()
        if record["step"] < self._total and now - self._last_line < self.SECONDS_BETWEEN_LINES:
            return
        self._last_line = now
        print(f"step {record['step']}/{self._total}  {_figures(record)}", file=self._stream)
        self._stream.flush()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _figures(record: Record) -> str:
    figures = f"epoch {record['epoch']}  loss {record['loss']:.4f}"
    if record["images_per_second"]:  # not known before the first step is compiled
        figures += f"  {record['images_per_second']:.0f} images/s"
        figures += f"  communication {record['communication']:.0%}"
    return figures
