"""Several worlds of hosts that train side by side, and the seconds that their steps take.

All hosts of the laboratory always work, whatever the size of the world that is measured: two worlds
of four, or two of three and two of one. So the processors, their caches and their memory are as
busy in every point of a series, and what differs is the world alone."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import secrets
import selectors
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from .commands import LabError
from .hosts import THREAD_VARIABLES, Host, Laboratory
from .rank import Task
from .spark import SparkWorld

START_SECONDS = 240.0  # until the first of all hosts has done something
SILENCE_SECONDS = 120.0  # of all hosts
WARM = 3  # steps with all processors, to compile and to fill caches
SETTLING = 2  # steps that are left out after shares or rates have changed
ALONE_BATCH = 128  # of hosts that are there to keep the machine busy

Message = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Steps:
    """What was measured of the worlds of one size, in seconds of this machine.

    Attributes:
        seconds: of each step, of all worlds.
        communication: seconds of each step in which rank 0 waited for others.
    """

    seconds: list[float]
    communication: list[float]

    @property
    def median(self) -> float:
        """Seconds of a step."""
        return statistics.median(self.seconds)

    @property
    def exposed(self) -> float:
        """Seconds of a step that communication adds to it."""
        return statistics.median(self.communication)


class World:
    """Ranks on some of the laboratory's hosts.

    Args:
        batch: rows of a global batch.
        what: they do; see `Task`, which explains `options` too.
    """

    def __init__(
        self,
        hosts: Sequence[Host],
        batch: int,
        what: str = "train",
        options: dict[str, Any] | None = None,
    ):
        self.size = len(hosts)
        self.messages: list[Message] = []
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._texts: dict[int, str] = {}
        self._processes: list[subprocess.Popen[bytes]] = []
        self._heard: list[bytes] = []
        secret = secrets.token_hex(32)
        addresses = tuple(host.address for host in hosts)
        for rank, host in enumerate(hosts):
            process = host.start(
                [sys.executable, "-m", "benchmarks.lab.rank"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env=os.environ | dict.fromkeys(THREAD_VARIABLES, "1"),
            )
            self._processes.append(process)
            self._heard.append(b"")
            task = Task(rank, addresses, batch, secret, what, options or {})
            self._tell(rank, dataclasses.asdict(task))

    def outputs(self) -> list[int]:
        """The file descriptors to listen to, by rank."""
        pipes = [process.stdout for process in self._processes]
        return [pipe.fileno() for pipe in pipes if pipe is not None]

    def hear(self, rank: int) -> None:
        """Take in what a rank has said.

        Raises:
            LabError: the rank has ended.
        """
        part = os.read(self.outputs()[rank], 65536)
        if not part:
            raise LabError(f"rank {rank} of a world of {self.size} ended:\n{self._last_words()}")
        *lines, self._heard[rank] = (self._heard[rank] + part).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "gather" in message:
                self._texts[rank] = message["gather"]
            else:
                self.messages.append(message)
        if len(self._texts) == self.size:
            texts = [self._texts.pop(other) for other in range(self.size)]
            for other in range(self.size):
                self._tell(other, texts)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all ranks."""
        for process in self._processes:
            process.send_signal(number)

    def close(self) -> None:
        """End all ranks."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()
        self._log.close()

    def _tell(self, rank: int, what: Any) -> None:
        stdin = self._processes[rank].stdin
        assert stdin is not None
        with contextlib.suppress(BrokenPipeError):  # that it has ended is heard
            stdin.write(json.dumps(what).encode() + b"\n")
            stdin.flush()

    def _last_words(self) -> str:
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5.0)
        self._log.seek(0)
        return self._log.read()[-4000:]


class Worlds:
    """As many worlds of `size` hosts as there is room for; hosts that are left over train alone.
    Use as a context manager: on entry all have taken their first steps, and are held to their
    shares.

    Args:
        batch: rows of a global batch of the worlds of that size.
        what: these do; "spark" is one cluster that trains.
        options: see `Task`.
    """

    def __init__(
        self,
        laboratory: Laboratory,
        size: int,
        batch: int,
        what: str = "train",
        options: dict[str, Any] | None = None,
    ):
        self._laboratory = laboratory
        self._size, self._batch, self._what, self._options = size, batch, what, options
        self._stack = contextlib.ExitStack()
        self._measured: list[World | SparkWorld] = []
        self._all: list[World | SparkWorld] = []

    def __enter__(self) -> Worlds:
        with contextlib.ExitStack() as building:
            building.push(self._stack)
            hosts = self._laboratory.hosts
            whole = len(hosts) - len(hosts) % self._size
            if self._what == "spark":
                whole = self._size
            self._laboratory.throttle(False)
            for first in range(0, whole, self._size):
                group = hosts[first : first + self._size]
                self._measured.append(self._start(group, self._batch, self._what))
            for host in hosts[whole:]:
                self._start([host], ALONE_BATCH, "train")
            listen(self._all, self._all, WARM, START_SECONDS)
            self._laboratory.throttle(True)
            building.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def pause(self) -> None:
        """Stop all hosts, so that others have the machine."""
        for world in self._all:
            world.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Go on after `pause`."""
        for world in self._all:
            world.signal(signal.SIGCONT)

    def take(self, count: int) -> list[list[Message]]:
        """The next `count` messages of each world that is measured, after some that are left out
        because shares or rates have changed."""
        for world in self._all:
            world.messages.clear()
        listen(self._all, self._measured, SETTLING + count, SILENCE_SECONDS)
        return [world.messages[SETTLING : SETTLING + count] for world in self._measured]

    def _start(self, hosts: list[Host], batch: int, what: str) -> World | SparkWorld:
        world: World | SparkWorld
        if what == "spark":
            world = SparkWorld(self._laboratory, hosts, batch, self._options)
        else:
            world = World(hosts, batch, what, self._options)
        self._stack.callback(world.close)
        self._all.append(world)
        return world


def listen(
    worlds: Sequence[World | SparkWorld],
    waited_for: Sequence[World | SparkWorld],
    count: int,
    patience: float,
) -> None:
    """Hear what all of `worlds` say until each that is waited for has said `count` messages.

    Raises:
        LabError: a rank has ended, or nobody has said anything for `patience` seconds.
    """
    with selectors.DefaultSelector() as selector:
        for world in worlds:
            for rank, output in enumerate(world.outputs()):
                selector.register(output, selectors.EVENT_READ, (world, rank))
        while any(len(world.messages) < count for world in waited_for):
            ready = selector.select(patience)
            if not ready:
                raise LabError(f"no host has said anything for {patience:g} seconds")
            for key, _ in ready:
                world, rank = key.data
                world.hear(rank)


def steps_of(heard: list[list[Message]]) -> Steps:
    """What the messages of some worlds that train say of their steps."""
    pairs = [pair for messages in heard for pair in itertools.pairwise(messages)]
    return Steps(
        seconds=[after["at"] - before["at"] for before, after in pairs],
        communication=[after["communication"] - before["communication"] for before, after in pairs],
    )
