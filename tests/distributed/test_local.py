"""Worlds without Spark: one worker, threads and processes, with the errors of a cluster."""

import os
import signal
import time

import numpy as np
import pytest

import tensorlite.distributed as dist


def share_noise(worker):
    """The bytes of a sum whose rounding depends on the order of the ranks."""
    noise = np.random.default_rng(worker.rank).normal(size=300_000).astype(np.float32)
    return worker.ring.all_reduce_(noise, "sum").tobytes()


def total_of(worker, first):
    return worker.rank, float(np.asarray(dist.all_reduce(np.float64(first + worker.rank))))


def fail_on_one(worker):
    if worker.rank == 1:
        raise ValueError("this goes wrong")
    dist.barrier()


def die_on_two(worker):
    if worker.rank == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


def stay_busy_elsewhere(worker):
    if worker.rank == 0:
        raise ValueError("while the others are busy")
    time.sleep(1000)


def return_a_lambda(worker):
    return lambda: worker


def exit_on_one(worker):
    if worker.rank == 1:
        raise SystemExit(3)
    dist.barrier()


def test_a_world_of_one():
    with dist.local_worker() as worker:
        assert (worker.rank, worker.size, worker.device) == (0, 1, "cpu")
        assert dist.current_worker() is worker
        assert np.asarray(dist.all_reduce(np.ones(2), op="mean")).tolist() == [1, 1]
        assert np.asarray(dist.all_gather(np.ones(2))).shape == (1, 2)
        dist.barrier()
    with pytest.raises(dist.DistributedError, match="there is no worker here"):
        dist.current_worker()


@pytest.mark.parametrize("mode", ["threads", "processes"])
@pytest.mark.parametrize("size", [1, 3])
def test_results_come_in_rank_order(mode, size):
    got = dist.run_local(total_of, (10,), num_workers=size, mode=mode)
    assert got == [(rank, sum(range(10, 10 + size))) for rank in range(size)]


@pytest.mark.parametrize("mode", ["threads", "processes"])
def test_results_are_the_same_bits_with_encryption(mode):
    plain = dist.run_local(share_noise, num_workers=3, mode=mode)
    encrypted = dist.run_local(share_noise, num_workers=3, mode=mode, encrypt=True)
    assert encrypted == plain


@pytest.mark.parametrize("encrypt", [False, True])
@pytest.mark.parametrize("mode", ["threads", "processes"])
def test_the_one_error_that_counts(mode, encrypt):
    with pytest.raises(dist.WorkerError) as caught:
        dist.run_local(fail_on_one, num_workers=3, mode=mode, encrypt=encrypt)
    error = caught.value
    assert (error.rank, error.host, error.error_type) == (1, "127.0.0.1", "ValueError")
    assert str(error).startswith("rank 1 (host 127.0.0.1) raised ValueError: this goes wrong")
    assert "in fail_on_one" in error.traceback
    assert "run_local" not in error.traceback, "the user's own frames are the story"


def test_a_killed_process_is_named():
    with pytest.raises(dist.WorkerError, match="rank 2 .* was lost: its process ended") as caught:
        dist.run_local(die_on_two, num_workers=3, mode="processes")
    assert caught.value.rank == 2


def test_busy_processes_are_stopped():
    with pytest.raises(dist.WorkerError, match="while the others are busy"):
        dist.run_local(stay_busy_elsewhere, num_workers=3, mode="processes")


def test_an_exit_in_one_worker_is_a_failure():
    with pytest.raises(dist.WorkerError, match="rank 1 .* raised SystemExit: 3"):
        dist.run_local(exit_on_one, num_workers=2)


def test_a_result_that_cannot_travel():
    with pytest.raises(dist.WorkerError, match="the result cannot be sent back"):
        dist.run_local(return_a_lambda, num_workers=2, mode="processes")


def test_other_errors_reach_every_worker():
    seen = {}

    def main(worker):
        if worker.rank == 0:
            raise KeyError("a missing file")
        try:
            dist.all_reduce(np.ones(10**6))
        except dist.PeerError as error:
            seen[worker.rank] = error
            raise

    with pytest.raises(dist.WorkerError, match="KeyError: 'a missing file'"):
        dist.run_local(main, num_workers=4)
    assert sorted(seen) == [1, 2, 3]
    for error in seen.values():
        assert "stopped, because rank 0 (host 127.0.0.1) raised KeyError" in str(error)
        assert error.failure.rank == 0


def test_an_unknown_device_is_named():
    with pytest.raises(dist.WorkerError, match="there is no device 'abacus'"):
        dist.run_local(total_of, (0,), num_workers=2, device="abacus")


def test_bad_arguments():
    with pytest.raises(ValueError, match="num_workers must be at least 1, got 0"):
        dist.run_local(total_of, num_workers=0)
    with pytest.raises(ValueError, match="mode must be 'threads' or 'processes', got 'fork'"):
        dist.run_local(total_of, num_workers=1, mode="fork")
