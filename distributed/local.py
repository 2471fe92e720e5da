"""Worlds without Spark: a single worker in this process, or several in threads or processes of this
machine.

`local_worker` lets code that uses collectives run anywhere. `run_local` is `launch` without a
cluster, for tests, benchmarks and
first steps: the same ring, handshake and errors, on the loopback interface.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import queue
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.context import SpawnProcess
from typing import Any

from .errors import DistributedError, Failure, WorkerError, failure_of, first_cause
from .life import Options, Outcome, Place, check_call, live
from .ring import Ring
from .worker import Worker, entered

LOOPBACK = "127.0.0.1"
LAST_CALL_SECONDS = 1.0  # for the rest, once a worker has waited in vain for them to end


@contextlib.contextmanager
def local_worker(device: str = "cpu") -> Iterator[Worker]:
    """A world of one: within the block, collectives work and return what a single worker gets.

    Example:
        >>> with dist.local_worker() as worker:
        ...     worker.rank, worker.size
        (0, 1)
    """
    with entered(Worker(0, 1, device, LOOPBACK, (LOOPBACK,), Ring(0, (LOOPBACK,)))) as worker:
        yield worker


def run_local(
    main: Callable[..., Any],
    args: Sequence[Any] = (),
    *,
    num_workers: int,
    mode: str = "threads",
    device: str = "cpu",
    timeout: float = 300.0,
    port_range: tuple[int, int] | None = None,
    encrypt: bool = False,
    shared_memory: bool = True,
) -> list[Any]:
    """Run `main(worker, *args)` in `num_workers` workers on this machine, without Spark.

    Args:
        mode: "threads" of this process, which start at once and share the interpreter lock; or
            "processes", which need a `main` that can be imported, and arguments and results that
            can be pickled.
        device, port_range: as `launch` has them.
        timeout: seconds without any progress after which a collective gives up.
        encrypt: whether the connections speak TLS, as `launch` has it.
        shared_memory: whether the workers may exchange data through memory; else they do so over
            connections only.

    Returns:
        [result of rank 0, result of rank 1, ...]

    Raises:
        WorkerError: a worker failed; names it and has its traceback.
        TypeError, ValueError: an argument makes no sense.

    Example:
        >>> def main(worker, scale):
        ...     return float(dist.all_reduce(tl.asarray(scale * worker.rank)))
        >>> dist.run_local(main, args=(10.0,), num_workers=3)
        [30.0, 30.0, 30.0]
    """
    check_call("run_local", main, args, num_workers, timeout, port_range)
    options = Options(
        secrets.token_bytes(32),
        device,
        timeout,
        port_range=port_range,
        encrypt=encrypt,
        shared_memory=shared_memory,
    )
    if mode == "threads":
        outcomes = _in_threads(main, args, num_workers, options)
    elif mode == "processes":
        outcomes = _in_processes(main, args, num_workers, options)
    else:
        raise ValueError(f"run_local: mode must be 'threads' or 'processes', got {mode!r}")
    failures = [outcome.failure for outcome in outcomes if outcome.failure is not None]
    if failures:
        raise WorkerError(first_cause(failures))
    return [outcome.result for outcome in outcomes]


def _in_threads(
    main: Callable[..., Any], args: Sequence[Any], num_workers: int, options: Options
) -> list[Outcome]:
    hosts = (LOOPBACK,) * num_workers
    messages = [""] * num_workers
    all_posted = threading.Barrier(num_workers)
    finished: queue.Queue[tuple[int, Outcome]] = queue.Queue()

    def run_rank(rank: int) -> None:
        def gather(message: str) -> list[str]:
            messages[rank] = message
            all_posted.wait()
            return list(messages)

        outcome = live(lambda worker: main(worker, *args), Place(rank, hosts), options, gather)
        finished.put((rank, outcome))

    for rank in range(num_workers):
        name = f"tensorlite-rank-{rank}"
        threading.Thread(target=run_rank, args=(rank,), name=name, daemon=True).start()
    outcomes: dict[int, Outcome] = {}
    patience: float | None = None
    while len(outcomes) < num_workers:
        try:
            rank, outcome = finished.get(timeout=patience)
        except queue.Empty:
            break  # some thread is still busy, and a thread cannot be stopped by force
        outcomes[rank] = outcome
        if not outcome.settled:
            patience = LAST_CALL_SECONDS
    return [outcomes[rank] for rank in sorted(outcomes)]


def _in_processes(
    main: Callable[..., Any], args: Sequence[Any], num_workers: int, options: Options
) -> list[Outcome]:
    # Not fork: a child that inherits the thread pool of a BLAS library half way hangs in its first
    # product.
    context = multiprocessing.get_context("spawn")
    hosts = (LOOPBACK,) * num_workers
    pipes: dict[int, multiprocessing.connection.Connection] = {}
    processes: list[SpawnProcess] = []
    try:
        for rank in range(num_workers):
            ours, theirs = context.Pipe()
            place = Place(rank, hosts, cpus=1)
            process = context.Process(
                target=_process_main, args=(theirs, main, args, place, options)
            )
            process.start()
            theirs.close()
            pipes[rank] = ours
            processes.append(process)
        return _serve(pipes, processes)
    finally:
        for process in processes:
            process.kill()
            process.join()
        for pipe in pipes.values():
            pipe.close()


def _serve(
    pipes: dict[int, multiprocessing.connection.Connection],
    processes: list[SpawnProcess],
) -> list[Outcome]:
    """Answer the processes' gather and collect their outcomes."""
    outcomes: dict[int, Outcome] = {}
    addresses: dict[int, str] = {}
    patience: float | None = None
    while len(outcomes) < len(pipes):
        waiting = {pipe: rank for rank, pipe in pipes.items() if rank not in outcomes}
        ready = multiprocessing.connection.wait(list(waiting), patience)
        if not ready:
            break
        for pipe in ready:
            rank = waiting[pipe]  # type: ignore[index]
            try:
                message = pipes[rank].recv()
            except EOFError:
                processes[rank].join()
                reason = f"its process ended with exit code {processes[rank].exitcode}"
                failure = Failure(rank, LOOPBACK, "lost", "PeerError", reason)
                outcomes[rank] = Outcome(failure=failure, settled=False)
                patience = LAST_CALL_SECONDS
                continue
            if isinstance(message, Outcome):
                outcomes[rank] = message
                patience = patience if message.settled else LAST_CALL_SECONDS
            else:
                addresses[rank] = message
        if len(addresses) == len(pipes):
            for pipe in pipes.values():
                with contextlib.suppress(OSError):  # a process that is gone shows itself as EOF
                    pipe.send([addresses[rank] for rank in sorted(addresses)])
            addresses = {}
    return [outcomes[rank] for rank in sorted(outcomes)]


def _process_main(
    pipe: multiprocessing.connection.Connection,
    main: Callable[..., Any],
    args: Sequence[Any],
    place: Place,
    options: Options,
) -> None:
    def gather(message: str) -> list[str]:
        pipe.send(message)
        return pipe.recv()

    outcome = live(lambda worker: main(worker, *args), place, options, gather)
    try:
        pipe.send(outcome)
    except Exception as error:  # pickle raises whatever the result's own methods raise
        problem = DistributedError(
            f"the result cannot be sent back: {error}; return plain arrays or numbers"
        )
        failure = failure_of(problem, place.rank, LOOPBACK)
        pipe.send(Outcome(failure=failure, settled=outcome.settled))
