"""News of a failure reaches every rank, whoever fails, and all ranks end together."""

import socket
import struct
import threading
import time

import pytest

from tensorlite.distributed import control as control_module
from tensorlite.distributed.control import MAX_MESSAGE, Control
from tensorlite.distributed.errors import Failure
from tensorlite.distributed.frames import frame
from tensorlite.distributed.rendezvous import Member
from tensorlite.distributed.streams import PlainStream, receive_exactly, send_all

from .worlds import soon, tls_pair

LONG = 20.0  # seconds: a bound for what should take none


class World:
    """The control channels of `size` ranks over socket pairs. `raw[k]` is rank k's end."""

    def __init__(self, size: int, without: tuple[int, ...] = (), silence: float = 8.0):
        members = [Member(rank, f"host{rank}", 1) for rank in range(size)]
        hub_links, self.raw = {}, {}
        for rank in range(1, size):
            ours, self.raw[rank] = socket.socketpair()
            hub_links[rank] = PlainStream(ours)
        self.woken = [threading.Event() for _ in range(size)]
        self.ranks = {0: Control(0, members, hub_links, self.woken[0].set, silence)}
        for rank in range(1, size):
            if rank not in without:
                link = {0: PlainStream(self.raw[rank])}
                self.ranks[rank] = Control(rank, members, link, self.woken[rank].set, silence)

    def close(self):
        for control in self.ranks.values():
            control.close()
        for link in self.raw.values():
            link.close()


@pytest.fixture
def make_world():
    worlds = []

    def make(*args, **options):
        worlds.append(World(*args, **options))
        return worlds[-1]

    yield make
    for world in worlds:
        world.close()


def failure_at(rank: int) -> Failure:
    return Failure(rank, f"host{rank}", "error", "ValueError", "boom", "Traceback ...")


@pytest.mark.parametrize("culprit", [0, 1, 3])
def test_everyone_hears_of_a_failure(make_world, culprit):
    world = make_world(4)
    world.ranks[culprit].abort(failure_at(culprit))
    for rank, control in world.ranks.items():
        assert control.wait_failure(LONG) == failure_at(culprit), rank
        assert world.woken[rank].wait(LONG)


def test_the_first_failure_counts(make_world):
    world = make_world(3)
    world.ranks[2].abort(failure_at(2))
    assert world.ranks[1].wait_failure(LONG) == failure_at(2)
    world.ranks[1].abort(failure_at(1))
    assert world.ranks[0].wait_failure(LONG) == failure_at(2)
    assert world.ranks[1].failure == failure_at(2)


@pytest.mark.parametrize("victim", [0, 2])
def test_a_dead_process_is_named_by_all_others(make_world, victim):
    world = make_world(4, without=() if victim == 0 else (victim,))
    if victim == 0:
        world.ranks.pop(0).close()
    else:
        world.raw[victim].close()
    for control in world.ranks.values():
        failure = control.wait_failure(LONG)
        assert (failure.kind, failure.rank, failure.host) == ("lost", victim, f"host{victim}")
        assert "was lost: its control connection ended without a farewell" in failure.describe()


@pytest.mark.parametrize("victim", [0, 2])
def test_a_rank_that_gives_no_sign_of_life_is_lost(make_world, monkeypatch, victim):
    monkeypatch.setattr(control_module, "BEAT_SECONDS", 0.05)
    world = make_world(3, silence=0.4)
    time.sleep(0.8)
    assert all(control.failure is None for control in world.ranks.values())
    silent = world.ranks[victim]
    monkeypatch.setattr(silent, "_send", lambda peer, message: None)  # as if it were stopped
    for rank, control in world.ranks.items():
        if rank != victim:
            failure = control.wait_failure(LONG)
            assert (failure.kind, failure.rank) == ("lost", victim)
            assert "there has been no sign of life from it for" in failure.message
            assert not control.leave(seconds=0.3)  # it has not ended


def test_who_stood_still_itself_blames_nobody(make_world, monkeypatch):
    """As where all processes of a machine are stopped for a while and go on."""
    monkeypatch.setattr(control_module, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(control_module, "ASLEEP_SECONDS", 0.3)
    stood_still, plain = set(), Control._beat

    def beat(self, heard, now):
        if self not in stood_still:
            stood_still.add(self)
            time.sleep(1.0)
        plain(self, heard, now)

    monkeypatch.setattr(Control, "_beat", beat)
    world = make_world(2, silence=0.5)
    time.sleep(1.6)
    assert stood_still == set(world.ranks.values())
    assert all(control.failure is None for control in world.ranks.values())


def leave_all(world, seconds=None):
    answers = {}

    def leave(rank):
        answers[rank] = world.ranks[rank].leave(seconds)

    threads = [threading.Thread(target=leave, args=(rank,)) for rank in world.ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def test_all_leave_together_and_closing_in_any_order_is_no_failure(make_world):
    world = make_world(4)
    assert leave_all(world) == dict.fromkeys(range(4), True)
    for rank in (0, 3, 1, 2):
        world.ranks[rank].close()
        assert all(control.failure is None for control in world.ranks.values())


def test_leaving_waits_for_the_last_one(make_world):
    world = make_world(3, without=(2,))
    assert leave_all(world, seconds=0.2) == {0: False, 1: False}


def test_a_failure_ends_the_wait(make_world):
    world = make_world(3)
    timer = threading.Timer(0.1, world.ranks[2].abort, [failure_at(2)])
    timer.start()
    assert world.ranks[1].leave(None) is False
    assert world.ranks[1].failure == failure_at(2)
    timer.join()


def test_after_a_failure_all_still_leave_together(make_world):
    world = make_world(3)
    world.ranks[1].abort(failure_at(1))
    assert leave_all(world, seconds=LONG) == dict.fromkeys(range(3), True)


def test_the_dead_need_no_farewell(make_world):
    world = make_world(3, without=(1,))
    world.raw[1].close()
    assert leave_all(world, seconds=LONG) == {0: True, 2: True}


@pytest.mark.parametrize(
    "garbage",
    [
        struct.pack("!I", MAX_MESSAGE + 1),
        struct.pack("!I", 3) + b"{{{",
        struct.pack("!I", 100_000) + b"[" * 100_000,
        struct.pack("!I", 2) + b"[]",
        struct.pack("!I", 2) + b"{}",
        struct.pack("!I", 16) + b'{"kind": "evil"}',
        struct.pack("!I", 17) + b'{"kind": "abort"}',
    ],
)
def test_garbage_counts_as_a_lost_rank(make_world, garbage):
    world = make_world(3, without=(1,))
    world.raw[1].sendall(garbage)
    for control in world.ranks.values():
        assert control.wait_failure(LONG).rank == 1


def test_a_message_that_came_with_the_end_of_the_handshake():
    """It has left the socket before the channel begins to watch it."""
    ours, theirs = tls_pair()
    message = {"kind": "abort", "failure": failure_at(1).to_json()}
    send_all(theirs, b"x" + frame(message), soon())
    assert receive_exactly(ours, 1, soon()) == b"x"
    members = [Member(rank, f"host{rank}", 1) for rank in range(2)]
    control = Control(0, members, {1: ours}, lambda: None, 8.0)
    assert control.wait_failure(LONG) == failure_at(1)
    control.close()
    theirs.close()
