"""All-reduce by `Ring`, through shared memory or over connections."""

from __future__ import annotations

import functools
import hashlib
import os
import pathlib
import queue
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from tensorlite.distributed.life import Options, Place, live
from tensorlite.distributed.ring import Ring
from tensorlite.distributed.worker import Worker

PATIENCE = 60.0  # seconds until the ranks must have found each other


def build_all_reduce(
    *,
    rank: int,
    hosts: Sequence[str],
    folder: str,
    elements: int,
    check: bool = False,
    shared: bool = True,
    threads: int = 1,
) -> Callable[[], float | None]:
    """See `benchmarks.collectives`."""
    ring = _connected(rank, tuple(hosts), folder, shared)
    array = np.zeros(elements, np.float32)

    def step() -> float | None:
        if check:
            array.fill(rank + 1)
        ring.all_reduce_(array)
        return float(array[-1]) if check else None

    return step


@functools.cache
def _connected(rank: int, hosts: tuple[str, ...], folder: str, shared: bool) -> Ring:
    """The ring of a worker that lives, in a thread, as long as this process."""
    rings: queue.Queue[Ring | str] = queue.Queue()

    def main(worker: Worker) -> None:
        rings.put(worker.ring)
        threading.Event().wait()

    def life() -> None:
        secret = hashlib.sha256(folder.encode()).digest()
        options = Options(secret, connect_timeout=PATIENCE, shared_memory=shared)
        outcome = live(main, Place(rank, hosts), options, gather)
        rings.put(outcome.failure.describe() if outcome.failure else "the worker has ended")

    def gather(message: str) -> list[str]:
        mine = pathlib.Path(folder, f"{rank}.new")
        mine.write_text(message)
        os.replace(mine, mine.with_suffix(".json"))
        files = [pathlib.Path(folder, f"{peer}.json") for peer in range(len(hosts))]
        deadline = time.monotonic() + PATIENCE
        while not all(file.exists() for file in files):
            if time.monotonic() > deadline:
                raise TimeoutError(f"rank {rank} waited for the others in {folder}")
            time.sleep(0.01)
        return [file.read_text() for file in files]

    threading.Thread(target=life, daemon=True).start()
    ring = rings.get(timeout=2 * PATIENCE)
    if isinstance(ring, str):
        raise RuntimeError(ring)
    return ring
