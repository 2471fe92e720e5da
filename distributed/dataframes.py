"""Spark DataFrames as training data: which columns, what their values mean, how rows are dealt out.

A `FrameDataset` is made on the driver and holds no rows. Each worker reads its own share of them
from Spark as Arrow batches, turns the columns into arrays (`columns`) and keeps these in files of
its own (`spool`). Which worker gets a row, and where it stands there, is decided by a hash of the
row's content: it does not depend on how Spark reads or computes the rows, so that a training that
is started again finds every row in its place.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

KEY = "__tensorlite_key"  # the column with the hash
PLANAR = "tensorlite.planar_images"  # in a column's metadata: (channels, height, width)
SPOOL_BYTES = 64 << 30

Shape = tuple[int, int, int]


class DataFrameError(ValueError):
    """A DataFrame cannot be trained on, or applied to, as it is."""


def dealt_out(frame: DataFrame, parts: int) -> DataFrame:
    """The rows in `parts` partitions, in an order within each that depends on their content."""
    from pyspark.sql import functions as sf

    keyed = frame.withColumn(KEY, sf.xxhash64(*(sf.col(quoted(c)) for c in frame.columns)))
    return keyed.repartition(parts, KEY).sortWithinPartitions(KEY)


@dataclasses.dataclass(frozen=True)
class FrameDataset:
    """Columns of a DataFrame, for `Trainer.fit`.

    A column becomes an array with one entry for each row:

    - numbers and booleans: shape (N,), of their own dtype;
    - arrays of numbers, nested ones too, and MLlib's vectors: (N, ...); all rows must have the same
      length;
    - the struct of Spark's image data source: (N, height, width, channels), uint8, RGB;
    - bytes: PNG, JPEG and whatever else Pillow reads, decoded to the same; a grey image has one
      channel, and others have three;
    - bytes that are raw pixels, where `planar_images` or the column's metadata says so (see
      `dist.cifar10_records`): (N, height, width, channels), uint8.

    Args:
        frame: the DataFrame.
        columns: names of those that are passed to the loss, in this order; None takes all.
        image_size: (height, width) to which images are scaled. None expects them to be of one size.
        on_invalid: what becomes of rows with a null, or an image that cannot be read: "error"
            raises a `DataFrameError` that names the first ones, "skip" leaves them out and counts
            them.
        id_column: a column that names rows in messages; None takes a hash of their content.
        validation_column: a column of booleans (or 0 and 1); where it is true, the row is not
            trained on but measured after every epoch.
        spool_bytes: how many bytes a worker may write to its temporary files, where it keeps its
            rows (in Spark's local folders, or below TMPDIR).
        planar_images: (channels, height, width) of the raw pixels that columns of bytes hold, one
            channel's plane after the other, as in CIFAR-10's records; None takes bytes for encoded
            images, unless the column's metadata says otherwise.
    """

    frame: DataFrame
    columns: Sequence[str] | None = None
    image_size: tuple[int, int] | None = None
    on_invalid: str = "error"
    id_column: str | None = None
    validation_column: str | None = None
    spool_bytes: int = SPOOL_BYTES
    planar_images: Shape | None = None

    def __post_init__(self) -> None:
        known = self.frame.columns
        if self.columns is not None and (isinstance(self.columns, str) or not self.columns):
            raise TypeError(
                f"FrameDataset: columns is a list of names, such as ['image', 'label'], got "
                f"{self.columns!r}"
            )
        for name in (*self.names, self.id_column, self.validation_column):
            if name is None:
                continue
            if name not in known:
                close = difflib.get_close_matches(str(name), known, 1)
                hint = f"; did you mean {close[0]!r}?" if close else "."
                raise DataFrameError(
                    f"FrameDataset: the DataFrame has no column {name!r}{hint} It has "
                    f"{', '.join(known)}"
                )
        if self.on_invalid not in ("error", "skip"):
            raise ValueError(
                f"FrameDataset: on_invalid must be 'error' or 'skip', got {self.on_invalid!r}"
            )
        size = self.image_size
        if size is not None and not (
            len(size) == 2 and all(isinstance(n, int) and n > 0 for n in size)
        ):
            raise ValueError(f"FrameDataset: image_size is (height, width), got {size!r}")
        planar = self.planar_images
        if planar is not None and not (
            len(planar) == 3 and all(isinstance(n, int) and n > 0 for n in planar)
        ):
            raise ValueError(
                f"FrameDataset: planar_images is (channels, height, width), got {planar!r}"
            )
        if planar is not None and size is not None:
            raise ValueError(
                f"FrameDataset: planar_images={planar!r} have a size of their own and are not "
                f"scaled; leave image_size={size!r} out"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that become arrays, in order."""
        if self.columns is not None:
            return tuple(self.columns)
        others = (self.id_column, self.validation_column)
        return tuple(name for name in self.frame.columns if name not in others)

    def selected(self) -> DataFrame:
        """The columns that are needed: first those that become arrays, vectors as arrays; then the
        mark of validation rows, and what names rows."""
        from pyspark.sql import functions as sf

        columns = [plain(self.frame, name) for name in self.names]
        if self.validation_column is not None:
            mark = sf.col(quoted(self.validation_column)).cast("boolean")
            columns.append(mark.alias("__tensorlite_validation"))
        if self.id_column is not None:
            columns.append(sf.col(quoted(self.id_column)).alias("__tensorlite_id"))
        return self.frame.select(*columns)

    def batches(self) -> Iterator[Any]:
        """All rows as Arrow batches, in this process."""
        yield from dealt_out(self.selected(), 1).toArrow().to_batches()

    def reading(self) -> Reading:
        """What the workers must know of it."""
        return Reading(
            names=self.names,
            image_size=self.image_size,
            on_invalid=self.on_invalid,
            has_mark=self.validation_column is not None,
            spool_bytes=self.spool_bytes,
            planar={n: planar_of(self.frame, n, self.planar_images) for n in self.names},
        )


@dataclasses.dataclass(frozen=True)
class Reading:
    """How the rows of a DataFrame are read; see `FrameDataset`. `has_mark` says that there is a
    column that marks validation rows; `planar` has the shape of each column's raw pixels."""

    names: tuple[str, ...]
    image_size: tuple[int, int] | None = None
    on_invalid: str = "error"
    has_mark: bool = False
    spool_bytes: int = SPOOL_BYTES
    planar: Mapping[str, Shape | None] = dataclasses.field(default_factory=dict)


def planar_of(frame: DataFrame, name: str, chosen: Shape | None) -> Shape | None:
    """(channels, height, width) of the raw pixels in a column: as was chosen, or else as its
    metadata says; None of columns that are not bytes."""
    from pyspark.sql.types import BinaryType

    field = frame.schema[name]
    found = chosen if chosen is not None else field.metadata.get(PLANAR)
    if found is None or not isinstance(field.dataType, BinaryType):
        return None
    channels, height, width = found
    return channels, height, width


def plain(frame: DataFrame, name: str) -> Any:
    """A column of `frame` as Arrow can carry it: a vector of MLlib as an array."""
    from pyspark.ml.functions import vector_to_array
    from pyspark.ml.linalg import VectorUDT
    from pyspark.sql import functions as sf

    column = sf.col(quoted(name))
    if isinstance(frame.schema[name].dataType, VectorUDT):
        return vector_to_array(column, "float32").alias(name)
    return column.alias(name)


def quoted(name: str) -> str:
    """A column's name as an expression: dots in it are part of it."""
    return f"`{name.replace('`', '``')}`"
