"""CIFAR-10's binary records: a reader for local disks, HDFS and S3, and a writer.

A record is one label byte (0..9) and 3072 pixel bytes: 32x32 red, then green, then blue, each row
by row. A file is nothing but records. Source of the format: Alex Krizhevsky's CIFAR-10 page,
"Binary version", https://www.cs.toronto.edu/~kriz/cifar.html
"""

import os
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tensorlite.data.dataset import ArrayDataset
from tensorlite.data.files import Store, is_uri, open_store

SIDE = 32
CHANNELS = 3
CLASSES = 10
RECORD_BYTES = 1 + CHANNELS * SIDE * SIDE
TRAIN_FILES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
TEST_FILES = ("test_batch.bin",)


class DataError(ValueError):
    """A data file, or what should be written to one, is not what its format says."""


def cifar10(path: str | os.PathLike[str], train: bool = True) -> ArrayDataset:
    """Read CIFAR-10 binary records into memory.

    Args:
        path: a folder with data_batch_1.bin to data_batch_5.bin and test_batch.bin, or one file, or
            a pattern such as `data/batch_*.bin` with `*`, `?` or `[...]` in its last part (in a URI
            only `*`), whose matches are read in the order of their names. It is a local path or a
            URI: file://, hdfs:// and s3:// (the last two through pyarrow, with its own ways to pass
            credentials).
        train: of a folder, the five files for training; otherwise the one for tests. It plays no
            part where `path` is a file or a pattern.

    Returns:
        an `ArrayDataset` of images, uint8 (N, 32, 32, 3) in RGB, and labels, int64 (N,).

    Raises:
        FileNotFoundError: nothing is there; the message says what was looked for and what there is.
        DataError: the size of a file is not a positive multiple of 3073 bytes, or it has a label
            over 9.
        ImportError: a URI needs pyarrow and it is not installed.
    """
    store, place = open_store(path, "cifar10")
    parts = [_read(store, file) for file in _find(store, place, train)]
    return ArrayDataset(
        np.concatenate([images for images, _ in parts]),
        np.concatenate([labels for _, labels in parts]),
    )


def write_cifar10(
    path: str | os.PathLike[str], images: npt.ArrayLike, labels: npt.ArrayLike
) -> None:
    """Write one local file of CIFAR-10 binary records, all of it or nothing.

    The records go to a temporary file beside `path`, which then takes its name, so that no reader
    ever sees half a file and a failure leaves an existing file as it was.

    Args:
        images: uint8 (N, 32, 32, 3) in RGB, N at least 1.
        labels: integers of any dtype (N,) in 0..9.

    Raises:
        DataError: any other dtype, shape or label.
        FileNotFoundError: the folder does not exist.
    """
    if is_uri(path):
        raise DataError(f"write_cifar10: {os.fspath(path)} is a URI; only local files are written")
    write_atomically(Path(path), encode_records(images, labels))


def encode_records(images: npt.ArrayLike, labels: npt.ArrayLike) -> bytes:
    """Return the bytes of a file, for arrays as `write_cifar10` takes them."""
    images, labels = np.asarray(images), np.asarray(labels)
    shape = (len(images) if images.ndim else 0, SIDE, SIDE, CHANNELS)
    if images.dtype != np.uint8 or images.shape != shape or not len(images):
        raise DataError(
            f"write_cifar10: images must be uint8 of shape (N, 32, 32, 3) with N at least 1, not "
            f"{images.dtype} of shape {images.shape}"
        )
    if labels.dtype.kind not in "iu" or labels.shape != shape[:1]:
        raise DataError(
            f"write_cifar10: labels must be integers of shape {shape[:1]}, one per image, not "
            f"{labels.dtype} of shape {labels.shape}"
        )
    wrong = np.flatnonzero((labels < 0) | (labels >= CLASSES))
    if wrong.size:
        raise DataError(
            f"write_cifar10: labels must be in 0..9, but record {wrong[0]} has {labels[wrong[0]]}"
        )
    records = np.empty((len(images), RECORD_BYTES), np.uint8)
    records[:, 0] = labels
    records[:, 1:] = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    return records.tobytes()


def write_atomically(path: Path, content: bytes) -> None:
    """Give `path` this content, or leave it as it is."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: the folder {path.parent} does not exist")
    # Beside the target, since a rename is atomic only within one file system.
    temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _read(store: Store, path: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the images and labels of one file."""
    content = store.read(path)
    if content.size == 0 or content.size % RECORD_BYTES:
        raise DataError(
            f"cifar10: {store.show(path)} has {content.size} bytes, but CIFAR-10 binary records "
            f"take a positive multiple of {RECORD_BYTES} (1 label byte and 3072 pixel bytes each; "
            "the original files have 30730000); it may be incomplete or another format"
        )
    records = content.reshape(-1, RECORD_BYTES)
    labels = records[:, 0].astype(np.int64)
    wrong = np.flatnonzero(labels >= CLASSES)
    if wrong.size:
        raise DataError(
            f"cifar10: {store.show(path)}, record {wrong[0]} (counted from 0): label "
            f"{labels[wrong[0]]} is not in 0..9; {wrong.size} of {len(labels)} records have such a "
            "label, so this may be another format, such as CIFAR-100"
        )
    planes = records[:, 1:].reshape(-1, CHANNELS, SIDE, SIDE)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels


def _find(store: Store, path: str, train: bool) -> list[str]:
    """Return the files to read, in order."""
    path = path.rstrip("/") or "/"
    kind = store.kind(path)
    if kind == "file":
        if path.endswith((".tar.gz", ".tgz", ".tar")):
            raise DataError(f"cifar10: {store.show(path)} is an archive; {_UNPACK}")
        return [path]
    if kind == "folder":
        return _find_in_folder(store, path, TRAIN_FILES if train else TEST_FILES)
    folder, _, pattern = path.rpartition("/")
    folder = folder or ("/" if path.startswith("/") else ".")
    names = store.names(folder) if store.kind(folder) == "folder" else None
    if not set(pattern) & set("*?["):
        raise FileNotFoundError(
            f"cifar10: {store.show(path)} does not exist; {_describe(store, folder, names)}"
        )
    files = [f"{folder}/{name}" for name in names or () if fnmatchcase(name, pattern)]
    files = [file for file in files if store.kind(file) == "file"]
    if not files:
        raise FileNotFoundError(
            f"cifar10: no file matches {store.show(path)}; {_describe(store, folder, names)}"
        )
    return files


def _find_in_folder(store: Store, folder: str, wanted: tuple[str, ...]) -> list[str]:
    names = store.names(folder)
    missing = [name for name in wanted if name not in names]
    if not missing:
        return [f"{folder}/{name}" for name in wanted]
    raise FileNotFoundError(
        f"cifar10: {store.show(folder)} lacks {', '.join(missing)} (looked for "
        f"{', '.join(wanted)}); {_describe(store, folder, names)}{_hint(store, folder, names)}"
    )


def _describe(store: Store, folder: str, names: list[str] | None, most: int = 12) -> str:
    if names is None:
        return f"the folder {store.show(folder)} does not exist either"
    if not names:
        return f"{store.show(folder)} is empty"
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{store.show(folder)} holds {', '.join(names[:most])}{more}"


_UNPACK = "unpack it (tar -xzf cifar-10-binary.tar.gz) and pass the folder cifar-10-batches-bin"


def _hint(store: Store, folder: str, names: list[str]) -> str:
    """Return what most likely went wrong, for folders as people really have them, or nothing."""
    if "cifar-10-batches-bin" in names:
        return f". Pass {store.show(f'{folder}/cifar-10-batches-bin')} instead"
    if "cifar-10-binary.tar.gz" in names:
        return f". The archive is still packed: {_UNPACK}"
    if {"data_batch_1", "test_batch", "cifar-10-batches-py", "cifar-10-python.tar.gz"} & set(names):
        return (
            ". This is CIFAR-10's Python version (pickles); download the binary version, "
            "cifar-10-binary.tar.gz, instead"
        )
    return ""
