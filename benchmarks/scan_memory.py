"""Peak memory of reverse mode through `tl.scan`, with and without `checkpoint=True`.

    python benchmarks/scan_memory.py

The body keeps one carry of 64 KiB a step. Bar: with `checkpoint=True` the peak grows with the
square root of the length or better, so that four times the steps take at most 2.2 times the memory.
Memory is counted by tracemalloc, which NumPy reports its arrays to.
"""

from __future__ import annotations

import itertools
import sys
import tracemalloc

import tensorlite as tl

WIDTH = 16 * 1024  # float32 numbers in the carry
LENGTHS = (250, 1000, 4000)


def peak(length: int, checkpoint: bool) -> int:
    """Bytes allocated at most while the gradient of a scan of `length` steps runs."""

    def loss(x: tl.Tensor) -> tl.Tensor:
        def body(carry: tl.Tensor, _: None) -> tuple[tl.Tensor, None]:
            return tl.sin(carry * 1.01), None

        return tl.sum(tl.scan(body, x, length=length, checkpoint=checkpoint)[0])

    gradient = tl.jit(tl.grad(loss))
    x = tl.full((WIDTH,), 0.5)
    gradient(x)  # traces and compiles
    tracemalloc.start()
    gradient(x)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


def main() -> int:
    """Print the peaks, and whether they grow as they should."""
    peaks = {}
    for checkpoint in (False, True):
        for length in LENGTHS:
            peaks[checkpoint, length] = peak(length, checkpoint)
            mib = peaks[checkpoint, length] / 2**20
            print(f"{length:5d} steps, checkpoint={checkpoint!s:5}: {mib:8.1f} MiB")
    growth = [peaks[True, b] / peaks[True, a] for a, b in itertools.pairwise(LENGTHS)]
    met = max(growth) <= 2.2
    shown = ", ".join(f"{g:.2f}" for g in growth)
    print(f"four times the steps: {shown} times the memory (bar 2.2, {'met' if met else 'MISSED'})")
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
