"""How the ranks make sure that they all mean the same collective.

Every collective begins with a header that goes to the next rank in front of the data: which call it
is, and which leaves with which shapes and dtypes. A rank compares the header of its predecessor
with its own before it touches a byte of data. Nothing leaves the ring before every neighbouring
pair has compared, because each result needs bytes from all ranks; so ranks that disagree get an
error that quotes both sides, and no wrong numbers."""

from __future__ import annotations

import functools
import hashlib
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from .errors import DistributedError, Failure, MismatchError

MAGIC = b"TLCO"
MAX_TEXT = 64 * 1024
HEADER = struct.Struct(
    "!4sIQ16s"
)  # magic, length of the text, number of the call, digest of the whole text

Leaf = tuple[str, str, tuple[int, ...]]  # name, dtype, shape


def leaf_of(array: np.ndarray[Any, Any], name: str = "") -> Leaf:
    """What a signature says of an array."""
    return name, array.dtype.name, array.shape


class Signature:
    """What a rank is about to do, as text that can be compared and shown."""

    __slots__ = ("call", "digest", "text")

    def __init__(self, call: str, leaves: Sequence[Leaf]):
        """`call` is the collective with its options, such as `all_reduce(op='sum')`."""
        self.call = call
        lines = [f"{call} of {len(leaves)} {'array' if len(leaves) == 1 else 'arrays'}"]
        for position, (name, dtype, shape) in enumerate(leaves):
            lines.append(f"{name or f'array {position}'}: {dtype}[{','.join(map(str, shape))}]")
        whole = "\n".join(lines).encode()
        self.digest = hashlib.blake2b(whole, digest_size=16).digest()
        self.text = whole[:MAX_TEXT]

    def header(self, number: int) -> bytes:
        """The bytes that go in front of the data of the `number`-th collective of this ring."""
        return HEADER.pack(MAGIC, len(self.text), number, self.digest) + self.text


@functools.lru_cache(maxsize=1024)
def signature(call: str, leaves: tuple[Leaf, ...]) -> Signature:
    """`Signature(call, leaves)`; a training loop asks for the same few again and again."""
    return Signature(call, leaves)


def text_length(header: bytes | bytearray, peer: int) -> int:
    """The length of the text after this header.

    Raises:
        DistributedError: these bytes are no header.
    """
    magic, length, _, _ = HEADER.unpack(header)
    if magic != MAGIC or length > MAX_TEXT:
        raise DistributedError(
            f"rank {peer} sent bytes that begin no collective; the stream is broken"
        )
    return length


def require_same(
    mine: Signature,
    rank: int,
    host: str,
    header: bytes | bytearray,
    text: bytes | bytearray,
    peer: int,
) -> None:
    """Compare the call of this rank with that of `peer`.

    Raises:
        MismatchError: they differ; it quotes both.
    """
    problem = _difference(mine, rank, header, text, peer)
    if problem is not None:
        raise MismatchError(problem, Failure(rank, host, "mismatch", "MismatchError", problem))


def _difference(
    mine: Signature, rank: int, header: bytes | bytearray, text: bytes | bytearray, peer: int
) -> str | None:
    digest = HEADER.unpack(header)[3]
    if digest == mine.digest:
        return None
    ours = mine.text.decode(errors="replace").split("\n")
    theirs = bytes(text).decode(errors="replace").split("\n")
    if ours[0] != theirs[0]:
        what = f"rank {peer} called {theirs[0]} while rank {rank} called {ours[0]}"
    else:
        pairs = zip(theirs[1:], ours[1:], strict=False)
        first = next(
            ((a, b) for a, b in pairs if a != b), ("another array", "its own, later in a long list")
        )
        what = f"in {mine.call}, rank {peer} has {first[0]} where rank {rank} has {first[1]}"
    return (
        f"the ranks disagree: {what}. All ranks must call the same collectives in the same order, "
        "with the same names, shapes and dtypes"
    )
