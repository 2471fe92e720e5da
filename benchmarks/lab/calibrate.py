"""What the model of the cost has to know beside the seconds of a step: measured with all-reduces
alone, on hosts that do nothing else, and read off a profile of the computation."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
from typing import Any

from .hosts import Laboratory
from .rank import RING_BYTES
from .worlds import ALONE_BATCH, START_SECONDS, World, Worlds, listen

FAST, SLOW = 10e9, 1e9  # rates of the links
ROUNDS = 12
FEW = 2  # hosts


@dataclasses.dataclass(frozen=True)
class Ring:
    """What an all-reduce costs a host, in its own seconds; see `model.Cluster`."""

    latency: float
    call: float
    work: float


def measure(laboratory: Laboratory) -> Ring:
    """Latency, from two worlds that differ in size on fast links, and the processor's time for a
    byte, on slow ones: there data arrives in smaller pieces, each of which wakes its receiver."""
    most = len(laboratory.hosts)
    small, large = RING_BYTES[0], RING_BYTES[-1]
    few, many = (_medians(laboratory, hosts, FAST) for hosts in (FEW, most))
    slow = _medians(laboratory, FEW, SLOW)
    share = laboratory.share
    return solve(
        (FEW, few[small]["seconds"] * share),
        (most, many[small]["seconds"] * share),
        wire=small * 8 / FAST,
        work=slow[large]["used"] / large,  # two hosts send each byte once
    )


def solve(few: tuple[int, float], many: tuple[int, float], wire: float, work: float) -> Ring:
    """Latency and call of seconds(hosts) = call + (hosts - 1) * (latency + wire)."""
    (few_hosts, few_seconds), (many_hosts, many_seconds) = few, many
    hop = (many_seconds - few_seconds) / (many_hosts - few_hosts)
    call = few_seconds - (few_hosts - 1) * hop
    return Ring(max(0.0, hop - wire), max(0.0, call), work)


def _medians(laboratory: Laboratory, hosts: int, rate: float) -> dict[int, dict[str, float]]:
    """Medians of seconds and processor seconds for each size of array."""
    laboratory.links(rate)
    with Worlds(laboratory, hosts, 0, "ring") as worlds:
        heard = [m for messages in worlds.take(ROUNDS * len(RING_BYTES)) for m in messages]
    return {
        size: {
            what: statistics.median(m[what] for m in heard if m["bytes"] == size)
            for what in ("seconds", "used")
        }
        for size in RING_BYTES
    }


def buckets(laboratory: Laboratory) -> list[tuple[int, float]]:
    """Bytes of each bucket of gradients, and the part of a step's computation after which it is
    ready, from a profile of a world of `FEW` hosts that have the machine to themselves."""
    group = laboratory.hosts[:FEW]
    laboratory.throttle(False)
    with contextlib.closing(World(group, FEW * ALONE_BATCH, "profile")) as world:
        listen([world], [world], 1, START_SECONDS)
        (message,) = world.messages[:1]
    return [(nbytes, share) for nbytes, share in message["buckets"]]


def as_json(laboratory: Laboratory) -> dict[str, Any]:
    """What `cost_model.py` reads."""
    return {**dataclasses.asdict(measure(laboratory)), "buckets": buckets(laboratory)}
