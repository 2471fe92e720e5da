"""Devices that Spark's scheduler gives to tasks."""

import json

import numpy as np
import pytest

import tensorlite as tl
import tensorlite.distributed as dist
from tensorlite import optim
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
    with spark_local_cluster(workers=2, **offering(script, tmp_path)):
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
