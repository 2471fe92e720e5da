"""Counters in shared memory: waiting, waking, and what ends a wait otherwise."""

import mmap
import os
import threading

import numpy as np
import pytest

from tensorlite import futex

pytestmark = pytest.mark.skipif(
    futex.missing() is not None, reason="this machine has no such counters"
)


class Counters:
    """Counters in memory that survives a fork."""

    def __init__(self, count):
        memory = mmap.mmap(-1, count * futex.LINE)
        self.words = np.frombuffer(memory, np.int32).reshape(count, -1)
        start = self.words.__array_interface__["data"][0]
        self.lines = [start + number * futex.LINE for number in range(count)]


def wait(waiter, target, only=None):
    while (seen := waiter.wait(target, only)) is not None and seen[1] == futex.LATE:
        pass
    return seen


@pytest.mark.parametrize("looks", [0, 1000])
def test_two_processes_take_turns(looks):
    counters = Counters(2)
    ours, theirs = counters.lines
    rounds = 2000
    child = os.fork()
    if child == 0:
        waiter = futex.Waiter([ours], looks)
        for number in range(1, rounds + 1):
            if wait(waiter, number) is not None:
                os._exit(1)
            futex.post(theirs)
        os._exit(0)
    waiter = futex.Waiter([theirs], looks)
    for number in range(1, rounds + 1):
        futex.post(ours)
        assert wait(waiter, number) is None
    assert os.waitpid(child, 0)[1] == 0
    assert counters.words[:, :2].tolist() == [[rounds, 0], [rounds, 0]], "nobody sleeps any more"


def test_a_sleeper_is_woken_by_a_post():
    counters = Counters(1)
    waiter = futex.Waiter(counters.lines, looks=0)
    seen = []
    thread = threading.Thread(target=lambda: seen.append(wait(waiter, 1)))
    thread.start()
    while counters.words[0, 1] == 0:
        pass
    futex.post(counters.lines[0])
    thread.join()
    assert seen == [None]


def test_the_one_that_is_missing_is_named():
    counters = Counters(3)
    waiter = futex.Waiter(counters.lines, looks=0)
    futex.post(counters.lines[0])
    futex.post(counters.lines[2])
    assert waiter.wait(1) == (1, futex.LATE)
    assert waiter.wait(1, only=2) is None
    assert waiter.wait(1, only=1) == (1, futex.LATE)
    futex.post(counters.lines[1])
    assert waiter.wait(1) is None


def test_who_has_left_is_not_waited_for():
    counters = Counters(1)
    waiter = futex.Waiter(counters.lines, looks=0)
    futex.post(counters.lines[0])
    futex.close(counters.lines[0])
    assert waiter.wait(1) is None, "it posted before it left"
    assert waiter.wait(2) == (0, futex.CLOSED)


def test_stop_ends_a_wait_in_another_thread():
    counters = Counters(1)
    waiter = futex.Waiter(counters.lines, looks=0)
    seen = []
    thread = threading.Thread(target=lambda: seen.append(wait(waiter, 1)))
    thread.start()
    waiter.stop()
    thread.join()
    assert seen == [(0, futex.STOPPED)]


def test_counts_wrap_around():
    counters = Counters(1)
    waiter = futex.Waiter(counters.lines, looks=0)
    counters.words[0, 0] = 2**31 - 1
    assert waiter.wait(2**31 - 1) is None
    futex.post(counters.lines[0])
    assert counters.words[0, 0] == -(2**31)
    assert waiter.wait(2**31) is None
    assert waiter.wait(2**31 + 1) == (0, futex.LATE)
