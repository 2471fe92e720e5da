"""What `benchmarks/overhead.py` asks of PyTorch and JAX, and how all of them are timed.

A file `in_<framework>` has functions by the names in `overhead.py`: rounds to microseconds, of the
same work as there. `build_case` makes them the step of a worker.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from time import perf_counter
from typing import Any

CALLS = 200  # in one round, so that reading the clock costs nothing
CHAIN = 50  # operations in the function that is differentiated
LEAVES = 20  # arguments of the jitted function


def alternate(rounds: int, *functions: Callable[[], Any], calls: int = CALLS) -> list[float]:
    """The median microseconds of a call of each function; rounds of them take turns."""
    taken: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds):
        for function, times in zip(functions, taken, strict=True):
            start = perf_counter()
            for _ in range(calls):
                function()
            times.append((perf_counter() - start) / calls * 1e6)
    return [statistics.median(times) for times in taken]


def over_numpy(rounds: int, theirs: Callable[[], Any], numpys: Callable[[], Any]) -> float:
    """Microseconds that one function takes more than NumPy's."""
    taken, baseline = alternate(rounds, theirs, numpys)
    return taken - baseline


def per_operation(rounds: int, differentiate: Callable[[], Any], eager: Callable[[], Any]) -> float:
    """Microseconds that the derivative of `CHAIN` operations takes more than what it has to run
    anyway, for each of them."""
    taken, baseline = alternate(rounds, differentiate, eager, calls=max(1, CALLS // CHAIN))
    return (taken - baseline) / CHAIN
