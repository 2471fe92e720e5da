"""Devices that Spark's scheduler gives to tasks."""

import json

import numpy as np
import pytest

import tensorlite as tl
import tensorlite.distributed as dist
from tensorlite import nn, optim
from tensorlite.data import ArrayDataset
from tensorlite.distributed.accelerators import chosen, device_of
from tests.distributed.conftest import spark_local_cluster

has_opencl = pytest.mark.skipif(
    not any(device.name.startswith("opencl") for device in tl.devices()),
    reason="there is no OpenCL device here",
)


def test_the_address_that_counts():
    assert chosen({}) == chosen({"gpu": ()}) == ""
    assert chosen({"fpga": ("3", "4"), "gpu": ("1",)}) == "3"


def test_no_resource_is_the_cpu_and_an_unknown_address_an_error():
    assert device_of(1, [("a", "0"), ("a", "")]) == "cpu"
    assert [device_of(rank, [("a", "cpu"), ("a", "cpu1")]) for rank in (0, 1)] == ["cpu", "cpu"]
    with pytest.raises(dist.DistributedError, match=r"on a the address '77'.*finds cpu"):
        device_of(0, [("a", "77")])


@has_opencl
def test_tasks_that_share_a_device_get_its_parts(monkeypatch):
    assert device_of(0, [("a", "0"), ("b", "0")]) == "opencl:0"
    assert device_of(0, [("a", "opencl:0")]) == "opencl:0"
    given = [("a", "0"), ("b", "0"), ("a", "0")]
    assert [device_of(rank, given) for rank in (0, 2)] == ["opencl:0/2:0", "opencl:0/2:1"]

    def refuses(name):
        raise ValueError("it cannot be divided")

    monkeypatch.setattr(tl.device, "get_device", refuses)
    assert device_of(2, given) == "opencl:0"


def offering(script, tmp_path):
    """Settings of a cluster whose hosts find what they have with a script."""
    found = tmp_path / "found.sh"
    found.write_text("#!/bin/sh\n" + script)
    found.chmod(0o755)
    return {
        "spark.worker.resource.accel.amount": "1",
        "spark.worker.resource.accel.discoveryScript": str(found),
        "spark.executor.resource.accel.amount": "1",
        "spark.task.resource.accel.amount": "1",
    }


def addresses(*names):
    return json.dumps({"name": "accel", "addresses": names})


def points():
    x = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
    return ArrayDataset(x, x @ np.asarray([1, 2], np.float32))


def trainer(**options):
    def loss(model, x, y):  # a function of a module would have to be imported by the workers
        return tl.mean((x @ model["w"] - y) ** 2)

    return dist.Trainer(
        loss=loss, optimizer=optim.sgd(0.1), batch_size=16, progress=False, **options
    )


def scored_on(session):
    """The devices on which the rows of a DataFrame are scored."""
    from tensorlite.distributed.ml import TensorliteRegressionModel

    class Where(nn.Module):
        def __call__(self, x):
            assert x.ndim == 2
            return tl.zeros(len(x)) + float(str(tl.zeros(1).device) == "opencl:0")

    model = TensorliteRegressionModel()
    model.network = Where()
    model._set(inputCol="x")
    frame = session.createDataFrame([([0.0, 1.0],)] * 5, "x array<float>").repartition(2)
    found = [row.prediction for row in model.transform(frame).collect()]
    return ["opencl:0" if value else "cpu" for value in found]


@pytest.mark.spark
@pytest.mark.xdist_group("spark")
def test_a_resource_profile_for_the_workers_alone(tmp_path):
    """Executors have two parts of a device, and each task of the session gets all of it."""
    from pyspark.resource import (
        ExecutorResourceRequests,
        ResourceProfileBuilder,
        TaskResourceRequests,
    )

    def wanting(amount):
        request = TaskResourceRequests().cpus(1).resource("accel", amount)
        return ResourceProfileBuilder().require(request).build

    script = f"echo '{addresses('cpu')}'\n"
    settings = offering(script, tmp_path) | {"spark.executor.cores": "2"}
    with spark_local_cluster(workers=1, cores=2, **settings) as session:
        options = {"num_workers": 2, "resources": wanting(0.5)}
        assert dist.launch(lambda worker: worker.resources["accel"], **options) == [("cpu",)] * 2
        with pytest.raises(dist.SlotsError, match="has 1 slots for tasks of spark.task.cpus=1"):
            dist.launch(lambda worker: 0, num_workers=2, slots_timeout=2)
        frame = session.range(10)
        counts = dist.launch(
            lambda worker, batches: sum(batch.num_rows for batch in batches), data=frame, **options
        )
        assert sum(counts) == 10
        fit = trainer(num_workers=2, launch_options={"resources": wanting(0.5)}).fit
        assert len(fit({"w": tl.zeros(2)}, points(), steps=3).history["loss"]) == 3
        with pytest.raises(dist.SlotsError, match="the resources cpus=1, accel=1"):
            dist.launch(lambda worker: 0, num_workers=2, resources=wanting(1), slots_timeout=2)
        with pytest.raises(TypeError, match="ResourceProfileBuilder.* got dict"):
            dist.launch(lambda worker: 0, num_workers=2, resources={"accel": 1})
        own = ResourceProfileBuilder().require(ExecutorResourceRequests().cores(1)).build
        with pytest.raises(dist.DistributedError, match="executors of its own .cores., which need"):
            dist.launch(lambda worker: 0, num_workers=2, resources=own)


@has_opencl
@pytest.mark.spark
@pytest.mark.xdist_group("spark")
def test_a_mixed_cluster_trains_like_one_process(tmp_path):
    """One host offers a device of OpenCL, the other one its processor."""
    first = f"if mkdir {tmp_path}/first 2>/dev/null\n"
    script = f"then echo '{addresses('0')}'\nelse echo '{addresses('cpu')}'\nfi\n"
    with spark_local_cluster(workers=2, **offering(first + script, tmp_path)):
        devices = dist.launch(lambda worker: str(tl.zeros(1).device), num_workers=2)
        result = trainer(num_workers=2, balance=True).fit({"w": tl.zeros(2)}, points(), epochs=5)
    assert sorted(devices) == ["cpu", "opencl:0"]
    alone = trainer(num_workers=0, device="cpu").fit({"w": tl.zeros(2)}, points(), epochs=5)
    np.testing.assert_allclose(result.history["loss"], alone.history["loss"], rtol=1e-4)


@has_opencl
@pytest.mark.spark
@pytest.mark.xdist_group("spark")
def test_tasks_compute_on_what_spark_gives_them(tmp_path):
    script = f"echo '{addresses('0')}'\n"
    with spark_local_cluster(workers=2, **offering(script, tmp_path)) as session:
        assert set(scored_on(session)) == {"opencl:0"}
        places = dist.launch(
            lambda worker: (worker.device, str(tl.zeros(1).device), dict(worker.resources)),
            num_workers=2,
        )
        assert places == [
            (f"opencl:0/2:{rank}", f"opencl:0/2:{rank}", {"accel": ("0",)}) for rank in (0, 1)
        ]
        result = trainer(num_workers=2).fit({"w": tl.zeros(2)}, points(), epochs=20)
    np.testing.assert_allclose(np.asarray(result.model["w"]), [1, 2], atol=0.01)
    assert result.model["w"].device == "cpu"
