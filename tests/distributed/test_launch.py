"""launch on Spark's local master: results, errors with their whole story, and always an end."""

import os
import sys
import threading
import time
import types

import numpy as np
import pytest

import tensorlite as tl
import tensorlite.distributed as dist
from tensorlite.distributed import cluster
from tensorlite.distributed.errors import Failure
from tensorlite.distributed.task import TaskFailed, failure_in

from .conftest import kill, spark_session, stop_spark, wait_until_gone

pytestmark = [pytest.mark.spark, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def spark():
    with spark_session("local[2]") as session:
        yield session


def test_results_in_rank_order(spark):
    def main(worker, shift):
        return worker.rank, dist.all_reduce({"a": tl.ones(3) * worker.rank + shift})

    results = dist.launch(main, args=(1,), num_workers=2)
    assert [rank for rank, _ in results] == [0, 1]
    for _, tree in results:
        assert np.asarray(tree["a"]).tolist() == [3, 3, 3]


def test_what_a_worker_knows(spark):
    def main(worker):
        assert dist.current_worker() is worker
        return worker.rank, worker.size, worker.device, worker.hosts, worker.attempt, worker.cpus

    first = dist.launch(main, num_workers=2, spark=spark)
    second = dist.launch(main, num_workers=2, spark=spark.sparkContext)
    for rank, facts in enumerate(first):
        assert facts[:4] == (rank, 2, "cpu", ("127.0.0.1", "127.0.0.1"))
        assert facts[5] == 1
    assert first[0][4] == first[1][4] < second[0][4], "an attempt's number is its own"


def test_where_executors_reach_the_driver(spark):
    assert cluster.driver_host(spark.sparkContext) == "127.0.0.1"


def test_one_worker_needs_no_ring(spark):
    assert dist.launch(lambda worker: worker.size, num_workers=1) == [1]


def test_threads_are_limited_to_the_cpus_of_the_task(spark):
    def main(worker):
        import threadpoolctl

        np.ones((2, 2)) @ np.ones((2, 2))
        return [pool["num_threads"] for pool in threadpoolctl.threadpool_info()]

    for pools in dist.launch(main, num_workers=2):
        assert set(pools) <= {1}


def test_megabytes_over_the_ring(spark):
    def main(worker):
        mine = np.random.default_rng(worker.rank).normal(size=10**6).astype(np.float32)
        return mine, worker.ring.all_reduce_(mine.copy())

    (a, total), (b, same) = dist.launch(main, num_workers=2)
    assert total.tobytes() == same.tobytes()
    np.testing.assert_array_equal(total, a + b)


def test_a_raising_worker(spark, tmp_path):
    def main(worker):
        (tmp_path / str(worker.rank)).write_text(str(os.getpid()))
        if worker.rank == 1:
            raise ValueError("no such file: images.bin")
        dist.all_reduce(tl.ones(10**6))

    with pytest.raises(dist.WorkerError) as caught:
        dist.launch(main, num_workers=2)
    error = caught.value
    assert (error.rank, error.partition, error.error_type) == (1, 1, "ValueError")
    first_line, _, rest = str(error).partition("\n\n")
    where = "rank 1 (host 127.0.0.1, partition 1)"
    assert first_line == f"{where} raised ValueError: no such file: images.bin"
    assert rest.startswith("Traceback")
    assert "test_launch.py" in error.traceback
    assert "in main" in error.traceback
    assert "pyspark" not in str(error)
    assert "PeerError" not in str(error)


def test_a_raising_worker_ends_a_busy_one(spark, tmp_path):
    pid_file = tmp_path / "pid"

    def main(worker):
        if worker.rank == 0:
            pid_file.write_text(str(os.getpid()))
            time.sleep(1000)
        while not pid_file.exists():
            time.sleep(0.01)
        raise ValueError("while rank 0 sleeps")

    with pytest.raises(dist.WorkerError, match="rank 1 .* raised ValueError: while rank 0 sleeps"):
        dist.launch(main, num_workers=2)
    wait_until_gone(int(pid_file.read_text()))


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_worker(spark, victim):
    def main(worker):
        if worker.rank == victim:
            kill(os.getpid())
        dist.barrier()

    with pytest.raises(dist.WorkerError) as caught:
        dist.launch(main, num_workers=2)
    assert (caught.value.rank, caught.value.partition) == (victim, victim)
    assert "was lost" in str(caught.value)
    assert "probably killed" in str(caught.value)
    assert "\tat org.apache" not in str(caught.value)


def test_a_killed_worker_ends_a_busy_one(spark, tmp_path):
    pid_file = tmp_path / "pid"

    def main(worker):
        if worker.rank == 1:
            pid_file.write_text(str(os.getpid()))
            time.sleep(1000)
        while not pid_file.exists():
            time.sleep(0.01)
        kill(os.getpid())

    with pytest.raises(dist.WorkerError, match=r"rank 0 .* was lost"):
        dist.launch(main, num_workers=2)
    wait_until_gone(int(pid_file.read_text()))


def test_ranks_that_disagree(spark):
    with pytest.raises(dist.WorkerError, match="the ranks disagree") as caught:
        dist.launch(lambda worker: dist.all_reduce(tl.ones(3 + worker.rank)), num_workers=2)
    assert caught.value.error_type == "MismatchError"
    assert "float32[3]" in str(caught.value)
    assert "float32[4]" in str(caught.value)


def test_a_stuck_worker(spark):
    def main(worker):
        if worker.rank == 1:
            time.sleep(1000)
        dist.barrier()

    with pytest.raises(dist.WorkerError, match=r"nothing arrived from it for 0.5 s") as caught:
        dist.launch(main, num_workers=2, timeout=0.5)
    assert caught.value.error_type == "DeadlineError"


def test_a_result_that_cannot_travel(spark):
    with pytest.raises(dist.WorkerError, match="the result of main cannot be sent to the driver"):
        dist.launch(lambda worker: threading.Lock(), num_workers=2)


def test_a_module_that_the_workers_lack(spark):
    module = types.ModuleType("only_on_the_driver")
    exec("def main(worker):\n    return 1\n", module.__dict__)
    sys.modules[module.__name__] = module
    try:
        with pytest.raises(dist.WorkerError, match="No module named 'only_on_the.*addPyFile"):
            dist.launch(module.main, num_workers=2)
    finally:
        del sys.modules[module.__name__]


def test_an_exit_is_a_failure(spark):
    with pytest.raises(dist.WorkerError, match="raised SystemExit: 3"):
        dist.launch(lambda worker: sys.exit(3), num_workers=2)


def test_more_workers_than_slots(spark):
    with pytest.raises(dist.SlotsError) as caught:
        dist.launch(lambda worker: None, num_workers=3)
    for part in ("num_workers=3", "local[2] has 2 slots", "num_workers to 2", "local[3]"):
        assert part in str(caught.value)


def test_bad_arguments():
    for bad, error, message in [
        ({"main": 3, "num_workers": 2}, TypeError, "main must be a function .* got int"),
        ({"main": print, "num_workers": 0}, ValueError, "num_workers must be at least 1, got 0"),
        ({"main": print, "num_workers": -2}, ValueError, "at least 1, got -2"),
        ({"main": print, "num_workers": "2"}, TypeError, "num_workers must be an int, got '2'"),
        ({"main": print, "num_workers": True}, TypeError, "must be an int, got True"),
        (
            {"main": print, "num_workers": 2, "port_range": (9, 3)},
            ValueError,
            r"port_range must be \(first, last\)",
        ),
    ]:
        with pytest.raises(error, match=message):
            dist.launch(**bad)


def test_arguments_that_cannot_travel(spark):
    lock = threading.Lock()
    refusal = "cannot be sent to the workers.*must be made inside main"
    with pytest.raises(TypeError, match=refusal):
        dist.launch(lambda worker: lock, num_workers=2)
    with pytest.raises(TypeError, match=refusal):
        dist.launch(lambda worker, lock: None, args=(lock,), num_workers=2)


def test_the_session_is_as_good_as_before(spark):
    assert spark.range(10).count() == 10
    assert dist.launch(lambda worker: worker.rank, num_workers=2) == [0, 1]


class FakeContext:
    """As much of a SparkContext as `cluster.check` looks at."""

    master = "yarn"

    def __init__(self, **settings):
        self._settings = settings

    def getConf(self):
        return self._settings


def test_dynamic_allocation_is_refused():
    context = FakeContext(**{"spark.dynamicAllocation.enabled": "true"})
    with pytest.raises(dist.DistributedError, match="set it to false and ask for a fixed number"):
        cluster.check(context, 2, 0.0)


@pytest.mark.parametrize(
    "key",
    ["spark.network.crypto.enabled", "spark.ssl.enabled", "spark.io.encryption.enabled"],
)
def test_workers_encrypt_where_spark_does_unless_told_otherwise(key):
    assert cluster.must_encrypt(FakeContext(**{key: "true"}), None) is True
    assert cluster.must_encrypt(FakeContext(**{key: "true"}), False) is False
    assert cluster.must_encrypt(FakeContext(**{key: "false"}), None) is False
    assert cluster.must_encrypt(FakeContext(), None) is False
    assert cluster.must_encrypt(FakeContext(), True) is True


def test_without_java_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setenv("JAVA_HOME", "/nowhere")
    monkeypatch.delenv("PYSPARK_GATEWAY_PORT", raising=False)
    with pytest.raises(dist.DistributedError, match="Java 17 or newer.*apt install openjdk-17"):
        cluster._new_session(2)


def test_sessions_without_barrier_stages_are_refused():
    with pytest.raises(dist.DistributedError, match="got SimpleNamespace.*Spark Connect"):
        cluster.spark_context(types.SimpleNamespace(), 2)


def test_executors_without_tensorlite_are_explained():
    context = FakeContext()
    context.pythonExec = "/opt/python"
    text = (
        "PythonException: ModuleNotFoundError: No module named 'tensorlite'\n\tat java.lang.Thread"
    )
    failure = cluster.failed_task(context, text)
    assert "Python (/opt/python) has no tensorlite" in failure.describe()
    assert "java.lang.Thread" not in failure.describe()


def test_a_report_survives_in_the_text_of_an_exception():
    failure = Failure(2, "host", "error", "ValueError", "bo\nom", "Trace\nback", 2)
    text = f"Job aborted: PythonException: {TaskFailed(failure)}\n\tat java.lang.Thread.run"
    assert failure_in(text) == failure
    assert failure_in("Job aborted: something else") is None


def test_without_a_session_a_local_one_is_started(monkeypatch):
    from pyspark.sql import SparkSession

    monkeypatch.delenv("PYSPARK_PYTHON", raising=False)
    stop_spark()
    try:
        pythons = dist.launch(lambda worker: sys.executable, num_workers=2)
        assert pythons == [sys.executable] * 2, "the tasks run in the driver's own environment"
        session = SparkSession.getActiveSession()
        assert session is not None
        assert session.sparkContext.master == "local[2]"
        assert dist.launch(lambda worker: worker.size, num_workers=2) == [2, 2]
    finally:
        stop_spark()
