"""Trainer: on Spark as in threads as in this process, its messages, and what it reports."""

import json
import socket
import sys
import warnings

import numpy as np
import pytest

import tensorlite as tl
import tensorlite.distributed as dist
from tensorlite import nn, optim, random
from tensorlite.data import ArrayDataset
from tensorlite.distributed.monitor import Monitor, MonitorAddress, ProgressBar, Reporter

from .conftest import spark_local_cluster, spark_session, spark_standalone


def make_model(seed=0):
    k1, k2 = random.split(random.key(seed))
    return {
        "hidden": nn.Linear(5, 8, key=k1),
        "head": nn.Linear(8, 3, key=k2),
    }


def loss_fn(model, features, labels):
    hidden = nn.relu(model["hidden"](features))
    return tl.mean(nn.softmax_cross_entropy(model["head"](hidden), labels))


def dataset(rows=60):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, rows)
    return ArrayDataset((rng.normal(size=(rows, 5)) + labels[:, None]).astype(np.float32), labels)


def trainer(**options):
    defaults = {
        "loss": loss_fn,
        "optimizer": optim.adam(0.01),
        "batch_size": 12,
        "progress": False,
    }
    return dist.Trainer(**(defaults | options))


def bits(model):
    return [np.asarray(leaf).tobytes() for leaf in tl.tree.leaves(model)]


# ---- without Spark -------------------------------------------------------------------------------


def test_in_this_process():
    start = make_model()
    before = bits(start)
    result = trainer(ema=0.9).fit(start, dataset(), epochs=4)
    assert bits(start) == before, "fit must not change the model it is given"
    losses = result.history["loss"]
    assert len(losses) == 20 and losses[-1] < losses[0]
    assert bits(result.averaged_model) != bits(result.model)
    assert result.summary["steps"] == 20 and result.summary["epochs"] == 4
    assert result.summary["workers"] == 1 and result.summary["images_per_second"] > 0
    parts = [result.summary[part] for part in ("input", "compute", "communication")]
    assert sum(parts) == pytest.approx(1)
    assert result.summary["hidden_communication"] == 0  # there is none at all


def test_accumulation_does_not_change_the_result():
    whole = trainer().fit(make_model(), dataset(), steps=8)
    parts = trainer(accumulate=5).fit(make_model(), dataset(), steps=8)
    np.testing.assert_allclose(parts.history["loss"], whole.history["loss"], rtol=1e-4)


def test_the_same_seed_gives_the_same_bits():
    first = trainer(seed=3).fit(make_model(), dataset(), steps=7)
    again = trainer(seed=3).fit(make_model(), dataset(), steps=7)
    other = trainer(seed=4).fit(make_model(), dataset(), steps=7)
    assert bits(first.model) == bits(again.model) != bits(other.model)


def test_an_exception_in_the_loss_reaches_the_caller_as_it_is():
    def loss(model, features, labels):
        raise KeyError("broken loss")

    with pytest.raises(KeyError, match="broken loss"):
        trainer(loss=loss).fit(make_model(), dataset(), steps=1)


def test_a_loss_that_is_not_finite_stops_the_run():
    features, labels = dataset().arrays
    wrong = ArrayDataset(features, labels + 1)  # class 3 of 3 gives NaN under jit
    with pytest.raises(FloatingPointError, match=r"the loss is nan at step 1 .*labels outside"):
        trainer().fit(make_model(), wrong, steps=3)


def test_models_that_are_not_tensors_yet():
    def loss(model, features, labels):
        return tl.mean((features @ model["w"] - model["b"]) ** 2)

    result = trainer(loss=loss).fit({"w": np.zeros((5, 1)), "b": 1.0}, dataset(), steps=2)
    assert result.history["loss"][1] < result.history["loss"][0]
    with pytest.raises(TypeError, match="model is the class Linear; pass an instance"):
        trainer().fit(nn.Linear, dataset(), steps=1)


def test_there_is_no_communication_in_a_world_of_one():
    assert trainer().fit(make_model(), dataset(), steps=5).summary["communication"] == 0


def test_progress_function_gets_records():
    records = []
    trainer(progress=records.append).fit(make_model(), dataset(), steps=3)
    assert [r["step"] for r in records] == [1, 2, 3]
    timing = {"images_per_second", "communication", "hidden_communication"}
    assert set(records[0]) == {"step", "steps", "epoch", "loss", *timing}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": 3}, "loss is a function, got int"),
        ({"optimizer": 0.1}, "optimizer has no init method.*optim.sgd"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"batch_size": 2.5}, "batch_size must be a whole number"),
        ({"num_workers": -1}, "num_workers must be a whole number of at least 0, got -1"),
        ({"num_workers": 13}, "batch_size=12 rows cannot be shared by 13 workers"),
        ({"bucket_bytes": 0}, "bucket_bytes must be a whole number of at least 1, got 0"),
        (
            {"compression": "int8"},
            "compression must be None, one of float16, bfloat16, or a PowerSGD, .*got 'int8'",
        ),
        (
            {"compression": True},
            "compression must be None, one of float16, bfloat16, or a PowerSGD, .*got True",
        ),
        ({"compression": "float16", "shards": 2}, "compression='float16' rounds .*shards=2"),
        ({"accumulate": 0}, "accumulate must be a whole number of at least 1, got 0"),
        ({"accumulate": 13}, "batch_size=12 rows cannot be cut into accumulate=13 parts .* 1 work"),
        ({"accumulate": 5, "num_workers": 3}, "accumulate=5 parts .* each of 3 workers"),
        (
            {"accumulate": 2, "shards": 2},
            "shards=2 are computed one after the other .*accumulate=2",
        ),
        ({"shards": 3}, "shards=3 and 1 workers must be powers of two"),
        ({"shards": 2, "num_workers": 4}, "shards=2 and 4 workers"),
        ({"augment": 3}, "augment is a function, got int"),
        ({"seed": "a"}, "seed must be a whole number of at least 0, got 'a'"),
        ({"ema": "x"}, "ema is a decay between 0 and 1, got 'x'"),
        ({"ema": 1.5}, "ema is a decay between 0 and 1, got 1.5"),
        ({"checkpoint_every": 5}, "checkpoint_every needs a checkpoint folder"),
        ({"device": "opencl:7"}, "there is no device 'opencl:7'; this machine has cpu"),
        ({"checkpoint": "nosuch://runs"}, "checkpoint: cannot open nosuch://runs"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        trainer(**options)


@pytest.mark.parametrize(
    ("data", "length", "message"),
    [
        (np.ones(3), {"steps": 1}, "data is an ArrayDataset or a Spark DataFrame, got ndarray"),
        (dataset(), {}, "pass either steps or epochs"),
        (dataset(), {"steps": 1, "epochs": 1}, "pass either steps or epochs"),
        (dataset(), {"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        (dataset(0), {"steps": 1}, "has no batch of 12 rows"),
    ],
)
def test_bad_arguments_of_fit(data, length, message):
    with pytest.raises((TypeError, ValueError), match=message):
        trainer().fit(make_model(), data, **length)


def test_a_misspelt_option_is_refused():
    with pytest.raises(TypeError, match="batchsize"):
        trainer(batchsize=3)


# ---- on Spark ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spark():
    with spark_session("local[4]") as session:
        yield session


@pytest.mark.spark
@pytest.mark.parametrize("num_workers", [1, 2, 4])
def test_on_spark_as_in_this_process(spark, num_workers):
    alone = trainer().fit(make_model(), dataset(), steps=20)
    result = trainer(num_workers=num_workers).fit(make_model(), dataset(), steps=20)
    np.testing.assert_allclose(result.history["loss"][:10], alone.history["loss"][:10], rtol=1e-5)
    np.testing.assert_allclose(result.history["loss"], alone.history["loss"], rtol=5e-3)
    assert result.summary["workers"] == num_workers
    again = trainer(num_workers=num_workers).fit(make_model(), dataset(), steps=20)
    assert bits(again.model) == bits(result.model)


@pytest.mark.spark
def test_shards_on_spark_give_the_bits_of_this_process(spark):
    options = {"shards": 4, "optimizer": optim.sgd(1.0, momentum=0.9)}
    alone = trainer(**options).fit(make_model(), dataset(), steps=20)
    for num_workers in (2, 4):
        result = trainer(num_workers=num_workers, **options).fit(make_model(), dataset(), steps=20)
        assert result.history["loss"] == alone.history["loss"]
        assert bits(result.model) == bits(alone.model)


@pytest.mark.spark
def test_progress_comes_from_rank_0_while_the_job_runs(spark):
    records = []
    trainer(num_workers=2, progress=records.append).fit(make_model(), dataset(), steps=30)
    steps = [record["step"] for record in records]
    assert steps == sorted(steps) and steps[-1] == 30


@pytest.mark.spark
def test_traceback_of_the_loss_reaches_the_driver(spark):
    def loss(model, features, labels):
        if dist.current_worker().rank == 1:
            raise ValueError("the loss of rank 1 is broken")
        return loss_fn(model, features, labels)

    with pytest.raises(dist.WorkerError, match="the loss of rank 1 is broken") as caught:
        trainer(loss=loss, num_workers=3).fit(make_model(), dataset(), steps=3)
    assert caught.value.rank == 1
    assert "in loss" in caught.value.traceback


@pytest.mark.spark
def test_more_workers_than_slots(spark):
    with pytest.raises(dist.SlotsError, match="8"):
        trainer(num_workers=8).fit(make_model(), dataset(), steps=1)


@pytest.fixture
def shipped_by_value():
    """The executors cannot import this file, so its functions travel whole."""
    from pyspark import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.mark.spark
@pytest.mark.timeout(180)
@pytest.mark.parametrize("cluster", ["local-cluster", "standalone"])
def test_on_executors_that_are_processes(cluster, tmp_path, shipped_by_value):
    expected = trainer().fit(make_model(), dataset(), steps=10)
    session = (
        spark_local_cluster(2) if cluster == "local-cluster" else spark_standalone(2, tmp_path)
    )
    with session:
        records = []
        options = {
            "num_workers": 2,
            "progress": records.append,
            "checkpoint": str(tmp_path / "run"),
        }
        result = trainer(**options).fit(make_model(), dataset(), steps=10)
    np.testing.assert_allclose(result.history["loss"], expected.history["loss"], rtol=1e-5)
    assert records[-1]["step"] == 10
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["step-000000010.safetensors"]


def test_a_driver_that_cannot_listen_trains_without_being_watched(monkeypatch):
    monkeypatch.setattr(dist.attempts.cluster, "must_encrypt", lambda *args: False)
    # An address for documentation, which no machine has.
    monkeypatch.setattr(dist.attempts.cluster, "driver_host", lambda context: "203.0.113.1")
    with (
        pytest.warns(RuntimeWarning, match=r"cannot listen at spark.driver.host \(203.0.113.1\)"),
        trainer(num_workers=2)._attempts._listening(None, lambda record: None) as monitor,
    ):
        assert monitor is None


# ---- the monitor ---------------------------------------------------------------------------------


def test_monitor_takes_records_from_its_reporter_only():
    records = []
    with Monitor("127.0.0.1", records.append) as monitor:
        place = (monitor.address.host, monitor.address.port)
        strangers = [socket.create_connection(place) for _ in range(20)]
        strangers[0].sendall(b"GET / HTTP/1.1\r\n\r\n" * 10)
        strangers[1].sendall(json.dumps({"step": 666}).encode().rjust(200))
        for stranger in strangers[:8]:
            stranger.close()
        reporter = Reporter(monitor.address)
        for step in (1, 2, 3):
            reporter({"step": step}, last=True)
        reporter.close()
        for stranger in strangers:
            stranger.close()
    assert [record["step"] for record in records] == [1, 2, 3]


def test_a_driver_out_of_reach_costs_a_warning_only():
    with Monitor("127.0.0.1", lambda record: None) as monitor:
        address = monitor.address
    with pytest.warns(RuntimeWarning, match="progress is no longer shown"):
        reporter = Reporter(address)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reporter({"step": 1}, last=True)
        reporter.close()


def test_wrong_secret_is_turned_away():
    records = []
    with Monitor("127.0.0.1", records.append) as monitor:
        right = monitor.address
        forged = type(right.credentials)(b"x" * 32, right.credentials.nonce, 0)
        with pytest.warns(RuntimeWarning, match="progress is no longer shown"):
            Reporter(MonitorAddress(right.host, right.port, forged))
    assert records == []


def test_plain_lines_where_there_is_no_terminal(capsys):
    bar = ProgressBar()
    for step in (1, 2, 3):
        bar(
            {
                "step": step,
                "steps": 3,
                "epoch": 0,
                "loss": 2.5,
                "images_per_second": 1234.0,
                "communication": 0.07,
            }
        )
    bar.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "step 3/3  epoch 0  loss 2.5000  1234 images/s  communication 7%"
    assert len(lines) == 2  # the first and the last; the second came too soon after the first
