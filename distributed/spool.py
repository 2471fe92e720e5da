"""A worker's rows of a DataFrame, kept in files of its own: written once, then mapped into memory.

The files have no name from the moment they are made, so the system takes them back however the
process ends.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Iterable
from typing import IO, Any

import numpy as np
import pyarrow as pa

import tensorlite as tl

from . import columns
from .collectives import all_gather
from .dataframes import KEY, DataFrameError, Reading
from .worker import Worker

NAMED = 8  # of the rows that are left out or refused
_SHAPE = 8  # how many numbers say what an array of rows is like


@dataclasses.dataclass(frozen=True)
class Rows:
    """What the workers have read.

    Attributes:
        training: this worker's rows, one array for each column; of a worker without rows, one row
            of zeros, so that it can take part.
        counts: how many rows each worker has, in rank order.
        validation, validation_counts: the same of the rows to validate on; None if there are none.
        skipped: how many were left out, by all workers.
        invalid: names of this worker's first ones, with what was wrong.
    """

    training: tuple[np.ndarray, ...]
    counts: tuple[int, ...]
    validation: tuple[np.ndarray, ...] | None
    validation_counts: tuple[int, ...] | None
    skipped: int
    invalid: tuple[str, ...]


def read_rows(worker: Worker, batches: Iterable[pa.RecordBatch], reading: Reading) -> Rows:
    """Read this worker's rows, and agree with the others on how many there are.

    Raises:
        DataFrameError: there are rows with nulls or unreadable images, and none may be left out;
            the rows have several shapes; there are none; or they are too many for the files.
    """
    reader = _Reader(reading)
    with concurrent.futures.ThreadPoolExecutor(worker.cpus, "tensorlite-decode") as pool:
        for batch in batches:
            reader.read(batch, pool)
    if reading.on_invalid == "error" and reader.count_invalid:
        raise DataFrameError(
            f"{reader.count_invalid} rows of this partition cannot be used: "
            f"{'; '.join(reader.invalid)}{'; ...' * (reader.count_invalid > NAMED)}. "
            "Choose to skip such rows, or mend them"
        )
    own = np.asarray([len(reader.training), len(reader.validation), reader.count_invalid])
    everyone = np.asarray(all_gather(tl.asarray(own)))
    counts, others = (tuple(everyone[:, place].tolist()) for place in (0, 1))
    if not any(counts):
        raise DataFrameError("the DataFrame has no rows to train on")
    training = _agreed(worker, reader.training.arrays(), counts, reading.names)
    validation = None
    if any(others):
        validation = _agreed(worker, reader.validation.arrays(), others, reading.names)
    return Rows(
        training=training,
        counts=counts,
        validation=validation,
        validation_counts=others if any(others) else None,
        skipped=int(everyone[:, 2].sum()),
        invalid=tuple(reader.invalid),
    )


class _Reader:
    """Turns batches into arrays and keeps them."""

    def __init__(self, reading: Reading):
        self._reading = reading
        limit = _Limit(reading.spool_bytes)
        self.training, self.validation = Spool(reading.names, limit), Spool(reading.names, limit)
        self.count_invalid = 0
        self.invalid: list[str] = []

    def read(self, batch: pa.RecordBatch, pool: concurrent.futures.Executor) -> None:
        """Keep the sound rows of a batch."""
        reading = self._reading
        read = [
            columns.read(
                name, batch.column(place), reading.image_size, pool, reading.planar.get(name)
            )
            for place, name in enumerate(reading.names)
        ]
        bad = sorted(set().union(*(column.problems for column in read)))
        for row in bad:
            self._note(batch, row, read)
        arrays = [_without(column, bad, batch.num_rows) for column in read]
        if not len(arrays[0]):
            return
        if not reading.has_mark:
            self.training.append(arrays)
            return
        marks = batch.column(len(read)).fill_null(False).to_numpy(zero_copy_only=False)
        marks = np.delete(marks.astype(bool), bad)
        self.training.append([array[~marks] for array in arrays])
        self.validation.append([array[marks] for array in arrays])

    def _note(self, batch: pa.RecordBatch, row: int, read: list[columns.Column]) -> None:
        self.count_invalid += 1
        if len(self.invalid) == NAMED:
            return
        # An id is the column after those that are read, or else the hash that stands there.
        place = len(read) + self._reading.has_mark
        kind = "key" if batch.schema.field(place).name == KEY else "row"
        what = ", ".join(
            f"{name}: {column.problems[row]}"
            for name, column in zip(self._reading.names, read, strict=True)
            if row in column.problems
        )
        self.invalid.append(f"{kind} {batch.column(place)[row].as_py()} ({what})")


class _Limit:
    """How many bytes may still be written."""

    def __init__(self, most: int):
        self._most = self._left = most

    def take(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise DataFrameError(
                f"the rows of this worker take more than spool_bytes={self._most:,} of temporary "
                "files; use more workers, smaller images, or a higher limit"
            )


class Spool:
    """Rows, column by column, in files without names."""

    def __init__(self, names: tuple[str, ...], limit: _Limit):
        self._names, self._limit = names, limit
        self._files: list[IO[bytes]] = []
        self._like: list[tuple[np.dtype[Any], tuple[int, ...]]] = []
        self._rows = 0

    def __len__(self) -> int:
        return self._rows

    def append(self, arrays: list[np.ndarray]) -> None:
        """Write rows, one array for each column.

        Raises:
            DataFrameError: they have other shapes than those before, or are too many.
        """
        if not len(arrays[0]):
            return
        if not self._files:
            self._like = [(array.dtype, array.shape[1:]) for array in arrays]
            folder = _folder()
            self._files = [tempfile.TemporaryFile(dir=folder) for _ in arrays]  # noqa: SIM115
        for name, array, file, (dtype, shape) in zip(
            self._names, arrays, self._files, self._like, strict=True
        ):
            if (array.dtype, array.shape[1:]) != (dtype, shape):
                raise _of_several_shapes(name, shape, array.shape[1:])
            self._limit.take(array.nbytes)
            np.ascontiguousarray(array).tofile(file)
        self._rows += len(arrays[0])

    def arrays(self) -> tuple[np.ndarray, ...]:
        """All rows, one array for each column, mapped into memory; () if there are none."""
        found = []
        for file, (dtype, shape) in zip(self._files, self._like, strict=True):
            file.flush()
            found.append(np.asarray(np.memmap(file, dtype, mode="r", shape=(self._rows, *shape))))
            file.close()  # the mapping keeps the file
        return tuple(found)


def _of_several_shapes(name: str, *shapes: tuple[int, ...]) -> DataFrameError:
    return DataFrameError(
        f"column {name!r} has rows of shapes {' and '.join(map(str, shapes))}; all must have the "
        "same. Images are made so by an image size"
    )


def _without(column: columns.Column, bad: list[int], count: int) -> np.ndarray:
    """A column's values for the rows that are sound in all columns."""
    if len(bad) == len(column.problems):
        return column.values
    sound = np.setdiff1d(np.arange(count), list(column.problems))
    return column.values[~np.isin(sound, bad)]


def _folder() -> str | None:
    """A folder on a local disk: the first of Spark's that can be written to."""
    for folder in os.environ.get("SPARK_LOCAL_DIRS", "").split(","):
        with contextlib.suppress(OSError):
            if folder and os.access(folder, os.W_OK):
                return folder
    return None


def _agreed(
    worker: Worker,
    arrays: tuple[np.ndarray, ...],
    counts: tuple[int, ...],
    names: tuple[str, ...],
) -> tuple[np.ndarray, ...]:
    """The arrays of rows, or one row of zeros where a worker has none.

    Raises:
        DataFrameError: the workers' rows have several shapes or dtypes.
    """
    own = np.full((len(names), _SHAPE + 2), -1, np.int64)
    for place, array in enumerate(arrays):
        own[place, 0] = array.dtype.num
        own[place, 1 : array.ndim] = array.shape[1:]
        own[place, -1] = array.ndim
    everyone = np.asarray(all_gather(tl.asarray(own)))
    first = next(rank for rank, count in enumerate(counts) if count)
    for rank, count in enumerate(counts):
        if count and (everyone[rank] != everyone[first]).any():
            place = int(np.argmax((everyone[rank] != everyone[first]).any(axis=1)))
            shapes = [
                tuple(e[place, 1 : e[place, -1]].tolist())
                for e in (everyone[first], everyone[rank])
            ]
            raise _of_several_shapes(names[place], *shapes)
    if counts[worker.rank]:
        return arrays
    zeros = []
    for number, *shape, ndim in everyone[first].tolist():
        zeros.append(np.zeros((1, *shape[: ndim - 1]), _DTYPES[number]))
    return tuple(zeros)


# A number is how workers name a dtype to each other.
_DTYPES = {np.dtype(c).num: np.dtype(c) for c in "?bBhHiIlLqQefd"}
