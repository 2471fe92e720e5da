"""Only a process with the secret, the nonce and the right ranks gets through, either way."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorlite.distributed.handshake import WELCOME, Credentials, HandshakeError, accept, dial

GOOD = Credentials(secret=b"s" * 32, nonce=b"n" * 16, attempt=4)


def everyone(channel: str, rank: int) -> bool:
    return True


def talk(dialler, acceptor, tamper=lambda position, data: data):
    """Carry bytes between two handshakes; `tamper` may change them. What the acceptor learned."""
    hello, wanted_by_dialler = next(dialler)
    _, wanted_by_acceptor = next(acceptor)
    assert len(hello) == wanted_by_acceptor
    answer, wanted_by_acceptor = acceptor.send(tamper(0, hello))
    assert len(answer) == wanted_by_dialler
    proof, _ = dialler.send(tamper(1, answer))
    assert len(proof) == wanted_by_acceptor
    try:
        acceptor.send(tamper(2, proof))
    except StopIteration as proven:
        with pytest.raises(StopIteration):
            dialler.send(WELCOME)
        return proven.value
    raise AssertionError("the acceptor wants to go on")


def test_two_of_a_kind():
    learned = talk(dial(GOOD, "control", 3, 0), accept(GOOD, 0, everyone))
    assert learned == ("control", 3)


@pytest.mark.parametrize(
    "other",
    [
        dataclasses.replace(GOOD, secret=b"x" * 32),
        dataclasses.replace(GOOD, nonce=b"x" * 16),
        dataclasses.replace(GOOD, attempt=5),
    ],
    ids=["secret", "nonce", "attempt"],
)
def test_either_side_refuses_other_credentials(other):
    with pytest.raises(HandshakeError, match="lacks the secret"):
        talk(dial(GOOD, "ring", 1, 0), accept(other, 0, everyone))
    # An impostor that dials gets no further, even if it does not care what the acceptor proves.
    acceptor = accept(GOOD, 0, everyone)
    next(acceptor)
    hello, _ = next(dial(other, "ring", 1, 0))
    answer, _ = acceptor.send(hello)
    with pytest.raises(HandshakeError, match="lacks the secret"):
        acceptor.send(other.proof("dial", hello, answer[:32]))


def test_a_replayed_handshake_is_worthless():
    recorded = {}

    def record(position, data):
        recorded[position] = data
        return data

    talk(dial(GOOD, "ring", 1, 0), accept(GOOD, 0, everyone), record)
    acceptor = accept(GOOD, 0, everyone)
    next(acceptor)
    acceptor.send(recorded[0])
    with pytest.raises(HandshakeError, match="lacks the secret"):
        acceptor.send(recorded[2])


def test_a_proof_cannot_be_reflected():
    acceptor = accept(GOOD, 0, everyone)
    next(acceptor)
    hello, _ = next(dial(GOOD, "ring", 1, 0))
    answer, _ = acceptor.send(hello)
    with pytest.raises(HandshakeError):
        acceptor.send(answer[32:])


@given(st.integers(0, 2), st.data())
def test_every_changed_byte_is_noticed(position, data):
    def tamper(at, message):
        if at != position:
            return message
        index = data.draw(st.integers(0, len(message) - 1))
        flip = data.draw(st.integers(1, 255))
        return message[:index] + bytes([message[index] ^ flip]) + message[index + 1 :]

    with pytest.raises(HandshakeError):
        talk(dial(GOOD, "ring", 1, 0), accept(GOOD, 0, everyone), tamper)


def test_a_rank_without_business_here_is_refused():
    with pytest.raises(HandshakeError, match="rank 5 has no business on the ring channel"):
        talk(dial(GOOD, "ring", 5, 0), accept(GOOD, 0, lambda channel, rank: rank == 1))


def test_a_call_for_another_rank_is_refused():
    with pytest.raises(HandshakeError, match="not a tensorlite worker of this job"):
        talk(dial(GOOD, "ring", 1, 2), accept(GOOD, 0, everyone))


@given(st.binary(min_size=49, max_size=49))
def test_garbage_is_refused(garbage):
    acceptor = accept(GOOD, 0, everyone)
    _, wanted = next(acceptor)
    assert wanted == len(garbage)
    with pytest.raises(HandshakeError):
        acceptor.send(garbage)
