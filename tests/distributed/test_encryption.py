"""Where Spark encrypts, the workers do."""

import json
import pathlib
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.spark, pytest.mark.timeout(180)]

# In a process of its own: once a JVM has run with authentication, later sessions in it that have
# none cannot reach their master.
PROGRAM = """
import json
import numpy as np
import tensorlite as tl
import tensorlite.distributed as dist
from tensorlite import nn, optim, random
from tests.distributed.conftest import spark_local_cluster

settings = {
    "spark.authenticate": "true",
    "spark.authenticate.secret": "not much of one",
    "spark.network.crypto.enabled": "true",
}

def streams(worker):
    import gc
    from tensorlite.distributed.streams import PlainStream
    from tensorlite.distributed.tls import TlsStream
    live = gc.get_objects()
    return [sum(type(x) is kind for x in live) for kind in (PlainStream, TlsStream)]

rng = np.random.default_rng(0)
data = tl.data.ArrayDataset(rng.normal(size=(64, 5)).astype(np.float32), np.arange(64) % 3)
records = []
with spark_local_cluster(2, **settings) as spark:
    trainer = dist.Trainer(
        loss=lambda model, x, y: tl.mean(nn.softmax_cross_entropy(model(x), y)),
        optimizer=optim.sgd(0.1),
        batch_size=16,
        num_workers=2,
        progress=records.append,
        spark=spark,
    )
    result = trainer.fit(nn.Linear(5, 3, key=random.key(0)), data, steps=8)
    facts = {
        "losses": len(result.history["loss"]),
        "last": records[-1]["step"],
        "encrypted": dist.launch(streams, num_workers=2, spark=spark),
        "plain": dist.launch(streams, num_workers=2, spark=spark, encrypt=False),
    }
print(json.dumps(facts))
"""


def test_workers_encrypt_where_spark_does_unless_told_otherwise():
    root = pathlib.Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr[-4000:]
    facts = json.loads(done.stdout.splitlines()[-1])
    assert (facts["losses"], facts["last"]) == (8, 8)
    assert all(plain == 0 and tls > 0 for plain, tls in facts["encrypted"])
    assert all(plain > 0 and tls == 0 for plain, tls in facts["plain"])
