"""Collectives that go on in the background: one order with those that do not, and errors that
arrive where somebody waits."""

import threading

import numpy as np
import pytest

import tensorlite.distributed as dist
from tensorlite.distributed import local_worker, run_local
from tensorlite.distributed.turns import Handle, Turns
from tests.distributed.transports import TRANSPORTS, reached_through


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_background_and_blocking_calls_share_one_order(transport):
    def main(worker):
        ring = worker.ring
        handles = [ring.all_reduce_async(np.full(n, 1.0, np.float32)) for n in (10, 10**6, 7, 3)]
        blocking = ring.all_reduce_(np.full(5, 2.0))
        assert all(handle.done() for handle in handles), "the later call has run"
        late = ring.all_reduce_async(np.full(200_000, worker.rank), "max")
        gathered = ring.all_gather(np.array([worker.rank]))
        assert late.done()
        results = [handle.wait() for handle in handles]
        return results, blocking, late.wait(timeout=10), gathered

    with reached_through(transport) as options:
        everywhere = run_local(main, num_workers=3, **options)
    for results, blocking, late, gathered in everywhere:
        for result in results:
            np.testing.assert_array_equal(result, np.full(len(result), 3))
        np.testing.assert_array_equal(blocking, np.full(5, 6.0))
        np.testing.assert_array_equal(late, np.full(200_000, 2))
        np.testing.assert_array_equal(gathered.ravel(), [0, 1, 2])


def test_the_result_is_in_the_array():
    def main(worker):
        array = np.ones(100_000, np.float32)
        handle = worker.ring.all_reduce_async(array, "mean", wire="bfloat16")
        return handle.wait() is array and array[0] == 1

    assert run_local(main, num_workers=2) == [True, True]


def test_a_world_of_one():
    with local_worker() as worker:
        array = np.arange(3.0)
        assert worker.ring.all_reduce_async(array).wait() is array
        with pytest.raises(TypeError, match="the sum of bool"):
            worker.ring.all_reduce_async(np.ones(2, bool))


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_an_error_is_raised_by_wait_and_by_everything_later(transport):
    raised = {}

    def main(worker):
        length = 3 if worker.rank == 1 else 4
        first = worker.ring.all_reduce_async(np.ones(2))
        wrong = worker.ring.all_reduce_async(np.ones(length))
        later = worker.ring.all_reduce_async(np.ones(2))
        first.wait()
        caught = []
        for wait in (wrong.wait, wrong.wait, later.wait, worker.ring.barrier):
            try:
                wait()
            except dist.MismatchError as error:
                caught.append(str(error))
        raised[worker.rank] = caught

    with reached_through(transport) as options:
        run_local(main, num_workers=3, **options)
    for caught in raised.values():
        assert len(caught) == 4
        for text in caught:
            assert "float64[3]" in text
            assert "float64[4]" in text


def test_waiting_has_a_limit():
    release = threading.Event()

    def main(worker):
        if worker.rank == 1:
            release.wait(30)
        handle = worker.ring.all_reduce_async(np.ones(4))
        if worker.rank == 0:
            assert not handle.done()
            with pytest.raises(TimeoutError):
                handle.wait(timeout=0.05)
            release.set()
        return handle.wait()[0]

    assert run_local(main, num_workers=2) == [2, 2]


def test_handles_that_nobody_waited_for_fail_when_main_returns():
    kept = {}
    started = threading.Event()

    def main(worker):
        worker.ring.barrier()
        if worker.rank == 0:
            kept["first"] = worker.ring.all_reduce_async(np.ones(4))
            kept["second"] = worker.ring.all_reduce_async(np.ones(4))
            started.set()
        else:
            started.wait(10)
            with pytest.raises(dist.DistributedError):
                kept["second"].wait(timeout=10)
            worker.ring.barrier()

    with pytest.raises(dist.WorkerError, match="rank 0 .*(left|called all_reduce)"):
        run_local(main, num_workers=2)
    for handle in kept.values():
        with pytest.raises(dist.DistributedError, match="Wait for every handle"):
            handle.wait(timeout=10)


def test_starts_run_in_their_order():
    turns = Turns("test")
    ran = []
    hold = threading.Event()

    def first():
        hold.wait(10)
        ran.append(0)
        return np.empty(0)

    def later(number):
        ran.append(number)
        return np.empty(0)

    handles = [turns.start(first), *[turns.start(lambda n=n: later(n)) for n in (1, 2)]]
    hold.set()
    with turns.turn():
        ran.append(3)
    for handle in handles:
        handle.wait()
    assert ran == [0, 1, 2, 3]
    turns.close()
    with pytest.raises(dist.DistributedError, match="the ring is closed"), turns.turn():
        pass
    with pytest.raises(dist.DistributedError, match="the ring is closed"):
        turns.start(first)


def test_a_handle_keeps_its_first_outcome():
    handle = Handle()
    handle.settle(lambda: np.ones(1))
    handle.fail(ValueError("too late"))
    assert handle.wait().tolist() == [1]
