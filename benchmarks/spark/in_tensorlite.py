"""Training by `Trainer` in the tasks of a Spark barrier stage."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from pyspark.sql import SparkSession

import tensorlite as tl
from benchmarks.models.definitions import MODELS, WEIGHT_DECAY, load
from benchmarks.models.in_tensorlite import Operations, Tensors
from benchmarks.spark import MODEL, master
from tensorlite import nn, optim
from tensorlite.data import ArrayDataset
from tensorlite.distributed import Trainer


def build_training(
    arrays: str, order: str, batch: int, steps: int, tasks: int, threads: int = 1
) -> Callable[[], dict[str, Any]]:
    """A function that trains once; see the top of this folder.

    Args:
        arrays: file of weights and data that `definitions.save` wrote.
        order: which rows to take at each step; it is that of `Trainer` with seed 0.
        batch: rows of a global batch.
        tasks: of the barrier stage, with one thread each.
    """
    definition = MODELS[MODEL]
    parameters, _, images, labels = load(arrays)
    os.environ["SPARK_LOCAL_IP"] = "127.0.0.1"
    spark = SparkSession.builder.config(map=master(tasks)).getOrCreate()

    def loss_of(weights: Tensors, images: tl.Tensor, labels: tl.Tensor) -> tl.Tensor:
        logits = definition.forward(Operations(weights, {}), images)
        loss = tl.mean(nn.softmax_cross_entropy(logits, labels))
        for name in definition.decayed:
            loss = loss + WEIGHT_DECAY * nn.l2_loss(weights[name])
        return loss

    trainer = Trainer(
        loss=loss_of,
        optimizer=optim.sgd(definition.learning_rate),
        batch_size=batch,
        num_workers=tasks,
        progress=False,
        spark=spark,
    )
    data = ArrayDataset(images, labels)

    def training() -> dict[str, Any]:
        result = trainer.fit(dict(parameters), data, steps=steps)
        rate = result.summary["images_per_second"]
        return {"images_per_second": rate, "losses": result.history["loss"]}

    return training
