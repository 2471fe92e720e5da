"""Failures survive the journey to other ranks and to the driver, and the right one is raised."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorlite.distributed.errors import (
    TEXT_LIMIT,
    DeadlineError,
    Failure,
    MismatchError,
    PeerError,
    WorkerError,
    failure_of,
    first_cause,
    peer_error,
)


def failure(rank: int, **fields) -> Failure:
    return Failure(rank, f"host{rank}", "error", "ValueError", "boom", **fields)


@given(st.integers(-1, 9), st.text(), st.text(), st.text(), st.booleans())
def test_round_trip(rank, host, message, trace, origin):
    cause = None if origin else failure(3, partition=3)
    before = Failure(rank, host, "error", "E", message, trace, 2, origin, cause)
    assert Failure.from_json(before.to_json()) == before


@pytest.mark.parametrize(
    "text",
    ["[]", "{}", "1", '{"rank": "0"}', '{"rank": 0, "evil": "x"}', '{"cause": {"rank": []}}', "{"],
)
def test_anything_else_is_refused(text):
    with pytest.raises(ValueError):
        Failure.from_json(text)


def test_a_long_traceback_keeps_its_end():
    try:
        raise ValueError("x" * 3 * TEXT_LIMIT + "the end")
    except ValueError as error:
        report = failure_of(error, 0, "h")
    assert len(report.traceback) < 1.1 * TEXT_LIMIT
    assert report.traceback.rstrip().endswith("the end")


def test_the_driver_raises_the_origin_and_not_its_echo():
    origin = failure(2)
    echoes = [failure_of(peer_error(origin), rank, "h") for rank in (0, 1)]
    assert not any(echo.origin for echo in echoes)
    assert first_cause([*echoes, origin]) == origin
    assert first_cause(echoes) == origin, "the origin's own report is lost when it is killed"


def test_of_two_origins_the_one_that_the_others_heard_of_counts():
    first, second = failure(2), failure(1)
    echo = failure_of(peer_error(first), 0, "h")
    assert first_cause([echo, second, first]) == first


def test_an_error_counts_more_than_the_silence_that_it_leaves_behind():
    silence = failure_of(DeadlineError("nothing arrived"), 0, "h")
    assert first_cause([silence, failure(2)]) == failure(2)


def test_a_mismatch_is_a_mismatch_on_every_rank():
    here = MismatchError("the ranks disagree", failure(1))
    report = failure_of(here, 1, "host1")
    assert report.kind == "mismatch"
    assert report.origin
    there = peer_error(report)
    assert isinstance(there, MismatchError)
    assert str(there) == "the ranks disagree"
    assert isinstance(peer_error(failure(1)), PeerError)


def test_worker_error_names_everything_and_can_be_pickled():
    error = WorkerError(failure(3, partition=3, traceback="Traceback ...\nValueError: boom\n"))
    for each in (error, pickle.loads(pickle.dumps(error))):
        assert (each.rank, each.host, each.partition, each.error_type) == (
            3,
            "host3",
            3,
            "ValueError",
        )
        assert str(each).startswith(
            "rank 3 (host host3, partition 3) raised ValueError: boom\n\nTrace"
        )
