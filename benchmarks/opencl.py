"""OpenCL on this machine's first device: a training step of the tutorial network beside tinygrad's
on the same device, a product, and fused kernels beside a copy.

    make peers
    python benchmarks/opencl.py [--parts fused,matmul,step] [--lrn]

tinygrad's step is that of the network without local response norm, which it computes so slowly that
a step takes many times as long; `--lrn` times that, too. Ours has the norm.

Exits 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import numpy as np

import tensorlite as tl
from benchmarks.models import definitions
from benchmarks.workers import Worker, interpreter, take_turns, warn_if_busy
from tensorlite import nn

DEVICE = "opencl:0"
STEP_BAR, COPY_BAR = 5.0, 1.3
ELEMENTS = 8_000_000
SLOW = 5.0  # seconds of a step


def main() -> int:
    """Measure, print, and say which bars are met."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parts", default="fused,matmul,step", help="default: %(default)s")
    parser.add_argument("--lrn", action="store_true", help="tinygrad with the norm, too: minutes")
    args = parser.parse_args()
    parts: dict[str, Callable[[int], bool]] = {
        "fused": _fused,
        "matmul": _matmul,
        "step": functools.partial(_step, lrn=args.lrn),
    }
    chosen = args.parts.split(",")
    if unknown := set(chosen) - set(parts):
        parser.error(f"--parts: there is no {min(unknown)!r}; of {', '.join(parts)}")
    warn_if_busy()
    device = tl.asarray(0.0, device=DEVICE).device
    print(f"{device.name}: {device.description}")
    met = [parts[name](args.rounds) for name in chosen]
    return 0 if all(met) else 1


def _least(action: Callable[[], Any], rounds: int) -> float:
    """The least seconds of an action, waited for."""
    times = []
    for _ in range(4 * rounds):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _fused(rounds: int) -> bool:
    import pyopencl as cl

    from tensorlite.backends.opencl.memory import empty
    from tensorlite.backends.opencl.runtime import runtime

    at = runtime(DEVICE)
    single = np.dtype(np.float32)
    source, target = (empty(at, (ELEMENTS,), single, "copy") for _ in range(2))

    def copy() -> None:
        cl.enqueue_copy(at.queue, target.memory, source.memory)
        at.finish()

    x = tl.asarray(np.random.default_rng(0).normal(size=ELEMENTS).astype(np.float32), device=DEVICE)
    functions = {
        "x * 2 + 1": lambda x: x * 2 + 1,
        "gelu": lambda x: nn.gelu(x, approximate=True),
        "x / sqrt(x * x + 1)": lambda x: x / tl.sqrt(x * x + 1),
    }
    bandwidth = _least(copy, rounds)
    print(f"copy of {ELEMENTS:,} float32: {1e3 * bandwidth:.2f} ms")
    met = True
    for name, function in functions.items():
        jitted = tl.jit(function)

        def run(jitted: Callable[..., Any] = jitted) -> None:
            jitted(x)
            at.finish()

        taken = _least(run, rounds)
        met &= taken <= COPY_BAR * bandwidth
        verdict = "met" if taken <= COPY_BAR * bandwidth else "MISSED"
        print(
            f"{name}: {1e3 * taken:.2f} ms, {taken / bandwidth:.2f} times a copy, "
            f"bar {COPY_BAR}, {verdict}"
        )
    return met


def _matmul(rounds: int) -> bool:
    from tensorlite.backends.opencl.runtime import runtime

    at = runtime(DEVICE)
    bar = 130.0 if "Intel" in at.traits.key else 70.0
    x = tl.asarray(np.ones((1024, 1024), np.float32), device=DEVICE)
    product = tl.jit(lambda x: x @ x)

    def run() -> None:
        product(x)
        at.finish()

    rate = 2 * 1024**3 / _least(run, rounds) / 1e9
    print(f"matmul 1024^3: {rate:.1f} GFLOP/s, bar {bar:.0f}, {'met' if rate >= bar else 'MISSED'}")
    return rate >= bar


def _step(rounds: int, lrn: bool) -> bool:
    if interpreter("tinygrad") is None:
        print("no environment for tinygrad; make one: make peers")
        return False
    _offer_this_driver()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        arrays = str(pathlib.Path(folder) / "arrays.npz")
        definitions.save(pathlib.Path(arrays), "tutorial", 128)
        workers, names = [], []
        contestants: list[tuple[str, str, dict[str, Any]]] = [
            ("tensorlite", "models.in_tensorlite", {"device": DEVICE}),
            ("tinygrad, no LRN", "models.in_tinygrad", {"norm": False}),
        ]
        if lrn:
            contestants.append(("tinygrad", "models.in_tinygrad", {}))
        for name, module, options in contestants:
            worker = stack.enter_context(Worker(name.partition(",")[0], module, 2))
            arguments = {"arrays": arrays, "model": "tutorial", **options}
            worker.ask(build="build_step", arguments=arguments)
            first = worker.ask(run=3)
            print(f"{name}: losses {', '.join(f'{loss:.4f}' for loss in first['values'])}")
            if first["seconds"][-1] > SLOW:  # the first two compile
                print(f"{name}: a step takes {first['seconds'][-1]:.1f} s; it takes no turns")
                worker.close()
                continue
            workers.append(worker)
            names.append(name)
        taken = take_turns(workers, rounds)
    for name, seconds in zip(names, taken, strict=True):
        ratio = seconds / taken[0]
        print(f"tutorial, batch 128: {name} {1e3 * seconds:.1f} ms ({ratio:.2f} times ours)")
    ratio = min(taken[1:]) / taken[0]
    print(f"bar {STEP_BAR}, {'met' if ratio >= STEP_BAR else 'MISSED'}")
    return ratio >= STEP_BAR


def _offer_this_driver() -> None:
    """Have tinygrad's OpenCL backend find the loader and the driver that PyOpenCL brings."""
    import pyopencl

    libraries = pathlib.Path(pyopencl.__file__).parent / ".libs"
    loader = next(libraries.glob("libOpenCL*"))
    driver = next(libraries.glob("libpocl-*.so"))
    folder = pathlib.Path(tempfile.mkdtemp(prefix="icd-"))
    (folder / "pocl.icd").write_text(f"{driver}\n")
    os.environ |= {"OPENCL_PATH": str(loader), "OCL_ICD_VENDORS": str(folder), "DEV": "CL"}


if __name__ == "__main__":
    sys.exit(main())
