"""The laboratory as a whole: hosts that have a share of a processor and a link, and processes that
run on them."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

from . import network, shares
from .commands import PREFIX, LabError, alone, require
from .network import QUEUE, Network
from .shares import Pacemaker, Share

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
THREAD_VARIABLES = ("TENSORLITE_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
HEADROOM = 0.15  # of all processors, for the kernel, the pacemakers and the laboratory itself

# A host has shared memory and a name of its own, so that nothing takes two hosts for one.
_ENTER = """
echo $$ > {procs}
mount -t tmpfs none /dev/shm
hostname {name}
exec "$@"
"""


class Host:
    """One host: a namespace, a cgroup, and the processors on which its processes run."""

    def __init__(self, name: str, space: str, address: str, processors: Sequence[int]):
        self.name = name
        self.space = space
        self.address = address
        self.share = Share(name)
        self._processors = ",".join(map(str, processors))

    def start(self, command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        """Start a process on this host. `options` are those of `subprocess.Popen`."""
        name = f"{PREFIX}-{self.name}"
        script = _ENTER.format(procs=shlex.quote(str(self.share.procs)), name=name)
        enter = [
            "nsenter",
            f"--net=/run/netns/{self.space}",
            "unshare",
            "--mount",
            "--uts",
            "--ipc",
        ]
        pinned = ["taskset", "--cpu-list", self._processors]
        options.setdefault("cwd", ROOT)
        return subprocess.Popen([*enter, "sh", "-c", script, "sh", *pinned, *command], **options)


class Laboratory:
    """`hosts` hosts with `share` of a processor each, and a desk beside the bridge, which is not
    limited in any way, for those who give orders. Use as a context manager: it removes what an
    earlier one left, and at its end, be it by Ctrl-C or SIGTERM, what it made itself.

    Raises:
        LabError: it cannot be built here; says what is missing.
    """

    def __init__(self, hosts: int, share: float):
        require()
        processors = sorted(os.sched_getaffinity(0))
        most = len(processors) * (1 - HEADROOM)
        if hosts * share > most:
            raise LabError(
                f"{hosts} hosts with a share of {share:g} need {hosts * share:g} processors, and "
                f"of the {len(processors)} here {most:g} can be given away; take a share of "
                f"{int(100 * most / hosts) / 100:g} or fewer hosts"
            )
        self.share = share
        self._count = hosts
        self._processors = processors
        self._stack = contextlib.ExitStack()
        self.hosts: list[Host] = []

    @property
    def dilation(self) -> float:
        """How many seconds of this machine are one of the hosts'."""
        return 1 / self.share

    def __enter__(self) -> Laboratory:
        with contextlib.ExitStack() as building:
            building.push(self._stack)
            self._stack.enter_context(alone())
            _remove()
            self._stack.callback(_remove)
            self._stack.enter_context(_ending_on(signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
            self._network = self._stack.enter_context(Network(self._count))
            self._stack.enter_context(Pacemaker(self._processors))
            self.hosts = [self._host(number) for number in range(self._count)]
            self.desk = Host("desk", network.WIRE, network.BRIDGE_ADDRESS, self._processors)
            building.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def _host(self, number: int) -> Host:
        processor = self._processors[number % len(self._processors)]
        place = network.name_of(number), network.address_of(number)
        return Host(f"host{number}", *place, [processor])

    def links(self, rate: float, latency: float = 0.0, queue: int = QUEUE) -> None:
        """Give all links the equivalent of `rate` bits per second, and of `latency` seconds; what
        exceeds `queue` bytes that wait for a link is lost."""
        self._network.limit(rate / self.dilation, latency * self.dilation, queue)

    def lost(self) -> int:
        """How many packets the links have lost so far."""
        return self._network.lost()

    def cut(self, host: int, off: bool = True) -> None:
        """Pull the plug of the host of this number, or put it back."""
        self._network.cut(host, off)

    def part(self, one: int, other: int) -> None:
        """Let two hosts no longer reach each other, for as long as the laboratory stands."""
        self._network.part(one, other)

    def throttle(self, on: bool) -> None:
        """Hold the hosts to their share, or let them run as they can, to start quickly."""
        for host in self.hosts:
            host.share.limit(self.share if on else None)


def remove() -> None:
    """Remove all that a laboratory has left which was killed: processes, cgroups, namespaces.

    Raises:
        LabError: it is running, or it cannot be removed.
    """
    require()
    with alone():
        _remove()


def _remove() -> None:
    shares.remove()
    network.remove()


@contextlib.contextmanager
def _ending_on(*numbers: signal.Signals) -> Any:
    """Turn signals that would end the process at once, or that a shell has had ignored, into an
    exit that cleans up."""

    def end(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
