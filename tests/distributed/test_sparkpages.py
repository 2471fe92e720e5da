"""What Spark's pages say of a training, asked by its own REST interface."""

import dataclasses
import json
import time
import urllib.request
from types import SimpleNamespace

import numpy as np
import pytest

import tensorlite as tl
import tensorlite.distributed as dist
from tensorlite import optim
from tensorlite.data import ArrayDataset
from tensorlite.distributed import sparkpages
from tensorlite.distributed.steps import Job
from tests.distributed.conftest import spark_session

JOB = Job(
    loss=lambda: None, optimizer=None, arrays=(np.zeros(10),), batch_size=4, steps=7, seed=0,
    augment=None, ema=None, checkpoint=None, checkpoint_every=None, drop_last=False,
)  # fmt: skip


def record(step, epoch=0, steps=7):
    return {"step": step, "steps": steps, "epoch": epoch, "loss": 1.23456}


def test_words():
    assert sparkpages.planned(JOB, 1, 0) == "tensorlite: 7 steps in batches of 4 rows on 1 worker"
    rows = dataclasses.replace(JOB, epochs=1, steps=0, arrays=())
    assert sparkpages.planned(rows, 2, 3).endswith("1 epoch in batches of 4 rows on 2 workers, "
                                                   "restart 3")  # fmt: skip
    assert sparkpages.epochs_of(JOB) == 3 and sparkpages.epochs_of(rows) == 1
    assert sparkpages.epochs_of(dataclasses.replace(rows, epochs=None)) is None
    assert sparkpages.reached(record(5, 1), 3) == "epoch 2/3, step 5/7, loss 1.235"
    assert sparkpages.reached(record(5, 1), None) == "epoch 2, step 5/7, loss 1.235"


class Context:
    """Keeps the descriptions that jobs without tasks had."""

    def __init__(self):
        self.noted, self.description = [], "the user's"
        self._jsc = self

    def getLocalProperty(self, name):
        return self.description

    def setLocalProperty(self, name, value):
        self.description = value

    def setJobDescription(self, text):
        self.description = text

    def emptyRDD(self):
        return self

    def count(self):
        self.noted.append(self.description)


def test_when_there_is_something_to_note(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(sparkpages.time, "monotonic", lambda: now[0])
    context = Context()
    notes = sparkpages.Notes(context, 3)
    for seconds, *what in [(0, 1), (10, 2, 1), (40, 3, 1), (80, 4, 1), (350, 5, 1), (351, 7, 2)]:
        now[0] = seconds
        notes(record(*what))
    steps = [text.partition("step ")[2].partition("/")[0] for text in context.noted]
    assert steps == ["1", "3", "5"]
    notes.finish(None, KeyError("a failure"))
    assert len(context.noted) == 3
    summary = {"steps": 7, "stopped": "stop()"}
    notes.finish(SimpleNamespace(summary=summary, history={"loss": [2.0, 0.5]}), None)
    assert context.noted[-1] == "tensorlite: ended at step 7/7 (stop()), loss 0.5"
    assert context.description == "the user's"


def test_pages_that_cannot_be_written_to_are_told_once():
    context = Context()
    context.count = lambda: 1 / 0
    notes = sparkpages.Notes(context, 3)
    with pytest.warns(RuntimeWarning, match="no longer say how far.*ZeroDivisionError"):
        notes(record(7))
    notes(record(7, 1))


def loss(model, x):
    return tl.mean((x - model["w"]) ** 2)


@pytest.mark.spark
@pytest.mark.xdist_group("spark")
def test_sparks_own_account_of_a_training(monkeypatch):
    monkeypatch.setattr(sparkpages, "LEAST_SECONDS", 0.01)
    settings = {"spark.ui.enabled": "true", "spark.ui.port": "0"}
    with spark_session("local[2]", **settings) as spark:
        context = spark.sparkContext

        def jobs():
            place = f"{context.uiWebUrl}/api/v1/applications/{context.applicationId}/jobs"
            with urllib.request.urlopen(place, timeout=30) as answer:
                found = json.load(answer)
            return [(job["description"], job["status"], job["numTasks"]) for job in found]

        assert context.uiWebUrl.startswith("http://127.0.0.1:") and jobs() == []
        context.setJobDescription("my own")
        plan = "tensorlite: 9000000 epochs, 36000000 steps in batches of 8 rows on 2 workers"
        seen = []

        def progress(record):
            if len(seen) < 3:
                seen.append(jobs())
            if len(seen) == 3:
                trainer.stop()

        trainer = dist.Trainer(
            loss=loss, optimizer=optim.sgd(0.1), batch_size=8, num_workers=2, progress=progress
        )
        data = ArrayDataset(np.ones((32, 2), np.float32))
        result = trainer.fit({"w": tl.zeros(2)}, data, epochs=9_000_000)
        assert context.getLocalProperty("spark.job.description") == "my own"
        assert seen[0] == [(plan, "RUNNING", 2)]
        assert (plan, "RUNNING", 2) in seen[2] and len(seen[2]) > 1
        steps, least = result.summary["steps"], f"loss {result.history['loss'][-1]:.4g}"
        last = (f"tensorlite: ended at step {steps}/36000000 (stop()), {least}", "SUCCEEDED", 0)
        deadline = time.monotonic() + 10
        while last not in (found := jobs()) and time.monotonic() < deadline:
            time.sleep(0.1)  # the pages hear of a job a moment later
        assert last in found and (plan, "SUCCEEDED", 2) in found
        notes = [job for job in found if job[2] == 0 and job != last]
        assert notes and all(d.startswith("tensorlite: epoch ") for d, *_ in notes)
