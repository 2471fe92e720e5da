"""The handshake with which both ends of a new connection prove that they belong to the same attempt
of the same job.

The secret is made by the driver and reaches the workers inside the task; the nonce belongs to the
attempt. Neither ever crosses a connection. Each side sends a random challenge and answers the
other's with an HMAC-SHA256 over everything that identifies the connection: nonce, attempt, channel,
both ranks, both challenges and the direction. A recorded handshake is therefore useless on another
connection, another attempt or in the other direction.

The nonce of a ring is a digest of all that its ranks published, certificates included. So two
workers that were told different things about their peers do not get through either, and who wants
to stand between them with certificates of his own needs the secret, too.

Both sides are written as generators that yield what to send and how many bytes they want next, so
that one loop can hold many half-open connections at once, and a stranger who stalls keeps nobody
waiting. Over TLS the handshake is the first thing inside.

    dialler                                   acceptor
    hello: magic, channel, ranks, challenge ->
                                           <- challenge, proof
    proof                                  ->
                                           <- one byte: welcome
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import hmac
import secrets
import struct
from collections.abc import Callable, Generator

from .streams import Stream, finish_handshake, receive_exactly, send_all

MAGIC = b"tlring02"
CHALLENGE_BYTES = 32
PROOF_BYTES = 32
WELCOME = b"\x01"
CHANNELS = ("ring", "control", "monitor", "leaders")

_HELLO = struct.Struct(f"!{len(MAGIC)}sBII{CHALLENGE_BYTES}s")

Step = tuple[bytes, int]  # bytes to send now, number of bytes wanted next


class HandshakeError(Exception):
    """The other end is not who it should be. Costs it the connection, and nothing else."""


@dataclasses.dataclass(frozen=True)
class Credentials:
    """What the workers of one attempt share."""

    secret: bytes = dataclasses.field(repr=False)
    nonce: bytes
    attempt: int

    def proof(self, side: str, hello: bytes, challenge: bytes) -> bytes:
        attempt = struct.pack("!q", self.attempt)
        message = b"|".join([side.encode(), self.nonce, attempt, hello, challenge])
        return hmac.new(self.secret, message, hashlib.sha256).digest()


def dial(
    credentials: Credentials, channel: str, my_rank: int, peer_rank: int
) -> Generator[Step, bytes, None]:
    """The side that opens the connection.

    Raises:
        HandshakeError: the acceptor does not know the secret, or belongs to another attempt.
    """
    challenge = secrets.token_bytes(CHALLENGE_BYTES)
    hello = _HELLO.pack(MAGIC, CHANNELS.index(channel), my_rank, peer_rank, challenge)
    answer = yield hello, CHALLENGE_BYTES + PROOF_BYTES
    theirs, proof = answer[:CHALLENGE_BYTES], answer[CHALLENGE_BYTES:]
    if not hmac.compare_digest(proof, credentials.proof("accept", hello, theirs)):
        raise HandshakeError(f"the process that answers as rank {peer_rank} lacks the secret")
    welcome = yield credentials.proof("dial", hello, theirs), len(WELCOME)
    if welcome != WELCOME:
        raise HandshakeError(f"rank {peer_rank} answered {welcome!r} instead of a welcome")


def accept(
    credentials: Credentials, my_rank: int, is_expected: Callable[[str, int], bool]
) -> Generator[Step, bytes, tuple[str, int]]:
    """The side that is called. Returns the channel and the rank of the caller once they are proven.

    Args:
        is_expected: whether this channel and rank may call; asked before anything is answered.

    Raises:
        HandshakeError: the caller speaks another protocol, is not expected, or does not know the
            secret.
    """
    hello = yield b"", _HELLO.size
    magic, channel_code, caller, callee, _ = _HELLO.unpack(hello)
    if magic != MAGIC or channel_code >= len(CHANNELS) or callee != my_rank:
        raise HandshakeError("not a tensorlite worker of this job")
    channel = CHANNELS[channel_code]
    if not is_expected(channel, caller):
        raise HandshakeError(f"rank {caller} has no business on the {channel} channel")
    challenge = secrets.token_bytes(CHALLENGE_BYTES)
    answer = challenge + credentials.proof("accept", hello, challenge)
    proof = yield answer, PROOF_BYTES
    if not hmac.compare_digest(proof, credentials.proof("dial", hello, challenge)):
        raise HandshakeError(f"a caller that says it is rank {caller} lacks the secret")
    return channel, caller


def call(
    stream: Stream,
    credentials: Credentials,
    channel: str,
    my_rank: int,
    peer_rank: int,
    deadline: float,
) -> None:
    """Both handshakes on a connection that was just opened: that of TLS, if there is one, and then
    ours.

    Args:
        deadline: a time of `time.monotonic()` for all of it, so that a peer gains nothing by
            sending a byte now and then.

    Raises:
        HandshakeError: the other end is not who it should be.
        OSError: the connection ended, or the deadline has passed.
    """
    finish_handshake(stream, deadline)
    stream.check_peer(peer_rank)
    steps = dial(credentials, channel, my_rank, peer_rank)
    data, wanted = next(steps)
    with contextlib.suppress(StopIteration):
        while True:
            send_all(stream, data, deadline)
            data, wanted = steps.send(receive_exactly(stream, wanted, deadline))
