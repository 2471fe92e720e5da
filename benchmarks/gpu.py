"""A GPU through OpenCL: a product against what the card can do, and training steps beside PyTorch's
on the same card.

    TENSORLITE_PEERS=folder python benchmarks/gpu.py [--models tutorial,resnet20] [--tune]

`folder/torch/bin/python` is a Python with a PyTorch that can use the card. The bar is a product of
4096 x 4096 matrices in float32 at 60% of the card's peak, which is its units times 128 additions
and products in a cycle (NVIDIA's cards since 2020, but for the A100) times the clock that the
driver names, or what `--peak` says. PyTorch's steps are eager and compiled, in float32 as ours are,
and in tf32, which rounds the operands of products to 10 bits and uses other units of the card.
Steps end with the loss on the host.

Exits 1 if the bar is missed, a worker fails or losses disagree.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import sys
import tempfile
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks.models import definitions
from benchmarks.opencl_products import matmul
from benchmarks.workers import PEERS, Worker, WorkerError, interpreter, take_turns
from tensorlite.backends.opencl import products
from tensorlite.backends.opencl.runtime import Runtime, find_all, runtime

SHARE_BAR = 0.6
THREADS = min(4, len(os.sched_getaffinity(0)))  # the drivers' own threads want some
LANES = 128  # float32 units of a compute unit
CHECKED, TOLERANCE, TF32_TOLERANCE = 5, 1e-3, 2e-2

OURS = "tensorlite"
CONTESTANTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    OURS: ("tensorlite", "models.in_tensorlite", {}),
    "eager": ("torch", "models.in_torch", {"device": "cuda"}),
    "channels-last": (
        "torch",
        "models.in_torch",
        {"device": "cuda", "channels_last": True},
    ),
    "compiled": ("torch", "models.in_torch", {"device": "cuda", "compiled": True}),
    "tf32": ("torch", "models.in_torch", {"device": "cuda", "tf32": True}),
}


def main() -> int:
    """Measure, print, and judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--device", help="default: the first GPU")
    parser.add_argument("--models", default="tutorial,resnet20", help="default: %(default)s")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak", type=float, help="TFLOP/s of the card in float32")
    peers = ",".join(name for name in CONTESTANTS if name != OURS)
    parser.add_argument("--peers", default=peers, help="default: %(default)s")
    parser.add_argument("--tune", action="store_true", help="search for the best tiles first")
    args = parser.parse_args()
    gpus = [found.name for found in find_all() if found.traits.kind == "gpu"]
    names = [OURS, *filter(None, args.peers.split(","))]
    if unknown := set(names) - set(CONTESTANTS):
        parser.error(f"--peers: there is no {min(unknown)!r}; of {peers}")
    device = args.device or next(iter(gpus), None)
    if device is None:
        parser.error("this machine has no GPU with an OpenCL driver")
    at = runtime(device)
    print(f"{device}: {at.traits.key}")
    problems = [] if product(at, args) else ["the product misses its bar"]
    for model in filter(None, args.models.split(",")):
        problems += steps(device, model, args.batch, args.rounds, names)
    for problem in problems:
        print(problem)
    return 1 if problems else 0


def product(at: Runtime, args: argparse.Namespace) -> bool:
    """Print the rate of a product; whether the bar is met."""
    peak = args.peak or at.traits.units * LANES * 2 * at.device.max_clock_frequency / 1e6
    case = matmul(4096, 4096, 4096)
    if args.tune:
        products.tune(at, [case.problem], report=print)
    plan = products.plan(at.traits, case.problem)
    assert plan is not None
    seconds = products.Trial(at, plan, products.Operands.of(at, case.problem)).seconds(20)
    rate = case.flop / seconds / 1e12
    met = rate >= SHARE_BAR * peak
    print(
        f"{case.name}: {seconds * 1e3:.2f} ms, {rate:.1f} TFLOP/s, {rate / peak:.0%} of "
        f"{peak:.1f}, bar {SHARE_BAR:.0%}, {'met' if met else 'MISSED'}"
    )
    return met


def steps(device: str, model: str, batch: int, rounds: int, chosen: list[str]) -> list[str]:
    """Print the times of a model's step; what went wrong."""
    problems, taking_part, names = [], [], []
    losses: dict[str, list[float]] = {}
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        definitions.save(folder / "arrays.npz", model, batch)
        for name in chosen:
            framework, module, options = CONTESTANTS[name]
            if interpreter(framework) is None:
                problems.append(f"{name}: there is no {PEERS / framework / 'bin' / 'python'}")
                continue
            where = {"device": device, **options}
            arguments = {"arrays": str(folder / "arrays.npz"), "model": model, **where}
            try:
                worker = stack.enter_context(Worker(framework, module, THREADS, gpus=True))
                worker.ask(build="build_step", arguments=arguments)
                losses[name] = worker.ask(run=CHECKED)["values"]
            except WorkerError as error:
                problems.append(f"{model}, {name}: {error}")
                continue
            taking_part.append(worker)
            names.append(name)
        taken = take_turns(taking_part, rounds)
    for name, seconds in zip(names, taken, strict=True):
        ratio = seconds / taken[0]
        print(f"{model}, batch {batch}: {name} {1e3 * seconds:.2f} ms, {ratio:.2f} times ours")
    for name in names[1:]:
        allowed = TF32_TOLERANCE if "tf32" in name else TOLERANCE
        pairs = zip(losses[name], losses[names[0]], strict=True)
        worst = max(abs(theirs - ours) / abs(ours) for theirs, ours in pairs)
        if not worst <= allowed:
            problems.append(f"{model}: the losses of {name} differ from ours by {worst:.1e}")
    return problems


if __name__ == "__main__":
    sys.exit(main())
