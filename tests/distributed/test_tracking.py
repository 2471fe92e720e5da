"""MLflow: what a run has, against a store on the disk, and servers that fail."""

import socket
import subprocess
import sys
import warnings

import numpy as np
import pytest

import tensorlite as tl
import tensorlite.distributed as dist
from tensorlite import optim
from tensorlite.data import ArrayDataset
from tensorlite.distributed import tracking
from tests.distributed.conftest import free_port

mlflow = pytest.importorskip("mlflow")


def loss(model, x, y):
    return tl.mean((x @ model["w"] - y) ** 2)


def fitted(**options):
    x = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
    training, held = ArrayDataset(x, x @ np.asarray([1, 2], np.float32)).split(48)
    usual = {"loss": loss, "optimizer": optim.sgd(0.1), "batch_size": 16, "progress": False}
    trainer = dist.Trainer(**(usual | options))
    return trainer.fit({"w": tl.zeros(2)}, training, epochs=4, validation=held)


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    """A store of files, with an experiment; MLflow prefers data bases, which need more packages."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID", raising=False)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    mlflow.set_experiment("nets")
    yield tmp_path
    mlflow.set_tracking_uri(before)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID", raising=False)


def runs():
    client = mlflow.MlflowClient()
    return client, client.search_runs([client.get_experiment_by_name("nets").experiment_id])


def test_a_run_has_parameters_metrics_report_and_model(store):
    result = fitted(mlflow="my net")
    client, (run,) = runs()
    assert run.info.run_name == "my net" and run.info.status == "FINISHED"
    assert run.data.params["batch_size"] == "16" and run.data.params["loss"] == "loss"
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [m.step for m in history] == list(range(1, 13))
    assert [m.value for m in history] == result.history["loss"]
    validation = client.get_metric_history(run.info.run_id, "validation_loss")
    assert [m.step for m in validation] == [3, 6, 9, 12]
    assert [m.value for m in validation] == result.history["validation_loss"]
    assert run.data.metrics["summary/epochs"] == 4 and run.data.metrics["epoch"] == 3
    assert mlflow.active_run() is None
    found = client.download_artifacts(run.info.run_id, "", str(store))
    model = tl.load(f"{found}/model/model.safetensors")
    np.testing.assert_array_equal(np.asarray(model["w"]), np.asarray(result.model["w"]))
    with open(f"{found}/report/report.html") as file:
        assert '"state": "done"' in file.read()


def test_below_the_active_run_and_with_a_report_of_its_own(store):
    with mlflow.start_run(run_name="search") as above:
        fitted(mlflow=True, report=str(store / "run"))
        fitted(mlflow=True, batch_size=8)  # the parameters of one run are not those of another
        assert mlflow.active_run().info.run_id == above.info.run_id
    client, found = runs()
    below = [run for run in found if run.info.run_id != above.info.run_id]
    assert sorted(run.data.params["batch_size"] for run in below) == ["16", "8"]
    assert {run.data.tags["mlflow.parentRunId"] for run in below} == {above.info.run_id}
    assert (store / "run" / "report.html").exists()
    names = [a.path for a in client.list_artifacts(below[0].info.run_id, "report")]
    assert "report/report.html" in names and "report/records.jsonl" in names


def test_a_training_that_fails_is_a_run_that_failed(store):
    def broken(model, x, y):
        raise KeyError("no such column")

    with pytest.raises(KeyError):
        fitted(mlflow=True, loss=broken)
    client, (run,) = runs()
    assert run.info.status == "FAILED"
    assert [a.path for a in client.list_artifacts(run.info.run_id)] == ["report"]


def only_warning(function):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        result = function()
    texts = [str(w.message) for w in told if "MLflow's run is not complete" in str(w.message)]
    assert len(texts) == 1 and result.summary["steps"] == 12
    return texts[0]


def test_a_server_that_is_not_there_is_warned_of_once():
    uri = f"http://127.0.0.1:{free_port()}"
    mlflow.set_tracking_uri(uri)
    text = only_warning(lambda: fitted(mlflow=True))
    assert f"tracking URI {uri}" in text and "the training does not depend on it" in text


def test_a_server_that_does_not_answer_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(tracking, "LAST_SECONDS_UNHEARD", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mlflow.set_tracking_uri(f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert "it does not answer" in only_warning(lambda: fitted(mlflow=True))


def test_a_server_that_fails_meanwhile_is_warned_of_once(monkeypatch):
    def fail(*args, **kwargs):
        raise mlflow.exceptions.MlflowException("the disk is full")

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", fail)
    assert "MlflowException: the disk is full" in only_warning(lambda: fitted(mlflow=True))


def test_what_the_option_may_be(monkeypatch):
    for wrong in ("", 3, None):
        with pytest.raises(TypeError, match="mlflow is True, False or the name of a run, got"):
            fitted(mlflow=wrong)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ImportError, match=r"pip install 'tensorlite\[mlflow\]'"):
        fitted(mlflow=True)


def test_nothing_is_loaded_that_was_not_asked_for():
    code = """
import sys, tensorlite.distributed as dist
heavy = {"mlflow", "pyspark", "pyarrow", "tensorboardX", "shtab"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.spark
@pytest.mark.xdist_group("spark")
def test_from_the_workers_of_a_spark_job(store):
    from tests.distributed.conftest import spark_session

    with spark_session("local[2]"):
        result = fitted(mlflow=True, num_workers=2)
    _, (run,) = runs()
    assert run.info.status == "FINISHED" and run.data.metrics["summary/workers"] == 2
    assert run.data.metrics["loss"] == result.history["loss"][-1]
