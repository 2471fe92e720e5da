"""Messages survive any cut of the stream; nothing else gets through."""

import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorlite.distributed.frames import Frames, frame

messages = st.dictionaries(
    st.text(max_size=5), st.none() | st.integers() | st.text() | st.lists(st.floats(0, 1))
)


@given(st.lists(messages, max_size=5), st.integers(1, 50))
def test_messages_survive_any_cut(sent, step):
    data = b"".join(map(frame, sent))
    frames = Frames(10**6)
    received = []
    for start in range(0, len(data), step):
        received += frames.feed(data[start : start + step])
    assert received == sent


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"[1]", "must be a JSON object"),
        (b"{'a': 1}", "Expecting"),
        (b"\xff\xfe\x00", "decode"),
        (b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}", "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "digits"),
    ],
)
def test_what_is_no_message_is_refused(body, complaint):
    with pytest.raises(ValueError, match=complaint):
        list(Frames(10**6).feed(struct.pack("!I", len(body)) + body))


def test_a_message_that_is_too_long_is_refused_before_it_arrives():
    frames = Frames(1000)
    body = json.dumps({"a": "x" * 992}).encode()
    assert len(body) == 1001
    with pytest.raises(ValueError, match="a message of 1001 bytes is longer than 1000"):
        list(frames.feed(struct.pack("!I", 1001)))
    assert list(Frames(1001).feed(struct.pack("!I", 1001) + body)) == [{"a": "x" * 992}]
