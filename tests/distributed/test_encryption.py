"""Where Spark encrypts, the workers do."""

import numpy as np
import pytest

import tensorlite as tl
import tensorlite.distributed as dist
from tensorlite import nn, optim, random

from .conftest import spark_local_cluster

pytestmark = [pytest.mark.spark, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def spark():
    settings = {
        "spark.authenticate": "true",
        "spark.authenticate.secret": "not much of one",
        "spark.network.crypto.enabled": "true",
    }
    with spark_local_cluster(2, **settings) as session:
        yield session


def test_training_and_its_progress(spark):
    rng = np.random.default_rng(0)
    data = tl.data.ArrayDataset(rng.normal(size=(64, 5)).astype(np.float32), np.arange(64) % 3)
    records = []
    trainer = dist.Trainer(
        loss=lambda model, x, y: tl.mean(nn.softmax_cross_entropy(model(x), y)),
        optimizer=optim.sgd(0.1),
        batch_size=16,
        num_workers=2,
        progress=records.append,
    )
    result = trainer.fit(nn.Linear(5, 3, key=random.key(0)), data, steps=8)
    assert len(result.history["loss"]) == 8
    assert records[-1]["step"] == 8
