"""Plain and encrypted streams behave alike: every byte once, in order, and no call blocks."""

import contextlib
import select
import socket
import threading
import time
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorlite.distributed.streams import receive_exactly, send_all
from tensorlite.distributed.transport import ConnectionLost, Stalled
from tensorlite.distributed.transport.tcp import TcpTransport

from .worlds import plain_pair, soon, tls_pair

SMALL = 64 * 1024  # bytes of a socket's buffer, so that it is full soon
PAIRS = {"plain": plain_pair, "tls": tls_pair}


@contextlib.contextmanager
def streams(kind, buffer_bytes=None):
    pair = PAIRS[kind](buffer_bytes)
    try:
        yield pair
    finally:
        for stream in pair:
            stream.close()


both = pytest.mark.parametrize("kind", PAIRS)


@pytest.mark.parametrize("kind", PAIRS)
@given(
    pieces=st.lists(st.binary(max_size=40) | st.just(b"x" * 70_000), min_size=1, max_size=9),
    step=st.integers(1000, 100_000),
)
@settings(max_examples=25)
def test_bytes_arrive_once_and_in_order(kind, pieces, step):
    whole = b"".join(pieces)
    with streams(kind) as (one, other):
        sends = [memoryview(piece) for piece in pieces]
        received = b""
        while len(received) < len(whole):
            count = one.send(sends)
            while sends and count >= len(sends[0]):
                count -= len(sends.pop(0))
            if count:
                sends[0] = sends[0][count:]
            buffer = memoryview(bytearray(step))
            received += bytes(buffer[: other.receive(buffer)])
        assert received == whole
        assert other.receive(memoryview(bytearray(1))) == 0


@both
def test_whoever_has_not_been_read_is_told_to_wait(kind):
    with streams(kind, buffer_bytes=SMALL) as (one, other):
        data = memoryview(bytes(range(256)) * 4096)
        sent = 0
        idle = 0
        while idle < 3:  # until the buffers of both ends are full
            count = one.send((data[sent % len(data) :],))
            sent += count
            idle = idle + 1 if count == 0 else 0
            if count == 0:
                time.sleep(0.02)
        # Nothing that the kernel had no room for was lost, or is sent twice.
        received = 0
        target = sent + 2_000_000
        buffer = memoryview(bytearray(100_000))
        while received < target:
            sent += one.send((data[sent % len(data) :],))
            count = other.receive(buffer)
            whole = bytes(data) * 2
            start = received % len(data)
            assert buffer[:count] == whole[start : start + count]
            received += count


@both
def test_two_who_both_send_megabytes_do_not_wait_for_each_other(kind):
    with streams(kind, SMALL) as (a, b), streams(kind, SMALL) as (c, d):
        # Rank 0 sends on a and receives on d; rank 1 sends on c and receives on b.
        ranks = [TcpTransport(1, 1, d, a), TcpTransport(0, 0, b, c)]
        data = [bytes([rank]) * 4_000_003 for rank in (1, 2)]
        into = [bytearray(4_000_003) for _ in ranks]

        def run(rank):
            ranks[rank].exchange(
                deque([memoryview(data[rank])]), iter([memoryview(into[rank])]), idle_seconds=20
            )

        threads = [threading.Thread(target=run, args=(rank,)) for rank in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert into[0] == data[1]
        assert into[1] == data[0]


@both
def test_what_has_left_the_socket_is_not_waited_for(kind):
    """A reader that takes a little finds the rest without a wait, although the descriptor is
    quiet by then."""
    with streams(kind) as (one, other):
        send_all(one, b"a" * 30_000, soon())
        while not select.select([other.fileno()], [], [], 1)[0]:
            pass
        time.sleep(0.05)
        assert receive_exactly(other, 1, soon()) == b"a"
        assert receive_exactly(other, 29_999, time.monotonic()) == b"a" * 29_999


@both
def test_the_end_of_a_connection_is_an_error_after_the_last_byte(kind):
    with streams(kind) as (one, other):
        send_all(one, b"last words", soon())
        one.close()
        assert receive_exactly(other, 10, soon()) == b"last words"
        with pytest.raises(ConnectionError, match="it closed the connection"):
            receive_exactly(other, 1, soon())


@both
def test_deadlines(kind):
    with streams(kind, SMALL) as (one, other):
        with pytest.raises(TimeoutError):
            receive_exactly(other, 1, time.monotonic() + 0.05)
        with pytest.raises(TimeoutError):
            send_all(one, bytes(50_000_000), time.monotonic() + 0.05)
        transport = TcpTransport(1, 2, one, one)
        with pytest.raises(Stalled, match="nothing arrived"):
            transport.exchange(deque(), iter([memoryview(bytearray(1))]), idle_seconds=0.05)


@both
def test_an_interrupt_from_another_thread_ends_an_exchange(kind):
    with streams(kind) as (one, _):
        transport = TcpTransport(1, 1, one, one)
        timer = threading.Timer(0.05, transport.interrupt)
        timer.start()
        with pytest.raises(ConnectionLost):
            transport.exchange(deque(), iter([memoryview(bytearray(1))]), idle_seconds=20)
        timer.join()


def test_after_a_shutdown_nothing_plain_is_sent():
    """An `ssl.SSLSocket` would go on as a plain socket."""
    one, other = tls_pair()
    raw = socket.socket(fileno=socket.dup(other.fileno()))
    one.shutdown()
    with pytest.raises(OSError):
        for _ in range(10):
            one.send((memoryview(b"plain text"),))
    raw.setblocking(True)
    assert b"plain text" not in raw.recv(1000)
    for end in (one, other, raw):
        end.close()


def test_one_thread_may_send_while_another_receives():
    one, other = tls_pair(SMALL)
    data = bytes(range(256)) * 40_000
    got = {}

    def receive(name, stream):
        got[name] = receive_exactly(stream, len(data), soon())

    threads = [
        threading.Thread(target=receive, args=("one", one)),
        threading.Thread(target=receive, args=("other", other)),
        threading.Thread(target=send_all, args=(one, data, soon())),
        threading.Thread(target=send_all, args=(other, data, soon())),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == {"one": data, "other": data}
    one.close()
    other.close()
