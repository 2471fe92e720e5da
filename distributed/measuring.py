"""How fast worker processes of this machine all-reduce, for `tensorlite bench --workers`."""

from __future__ import annotations

import statistics
import time

import numpy as np

from .local import run_local
from .worker import Worker

KB, MB = 1 << 10, 1 << 20
SIZES = (KB, 64 * KB, MB, 16 * MB, 64 * MB)  # bytes
SECONDS = 0.3  # that a size goes on for
LEAST, MOST = 5, 1000  # calls


def all_reduce_times(workers: int, shared_memory: bool = True) -> dict[int, list[float]]:
    """For each number of bytes the seconds of a call on the slowest of `workers` processes, which
    sum float32; call by call.

    Args:
        shared_memory: whether they may exchange data through memory; else over connections only.

    Raises:
        WorkerError: a process failed.
    """
    found = run_local(
        _calls, num_workers=workers, mode="processes", shared_memory=shared_memory, timeout=60.0
    )
    return {
        nbytes: [max(of_ranks) for of_ranks in zip(*(f[nbytes] for f in found), strict=True)]
        for nbytes in SIZES
    }


def bus_bytes(nbytes: int, workers: int) -> float:
    """What each of `workers` must at least send to sum arrays of so many bytes."""
    return 2 * (workers - 1) / workers * nbytes


def _calls(worker: Worker) -> dict[int, list[float]]:
    """The seconds of each call on this worker, by size."""
    return {nbytes: _of_size(worker, nbytes) for nbytes in SIZES}


def _of_size(worker: Worker, nbytes: int) -> list[float]:
    array = np.zeros(nbytes // 4, np.float32)
    quick = statistics.median(_timed(worker, array, LEAST))
    agreed = np.asarray([quick], np.float32)
    worker.ring.all_reduce_(agreed, "max")  # all make as many calls
    return _timed(worker, array, min(max(int(SECONDS / float(agreed[0])), LEAST), MOST))


def _timed(worker: Worker, array: np.ndarray, calls: int) -> list[float]:
    times = []
    for _ in range(calls):
        worker.ring.barrier()
        start = time.perf_counter()
        worker.ring.all_reduce_(array)
        times.append(time.perf_counter() - start)
    return times
