"""Where files lie: one small interface over local folders and pyarrow's file systems.

Readers need three questions answered: what is at a path, what is in a folder, and which bytes are
in a file. Writers put whole files, which appear at once. Local paths and file:// need nothing but
Python; any other URI goes through pyarrow, which is imported only then.
"""

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

import numpy as np

UNFINISHED = ".unfinished-"  # what the names of files begin with that are being written
_PIECE = 1 << 20  # bytes that are copied at a time


class Store(Protocol):
    """A file system, as far as it is needed. Paths are strings with `/` between parts."""

    def kind(self, path: str) -> str:
        """Return "file", "folder" or "nothing"."""
        ...

    def names(self, folder: str) -> list[str]:
        """Return the names in a folder, sorted."""
        ...

    def read(self, path: str) -> np.ndarray:
        """Return the bytes of a file, uint8, shape (size,)."""
        ...

    def show(self, path: str) -> str:
        """Return the path as a user would write it, without credentials, for error messages."""
        ...

    def local(self, path: str) -> AbstractContextManager[Path]:
        """Return a context in which the file is one of this machine."""
        ...

    def put(self, path: str, write: Callable[[Path], None]) -> None:
        """Have `write` fill a new local file of the suffix of `path`, then let it appear at `path`,
        all at once; folders are made.
        """
        ...

    def remove(self, path: str) -> None:
        """Remove a file."""
        ...


def open_store(location: str | os.PathLike[str], op: str) -> tuple[Store, str]:
    """Return the store that `location` lies in, and its path there. `op` begins error messages.

    A location is a path or a URI (file://, hdfs://, s3://, and any other that pyarrow knows; s3a://
    and s3n://, as Spark writes them, mean s3://).

    Raises ImportError if a URI needs pyarrow and it is not installed, ValueError for a URI that
    pyarrow does not understand, OSError if it cannot reach the file system.
    """
    text = os.fspath(location)
    if not is_uri(text):
        return LocalStore(), text
    try:
        parts = urlsplit(text)
    except ValueError as error:
        raise ValueError(f"{op}: the URI is malformed: {error}") from error
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost"):
            raise ValueError(
                f"{op}: {text} names the host {parts.netloc!r}, but file:// is for this machine; "
                "write file:///path"
            )
        return LocalStore(), unquote(parts.path)
    try:
        from pyarrow import fs
    except ImportError as error:
        raise ImportError(
            f"{op}: {parts.scheme}:// needs pyarrow; pip install 'tensorlite[spark]'"
        ) from error
    uri = re.sub(r"^s3[an]://", "s3://", text)
    user, _, host = parts.netloc.rpartition("@")
    shown = f"{parts.scheme}://{host}"
    try:
        system, path = fs.FileSystem.from_uri(uri)
    except OSError as error:
        # Arrow's message goes on with every place that it searched, but not with the remedy.
        reason = str(error).partition("\n")[0]
        hint = "; set JAVA_HOME, HADOOP_HOME and CLASSPATH (hadoop classpath --glob)"
        raise OSError(
            f"{op}: cannot open {shown}: {reason}{hint if parts.scheme == 'hdfs' else ''}"
        ) from error
    except ValueError as error:
        # Arrow repeats the whole URI, in which a user may have put a secret; so no `from error`.
        reason = str(error).replace(f"{user}@", "") if user else str(error)
        raise ValueError(f"{op}: cannot open {shown}: {reason}") from None
    # In an object store the path begins with the bucket, which the URI has as its host.
    return ArrowStore(system, f"{parts.scheme}://" if path.split("/")[0] == host else shown), path


def is_uri(location: str | os.PathLike[str]) -> bool:
    """Return whether a location is a URI rather than a path of this machine."""
    return "://" in os.fspath(location)


class LocalStore:
    """The file system of this machine."""

    def kind(self, path: str) -> str:
        if os.path.isfile(path):
            return "file"
        return "folder" if os.path.isdir(path) else "nothing"

    def names(self, folder: str) -> list[str]:
        return sorted(os.listdir(folder))

    def read(self, path: str) -> np.ndarray:
        return np.fromfile(path, np.uint8)

    def show(self, path: str) -> str:
        return str(Path(path))

    def local(self, path: str) -> AbstractContextManager[Path]:
        return contextlib.nullcontext(Path(path))

    def put(self, path: str, write: Callable[[Path], None]) -> None:
        final = Path(path)
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = final.with_name(f"{UNFINISHED}{os.urandom(6).hex()}-{final.name}")
        try:
            write(temporary)
            os.replace(temporary, final)
        finally:
            temporary.unlink(missing_ok=True)

    def remove(self, path: str) -> None:
        os.unlink(path)


class ArrowStore:
    """A pyarrow file system, such as HDFS or S3. `prefix` is put before paths that are shown."""

    def __init__(self, system: Any, prefix: str) -> None:
        self._system = system
        self._prefix = prefix

    def kind(self, path: str) -> str:
        from pyarrow import fs

        kinds = {fs.FileType.File: "file", fs.FileType.Directory: "folder"}
        return kinds.get(self._system.get_file_info(path).type, "nothing")

    def names(self, folder: str) -> list[str]:
        from pyarrow import fs

        selector = fs.FileSelector(folder)
        return sorted(info.base_name for info in self._system.get_file_info(selector))

    def read(self, path: str) -> np.ndarray:
        with self._system.open_input_stream(path) as stream:
            return np.frombuffer(stream.read(), np.uint8)

    def show(self, path: str) -> str:
        return self._prefix + path

    @contextlib.contextmanager
    def local(self, path: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / path.rpartition("/")[2]
            with self._system.open_input_stream(path) as source, open(copy, "wb") as target:
                shutil.copyfileobj(source, target, _PIECE)
            yield copy

    def put(self, path: str, write: Callable[[Path], None]) -> None:
        folder, _, name = path.rpartition("/")
        with tempfile.TemporaryDirectory() as local:
            copy = Path(local) / name
            write(copy)
            self._system.create_dir(folder, recursive=True)
            # In an object store a file appears when its writer is closed.
            at_once = self._system.type_name in ("s3", "gcs", "abfs")
            target = path if at_once else f"{folder}/{UNFINISHED}{os.urandom(6).hex()}-{name}"
            with open(copy, "rb") as source, self._system.open_output_stream(target) as stream:
                shutil.copyfileobj(source, stream, _PIECE)
            if not at_once:
                self._system.move(target, path)

    def remove(self, path: str) -> None:
        self._system.delete_file(path)
