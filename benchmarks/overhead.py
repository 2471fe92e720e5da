"""What the engine adds to NumPy: microseconds for each eager operation, each step of `grad`, and
each jitted call; beside PyTorch and JAX, where `make peers` has installed them.

Everything runs on arrays so small that the arithmetic is free, so that what is left is overhead.
Each figure is the median of many rounds; NumPy and tensorlite take turns, so that whatever else the
machine does falls on both. PyTorch and JAX run on one thread, in processes of their own.

    python benchmarks/overhead.py [--rounds 200]

Prints the medians beside the bars of this project. Exits 1 if one is missed.
"""

import argparse
import contextlib
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import tensorlite as tl
from benchmarks.overheads import CHAIN, LEAVES, alternate, over_numpy, per_operation
from benchmarks.workers import Worker, interpreter

PEERS = ("torch", "jax")
NOT_MEASURED = {("torch", "jitted_call")}  # see overheads/in_torch.py


def main() -> int:
    """Measure, print, and judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=200, help="rounds of each (default: 200)")
    rounds = parser.parse_args().rounds
    if rounds < 1:
        parser.error(f"--rounds must be at least 1, not {rounds}")

    peers = [name for name in PEERS if interpreter(name)]
    names = "".join(f"{name:>10}" for name in peers)
    print(f"{'microseconds':58} {'ours':>7}   {'':22}{names}".rstrip())
    missed = False
    with started(peers) as workers:
        for name, measure, bar in (
            ("an elementwise operation on 10 elements, over NumPy", elementwise, 2.0),
            ("the same with a Python scalar, over NumPy", with_a_scalar, 2.0),
            ("an operation under grad, forward and backward, over eager", gradient, 5.0),
            (f"a jitted call with {LEAVES} leaves", jitted_call, 25.0),
        ):
            taken = measure(rounds)
            missed |= taken > bar
            verdict = f"(bar {bar:g}, {'met' if taken <= bar else 'MISSED'})"
            theirs = "".join(ask(worker, measure.__name__, rounds) for worker in workers)
            print(f"{name:58} {taken:7.2f} us   {verdict:19}{theirs}".rstrip())
    return 1 if missed else 0


@contextlib.contextmanager
def started(peers: list[str]) -> Iterator[list[Worker]]:
    """A worker with one thread for each peer."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Worker(name, f"overheads.in_{name}", 1)) for name in peers]


def ask(worker: Worker, case: str, rounds: int) -> str:
    """What a peer takes, ten characters wide."""
    if (worker.framework, case) in NOT_MEASURED:
        return f"{'-':>10}"
    worker.ask(build="build_case", arguments={"case": case, "rounds": rounds})
    return f"{worker.ask(run=1)['values'][0]:10.2f}"


def elementwise(rounds: int) -> float:
    """Microseconds that `x + y` takes more than NumPy's."""
    a = np.arange(10, dtype=np.float32)
    x = tl.asarray(a)
    return over_numpy(rounds, lambda: x + x, lambda: a + a)


def with_a_scalar(rounds: int) -> float:
    """Microseconds that `x * 2.0` takes more than NumPy's."""
    a = np.arange(10, dtype=np.float32)
    x = tl.asarray(a)
    return over_numpy(rounds, lambda: x * 2.0, lambda: a * 2.0)


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
    return per_operation(rounds, lambda: differentiate(x), work)


def jitted_call(rounds: int) -> float:
    """Microseconds for a call of a jitted function of 20 tensors that computes nothing."""
    leaves = {f"layer{i}": tl.asarray(np.ones(10, np.float32)) for i in range(LEAVES)}
    f = tl.jit(lambda tree: tree)
    return alternate(rounds, lambda: f(leaves))[0]


if __name__ == "__main__":
    sys.exit(main())
