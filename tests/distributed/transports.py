"""The ways in which the ranks of a test may reach each other."""

import contextlib
import threading

import pytest

from tensorlite.distributed.transport import memory

TRANSPORTS = ["memory", "connections", "two levels"]


@contextlib.contextmanager
def reached_through(transport):
    """Options for `run_local`, whose threads reach each other so within the block. With two levels,
    even and odd ranks are on different hosts, as far as they know."""
    with pytest.MonkeyPatch.context() as patch:
        if transport == "two levels":
            patch.setattr(memory, "domain", lambda: f"host {_rank() % 2}")
        yield {"shared_memory": transport != "connections"}


def _rank():
    """The rank that runs in this thread of `run_local`."""
    return int(threading.current_thread().name.rpartition("-")[2])
