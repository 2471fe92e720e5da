"""Fused elementwise work beside PyTorch, and beside a plain copy of as many bytes.

    make peers                       PyTorch's environment, once
    python benchmarks/fused.py [--kernels gelu,adam] [--elements 100000] [--threads 2] [--rounds 10]

gelu (tanh formula), layer norm and softmax over rows of 1000, and Adam's update, in float32:
jitted in tensorlite, eager and compiled in PyTorch. Every framework has a process of its own, and
they take turns (see `workers`). A copy reads and writes as many bytes as the kernel must; it is the
faster of NumPy's by one thread and by all of them.

Bars: PyTorch, the faster of both ways, takes at least 1.5 times as long as we do; and where the
arrays fit into no cache, we take at most 1.3 times as long as the copy. Exits 1 if one is missed,
or if results differ.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks.kernels import KERNELS
from benchmarks.workers import Worker, interpreter, take_turns, warn_if_busy

OVER_TORCH, OVER_COPY = 1.5, 1.3
UNCACHED = 64 * 2**20  # bytes; a copy of fewer may run at the speed of a cache
TOLERANCE = 1e-5
SMALLEST = 1000  # elements: one row

CONTESTANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "tensorlite": ("tensorlite", {}),
    "torch": ("torch", {}),
    "torch-compile": ("torch", {"compiled": True}),
}


def main() -> int:
    """Measure every kernel at every size, print, and judge."""
    args = parse()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    warn_if_busy()
    names = [name for name, (framework, _) in CONTESTANTS.items() if interpreter(framework)]
    if len(names) < len(CONTESTANTS):
        print("without PyTorch: there is no environment for it; make one with `make peers`")
    print(f"{args.threads} threads, microseconds")
    columns = "".join(f"{name:>15}" for name in names)
    print(f"{'kernel':12}{'elements':>10}{columns}{'copy':>10}{'GB/s':>7}   verdict")
    missed = False
    for kernel in args.kernels:
        for elements in args.elements:
            medians = measure(kernel, elements, names, args.threads, args.rounds)
            moved = KERNELS[kernel] * elements
            met, verdict = judge(medians, memory_bound=moved >= UNCACHED)
            missed |= not met
            taken = "".join(f"{medians[name] * 1e6:15.1f}" for name in names)
            copy = medians["copy"]
            speed = moved / copy / 1e9
            print(f"{kernel:12}{elements:10}{taken}{copy * 1e6:10.1f}{speed:7.1f}   {verdict}")
    return 1 if missed else 0


def measure(
    kernel: str, elements: int, names: list[str], threads: int, rounds: int
) -> dict[str, float]:
    """Median seconds of each contestant and of the copy.

    Raises:
        ValueError: the contestants' results differ.
    """
    with contextlib.ExitStack() as stack:
        workers = []
        results = {}
        for name in names:
            framework, options = CONTESTANTS[name]
            worker = stack.enter_context(Worker(framework, f"kernels.in_{framework}", threads))
            arguments = {"kernel": kernel, "elements": elements, **options}
            worker.ask(build="build_kernel", arguments={**arguments, "check": True})
            results[name] = worker.ask(run=1)["values"][0]
            worker.ask(build="build_kernel", arguments=arguments)
            workers.append(worker)
        check_agreement(kernel, results)
        for parts in sorted({1, threads}):
            worker = stack.enter_context(Worker("numpy", "kernels.in_numpy", threads))
            moved = KERNELS[kernel] * elements
            worker.ask(build="build_copy", arguments={"moved": moved, "parts": parts})
            workers.append(worker)
        taken = take_turns(workers, rounds, seconds=0.1)
    copies = taken[len(names) :]
    return {**dict(zip(names, taken, strict=False)), "copy": min(copies)}


def check_agreement(kernel: str, results: dict[str, float]) -> None:
    """Raise ValueError if the results of a kernel are not the same everywhere."""
    expected = results["tensorlite"]
    for name, result in results.items():
        if not abs(result - expected) <= TOLERANCE * abs(expected):  # NaN is not
            raise ValueError(f"{kernel}: {name} computes {result}, tensorlite {expected}")


def judge(medians: dict[str, float], memory_bound: bool) -> tuple[bool, str]:
    """Whether the bars are met, and a phrase that says so; that of the copy counts only where the
    kernel is bound by memory."""
    ours = medians["tensorlite"]
    peers = [taken for name, taken in medians.items() if name.startswith("torch")]
    over_copy = ours / medians["copy"]
    met = over_copy <= OVER_COPY or not memory_bound
    phrases = [f"{over_copy:.2f}x the copy"]
    if peers:
        over_torch = min(peers) / ours
        met &= over_torch >= OVER_TORCH
        phrases.insert(0, f"PyTorch takes {over_torch:.2f}x ours")
    return met, f"{', '.join(phrases)}: {'met' if met else 'MISSED'}"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options, checked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    processors = len(os.sched_getaffinity(0))
    add = parser.add_argument
    add("--kernels", default=",".join(KERNELS), help="default: %(default)s")
    add("--elements", default="100000,1000000,10000000", help="default: %(default)s")
    add("--threads", type=int, default=min(2, processors), help="default: %(default)s")
    add("--rounds", type=int, default=10, help="turns of each (default: %(default)s)")
    args = parser.parse_args(arguments)
    args.kernels = args.kernels.split(",")
    for kernel in args.kernels:
        if kernel not in KERNELS:
            parser.error(f"--kernels: there is no {kernel!r}; of {', '.join(KERNELS)}")
    try:
        args.elements = [int(number) for number in args.elements.split(",")]
    except ValueError as error:
        parser.error(f"--elements are integers with commas between them: {error}")
    if any(number < SMALLEST or number % SMALLEST for number in args.elements):
        parser.error(f"--elements: positive multiples of {SMALLEST}, got {args.elements}")
    if not 1 <= args.threads <= processors:
        parser.error(f"--threads: between 1 and the {processors} processors here")
    if args.rounds < 1:
        parser.error(f"--rounds must be at least 1, not {args.rounds}")
    return args


if __name__ == "__main__":
    sys.exit(main())
