"""The queue of a communicator's collectives, and which communicator is the current one."""

from __future__ import annotations

import contextvars
import os
import sys
import threading
from typing import Any

import pytest

import tensorlite as tl
from tensorlite import collective, communication
from tensorlite.communication import Alone, Channel
from tests.worlds import Mirror


def start(channel: Channel, number: int) -> None:
    os.write(channel.inlet, number.to_bytes(8, sys.byteorder))


def test_jobs_run_in_the_order_of_their_starts_and_calls_wait_for_them() -> None:
    channel, order, gate = Channel(Mirror()), [], threading.Event()

    def first() -> None:
        gate.wait()
        order.append("first")

    numbers = [
        channel.enlist(act, lambda name=name: order.append(name))  # type: ignore[misc]
        for act, name in ((lambda: order.append("second"), "told second"), (first, "told first"))
    ]
    start(channel, numbers[1])
    start(channel, numbers[0])
    threading.Timer(0.05, gate.set).start()
    assert channel.call(lambda c: (order.append("call"), c.size)[1]) == 2
    assert order == ["first", "told first", "second", "told second", "call"]
    assert channel.exposed > 0
    channel.close()


def test_an_idle_channel_calls_at_once_and_has_no_thread() -> None:
    before = threading.active_count()
    channel = Channel(Mirror())
    assert channel.call(lambda c: threading.current_thread()) is threading.current_thread()
    channel.close()
    assert threading.active_count() == before


def test_errors_reach_the_caller_from_either_thread() -> None:
    def fail(communicator: Any) -> None:
        raise OSError("the cable is out")

    channel, gate = Channel(Mirror()), threading.Event()
    with pytest.raises(OSError, match="cable"):
        channel.call(fail)
    start(channel, channel.enlist(gate.wait, lambda: None))
    threading.Timer(0.05, gate.set).start()
    with pytest.raises(OSError, match="cable"):
        channel.call(fail)
    channel.close()


def test_withdrawn_jobs_do_not_run() -> None:
    channel, ran = Channel(Mirror()), []
    number = channel.enlist(lambda: ran.append(1), lambda: None)
    channel.withdraw([number])
    start(channel, number)
    assert channel.call(lambda c: "called") == "called"
    channel.close()
    assert ran == []


def test_closing_does_not_wait_for_a_collective_that_is_stuck() -> None:
    channel, gate, done = Channel(Mirror()), threading.Event(), threading.Event()
    start(channel, channel.enlist(gate.wait, done.set))
    channel.close()
    assert not done.is_set()
    gate.set()
    assert done.wait(10)


def test_worlds_nest_and_end() -> None:
    assert communication.world() == (1, None)
    with communication.entered(Mirror(3)), communication.bucketing(100):
        assert communication.world() == (3, 100)
        with communication.entered(None):
            assert communication.world() == (1, None)
        with communication.entered(Alone()):
            assert communication.world() == (1, None)
        assert communication.world() == (3, 100)
    assert communication.world() == (1, None)


def test_a_thread_in_a_copy_of_the_context_knows_the_world() -> None:
    found: list[float] = []

    def reduce() -> None:
        tl.ones(1) + 1  # kernels run in a context that is made here
        found.append(float(tl.jit(collective.all_reduce)(1.0)))
        found.append(float(collective.all_reduce(1.0)))

    def run(target: Any) -> None:
        thread = threading.Thread(target=target)
        thread.start()
        thread.join()

    with communication.entered(Mirror(2)):
        context = contextvars.copy_context()
        run(lambda: context.run(reduce))
    run(reduce)
    assert found == [2, 2, 1, 1]


def test_a_world_entered_after_the_first_computation_of_a_thread() -> None:
    assert float(tl.asarray(1.0) + 1) == 2
    with communication.entered(Mirror(2)):
        assert float(collective.all_reduce(1.0)) == 2
    assert float(collective.all_reduce(1.0)) == 1
