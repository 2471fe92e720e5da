"""A program's side of the communication thread: its buckets, ready to be reduced while it runs.

A start writes the number of a job into the channel's pipe; the thread reduces the bucket where it
lies in the arena and writes the outcome into a pipe of the program's own, from which the wait reads
it. Jobs are enlisted anew for each run, since it may have another communicator.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from time import perf_counter_ns
from typing import Any

import numpy as np

from ... import communication, observe
from ...communication import Channel
from ...compiler.schedule import Bucket
from . import native

_WELL, _BADLY = bytes(8), (1).to_bytes(8, "little")
Span = tuple[int, int]  # nanoseconds


class Exchanges:
    """The buckets of one instance of a program, which runs once at a time.

    Args:
        buckets: in the order of their starts, which is that of their waits.
        arrays: the memory of each.
    """

    def __init__(self, name: str, buckets: Sequence[Bucket], arrays: Sequence[np.ndarray]):
        self._name = name
        self._buckets = buckets
        self._arrays = arrays
        self._places = {bucket.number: place for place, bucket in enumerate(buckets)}
        self._outlet, self._inlet = os.pipe()
        weakref.finalize(self, _close, self._outlet, self._inlet).atexit = False
        self._starts = np.zeros((len(buckets), 2), np.uint64)
        self._waits = np.zeros((len(buckets), 3), np.uint64)
        self._records = np.zeros(len(buckets), native.RECORD)
        self._waits[:, 0] = self._outlet
        start = self._records.__array_interface__["data"][0]
        self._waits[:, 1] = [start + native.RECORD.itemsize * k for k in range(len(buckets))]
        self._waits[:, 2] = native.address("clock_gettime")
        self._channel: Channel | None = None
        self._error: BaseException | None = None
        self._spans: list[Span] = []

    def start(self, bucket: Bucket) -> np.ndarray:
        """The arguments of the launch that starts a bucket."""
        return self._starts[self._places[bucket.number]]

    def wait(self, bucket: Bucket) -> np.ndarray:
        """The arguments of the launch that waits for it."""
        return self._waits[self._places[bucket.number]]

    def open(self) -> None:
        """Enlist the buckets with the current communicator.

        Raises:
            RuntimeError: it has another number of ranks than the program was made for.
        """
        (size,) = {bucket.size for bucket in self._buckets}
        channel = communication.channel_of("all_reduce", size)
        self._channel, self._error, self._spans = channel, None, []
        self._starts[:, 0] = channel.inlet
        self._starts[:, 1] = [
            channel.enlist(lambda k=k: self._reduce(channel, k), self._tell)  # type: ignore[misc]
            for k in range(len(self._buckets))
        ]

    def close(self) -> None:
        """After a run: account for its time, or forget what an error kept from starting."""
        channel = self._channel
        assert channel is not None
        if self._error is not None or len(self._spans) < len(self._buckets):
            channel.withdraw([int(number) for number in self._starts[:, 1]])
            return
        waits = [
            (_nanoseconds(record["began"]), _nanoseconds(record["ended"]))
            for record in self._records
        ]
        waited = sum(end - begin for begin, end in waits)
        busy = sum(end - begin for begin, end in self._spans)
        channel.exposed += waited
        channel.hidden += busy - _overlap(self._spans, waits)

    def explain(self, status: int) -> None:
        """Raise what went wrong in the communication thread. Return if the launch was only
        interrupted by a signal and is to be run again."""
        if status == native.FAILED:
            assert self._error is not None
            raise self._error
        os.fstat(self._outlet)  # raises where trying again would not help

    def _reduce(self, channel: Channel, place: int) -> None:
        """Runs in the communication thread."""
        if self._error is not None:
            return  # the ranks are out of step: nothing more can be sent
        bucket, array = self._buckets[place], self._arrays[place]
        began = perf_counter_ns()
        details: dict[str, Any] = {"bytes": bucket.nbytes, "tensors": len(bucket.avals)}
        details |= {"op": bucket.op, "workers": bucket.size, "program": self._name}
        if bucket.wire is not None:
            details["wire"] = bucket.wire
        try:
            with observe.span(f"all_reduce, bucket {place + 1}", **details):
                for gap in bucket.gaps(array):
                    gap.fill(0)
                channel.communicator.all_reduce_(
                    array, bucket.op, wire=bucket.wire, leaves=bucket.leaves
                )
        except BaseException as error:
            error.add_note(
                f"all_reduce: in bucket {place + 1} of {len(self._buckets)} ({bucket}) of the "
                f"jitted function {self._name}"
            )
            self._error = error
        self._spans.append((began, perf_counter_ns()))

    def _tell(self) -> None:
        os.write(self._inlet, _WELL if self._error is None else _BADLY)


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _nanoseconds(moment: np.ndarray) -> int:
    return int(moment[0]) * 1_000_000_000 + int(moment[1])


def _overlap(left: Sequence[Span], right: Sequence[Span]) -> int:
    """The time that lies in both; each has its spans one after the other."""
    return sum(
        max(0, min(end, other_end) - max(begin, other_begin))
        for begin, end in left
        for other_begin, other_end in right
    )
