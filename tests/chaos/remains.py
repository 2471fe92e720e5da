"""What a training has left behind in the processes of Spark: workers without a parent or stopped,
shared memory, sockets, open files.

Spark keeps Python workers for its next tasks. Such a worker listens to nobody, and has connections
with its executor only."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import time

SECONDS = 10.0  # that what ends may take
_LISTENING, _ESTABLISHED = "0A", "01"


@dataclasses.dataclass(frozen=True)
class Before:
    """What there was before the training."""

    workers: frozenset[int]
    memory: frozenset[str]

    @classmethod
    def now(cls) -> Before:
        return cls(frozenset(_workers()), frozenset(os.listdir("/dev/shm")))


def left_behind(before: Before) -> list[str]:
    """What is there that was not, or should not be, once it has had time to end."""
    deadline = time.monotonic() + SECONDS
    while (found := _found(before)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def _found(before: Before) -> list[str]:
    found = [f"/dev/shm/{name}" for name in os.listdir("/dev/shm") if name not in before.memory]
    here = _workers()
    ports = {port for pid in [os.getpid(), *here] for port, _ in _connections(pid).values()}
    for pid in sorted(before.workers - here.keys()):
        if _is_alive(pid):
            found.append(f"process {pid}, which belongs to no executor any more")
    for pid, parent in here.items():
        with contextlib.suppress(OSError):  # it has just ended
            found += _of_process(pid, parent not in here, ports)
    return found


def _of_process(pid: int, is_daemon: bool, ports: set[int]) -> list[str]:
    """What a Python process of Spark's holds that it should not. A daemon listens for tasks;
    `ports` are those of Python processes."""
    found = []
    if pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T":
        found.append(f"process {pid}, which is stopped")
    held = [os.readlink(entry) for entry in pathlib.Path(f"/proc/{pid}/fd").iterdir()]
    found += [f"{name} of process {pid}" for name in held if name.endswith("(deleted)")]
    if "memfd:tensorlite" in pathlib.Path(f"/proc/{pid}/maps").read_text():
        found.append(f"process {pid} has shared memory")
    for port, peer in _connections(pid).values():
        if peer == 0 and not is_daemon:
            found.append(f"process {pid} listens on port {port}")
        elif peer in ports:
            found.append(f"a connection of process {pid} to another one of Python")
    return found


def _connections(pid: int) -> dict[str, tuple[int, int]]:
    """The sockets of TCP that a process has: their ports, and those at the other end, 0 for one
    that listens."""
    found = {}
    with contextlib.suppress(OSError):  # the process has ended
        held = {os.readlink(entry) for entry in pathlib.Path(f"/proc/{pid}/fd").iterdir()}
        for table in ("tcp", "tcp6"):
            for line in pathlib.Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                name = f"socket:[{fields[9]}]"
                if name in held and fields[3] in (_LISTENING, _ESTABLISHED):
                    ends = [int(end.rpartition(":")[2], 16) for end in fields[1:3]]
                    found[name] = ends[0], ends[1]
    return found


def _workers() -> dict[int, int]:
    """The Python processes of Spark below this one, and their parents."""
    parents: dict[int, int] = {}
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
                if stat[0] != "Z":
                    parents[int(entry.name)] = int(stat[1])
    found = {}
    for pid, parent in parents.items():
        above = pid
        while above not in (0, 1, os.getpid()):
            above = parents.get(above, 0)
        if above == os.getpid():
            with contextlib.suppress(OSError):
                if b"pyspark.daemon" in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes():
                    found[pid] = parent
    return found


def _is_alive(pid: int) -> bool:
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        command = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return stat != "Z" and b"pyspark.daemon" in command
