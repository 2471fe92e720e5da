"""A model of the cost of a training step on N hosts.

An all-reduce of n bytes around a ring of N hosts sends each host's n / N bytes 2 (N - 1) times, and
each time waits for a message to arrive (Patarasuk and Yuan, 2009):

    2 (N - 1) (latency + n / (N bandwidth))

Small arrays are gathered instead, N - 1 messages of n bytes. Ranks of one host first reduce in its
memory, and one array leaves the host, whatever their number. The host's processors do work for each
byte too; the ring runs at the speed of the link or of that work, whichever is slower.

Gradients come in buckets, each ready at some moment of the backward pass. With overlap a bucket
leaves when it is ready and the one before it has gone; what is left of the ring's work when the
backward pass has ended is exposed. On a host with one core the work for the ring also takes time
from the backward pass. Everybody waits for the slowest: if steps alone deviate from their mean like
a normal variable, the slowest of N takes longer by the mean of the largest of N such deviations.

All times are in seconds, sizes in bytes, rates in bytes per second."""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
from collections.abc import Sequence

SMALL_BYTES = (
    32 * 1024
)  # up to this size arrays are gathered, as in distributed/algorithms/cutting.py


@dataclasses.dataclass(frozen=True)
class Bucket:
    """Gradients that are sent together: their bytes, and the moment of the step at which the last
    of them is computed, if nothing else takes time from it."""

    nbytes: float
    ready: float


@dataclasses.dataclass(frozen=True)
class Step:
    """A step on one host: seconds from its begin to the end of the backward pass, seconds after
    that (the update), the standard deviation of the whole, and its buckets."""

    backward: float
    update: float
    deviation: float
    buckets: Sequence[Bucket]

    @property
    def alone(self) -> float:
        """Seconds of the step on one host."""
        return self.backward + self.update


@dataclasses.dataclass(frozen=True)
class Cluster:
    """What connects the hosts.

    Attributes:
        bandwidth: of a host's link, in each direction.
        latency: from the call to send a small message until it has been received.
        work: processor seconds for each byte that a host sends, receives and reduces.
        call: seconds that an all-reduce takes besides, on each host.
        shares_core: the work is done by the core that computes.
        ranks: of each host.
        memory: bytes per second at which ranks of one host reduce.
    """

    bandwidth: float
    latency: float = 0.0
    work: float = 0.0
    call: float = 0.0
    shares_core: bool = True
    ranks: int = 1
    memory: float = math.inf


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Seconds of a step, and those in which there is only communication."""

    step: float
    exposed: float


def all_reduce(nbytes: float, hosts: int, cluster: Cluster) -> float:
    """Seconds of one all-reduce."""
    within = 2 * (cluster.ranks - 1) / cluster.ranks * nbytes / cluster.memory
    if hosts * cluster.ranks == 1:
        return 0.0
    if hosts == 1:
        return cluster.call + within
    small = nbytes <= SMALL_BYTES
    messages = hosts - 1 if small else 2 * (hosts - 1)
    per_byte = max(1 / cluster.bandwidth, cluster.work)
    seconds = messages * cluster.latency + moved(nbytes, hosts) * per_byte
    return cluster.call + within + seconds


def moved(nbytes: float, hosts: int) -> float:
    """Bytes that each host sends, and receives, in an all-reduce."""
    if nbytes <= SMALL_BYTES:
        return (hosts - 1) * nbytes
    return 2 * (hosts - 1) / hosts * nbytes


def predict(step: Step, hosts: int, cluster: Cluster, overlap: bool) -> Prediction:
    """A step of so many hosts.

    Args:
        overlap: buckets are sent during the backward pass, each when it is ready; or else all of
            them together after it.
    """
    slowest = step.deviation * mean_of_largest(hosts * cluster.ranks)
    if overlap:
        computed, ended = _overlapped(step, hosts, cluster)
    else:
        computed = step.backward
        total = sum(bucket.nbytes for bucket in step.buckets)
        ended = computed + all_reduce(total, hosts, cluster)
    exposed = max(0.0, ended - computed) + (slowest if hosts * cluster.ranks > 1 else 0.0)
    return Prediction(computed + exposed + step.update, exposed)


def _overlapped(step: Step, hosts: int, cluster: Cluster) -> tuple[float, float]:
    """When the backward pass ends, and when the last bucket has arrived."""
    now = computed = 0.0  # real time, and how far the backward pass has come
    sent = 0.0  # when the bucket on the wire has arrived
    taken = 0.0  # the part of a core that it needs meanwhile

    def compute(until: float, real: float = math.inf) -> None:
        """Go on until the backward pass has come so far, or until some real time."""
        nonlocal now, computed
        while computed < until and now < real:
            speed = 1 - taken if now < sent else 1.0
            end = min(real, sent) if now < sent else real
            seconds = min((until - computed) / speed if speed > 0 else math.inf, end - now)
            now += seconds
            computed += seconds * speed
            if (until - computed) <= 1e-12 * max(1.0, until):
                computed = until

    for bucket in sorted(step.buckets, key=lambda bucket: bucket.ready):
        compute(min(bucket.ready, step.backward))
        compute(step.backward, real=sent)
        now = max(now, sent)
        seconds = all_reduce(bucket.nbytes, hosts, cluster)
        sent = now + seconds
        work = cluster.work * moved(bucket.nbytes, hosts) if hosts > 1 else 0.0
        taken = min(1.0, work / seconds) if cluster.shares_core and seconds else 0.0
    compute(step.backward)
    return now, max(now, sent)


@functools.lru_cache
def mean_of_largest(count: int) -> float:
    """The expected largest of `count` independent standard normal variables."""
    if count == 1:
        return 0.0
    normal, low, high, points = statistics.NormalDist(), -8.0, 8.0, 4000
    width = (high - low) / points
    places = [low + (i + 0.5) * width for i in range(points)]
    # The density of the largest is count * pdf * cdf ** (count - 1).
    terms = (x * count * normal.pdf(x) * normal.cdf(x) ** (count - 1) for x in places)
    return sum(terms) * width
