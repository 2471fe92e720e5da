"""launch on executors that are processes of their own: a local cluster, and a standalone one."""

import os
import time

import numpy as np
import pytest

import tensorlite as tl
import tensorlite.distributed as dist

from .conftest import kill, parent_of, spark_local_cluster, spark_standalone, wait_until_gone

pytestmark = [pytest.mark.spark, pytest.mark.timeout(180)]


@pytest.fixture(scope="module", params=["local-cluster", "standalone"])
def spark(request, tmp_path_factory):
    if request.param == "local-cluster":
        with spark_local_cluster(workers=2) as session:
            yield session
    else:
        folder = tmp_path_factory.mktemp("standalone")
        with spark_standalone(workers=2, folder=folder) as session:
            yield session


def test_workers_in_different_executors(spark):
    def main(worker, length):
        daemon = parent_of(os.getpid())
        mine = np.random.default_rng(worker.rank).normal(size=length)
        total = dist.all_reduce({"x": tl.asarray(mine), "n": tl.asarray(worker.rank)})
        return parent_of(daemon), mine, total

    (one, a, total), (other, b, same) = dist.launch(main, args=(200_000,), num_workers=2)
    assert one != other, "two executors, so that nothing is shared but the ring"
    np.testing.assert_array_equal(np.asarray(total["x"]), a + b)
    assert np.asarray(total["x"]).tobytes() == np.asarray(same["x"]).tobytes()
    assert int(total["n"]) == 1


def test_more_workers_than_slots(spark):
    dist.launch(lambda worker: None, num_workers=2)  # both executors have registered
    with pytest.raises(dist.SlotsError) as caught:
        dist.launch(lambda worker: None, num_workers=3, slots_timeout=1.0)
    for part in ("num_workers=3", "has 2 slots", "num_workers to 2", "spark.executor.instances"):
        assert part in str(caught.value)


def test_a_raising_worker_ends_a_busy_one(spark, tmp_path):
    pid_file = tmp_path / "pid"

    def main(worker):
        if worker.rank == 0:
            pid_file.write_text(str(os.getpid()))
            time.sleep(1000)
        while not pid_file.exists():
            time.sleep(0.01)
        raise ValueError("on an executor")

    with pytest.raises(dist.WorkerError, match="rank 1 .*partition 1.* ValueError: on an executor"):
        dist.launch(main, num_workers=2)
    wait_until_gone(int(pid_file.read_text()))


def test_a_killed_worker(spark, tmp_path):
    def main(worker):
        (tmp_path / str(worker.rank)).write_text(str(os.getpid()))
        dist.barrier()
        if worker.rank == 1:
            kill(os.getpid())
        dist.all_reduce(tl.ones(10**6))

    with pytest.raises(dist.WorkerError, match="rank 1 .*partition 1.* was lost") as caught:
        dist.launch(main, num_workers=2)
    assert caught.value.rank == 1
    assert dist.launch(lambda worker: worker.rank, num_workers=2) == [0, 1]


def test_a_killed_executor(spark, tmp_path):
    def main(worker):
        (tmp_path / str(worker.rank)).write_text(str(os.getpid()))
        dist.barrier()
        if worker.rank == 0:
            kill(parent_of(parent_of(os.getpid())))
        dist.all_reduce(tl.ones(10**6))
        time.sleep(1000)

    with pytest.raises(dist.WorkerError, match="rank 0 .*partition 0.* was lost"):
        dist.launch(main, num_workers=2)
    for rank in (0, 1):
        wait_until_gone(int((tmp_path / str(rank)).read_text()))
    # Spark starts another executor in place of the dead one.
    assert dist.launch(lambda worker: worker.rank, num_workers=2) == [0, 1]
