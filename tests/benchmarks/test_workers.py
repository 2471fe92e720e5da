"""Workers answer, sleep in between, and tell what went wrong."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

import pytest

from benchmarks import workers
from benchmarks.workers import Worker, WorkerError, take_turns


@pytest.fixture
def worker() -> Iterator[Worker]:
    with Worker("numpy", "kernels.in_numpy", threads=1) as started:
        yield started


def state_of(worker: Worker) -> str:
    """The letter of the process's state: T is stopped."""
    stat = pathlib.Path(f"/proc/{worker._process.pid}/stat").read_text()
    return stat.rpartition(")")[2].split()[0]


def test_a_step_is_built_and_run(worker: Worker) -> None:
    worker.ask(build="build_copy", arguments={"moved": 8000})
    answer = worker.ask(run=3)
    assert len(answer["seconds"]) == 3 and min(answer["seconds"]) > 0
    assert answer["values"] == [None] * 3


def test_memory_grows_by_what_the_step_needs(worker: Worker) -> None:
    worker.ask(build="build_copy", arguments={"moved": 64 * 2**20})
    worker.ask(run=1)
    memory = worker.ask(memory=True)
    assert memory["peak"] - memory["base"] > 60 * 1024


def test_it_sleeps_after_every_answer(worker: Worker) -> None:
    worker.ask(memory=True)
    while (state := state_of(worker)) in "RS":  # until the signal has arrived
        pass
    assert state == "T"


def test_it_is_pinned_to_as_many_processors_as_it_has_threads(worker: Worker) -> None:
    worker.ask(memory=True)
    assert len(os.sched_getaffinity(worker._process.pid)) == 1


def test_errors_come_with_their_traceback(worker: Worker) -> None:
    with pytest.raises(WorkerError, match=r"(?s)numpy failed at .*no step to run yet"):
        worker.ask(run=1)
    with pytest.raises(WorkerError, match=r"(?s)build_nothing.*AttributeError"):
        worker.ask(build="build_nothing", arguments={})
    with pytest.raises(WorkerError, match="no such request"):
        worker.ask(dance=True)
    worker.ask(build="build_copy", arguments={"moved": 8000})  # and it goes on


def test_a_module_that_does_not_exist_is_named() -> None:
    with (
        Worker("numpy", "kernels.in_fortran", threads=1) as worker,
        pytest.raises(WorkerError, match="in_fortran"),
    ):
        worker.ask(memory=True)


def test_a_worker_that_has_died_is_named(worker: Worker) -> None:
    worker.ask(memory=True)
    worker._process.kill()
    worker._process.wait()
    with pytest.raises(WorkerError, match="numpy gave no answer to"):
        worker.ask(run=1)


def test_a_framework_without_environment_says_how_to_make_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setattr(workers, "PEERS", tmp_path)
    with pytest.raises(WorkerError, match="no environment for jax .* make peers"):
        Worker("jax", "models.in_jax", threads=1)


def test_more_threads_than_processors_are_refused() -> None:
    with pytest.raises(WorkerError, match="threads asked for"):
        Worker("numpy", "kernels.in_numpy", threads=len(os.sched_getaffinity(0)) + 1)


def test_turns_give_one_median_for_each_worker() -> None:
    with contextlib.ExitStack() as stack:
        both = [stack.enter_context(Worker("numpy", "kernels.in_numpy", 1)) for _ in range(2)]
        for worker, moved in zip(both, (8_000, 80_000_000), strict=True):
            worker.ask(build="build_copy", arguments={"moved": moved})
        small, large = take_turns(both, rounds=2, seconds=0.01)
    assert 0 < small < large  # ten thousand times the bytes


def test_workers_can_be_asked_at_the_same_time() -> None:
    with contextlib.ExitStack() as stack:
        both = [
            stack.enter_context(Worker("numpy", "kernels.in_numpy", 1, prefix=("env", "-")))
            for _ in range(2)
        ]
        for worker in both:
            worker.request(build="build_copy", arguments={"moved": 8_000})
        assert [worker.answer() for worker in both] == [{}, {}]
        for worker in both:
            worker.sleep()
        assert all(len(worker.ask(run=2)["seconds"]) == 2 for worker in both)
