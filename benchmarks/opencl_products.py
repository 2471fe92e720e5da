"""Matrix products and convolutions on OpenCL devices: GFLOP/s of each case on each device.

    python benchmarks/opencl_products.py [--devices opencl:0,opencl:1] [--cases matmul]
                                         [--rounds 20] [--kernels] [--tune]

The cases are a square product, products of other forms, and the convolutions of the tutorial
network and of ResNet-20 in all three directions, batch 128. What is timed is all launches of a
plan, from an idle queue to an idle queue, the best of some rounds; the copies that make operands
ready count as time, but not as work.

Bars, on two cores with AVX-512: the product of 1024 x 1024 matrices in float32 at 70 GFLOP/s or
more on PoCL and 130 on Intel's runtime. Exits 1 if one is missed.
"""

from __future__ import annotations

import argparse
import math
import pathlib
import sys
from typing import NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks.workers import warn_if_busy
from tensorlite import dtypes
from tensorlite.backends.opencl import products
from tensorlite.backends.opencl.runtime import Runtime, find_all, runtime
from tensorlite.core import Aval
from tensorlite.ops.window import Window

BARS = {"Portable Computing Language": 70.0, "Intel": 130.0}  # GFLOP/s of the first case


class Case(NamedTuple):
    """A problem, and how many operations on floats it takes."""

    name: str
    problem: products.Problem
    flop: int


def matmul(m: int, k: int, n: int, *, batch: int = 0, a: bool = False, b: bool = False) -> Case:
    """m x k times k x n; with `a` or `b` that operand lies transposed."""
    lead = (batch,) if batch else ()
    x = Aval((*lead, *((k, m) if a else (m, k))), dtypes.float32)
    y = Aval((*lead, *((n, k) if b else (k, n))), dtypes.float32)
    z = Aval((*lead, m, n), dtypes.float32)
    turned = "".join(flag for flag, on in (("t", a), ("T", b)) if on)
    name = "x".join(map(str, (*lead, m, k, n))) + (f" {turned}" if turned else "")
    problem = products.Problem("matmul", (x, y), z, (a, b))
    return Case(f"matmul {name}", problem, 2 * m * n * k * max(batch, 1))


def convolutions(
    name: str,
    x: tuple[int, ...],
    window: tuple[int, ...],
    out: int,
    *,
    stride: int = 1,
    groups: int = 1,
) -> list[Case]:
    """The three directions of a convolution with padding "same"."""
    pads = []
    for n, size in zip(x[1:-1], window, strict=True):
        total = max((-(-n // stride) - 1) * stride + size - n, 0)
        pads.append((total // 2, total - total // 2))
    each = Window(window, (stride,) * len(window), tuple(pads), (1,) * len(window), groups)
    image = Aval(x, dtypes.float32)
    kernel = Aval((*window, x[-1] // groups, out), dtypes.float32)
    result = Aval((x[0], *each.positions(x[1:-1]), out), dtypes.float32)
    flop = 2 * result.size * math.prod(window) * kernel.shape[-2]
    directions = [
        ("conv", (image, kernel), result),
        ("conv_weight_grad", (image, result), kernel),
        ("conv_input_grad", (result, kernel), image),
    ]
    return [
        Case(f"{op} {name}", products.Problem(op, inputs, given, each), flop)
        for op, inputs, given in directions
    ]


CASES = [
    matmul(1024, 1024, 1024),
    matmul(1024, 1024, 1024, a=True),
    matmul(1024, 1024, 1024, b=True),
    matmul(2048, 2048, 2048),
    matmul(32, 784, 512),
    matmul(128, 2304, 384),
    matmul(1, 2048, 2048),
    matmul(2048, 2048, 1),
    matmul(64, 64, 32, batch=128, b=True),
    *convolutions("24x24x3 5x5 64", (128, 24, 24, 3), (5, 5), 64),
    *convolutions("12x12x64 5x5 64", (128, 12, 12, 64), (5, 5), 64),
    *convolutions("32x32x16 3x3 16", (128, 32, 32, 16), (3, 3), 16),
    *convolutions("32x32x16 3x3/2 32", (128, 32, 32, 16), (3, 3), 32, stride=2),
    *convolutions("8x8x64 3x3 64", (128, 8, 8, 64), (3, 3), 64),
    *convolutions("16x16x64 3x3 depthwise", (128, 16, 16, 64), (3, 3), 64, groups=64),
]


def main() -> int:
    """Measure every case on every device, print, and judge."""
    args = parse()
    warn_if_busy()
    found = [f for f in find_all() if args.devices is None or f.name in args.devices.split(",")]
    missed = False
    for device in found:
        at = runtime(device.name)
        print(f"{device.name}: {at.traits.key}")
        missed |= measure(at, args)
    return int(missed)


def measure(at: Runtime, args: argparse.Namespace) -> bool:
    """Print the cases on one device; whether a bar was missed."""
    cases = [case for case in CASES if args.cases in case.name]
    if args.tune:
        products.tune(at, [case.problem for case in cases], report=print)
    missed = False
    for case in cases:
        plan = products.plan(at.traits, case.problem)
        if plan is None:
            print(f"  {case.name:40} no kernel")
            continue
        prepared = products.Trial(at, plan, products.Operands.of(at, case.problem))
        seconds = prepared.seconds(args.rounds)
        rate = case.flop / seconds / 1e9
        verdict = ""
        for platform, bar in BARS.items():
            if case is CASES[0] and at.traits.key.startswith(platform):
                missed |= rate < bar
                verdict = f"   bar {bar:.0f}: {'met' if rate >= bar else 'MISSED'}"
        print(f"  {case.name:40}{seconds * 1e3:9.2f} ms{rate:9.1f} GFLOP/s{verdict}")
        if args.kernels:
            for number, launch in enumerate(prepared.launches):
                took = prepared.seconds(args.rounds, number)
                print(f"      {launch[3]:36}{took * 1e3:9.2f} ms  {launch[1]}")
    return missed


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--devices", help="names, comma-separated; all by default")
    parser.add_argument("--cases", default="", help="only those whose name contains this")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--kernels", action="store_true", help="times of single launches, too")
    parser.add_argument("--tune", action="store_true", help="search for the best tiles first")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
