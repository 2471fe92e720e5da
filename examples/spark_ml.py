"""A network in a Pipeline of Spark ML: PNG images of handwritten digits, names as labels.

    python examples/spark_ml.py
    spark-submit examples/spark_ml.py --workers 8

A StringIndexer turns names into labels, a TensorliteClassifier is trained by barrier tasks on the
bytes of the images, and MLlib's evaluator judges what it says of images that were held out.
"""

from __future__ import annotations

import argparse
import io
import os
from typing import Any

import numpy as np
from pyspark.ml import Pipeline
from pyspark.ml.evaluation import MulticlassClassificationEvaluator
from pyspark.ml.feature import StringIndexer
from pyspark.sql import DataFrame, SparkSession

import tensorlite as tl
from tensorlite import nn, random
from tensorlite.distributed.ml import TensorliteClassifier

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


class Net(nn.Module):
    """Two convolutions with batch norm between, for images of shape (N, 8, 8, 1)."""

    def __init__(self, key: tl.Tensor):
        k1, k2, k3 = random.split(key, 3)
        self.conv1 = nn.Conv(1, 16, 3, key=k1)
        self.norm = nn.BatchNorm(16, across_workers=True)
        self.conv2 = nn.Conv(16, 32, 3, key=k2)
        self.head = nn.Linear(32 * 4 * 4, 10, key=k3)

    def __call__(self, x: tl.Tensor, training: bool = False) -> tl.Tensor:
        x = nn.relu(self.norm(self.conv1(x), training=training))
        x = nn.max_pool(nn.relu(self.conv2(x)), 2)
        return self.head(x.reshape(x.shape[0], -1))


def digits(spark: SparkSession) -> DataFrame:
    """scikit-learn's digits as rows of PNG bytes and a name."""
    from PIL import Image
    from sklearn.datasets import load_digits

    found = load_digits()
    rows: list[tuple[Any, ...]] = []
    for pixels, label in zip(found.images, found.target, strict=True):
        buffer = io.BytesIO()
        Image.fromarray((pixels * 15).astype(np.uint8)).save(buffer, "png")
        rows.append((buffer.getvalue(), NAMES[label]))
    return spark.createDataFrame(rows, "image binary, name string")


def main() -> None:
    """Train, judge, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workers", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--epochs", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--master", help="default: that of spark-submit, or local[WORKERS]")
    args = parser.parse_args()
    builder = SparkSession.builder.appName("tensorlite")
    if args.master or "PYSPARK_GATEWAY_PORT" not in os.environ:  # spark-submit has chosen already
        builder = builder.master(args.master or f"local[{args.workers}]")
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    train, test = digits(session).randomSplit([0.8, 0.2], seed=0)
    indexer = StringIndexer(inputCol="name", outputCol="label")
    classifier = TensorliteClassifier(
        model=Net,
        numWorkers=args.workers,
        batchSize=64,
        epochs=args.epochs,
        learningRate=0.003,
        progress=False,
    )
    model = Pipeline(stages=[indexer, classifier]).fit(train)
    scored = model.transform(test)
    judge = MulticlassClassificationEvaluator(metricName="accuracy")
    print(f"held-out accuracy {judge.evaluate(scored):.2%} of {test.count()} images")
    session.stop()


if __name__ == "__main__":
    main()
