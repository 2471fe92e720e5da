"""The worker: what user code knows about its place among the others, and how the collectives find
it."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator, Mapping

from tensorlite import communication

from .errors import DistributedError
from .ring import Ring


@dataclasses.dataclass(frozen=True)
class Worker:
    """One of `size` processes that run the same function.

    Attributes:
        rank: its number, from 0; in Spark the partition id of its task.
        size: how many workers there are.
        device: name of the device on which its tensors are made unless told otherwise, such as
            "cpu".
        host: the address under which the others know it; `hosts` has those of all workers in rank
            order.
        attempt: a number that no other attempt of the job shares (in Spark, rank 0's task attempt
            id).
        cpus: how many CPUs it may use; threads of NumPy's BLAS are limited to it.
        resources: what Spark's scheduler gave the task besides CPUs, such as `{"gpu": ("0",)}`.
        ring: collectives on NumPy arrays, in place, for code in which copies matter.
    """

    rank: int
    size: int
    device: str
    host: str
    hosts: tuple[str, ...]
    ring: Ring = dataclasses.field(repr=False)
    attempt: int = 0
    cpus: int = 1
    resources: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)


_current: contextvars.ContextVar[Worker | None] = contextvars.ContextVar("worker", default=None)


def current_worker() -> Worker:
    """The worker that this code runs in.

    Raises:
        DistributedError: it runs in none.
    """
    worker = _current.get()
    if worker is None:
        raise DistributedError(
            "there is no worker here: collectives work inside the function that dist.launch or "
            "dist.run_local runs, and inside `with dist.local_worker():`. A thread started there "
            "does not know its worker; start it with contextvars.copy_context().run"
        )
    return worker


@contextlib.contextmanager
def entered(worker: Worker) -> Iterator[Worker]:
    """Make `worker` the current one within the block, and its ring the one that collectives in
    jitted functions go around."""
    token = _current.set(worker)
    try:
        with communication.entered(worker.ring):
            yield worker
    finally:
        _current.reset(token)
