"""CIFAR-10's binary records as a DataFrame, read by Spark wherever it reads files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tensorlite.data.cifar import (
    CHANNELS,
    CLASSES,
    RECORD_BYTES,
    SIDE,
    TEST_FILES,
    TRAIN_FILES,
)

from .dataframes import PLANAR, DataFrameError

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


def cifar10_records(spark: SparkSession, path: str, train: bool = True) -> DataFrame:
    """CIFAR-10's binary records as a DataFrame with the columns label (int) and image (binary),
    through Spark's `binaryRecords`: files are cut into partitions, and no record passes through
    Python before a worker decodes its own. A label over 9 fails the job that meets it.

    The image is the record's own 3072 bytes, all red, then all green, then all blue. The column
    says so in its metadata, which `FrameDataset` and the estimators of `tensorlite.distributed.ml`
    look for, so that it becomes (N, 32, 32, 3), uint8, RGB, as `tl.data.cifar10` gives it.

    Args:
        path: a folder with data_batch_1.bin to data_batch_5.bin (train=True) and test_batch.bin
            (train=False); or one file, or a pattern such as `data/*.bin`, where `train` plays no
            part. On whatever file system Spark reads.

    Raises:
        FileNotFoundError: there are no such files.
        DataFrameError: a file is not made of records.
    """
    from pyspark.sql import DataFrame
    from pyspark.sql import functions as sf

    files = _files(spark, path, train)
    session: Any = spark
    for name, length in files:
        if length == 0 or length % RECORD_BYTES:
            raise DataFrameError(
                f"cifar10_records: {name} has {length} bytes, but CIFAR-10 binary records take a "
                f"positive multiple of {RECORD_BYTES}; it may be incomplete or another format"
            )
    records = session._jsc.binaryRecords(",".join(name for name, _ in files), RECORD_BYTES)
    encoder = session._jvm.org.apache.spark.sql.Encoders.BINARY()
    # The Dataset is made within the JVM: by way of an RDD of Python's each record would be pickled.
    made = session._jsparkSession.createDataset(records.rdd(), encoder)
    frame = DataFrame(made.toDF(), spark)
    label = sf.conv(sf.hex(sf.expr("substring(value, 1, 1)")), 16, 10).cast("int")
    wrong = sf.concat(
        sf.lit("cifar10_records: a record has the label "),
        label.cast("string"),
        sf.lit(
            f", which is not in 0..{CLASSES - 1}; this may be another format, such as CIFAR-100"
        ),
    )
    sound = sf.when(label < CLASSES, label).otherwise(sf.raise_error(wrong).cast("int"))
    image = sf.expr("substring(value, 2)")
    return frame.select(
        sound.alias("label"), image.alias("image", metadata={PLANAR: [CHANNELS, SIDE, SIDE]})
    )


def _files(spark: Any, path: str, train: bool) -> list[tuple[str, int]]:
    """Names and lengths of the files to read, in order."""
    hadoop = spark._jvm.org.apache.hadoop.fs
    place = hadoop.Path(str(path))
    system = place.getFileSystem(spark._jsc.hadoopConfiguration())
    found = list(system.globStatus(place) or ())
    if len(found) == 1 and found[0].isDirectory():
        inside = {entry.getPath().getName(): entry for entry in system.listStatus(place)}
        wanted = TRAIN_FILES if train else TEST_FILES
        missing = [name for name in wanted if name not in inside]
        if missing:
            raise FileNotFoundError(
                f"cifar10_records: {path} lacks {', '.join(missing)}; it holds "
                f"{', '.join(sorted(inside)[:12]) or 'nothing'}"
            )
        found = [inside[name] for name in wanted]
    files = [entry for entry in found if not entry.isDirectory()]
    if not files:
        raise FileNotFoundError(f"cifar10_records: there is no file {path} where Spark reads files")
    return sorted((str(entry.getPath().toString()), int(entry.getLen())) for entry in files)
