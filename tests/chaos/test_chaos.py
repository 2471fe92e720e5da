"""A short form of the chaos suite: each fault once. `make chaos` runs as many as one likes."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

import tensorlite.distributed as dist
from tests.chaos import faults
from tests.distributed.conftest import (
    spark_local_cluster,
    spark_standalone,
    wait_until_gone,
)

pytestmark = [pytest.mark.spark, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def spark() -> Iterator[Any]:
    with spark_local_cluster(workers=2) as session:
        yield session


@pytest.fixture(scope="module")
def undisturbed(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return faults.fit(tmp_path_factory.mktemp("undisturbed"), lambda record: None)


SEEDS = {"SIGSTOP of a worker": [3, 5]}  # either rank


@pytest.mark.parametrize(
    ("fault", "seed"), [(fault, seed) for fault in faults.FAULTS for seed in SEEDS.get(fault, [3])]
)
def test_a_fault_changes_nothing(
    fault: str, seed: int, undisturbed: Any, tmp_path: pathlib.Path
) -> None:
    outcome = faults.strike(fault, seed, tmp_path, undisturbed)
    print(outcome)
    assert "was lost" in outcome.named
    assert outcome.is_well, outcome


def test_a_training_on_a_dataframe_finds_its_rows_again(spark: Any, tmp_path: pathlib.Path) -> None:
    images, labels = faults.data().arrays
    pairs = [(image.tolist(), int(label)) for image, label in zip(images, labels, strict=True)]
    frame = spark.createDataFrame(pairs, "images array<float>, labels long").repartition(3)
    undisturbed = faults.fit(tmp_path / "undisturbed", lambda record: None, frame)
    outcome = faults.strike("kill -9 of an executor", 3, tmp_path / "struck", undisturbed, frame)
    assert "was lost" in outcome.named
    assert outcome.is_well, outcome


def test_a_driver_that_is_killed_and_run_again(
    spark: Any, undisturbed: Any, tmp_path: pathlib.Path
) -> None:
    folder = tmp_path / "killed"
    command = [sys.executable, "-m", "tests.chaos.run", "--train", str(folder)]
    driver = subprocess.Popen(command, start_new_session=True)
    try:
        while not list((folder / "run").glob("step-*")):
            assert driver.poll() is None, "the training has ended before it was struck"
            time.sleep(0.01)
        workers = [faults.worker(folder, rank) for rank in range(2)]
    finally:
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
    for pid in workers:
        wait_until_gone(pid)
    resumed: list[int] = []
    result = faults.fit(folder, lambda record: resumed.append(record["step"]))
    assert resumed[0] > faults.EVERY  # it did not begin again
    assert faults.differences(result, undisturbed) == []


def test_an_exception_in_the_users_code_is_raised_at_once(spark: Any) -> None:
    def loss(model: Any, images: Any, labels: Any) -> Any:
        if dist.current_worker().rank == 1:
            raise ValueError("row 17 is no image")
        return model["w1"].sum()

    trainer = dist.Trainer(
        loss=loss, optimizer=faults.optim.sgd(0.1), batch_size=64, num_workers=2, progress=False
    )
    with pytest.raises(dist.WorkerError, match="row 17 is no image") as error:
        trainer.fit(faults.model(), faults.data(), steps=5)
    assert (error.value.rank, error.value.error_type) == (1, "ValueError")


def test_an_executor_that_is_decommissioned(tmp_path: pathlib.Path) -> None:
    """The training ends in order, with a checkpoint, and goes on from the very next step."""
    steps: list[int] = []
    settings = {"spark.decommission.enabled": "true"}
    with spark_local_cluster(workers=2, **settings) as session:
        undisturbed = faults.fit(tmp_path / "undisturbed", lambda record: None, steps=MANY)

        def watch(record: dict[str, Any]) -> None:
            if not steps:
                decommission(session.sparkContext, "0")
            steps.append(record["step"])

        with pytest.warns(RuntimeWarning, match=r"executor 0 \(.*is decommissioned; the training"):
            result = faults.fit(tmp_path / "struck", watch, steps=MANY)
    assert result.summary["restarts"] == 1 and result.summary["stopped"] == ""
    assert steps == sorted(set(steps))  # no step was made twice
    assert faults.differences(result, undisturbed) == []


MANY = 3 * faults.STEPS  # so that it lasts until the driver has noticed


def decommission(context: Any, executor: str) -> None:
    """What Spark does when the host of an executor is to be taken away."""
    scala, jvm = context._jsc.sc(), context._jvm
    nowhere = getattr(jvm, "scala.None$").__getattr__("MODULE$")
    info = jvm.org.apache.spark.scheduler.ExecutorDecommissionInfo("a test", nowhere)
    assert scala.schedulerBackend().decommissionExecutor(executor, info, False, False)


def test_on_a_standalone_cluster(undisturbed: Any, tmp_path: pathlib.Path) -> None:
    """The last tests in this file end the session of the others."""
    (tmp_path / "cluster").mkdir()
    with spark_standalone(3, tmp_path / "cluster"):
        for fault in faults.ON_STANDALONE:
            outcome = faults.strike(fault, 3, tmp_path / "training", undisturbed)
            print(outcome)
            assert outcome.is_well, outcome
