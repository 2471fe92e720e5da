"""What a DataFrame costs: scoring images through `transform` beside the bare jitted model, and
training on a DataFrame beside training on arrays in memory.

    python benchmarks/dataframes.py

The same cores, the same network (TensorFlow's CIFAR-10 tutorial), 32x32 images as Spark's image
data source gives them, in a Parquet file. Rounds alternate; medians and ratios are printed. The
bars: scoring at least 90% as fast, training at least 95%.
"""

from __future__ import annotations

import argparse
import pathlib
import statistics
import sys
import tempfile
import time
from typing import Any

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import tensorlite as tl
import tensorlite.distributed as dist
from examples.cifar10 import TutorialCNN, loss_fn
from tensorlite import optim, random
from tensorlite.data import ArrayDataset, augment


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=100_000, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--only", choices=("scoring", "training"), help="default: both")
    parser.add_argument("--cores", type=int, default=2, help="default: %(default)s")
    args = parser.parse_args()
    images = np.random.default_rng(0).integers(0, 256, (args.images, 32, 32, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        session = started(args.cores)
        session.createDataFrame(table(images)).repartition(8 * args.cores).write.parquet(
            f"{folder}/images"
        )
        frame = session.read.parquet(f"{folder}/images")
        if args.only != "training":
            scoring(frame, images, args.rounds)
        if args.only != "scoring":
            training(frame, images, args.rounds, args.cores)
        session.stop()


def started(cores: int) -> Any:
    """A Spark session of so many cores."""
    from pyspark.sql import SparkSession

    return (
        SparkSession.builder.master(f"local[{cores}]")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.driver.memory", "4g")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.sql.shuffle.partitions", str(cores))
        # More tasks than cores, of one size, so that no core waits for the last task.
        .config("spark.sql.files.maxPartitionBytes", "16m")
        .config("spark.log.level", "ERROR")
        .getOrCreate()
    )


def table(images: np.ndarray) -> Any:
    """Images and labels as Arrow, in the form of Spark's image data source."""
    import pyarrow as pa

    count, height, width, channels = images.shape
    content = np.ascontiguousarray(images[..., ::-1]).reshape(count, -1)
    same = {"height": height, "width": width, "nChannels": channels, "mode": 16}
    fields = {name: pa.array(np.full(count, value, np.int32)) for name, value in same.items()}
    fields["data"] = pa.array([row.tobytes() for row in content])
    image = pa.StructArray.from_arrays(list(fields.values()), list(fields))
    return pa.table({"image": image, "label": pa.array(np.arange(count) % 10)})


def scoring(frame: Any, images: np.ndarray, rounds: int) -> None:
    """`transform` beside the bare model."""
    from tensorlite.distributed.ml import TensorliteClassificationModel

    model = TensorliteClassificationModel()
    model.network = TutorialCNN(random.key(0))
    model._set(preprocess=augment.cifar10_eval)
    apply = tl.jit(lambda network, rows: network(augment.cifar10_eval(rows)))

    def bare() -> None:
        for first in range(0, len(images), 256):
            np.asarray(apply(model.network, images[first : first + 256]))

    def transformed() -> None:
        model.transform(frame).select("prediction").write.format("noop").mode("overwrite").save()

    report("scoring", {"bare model": bare, "transform": transformed}, len(images), rounds, 0.90)


def training(frame: Any, images: np.ndarray, rounds: int, workers: int) -> None:
    """A DataFrame beside arrays: what `summary` gives, the steps without their compilation."""
    data = ArrayDataset(images, np.arange(len(images)) % 10)
    rates: dict[str, list[float]] = {"arrays": [], "DataFrame": []}
    seconds: dict[str, list[float]] = {name: [] for name in rates}
    for _ in range(rounds):
        for name, rows in (("arrays", data), ("DataFrame", frame)):
            trainer = dist.Trainer(
                loss=loss_fn,
                optimizer=optim.sgd(1e-3),
                batch_size=128 * workers,
                num_workers=workers,
                augment=augment.cifar10_train,
                progress=False,
            )
            summary = trainer.fit(TutorialCNN(random.key(0)), rows, epochs=1).summary
            rates[name].append(summary["images_per_second"])
            seconds[name].append(summary["seconds"])
    medians = {name: statistics.median(of) for name, of in rates.items()}
    for name, rate in medians.items():
        whole = statistics.median(seconds[name])
        print(f"training, {name:10} {rate:8.0f} images/s, {whole:6.1f} s in all")
    judge("training", medians["DataFrame"] / medians["arrays"], 0.95)


def report(what: str, runs: dict[str, Any], count: int, rounds: int, bar: float) -> None:
    """Time two functions in turn, after one of each to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(of) for name, of in seconds.items()}
    for name, median in medians.items():
        print(f"{what}, {name:10} {count / median:8.0f} images/s")
    first, second = medians.values()
    judge(what, first / second, bar)


def judge(what: str, ratio: float, bar: float) -> None:
    """Print a ratio beside its bar."""
    print(f"{what}: {ratio:.2f} of the speed, bar {bar:.2f}, {'met' if ratio >= bar else 'MISSED'}")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
