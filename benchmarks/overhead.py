"""What the engine adds to NumPy: microseconds for each eager operation, each step of `grad`, and
each jitted call.

Everything runs on arrays so small that the arithmetic is free, so that what is left is overhead.
Each figure is the median of many rounds; NumPy and tensorlite take turns, so that whatever else the
machine does falls on both.

    python benchmarks/overhead.py [--rounds 200]

Prints the medians beside the bars of this project. Exits 1 if one is missed.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np

import tensorlite as tl

CALLS = 200  # in one round, so that reading the clock costs nothing
CHAIN = 50  # operations in the function that is differentiated
LEAVES = 20  # arguments of the jitted function


def main() -> int:
    """Measure, print, and judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=200, help="rounds of each (default: 200)")
    rounds = parser.parse_args().rounds
    if rounds < 1:
        parser.error(f"--rounds must be at least 1, not {rounds}")

    missed = False
    for name, measure, bar in (
        ("an elementwise operation on 10 elements, over NumPy", elementwise, 2.0),
        ("the same with a Python scalar, over NumPy", with_a_scalar, 2.0),
        ("an operation under grad, forward and backward, over eager", gradient, 5.0),
        (f"a jitted call with {LEAVES} leaves", jitted_call, 25.0),
    ):
        taken = measure(rounds)
        missed |= taken > bar
        verdict = "met" if taken <= bar else "MISSED"
        print(f"{name:58} {taken:7.2f} us   (bar {bar:g}, {verdict})")
    return 1 if missed else 0


def elementwise(rounds: int) -> float:
    """Microseconds that `x + y` takes more than NumPy's."""
    a = np.arange(10, dtype=np.float32)
    x = tl.asarray(a)
    ours, numpys = alternate(rounds, lambda: x + x, lambda: a + a)
    return ours - numpys


def with_a_scalar(rounds: int) -> float:
    """Microseconds that `x * 2.0` takes more than NumPy's."""
    a = np.arange(10, dtype=np.float32)
    x = tl.asarray(a)
    ours, numpys = alternate(rounds, lambda: x * 2.0, lambda: a * 2.0)
    return ours - numpys


def gradient(rounds: int) -> float:
    """Microseconds that `grad` takes for one operation more than the three that it has to run: the
    operation itself, and for its derivative one product for each argument."""
    x = tl.asarray(np.ones(10, np.float32))

    def chain(x: Any) -> Any:
        y = x
        for _ in range(CHAIN):
            y = y * x
        return tl.sum(y)

    def work() -> None:
        for _ in range(CHAIN):
            _ = x * x
            _ = x * x
            _ = x * x
            _ = x + x  # the two cotangents of x meet

    differentiate = tl.grad(chain)
    ours, eager = alternate(rounds, lambda: differentiate(x), work, calls=max(1, CALLS // CHAIN))
    return (ours - eager) / CHAIN


def jitted_call(rounds: int) -> float:
    """Microseconds for a call of a jitted function of 20 tensors that computes nothing."""
    leaves = {f"layer{i}": tl.asarray(np.ones(10, np.float32)) for i in range(LEAVES)}
    f = tl.jit(lambda tree: tree)
    return alternate(rounds, lambda: f(leaves))[0]


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


if __name__ == "__main__":
    sys.exit(main())
