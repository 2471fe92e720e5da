"""What `tensorlite bench` measures: how fast a device multiplies, copies, convolves and trains.

A number is the median of runs that are repeated for half a second or so, after one that is not
counted: it traces, compiles and warms caches.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from . import dtypes, nn, optim, random, tree
from ._version import __version__
from .autodiff import value_and_grad
from .core import Tensor
from .device import default_device
from .jit import jit
from .ops.creation import asarray
from .ops.elementwise import negative
from .ops.linalg import matmul
from .ops.reduce import mean
from .precision import precision
from .threads import get_num_threads, set_num_threads

PARTS = ("products", "copy", "convolution", "training")
SECONDS = 0.5  # that a measurement goes on for
LEAST, MOST = 5, 200  # runs
PRODUCTS = (512, 1024, 2048, 4096, 8192)  # rows and columns of the matrices
LONG = 0.1  # seconds of a product after which no larger one is tried
COPIED = 256 << 20  # bytes
BATCH = 128
BUSY = 0.5  # processes that want a processor, for each that there is


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One number.

    Attributes:
        what: what was run.
        value, unit: the rate that follows from the median time.
        seconds: the median time of a run.
        spread: the middle half of the times lies within so many seconds.
        repeats: how many runs there were.
    """

    what: str
    value: float
    unit: str
    seconds: float
    spread: float
    repeats: int


class InputError(ValueError):
    """A model cannot be timed on such rows."""


def measured(what: str, amount: float, unit: str, times: list[float]) -> Measurement:
    """The measurement of runs that took these times and did an `amount` each."""
    middle = statistics.median(times)
    quarters = statistics.quantiles(times, n=4) if len(times) > 1 else [middle] * 3
    return Measurement(what, amount / middle, unit, middle, quarters[2] - quarters[0], len(times))


def described(row: Measurement) -> str:
    """A measurement as a line for people to read."""
    value = f"{row.value:,.0f}" if row.value >= 100 else f"{row.value:.3g}"
    steady = f"{row.spread / row.seconds / 2:.0%}"
    time = f"{_seconds(row.seconds)} ± {steady}"
    return f"{row.what:<64}{value:>8} {row.unit:<9} {time:>16} {row.repeats:>5} runs"


def _seconds(seconds: float) -> str:
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def machine(device: str) -> dict[str, Any]:
    """What the numbers of a device depend on."""
    about: dict[str, Any] = {
        "device": device,
        "name": processor(),
        "host": platform.node(),
        "threads": get_num_threads(),
        "tensorlite": __version__,
    }
    if device.startswith("opencl"):
        from .backends.opencl.runtime import find

        found = find(device)
        platform_name = found.device.platform.name.strip()
        about["name"] = found.device.name.strip()
        about["driver"] = f"{platform_name} {found.device.driver_version}"
    else:
        from .backends.cpu.onednn import load

        about["driver"] = "oneDNN" if load() is not None else "NumPy"
    return about


def busy() -> str:
    """What to say of a machine that has other work to do; "" of one that has not."""
    load, processors = os.getloadavg()[0], os.cpu_count() or 1
    if load <= BUSY * processors:
        return ""
    return (
        f"in the last minute {load:.1f} processes wanted these {processors} processors; "
        "an idle machine is faster"
    )


def processor() -> str:
    """The name of this machine's processor."""
    return next(_of_processors("model name"), "this machine's processor")


def has_bfloat16() -> bool:
    """Whether the processor has instructions for products of bfloat16."""
    flags = set(next(_of_processors("flags"), next(_of_processors("Features"), "")).split())
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


def _of_processors(name: str) -> Iterator[str]:
    """What Linux says of each processor under this name."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == name:
            yield value.strip()


def machine_measurements(device: str, parts: tuple[str, ...] = PARTS) -> Iterator[Measurement]:
    """The numbers of a device, one after the other."""
    on_cpu = device == "cpu"
    lists = [dtypes.float32, dtypes.bfloat16] if on_cpu and has_bfloat16() else [dtypes.float32]
    with default_device(device):
        if "products" in parts:
            for dtype in lists:
                yield _product(device, dtype)
        if "copy" in parts:
            yield _copy(device)
        if "convolution" in parts:
            yield _convolution(device)
    if "training" in parts:
        yield from _training(device)


def model_measurements(
    network: Any, shape: tuple[int, ...], batch: int, device: str
) -> Iterator[Measurement]:
    """Forward and a training step of `network` on `batch` rows of `shape`, float32.

    Raises:
        InputError: the network cannot be applied to such rows.
    """
    names = ["f32", "bf16"] if device == "cpu" and has_bfloat16() else ["f32"]
    for name in names:
        with precision(name), default_device(device):
            kind = {"f32": "float32", "bf16": "bfloat16 products"}[name]
            here = tree.map(lambda leaf: asarray(leaf, device=device), network)
            rows = _rows((batch, *shape))
            forward = _forward(here)
            try:
                out = forward(here, rows)
            except (TypeError, ValueError, IndexError) as error:
                raise InputError(
                    f"{type(network).__name__} cannot be applied to float32 rows of shape "
                    f"({batch}, {', '.join(map(str, shape))}): {error}"
                ) from error
            if not isinstance(out, Tensor) or not out.ndim or out.shape[0] != batch:
                got = f"shape {out.shape}" if isinstance(out, Tensor) else type(out).__name__
                raise InputError(
                    f"{type(network).__name__} returns {got} for {batch} rows; one result for each "
                    "row is expected, such as logits"
                )
            times = timed(lambda f=forward, n=here, x=rows: f(n, x), device)  # type: ignore[misc]
            yield measured(f"forward, batch {batch}, {kind}", batch, "rows/s", times)
            times = timed(_step(here, rows, out), device)
            yield measured(f"training step, batch {batch}, {kind}", batch, "rows/s", times)


def timed(run: Callable[[], Any], device: str) -> list[float]:
    """The seconds of each of some runs, the first one left out. What `run` returns is waited
    for."""
    wait = _waiting(device)
    run()
    wait()
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < LEAST or (time.perf_counter() - began < SECONDS and len(times) < MOST):
        start = time.perf_counter()
        made = run()
        wait()
        times.append(time.perf_counter() - start)
        del made  # whose memory serves the next run
    return times


def _waiting(device: str) -> Callable[[], None]:
    """What waits for everything that was started on a device."""
    if not device.startswith("opencl"):
        return lambda: None  # what the CPU returns is there
    from .backends.opencl.runtime import runtime

    return runtime(device).finish


def _rows(shape: tuple[int, ...], dtype: Any = dtypes.float32) -> Tensor:
    return asarray(np.random.default_rng(0).normal(size=shape).astype(np.float32)).astype(dtype)


# ---- the parts -----------------------------------------------------------------------------------


def _product(device: str, dtype: Any) -> Measurement:
    """The fastest of products of some sizes: small ones do not fill a large device."""
    multiply = jit(matmul)
    best: Measurement | None = None
    for n in PRODUCTS:
        a, b = _rows((n, n), dtype), _rows((n, n), dtype)
        times = timed(lambda a=a, b=b: multiply(a, b), device)  # type: ignore[misc]
        what = f"matrix product {n} x {n}, {dtype}"
        found = measured(what, 2e-9 * n**3, "GFLOP/s", times)
        if best is None or found.value > best.value:
            best = found
        if found.seconds > LONG:
            break
    assert best is not None
    return best


def _copy(device: str) -> Measurement:
    x = asarray(np.ones(COPIED // 4, np.float32))
    copy = jit(negative)  # a change of sign costs nothing, and nobody can leave it out
    times = timed(lambda: copy(x), device)
    what = f"copy {COPIED >> 20} MiB, bytes read and written"
    return measured(what, 2e-9 * COPIED, "GB/s", times)


def _convolution(device: str) -> Measurement:
    x, w = _rows((BATCH, 12, 12, 64)), _rows((5, 5, 64, 64))
    convolve = jit(lambda x, w: nn.conv(x, w))
    times = timed(lambda: convolve(x, w), device)
    what = f"convolution 5 x 5, 64 to 64 channels, {BATCH} images 12 x 12"
    return measured(what, 2e-9 * BATCH * 12 * 12 * 64 * 25 * 64, "GFLOP/s", times)


def _training(device: str) -> Iterator[Measurement]:
    """A step of the tutorial network, with 1, 2, 4, ... threads."""
    usual = get_num_threads()
    counts = [usual]
    if device == "cpu":
        counts = sorted({usual, *(1 << k for k in range(usual.bit_length()) if 1 << k <= usual)})
    try:
        for count in counts:
            if device == "cpu":
                set_num_threads(count)
            with default_device(device):
                network, rows = TutorialNetwork(random.key(0)), _rows((BATCH, 24, 24, 3))
                times = timed(_step(network, rows, jit(_forward(network))(network, rows)), device)
            threads = f", {count} thread{'s' * (count > 1)}" if device == "cpu" else ""
            what = f"training step, tutorial network, batch {BATCH}{threads}"
            yield measured(what, BATCH, "images/s", times)
    finally:
        set_num_threads(usual)


class TutorialNetwork(nn.Module):
    """The network of TensorFlow's CIFAR-10 tutorial, for images (N, 24, 24, 3)."""

    def __init__(self, key: Tensor):
        k1, k2, k3, k4, k5 = random.split(key, 5)
        self.conv1, self.conv2 = nn.Conv(3, 64, 5, key=k1), nn.Conv(64, 64, 5, key=k2)
        self.dense1 = nn.Linear(6 * 6 * 64, 384, key=k3)
        self.dense2, self.head = nn.Linear(384, 192, key=k4), nn.Linear(192, 10, key=k5)

    def __call__(self, x: Tensor) -> Tensor:
        x = nn.max_pool(nn.relu(self.conv1(x)), 3, stride=2, padding="same")
        x = nn.local_response_norm(x, 9, alpha=0.001)
        x = nn.local_response_norm(nn.relu(self.conv2(x)), 9, alpha=0.001)
        x = nn.max_pool(x, 3, stride=2, padding="same").reshape(x.shape[0], -1)
        return self.head(nn.relu(self.dense2(nn.relu(self.dense1(x)))))


# ---- models --------------------------------------------------------------------------------------


def _forward(network: Any) -> Callable[[Any, Tensor], Any]:
    return jit(lambda network, rows: network(rows))


def _step(network: Any, rows: Tensor, out: Tensor) -> Callable[[], Any]:
    """A training step that updates `network`, again and again: cross-entropy of logits
    (N, classes), else the mean square."""
    optimizer = optim.sgd(1e-4, momentum=0.9)
    takes = inspect.signature(type(network).__call__).parameters
    options: dict[str, Any] = {"training": True} if "training" in takes else {}
    if "key" in takes:
        options["key"] = random.key(1)
    is_logits = out.ndim == 2 and out.shape[1] > 1
    labels = asarray(np.arange(out.shape[0]) % out.shape[1]) if is_logits else None

    def loss(network: Any, rows: Tensor) -> tuple[Tensor, Any]:
        out = network(rows, **options)
        losses = nn.softmax_cross_entropy(out, labels) if labels is not None else out * out
        return mean(losses), network

    def stepped(network: Any, state: Any, rows: Tensor) -> tuple[Any, Any, Tensor]:
        (value, network), gradient = value_and_grad(loss, has_aux=True)(network, rows)
        updates, state = optimizer.update(gradient, state, network)
        return optim.apply_updates(network, updates), state, value

    compiled = jit(stepped, donate_argnums=(0, 1))
    held = [tree.map(lambda leaf: asarray(leaf, copy=True), network), optimizer.init(network)]

    def run() -> Tensor:
        held[0], held[1], value = compiled(held[0], held[1], rows)
        return value

    return run
