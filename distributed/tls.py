"""TLS 1.3 between workers whose keys are as old as the attempt.

There is no authority and nothing to install. Each rank makes a key and a certificate that it signs
itself, and publishes the certificate when the workers exchange their addresses. Both ends of a
connection then take exactly the certificate that the other rank published and no other. The names
and dates in a certificate mean nothing, since hosts may be known by many names and their clocks
may differ; what ends the life of a certificate is that its key is forgotten.

A private key lives in the memory of its process: the `ssl` module wants a file, and gets a pipe.
There are no session tickets, so nothing can be resumed and every connection has fresh keys of its
own (ECDHE), and keys are not logged, whatever SSLKEYLOGFILE says."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hmac
import os
import socket
import ssl
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import cast

from .errors import DistributedError
from .handshake import HandshakeError

# Of plain bytes that are encrypted at once, before they are sent. Larger pieces cost more: malloc
# would take memory for each from the system and give it back.
ENCRYPT_BYTES = 64 * 1024
RECEIVE_BYTES = 256 * 1024  # asked of the kernel at once
HANDSHAKE_BYTES = 4 * 1024  # likewise, of callers who may be anybody


@dataclasses.dataclass(frozen=True)
class Identity:
    """A private key (PKCS #8 in PEM) and its certificate (DER)."""

    certificate: bytes
    key: bytes = dataclasses.field(repr=False)

    @classmethod
    def make(cls, name: str) -> Identity:
        """A fresh key on P-256 with a certificate for `name`, which is there for people to read.

        Raises:
            DistributedError: the package cryptography is missing.
        """
        try:
            from cryptography import x509
            from cryptography.hazmat.primitives import hashes, serialization
            from cryptography.hazmat.primitives.asymmetric import ec
        except ImportError as error:
            raise DistributedError(
                f"encryption among the workers needs the package cryptography ({error}): "
                "pip install 'tensorlite[spark]' on all hosts, or pass encrypt=False if the "
                "network among them can be trusted"
            ) from None
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"tensorlite {name}")])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC))
            # RFC 5280, 4.1.2.5: no well-defined expiration date.
            .not_valid_after(datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC))
            .sign(key, hashes.SHA256())
        )
        return cls(
            certificate.public_bytes(serialization.Encoding.DER),
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ),
        )


def dial_tls(
    connection: socket.socket, identity: Identity | None, rank: int, certificate: bytes
) -> TlsStream:
    """The stream of the side that opens `connection`, to `rank`, which must have `certificate`.

    Args:
        identity: what to show in return; None where the other side does not ask.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT, identity, [certificate])
    return TlsStream(connection, context, {rank: certificate})


class TlsAcceptor:
    """Makes the streams of the side that is called.

    Args:
        certificates: of the ranks that may call; None lets everybody call, who then has to prove
            otherwise who it is.
    """

    def __init__(self, identity: Identity, certificates: Mapping[int, bytes] | None):
        pins = None if certificates is None else list(certificates.values())
        self._context = _context(ssl.PROTOCOL_TLS_SERVER, identity, pins)
        self._certificates = certificates

    def __call__(self, connection: socket.socket) -> TlsStream:
        return TlsStream(connection, self._context, self._certificates)


class TlsStream:
    """A `Stream` over TLS. It owns the socket.

    The protocol runs in memory and this class moves its records to and from the socket, rather than
    an `ssl.SSLSocket`, which turns into a plain socket when another thread shuts it down. What a
    call of `send` has encrypted counts as sent when the last of its records has left; until then it
    answers 0.
    """

    def __init__(
        self,
        connection: socket.socket,
        context: ssl.SSLContext,
        certificates: Mapping[int, bytes] | None,
    ):
        connection.setblocking(False)
        self._socket = connection
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        server = context.protocol == ssl.PROTOCOL_TLS_SERVER
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server)
        self._certificates = certificates
        self._records = memoryview(bytearray(HANDSHAKE_BYTES))  # as they come from the socket
        self._unsent = memoryview(b"")  # encrypted, and not yet taken by the socket
        self._encrypted = 0  # plain bytes that the unsent ones stand for
        self._broken = ""  # why nothing more can be read
        self._lock = threading.Lock()  # the protocol of one connection is not for two threads

    def handshake(self) -> bool:
        with self._lock:
            try:
                self._pull()
                self._tls.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                done = False
            except ssl.SSLError as error:
                with contextlib.suppress(OSError):
                    self._push()  # the alert, so that the other end knows why
                raise HandshakeError(f"TLS: {_reason(error)}") from None
            if not self._push():
                raise HandshakeError("TLS: the other end does not read")
            return done

    def check_peer(self, rank: int) -> None:
        if self._certificates is None:
            return
        shown = self._tls.getpeercert(binary_form=True) or b""
        pinned = self._certificates.get(rank, b"")
        if not pinned or not hmac.compare_digest(shown, pinned):
            raise HandshakeError(f"its certificate is not the one that rank {rank} published")

    def send(self, buffers: Iterable[memoryview]) -> int:
        with self._lock:
            if not self._encrypted:
                self._encrypted = self._encrypt(buffers)
            if not self._push():
                return 0
            count, self._encrypted = self._encrypted, 0
            return count

    def receive(self, buffer: memoryview) -> int:
        with self._lock:
            if len(buffer) > len(self._records):  # no handshake asks for so much
                self._records = memoryview(bytearray(RECEIVE_BYTES))
            if self._incoming.pending or self._tls.pending() or self._broken:
                count = self._decrypt(buffer)
                if count:
                    return count
            return self._decrypt(buffer) if self._pull() else 0

    def expect(self, count: int) -> None:
        pass  # bytes of the socket are not those of the stream

    def fileno(self) -> int:
        return self._socket.fileno()

    def shutdown(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        # Without a farewell of TLS: every message says how long it is, so a cut one is noticed.
        self._socket.close()

    def _encrypt(self, buffers: Iterable[memoryview]) -> int:
        total = 0
        for buffer in buffers:
            part = buffer[: ENCRYPT_BYTES - total]
            if part:
                total += self._tls.write(part)
            if total == ENCRYPT_BYTES:
                break
        return total

    def _decrypt(self, buffer: memoryview) -> int:
        """Fill `buffer` as far as what has arrived goes; each read gives one record at most."""
        total = 0
        try:
            while total < len(buffer) and not self._broken:
                rest = buffer[total:]
                # Typeshed thinks of the form without a buffer.
                total += cast(int, self._tls.read(len(rest), rest))
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self._broken = f"TLS: {_reason(error)}"
        if total == 0 and self._broken:
            raise ConnectionError(self._broken)
        return total

    def _pull(self) -> bool:
        """Take records from the socket; whether there were any."""
        try:
            count = self._socket.recv_into(self._records)
        except BlockingIOError:
            return False
        if count == 0:
            raise ConnectionError("it closed the connection")
        self._incoming.write(self._records[:count])
        return True

    def _push(self) -> bool:
        """Give records to the socket; whether it took them all."""
        while self._unsent or self._outgoing.pending:
            if not self._unsent:
                self._unsent = memoryview(self._outgoing.read())
            try:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
            except BlockingIOError:
                return False
        return True


def _context(
    protocol: ssl._SSLMethod, identity: Identity | None, certificates: Iterable[bytes] | None
) -> ssl.SSLContext:
    # Not create_default_context, which trusts the system's authorities and heeds SSLKEYLOGFILE.
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.maximum_version = ssl.TLSVersion.TLSv1_3
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0
    else:
        context.check_hostname = False  # a pinned certificate needs no name
    if certificates is None:
        context.verify_mode = ssl.CERT_NONE
    else:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=b"".join(certificates))
    if identity is not None:
        pem = ssl.DER_cert_to_PEM_cert(identity.certificate).encode()
        with _readable(pem) as certificate_file, _readable(identity.key) as key_file:
            context.load_cert_chain(certificate_file, key_file)
    return context


@contextlib.contextmanager
def _readable(data: bytes) -> Iterator[str]:
    """A path from which `data` can be read once, and which is no file: it is the end of a pipe."""
    reader, writer = os.pipe()
    try:
        with open(writer, "wb") as pipe:
            pipe.write(data)  # a key or a certificate is smaller than what a pipe holds
        yield f"/dev/fd/{reader}"
    finally:
        os.close(reader)


def _reason(error: ssl.SSLError) -> str:
    detail = getattr(error, "verify_message", "")
    reason = (error.reason or str(error)).lower().replace("_", " ")
    return f"{reason} ({detail})" if detail else reason
