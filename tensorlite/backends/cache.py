"""Compiled code on disk, so that a process need not make what another one has made.

A file's name is a hash of everything that its content depends on. Files are written under another
name and then renamed, so that readers see all of a file or nothing, whatever happens to the writer;
a file that is damaged all the same does not match the hash it begins with and is made anew.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import pathlib
import tempfile
import warnings

LIMIT = 256 << 20  # bytes, of all files together; those that were not used for longest go
_SUFFIX = ".object"
_PRUNE_EVERY = 64  # files written


def folder(kind: str) -> pathlib.Path | None:
    """Where the files of a compiler are: below $TENSORLITE_CACHE, or ~/.cache/tensorlite. None if
    the variable is set to nothing, which keeps all code in memory."""
    chosen = os.environ.get("TENSORLITE_CACHE")
    if chosen == "":
        return None
    base = pathlib.Path(chosen) if chosen else pathlib.Path.home() / ".cache" / "tensorlite"
    return base / kind


def key(*parts: str) -> str:
    """The name of what depends on `parts`."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{len(part)}:".encode())
        digest.update(part.encode())
    return digest.hexdigest()[:40]


def read(kind: str, name: str) -> bytes | None:
    """What was written under a name, or None if that is missing or damaged."""
    place = folder(kind)
    if place is None:
        return None
    path = place / (name + _SUFFIX)
    try:
        content = path.read_bytes()
    except OSError:
        return None
    checksum, code = content[:32], content[32:]
    if hashlib.sha256(code).digest() != checksum:
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # it was used: `_prune` goes by this time
    return code


def write(kind: str, name: str, code: bytes) -> None:
    """Keep `code` under a name. Warns once if the folder cannot be written to."""
    place = folder(kind)
    if place is None:
        return
    try:
        place.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=place, prefix="new-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(code).digest())
                file.write(code)
            os.replace(temporary, place / (name + _SUFFIX))
        except BaseException:
            pathlib.Path(temporary).unlink(missing_ok=True)
            raise
        _after_writing(place)
    except OSError as error:
        _warn(str(place), str(error))


@functools.cache
def _warn(place: str, error: str) -> None:
    warnings.warn(
        f"compiled code is not kept in {place} ({error}) and will be made again by every process; "
        "set TENSORLITE_CACHE to a folder that can be written to, or to nothing",
        RuntimeWarning,
        stacklevel=4,
    )


_written = 0


def _after_writing(place: pathlib.Path) -> None:
    """Look at the size of the folder when the first file is written, and now and then."""
    global _written
    if _written % _PRUNE_EVERY == 0:
        _prune(place)
    _written += 1


def _prune(place: pathlib.Path) -> None:
    """Remove the files that were not used for longest, until the rest is within LIMIT. What a
    killed writer left goes the same way."""
    found = []
    for entry in os.scandir(place):
        with contextlib.suppress(OSError):  # another process may remove it first
            status = entry.stat()
            found.append((status.st_mtime, status.st_size, entry.path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= LIMIT:
            return
        with contextlib.suppress(OSError):
            os.unlink(path)
        total -= size
