"""What bfloat16 products cost and gain: the tutorial network in float32 and under
`tl.precision("bf16")`, beside each other.

    python benchmarks/precision.py                    times of a step, then 500 steps of both
    python benchmarks/precision.py --rate 0.05        at another learning rate
    python benchmarks/precision.py --steps 0          times only

Times: the two take turns in one process; reported are the least and the median of all steps of
each, on random images. Bar: the least in bfloat16 is at most 1 / 1.6 of that in float32, on a
processor with instructions for bfloat16.

Losses: both start from the same weights and train on the same batches of 128 digits. Bar: the mean
loss of every 50 steps is within 2%. The loss includes the decay of the weights, which is most of it
in the end; so the cross-entropy is printed by itself, too. It is not judged: the closer it comes to
zero, the larger is the relative difference between any two runs. What rounding alone does is shown
by a third run, in float32 with the pixels rounded to bfloat16. The tutorial's own rate of 0.1 is at
the edge of stability on the digits.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import tensorlite as tl
from examples.cifar10 import WEIGHT_DECAY, TutorialCNN
from tensorlite import nn, optim, random
from tensorlite.data import augment

PRECISIONS = ("f32", "bf16")
BATCH = 128
WINDOW = 50
SPEEDUP = 1.6
DEVIATION = 0.02
TURN = 4  # steps in a row, of which the first does not count


def trainer(precision: str, rate: float) -> Callable[[Any, Any], tuple[float, float]]:
    """A function that takes a training step on images and labels, and returns the loss and the
    cross-entropy in it."""
    model = TutorialCNN(random.key(0))
    optimizer = optim.sgd(rate)
    state = optimizer.init(model)

    def loss_of(model: TutorialCNN, images: tl.Tensor, labels: tl.Tensor) -> Any:
        cross_entropy = tl.mean(nn.softmax_cross_entropy(model(images), labels))
        decay = nn.l2_loss(model.dense1.weight) + nn.l2_loss(model.dense2.weight)
        return cross_entropy + WEIGHT_DECAY * decay, cross_entropy

    @tl.jit(donate_argnums=(0, 1))
    @tl.precision(precision)
    def train(model: TutorialCNN, state: Any, images: tl.Tensor, labels: tl.Tensor) -> Any:
        values, gradients = tl.value_and_grad(loss_of, has_aux=True)(model, images, labels)
        updates, state = optimizer.update(gradients, state, model)
        return optim.apply_updates(model, updates), state, values

    def step(images: Any, labels: Any) -> tuple[float, float]:
        nonlocal model, state
        model, state, (loss, cross_entropy) = train(model, state, images, labels)
        return float(loss), float(cross_entropy)

    return step


# ---- times ---------------------------------------------------------------------------------------


def measure(turns: int) -> bool:
    """Print the times of a step in both precisions; whether the bar is met."""
    rng = np.random.default_rng(0)
    images = tl.asarray(rng.normal(size=(BATCH, 24, 24, 3)).astype(np.float32))
    labels = tl.asarray(rng.integers(0, 10, BATCH))
    steps = {name: trainer(name, 0.01) for name in PRECISIONS}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step(images, labels)
    for _ in range(turns):
        for name, step in steps.items():
            for place in range(TURN):
                start = time.perf_counter()
                step(images, labels)
                if place:
                    times[name].append(time.perf_counter() - start)
    print(f"a step on {BATCH} images, {tl.get_num_threads()} threads, ms:")
    for name, values in times.items():
        print(f"  {name:5} least {1e3 * min(values):7.2f}  median {1e3 * np.median(values):7.2f}")
    least = min(times["f32"]) / min(times["bf16"])
    middle = float(np.median(times["f32"]) / np.median(times["bf16"]))
    verdict = "met" if least >= SPEEDUP else "MISSED"
    print(f"  {least:.2f}x by the least (bar {SPEEDUP}x, {verdict}), {middle:.2f}x by the median")
    return least >= SPEEDUP


# ---- losses --------------------------------------------------------------------------------------


def compare(steps: int, rate: float) -> bool:
    """Print both loss curves; whether they stay together."""
    with tempfile.TemporaryDirectory() as scratch:
        data = tl.data.cifar10(tl.data.digits_as_cifar10(scratch))
    images, labels = data.arrays
    prepared = augment.cifar10_eval(tl.asarray(images)).numpy()
    rounded = np.asarray(tl.asarray(prepared).astype(tl.bfloat16).astype(tl.float32))
    runs = {name: (trainer(name, rate), prepared) for name in PRECISIONS}
    runs["pixels"] = trainer("f32", rate), rounded
    curves: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    rng = np.random.default_rng(0)
    for number in range(steps):
        rows = rng.permutation(len(labels))[:BATCH]
        for name, (step, pixels) in runs.items():
            curves[name].append(step(pixels[rows], labels[rows]))
        if (number + 1) % WINDOW == 0 or number + 1 == steps:
            _print_window(curves, number + 1)
    return _judge(curves, rate)


def _print_window(curves: dict[str, list[tuple[float, float]]], done: int) -> None:
    if done <= WINDOW:
        print("mean of the 50 steps before; loss (cross-entropy):")
        print(f"{'step':>6}" + "".join(f"{name:>24}" for name in curves))
    means = {name: np.mean(curve[-WINDOW:], axis=0) for name, curve in curves.items()}
    shown = [f"{loss:.6f} ({entropy:.6f})" for loss, entropy in means.values()]
    print(f"{done:>6}" + "".join(f"{text:>24}" for text in shown), flush=True)


def _judge(curves: dict[str, list[tuple[float, float]]], rate: float) -> bool:
    means = {name: _windows(np.asarray(curve)) for name, curve in curves.items()}
    apart = {
        name: np.abs(means[name] - means["f32"]) / np.abs(means["f32"])
        for name in ("bf16", "pixels")
    }
    worst = float(apart["bf16"][:, 0].max())
    met = worst <= DEVIATION  # NaN is not
    print(
        f"rate {rate}: mean losses of {WINDOW} steps are apart by at most {worst:.2%} (bar "
        f"{DEVIATION:.0%}, {'met' if met else 'MISSED'}), by {apart['bf16'][-1, 0]:.2%} in the end"
    )
    for name, what in (("bf16", "bfloat16 products"), ("pixels", "rounded pixels only")):
        print(
            f"  cross-entropy, {what}: apart by at most {apart[name][:, 1].max():.2%}, "
            f"by {apart[name][-1, 1]:.2%} in the end"
        )
    return met


def _windows(curve: np.ndarray) -> np.ndarray:
    """The means over windows of steps: (windows, 2)."""
    count = max(1, len(curve) // WINDOW)
    return np.stack([part.mean(axis=0) for part in np.array_split(curve, count)])


def main() -> int:
    """Times, losses, and how they stand."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--turns", type=int, default=20, help="of each precision (default 20)")
    parser.add_argument("--steps", type=int, default=500, help="of training (default 500)")
    parser.add_argument("--rate", type=float, default=0.01, help="learning rate (default 0.01)")
    args = parser.parse_args()
    if args.turns < 0 or args.steps < 0:
        parser.error("--turns and --steps must not be negative")
    met = [measure(args.turns)] if args.turns else []
    met += [compare(args.steps, args.rate)] if args.steps else []
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
