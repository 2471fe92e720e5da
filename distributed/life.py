"""The life of one worker, wherever it runs: join the ring, run the function, tell the others how it
went, end together.

A failure must end all workers within seconds, and only its own story should reach the user. So the
worker that fails sends it to all others, whose collectives then raise; and no worker ends before
all have, or, after a failure, before a few seconds of grace. If some rank is still busy then (in a
long computation, say), the outcome is "unsettled", and whoever started the workers must stop
them by force: in Spark, by failing the task.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any

import tensorlite as tl

from .control import Control
from .errors import Failure, PeerError, failure_of, peer_error
from .fabric import Fabric
from .rendezvous import Gather, meet
from .ring import Ring
from .transport import Patience
from .transport.memory import offer
from .worker import Worker, entered


@dataclasses.dataclass(frozen=True)
class Options:
    """What is the same for all workers of a job. `dist.launch` describes the public ones."""

    secret: bytes = dataclasses.field(repr=False)
    device: str = "cpu"
    timeout: float = 300.0
    connect_timeout: float = 60.0
    heartbeat_timeout: float = 6.0
    grace: float = 3.0
    bind: str | None = None
    port_range: tuple[int, int] | None = None
    encrypt: bool = False
    shared_memory: bool = True


@dataclasses.dataclass(frozen=True)
class Place:
    """Where one worker runs."""

    rank: int
    hosts: tuple[str, ...]
    attempt: int = 0
    partition: int = -1
    cpus: int | None = None  # None leaves the thread pools of this process as they are
    resources: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How it went. `settled` is False if other workers may still be running."""

    result: Any = None
    failure: Failure | None = None
    settled: bool = True


def check_call(
    caller: str, main: Any, args: Any, num_workers: Any, timeout: Any, port_range: Any
) -> None:
    """Refuse what makes no sense to run, in the name of the public function `caller`.

    Raises:
        TypeError, ValueError: an argument has the wrong type or value.
    """
    if not callable(main):
        raise TypeError(
            f"{caller}: main must be a function of (worker, *args), got {type(main).__name__}"
        )
    if not isinstance(args, tuple | list):
        raise TypeError(
            f"{caller}: args must be a tuple of the arguments of main after worker, got {args!r}"
        )
    if isinstance(num_workers, bool) or not isinstance(num_workers, int):
        raise TypeError(f"{caller}: num_workers must be an int, got {num_workers!r}")
    if num_workers < 1:
        raise ValueError(f"{caller}: num_workers must be at least 1, got {num_workers}")
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0:
        raise ValueError(f"{caller}: timeout must be a positive number of seconds, got {timeout!r}")
    if port_range is None:
        return
    is_pair = isinstance(port_range, tuple | list) and [type(p) for p in port_range] == [int, int]
    if not is_pair or not 0 < port_range[0] <= port_range[1] < 65536:
        raise ValueError(
            f"{caller}: port_range must be (first, last) within 1 and 65535, got {port_range!r}"
        )


def live(call: Callable[[Worker], Any], place: Place, options: Options, gather: Gather) -> Outcome:
    """Run `call(worker)` as one of the workers at `place.hosts`. Does not raise for what goes wrong
    inside."""
    rank, host = place.rank, place.hosts[place.rank]
    if len(place.hosts) == 1:
        return _live_alone(call, place, options)
    segment, memory = offer() if options.shared_memory else (None, {})
    try:
        links = meet(
            gather,
            rank,
            len(place.hosts),
            host,
            options.secret,
            place.attempt,
            hosts=place.hosts,
            bind=options.bind,
            port_range=options.port_range,
            timeout=options.connect_timeout,
            encrypt=options.encrypt,
            memory=memory,
            silence=options.heartbeat_timeout,
        )
    except Exception as error:
        if segment is not None:
            segment.close()
        return Outcome(failure=failure_of(error, rank, host, place.partition), settled=False)
    patience = Patience(options.timeout)
    fabric = Fabric(rank, links, segment, patience)
    control = Control(
        rank, links.members, links.control, fabric.interrupt, options.heartbeat_timeout
    )
    ring = Ring(rank, place.hosts, fabric, control, patience)
    worker = _worker(place, options, ring, links.credentials.attempt)

    def connected(worker: Worker) -> Any:
        # Another worker may have failed in its main already. This one hears of it in the first
        # collective of its own main, as it would a moment later.
        with contextlib.suppress(PeerError):
            fabric.share_memory(ring.all_gather)
        return call(worker)

    try:
        result, failure = _run(connected, worker, place)
        if failure is not None and failure.origin:
            control.abort(failure)
        ring.close()
        settled = control.leave(seconds=None if failure is None else options.grace)
        if failure is None and not settled:
            # This worker did its part, but another one failed later.
            assert control.failure is not None
            failure = failure_of(peer_error(control.failure), rank, host, place.partition)
            settled = control.leave(seconds=options.grace)
    finally:
        control.close()
    return Outcome(result, failure, settled)


def _live_alone(call: Callable[[Worker], Any], place: Place, options: Options) -> Outcome:
    worker = _worker(place, options, Ring(0, place.hosts), place.attempt)
    result, failure = _run(call, worker, place)
    return Outcome(result, failure)


def _worker(place: Place, options: Options, ring: Ring, attempt: int) -> Worker:
    return Worker(
        rank=place.rank,
        size=len(place.hosts),
        device=options.device,
        host=place.hosts[place.rank],
        hosts=place.hosts,
        ring=ring,
        attempt=attempt,
        cpus=place.cpus or 1,
        resources=place.resources,
    )


def _run(call: Callable[[Worker], Any], worker: Worker, place: Place) -> tuple[Any, Failure | None]:
    try:
        with entered(worker), _threads(place.cpus), tl.default_device(worker.device):
            return call(worker), None
    except (
        BaseException
    ) as error:  # SystemExit too: a worker that ends itself early has failed its peers
        story = error.with_traceback(_from_user_code(error.__traceback__))
        return None, failure_of(story, worker.rank, worker.host, place.partition)


def _from_user_code(trace: TracebackType | None) -> TracebackType | None:
    """The traceback without the calls of this package that lead to the user's function."""
    start = trace
    while start is not None and start.tb_frame.f_globals.get("__package__") == __package__:
        start = start.tb_next
    return start or trace


@contextlib.contextmanager
def _threads(cpus: int | None) -> Iterator[None]:
    if cpus is None:
        yield
    else:
        before = tl.get_num_threads()
        tl.set_num_threads(cpus)
        try:
            yield
        finally:
            tl.set_num_threads(before)
