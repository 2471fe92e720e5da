"""How many processor threads an operation may use: one setting for the compiled loops, oneDNN and
NumPy's BLAS."""

from __future__ import annotations

import os
from typing import Any

VARIABLE = "TENSORLITE_NUM_THREADS"

_count = 0  # 0: not asked for yet
_blas_limits: Any = None  # the limits last set, which must stay alive


def set_num_threads(count: int) -> None:
    """Let every operation on the CPU use at most `count` threads, from now on and in all threads of
    this process. Without this call it is the environment variable TENSORLITE_NUM_THREADS, else
    OMP_NUM_THREADS, else the number of processors that this process may run on. In a Spark task it
    is the number of cpus of the task (`spark.task.cpus`).

    Raises:
        ValueError: `count` is not a positive integer.
    """
    global _count, _blas_limits
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"set_num_threads: takes a positive number of threads, got {count!r}")
    _count = count
    from threadpoolctl import threadpool_limits  # looks for libraries, so only when asked

    _blas_limits = threadpool_limits(limits=count, user_api="blas")


def get_num_threads() -> int:
    """How many threads an operation on the CPU may use; see `set_num_threads`."""
    global _count
    if not _count:
        chosen = _from_environment(VARIABLE)
        if chosen:
            set_num_threads(chosen)
        else:
            _count = _from_environment("OMP_NUM_THREADS") or _processors()
    return _count


def _from_environment(name: str) -> int:
    """The number in an environment variable; 0 if it is not set.

    Raises:
        ValueError: TENSORLITE_NUM_THREADS is no positive integer.
    """
    text = os.environ.get(name, "").strip()
    if text.isdigit() and int(text) > 0:
        return int(text)
    if text and name == VARIABLE:
        raise ValueError(f"{VARIABLE} is a positive number of threads, got {text!r}")
    return 0  # OMP_NUM_THREADS may be a list, one number for each nested level


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
