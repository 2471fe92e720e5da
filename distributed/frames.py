"""Messages on a stream: a length of four bytes and a JSON object. The length is checked before
memory is taken for what follows, and nothing but JSON is ever read: no pickle, no code."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any

Message = dict[str, Any]

_LENGTH = struct.Struct("!I")


def frame(message: Message) -> bytes:
    """The bytes of a message."""
    body = json.dumps(message).encode()
    return _LENGTH.pack(len(body)) + body


class Frames:
    """Cuts the bytes of one stream into messages.

    Args:
        limit: bytes that the JSON text of a message may have.
    """

    def __init__(self, limit: int):
        self._limit = limit
        self._received = bytearray()

    def feed(self, data: bytes | memoryview) -> Iterator[Message]:
        """The messages that are complete once `data` has arrived.

        Raises:
            ValueError: a message is longer than the limit, or is not a JSON object.
        """
        self._received += data
        while len(self._received) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._received)
            if length > self._limit:
                raise ValueError(f"a message of {length} bytes is longer than {self._limit}")
            end = _LENGTH.size + length
            if len(self._received) < end:
                return
            body = bytes(self._received[_LENGTH.size : end])
            del self._received[:end]
            yield _parse(body)


def _parse(body: bytes) -> Message:
    try:
        message = json.loads(body)
    except RecursionError:
        raise ValueError("a message is nested too deeply") from None
    if not isinstance(message, dict):
        raise ValueError("a message must be a JSON object")
    return message
