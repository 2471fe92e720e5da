"""Applying a model to a column of a DataFrame, through Arrow, with a warm model in each Python
process of Spark's.

Rows are computed in batches of one size, the last one filled up, so that a model is traced and
compiled once. While a batch is computed, a thread decodes the next one.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

import tensorlite as tl

from . import columns
from .accelerators import device_of_task
from .dataframes import DataFrameError, Shape

_WARM = 4  # compiled models that a process keeps
_warm: dict[str, Callable[[np.ndarray], np.ndarray]] = {}
_warming = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Scorer:
    """A model, and how it is applied to rows.

    Args:
        model: a pytree of tensors.
        apply: `apply(model, rows)` returns one number, or an array of them, for each row.
        is_list: whether it is an array.
        key: what one scorer has compiled in a process serves others with the same key.
        image_size, on_invalid: as `FrameDataset` has them; "skip" gives null for such rows.
        planar: as `planar_images` of a `FrameDataset`.
        device: "auto" is the one that Spark's scheduler gives the task, else the CPU.
    """

    model: Any
    apply: Callable[[Any, tl.Tensor], tl.Tensor]
    is_list: bool
    column: str = "value"
    image_size: tuple[int, int] | None = None
    planar: Shape | None = None
    on_invalid: str = "error"
    batch_size: int = 128
    device: str = "auto"
    key: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex)

    def on(self, device: str) -> Scorer:
        """This scorer on `device`, unless it has one of its own."""
        if self.device != "auto":
            return self
        return dataclasses.replace(self, device=device, key=f"{self.key} {device}")

    def score(self, values: Iterator[pa.Array]) -> Iterator[pa.Array]:
        """For each array of rows an array of what the model says of them, float32 or lists of it;
        null for rows that cannot be used.

        Raises:
            DataFrameError: there are such rows, and on_invalid is "error".
        """
        compute = self._compiled()
        with concurrent.futures.ThreadPoolExecutor(1, "tensorlite-decode") as pool:
            for array in values:
                found, bad = self._outputs(compute, array, pool)
                yield _arrow(found, len(array), bad, self.is_list)

    def _outputs(
        self,
        compute: Callable[[np.ndarray], np.ndarray],
        array: pa.Array,
        pool: concurrent.futures.Executor,
    ) -> tuple[list[np.ndarray], list[int]]:
        """The outputs for the rows of an array that are sound, and the numbers of the others."""

        def read(first: int) -> columns.Column:
            part = array.slice(first, self.batch_size)
            return columns.read(self.column, part, self.image_size, planar=self.planar)

        starts = range(0, len(array), self.batch_size)
        coming = pool.submit(read, 0) if len(array) else None
        found: list[np.ndarray] = []
        bad: list[int] = []
        for first in starts:
            assert coming is not None
            column = coming.result()
            if first + self.batch_size < len(array):
                coming = pool.submit(read, first + self.batch_size)
            bad += [first + row for row in column.problems]
            if bad and self.on_invalid == "error":
                row = bad[0]
                raise DataFrameError(
                    f"column {self.column!r} has a row that the model cannot be applied to: "
                    f"{column.problems[row - first]} (row {row} of its batch). Choose to skip such "
                    "rows, or mend them"
                )
            if len(column.values):
                found.append(compute(column.values))
        return found, bad

    def _compiled(self) -> Callable[[np.ndarray], np.ndarray]:
        """The function of rows, traced and compiled once in a process."""
        with _warming:
            if self.key not in _warm:
                while len(_warm) >= _WARM:
                    del _warm[next(iter(_warm))]
                _warm[self.key] = self._made()
            return _warm[self.key]

    def _made(self) -> Callable[[np.ndarray], np.ndarray]:
        apply = tl.jit(self.apply)
        model = tl.tree.map(lambda leaf: tl.asarray(leaf, device=self.device), self.model)

        def compute(rows: np.ndarray) -> np.ndarray:
            count = len(rows)
            if count < self.batch_size:
                filled = np.zeros((self.batch_size, *rows.shape[1:]), rows.dtype)
                filled[:count] = rows
                rows = filled
            with tl.default_device(self.device):
                return np.asarray(apply(model, tl.asarray(rows, copy=False)))[:count]

        return compute


def predict_udf(scorer: Scorer, deterministic: bool = True) -> Any:
    """A function of a column, for `select`, `withColumn` and SQL: float or array<float>."""
    from pyspark.sql.functions import arrow_udf

    def predict(values: Iterator[pa.Array]) -> Iterator[pa.Array]:
        from pyspark import TaskContext

        context = TaskContext.get()
        if context is not None:
            tl.set_num_threads(context.cpus())
        yield from scorer.on(device_of_task(context)).score(values)

    make: Any = arrow_udf  # whose overloads leave out iterators
    udf = make(predict, "array<float>" if scorer.is_list else "float")
    return udf if deterministic else udf.asNondeterministic()


def _arrow(found: list[np.ndarray], count: int, bad: list[int], is_list: bool) -> pa.Array:
    """What was found for the sound rows of `count`, with null for the others."""
    sound = np.ones(count, bool)
    sound[bad] = False
    mask = pa.array(~sound) if bad else None
    values = np.concatenate(found).astype(np.float32) if found else np.empty((0,), np.float32)
    if found and values.ndim != 1 + is_list:
        wanted = "an array" if is_list else "one number"
        raise ValueError(f"the model gives shape {values.shape[1:]} for a row, not {wanted}")
    if not is_list:
        whole = np.zeros(count, np.float32)
        whole[sound] = values
        return pa.array(whole, mask=None if mask is None else ~sound)
    each = values.shape[1] if found else 0
    offsets = np.concatenate([[0], np.cumsum(np.where(sound, each, 0))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.reshape(-1)), mask=mask)
