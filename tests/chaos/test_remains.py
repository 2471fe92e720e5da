"""The suite's own eyes: what a training might leave behind is seen."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tests.chaos import remains

# A process that looks like a daemon of Spark's, and its worker, which cleans up nothing.
UNTIDY = """
import mmap, os, socket, sys, tempfile, time
away = socket.create_server(("127.0.0.1", 0))
if os.fork():
    os.wait()
else:
    listening = socket.create_server(("127.0.0.1", 0))
    to_itself = socket.create_connection(listening.getsockname())
    taken, _ = listening.accept()
    file = tempfile.TemporaryFile()
    memory = os.memfd_create("tensorlite")
    os.truncate(memory, 4096)
    mapped = mmap.mmap(memory, 4096)
    os.close(memory)
    print(os.getpid(), listening.getsockname()[1], flush=True)
    time.sleep(60)
"""


def test_what_a_worker_holds_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remains, "SECONDS", 0.2)
    before = remains.Before.now()
    assert remains.left_behind(before) == []
    command = [sys.executable, "-c", UNTIDY, "pyspark.daemon"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(command, **pipes) as daemon:
        try:
            assert daemon.stdout is not None
            pid, port = daemon.stdout.readline().split()
            found = "\n".join(remains.left_behind(before))
            assert f"process {pid} listens on port {port}" in found
            assert f"a connection of process {pid} to another one of Python" in found
            assert f"process {pid} has shared memory" in found
            assert f"(deleted) of process {pid}" in found
            assert str(daemon.pid) not in found  # a daemon listens, and that is right
            during = remains.Before.now()
            os.kill(int(pid), signal.SIGSTOP)
            assert f"process {pid}, which is stopped" in "\n".join(remains.left_behind(before))
            daemon.kill()
            daemon.wait()
            orphan = f"process {pid}, which belongs to no executor any more"
            assert orphan in remains.left_behind(during)
        finally:
            daemon.kill()
            os.kill(int(pid), signal.SIGKILL)
