"""Train the convolutional network of TensorFlow's CIFAR-10 tutorial, on Spark or without it.

    python examples/cifar10.py                        two barrier tasks on local[2], real digits
    python examples/cifar10.py --workers 0            the same in this process, without Spark
    python examples/cifar10.py --data cifar-10-batches-bin --workers 4
    spark-submit examples/cifar10.py --data /shared/cifar-10-batches-bin --workers 8

Without `--data` it writes scikit-learn's handwritten digits as CIFAR-10 records into a temporary
folder and reads them back: a small real data set that needs no download.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import tempfile
import time

import numpy as np

import tensorlite as tl
import tensorlite.distributed as dist
from tensorlite import nn, optim, random
from tensorlite.data import ArrayDataset, augment
from tensorlite.nn.init import constant, truncated_normal

WEIGHT_DECAY = 0.004
EPOCHS_PER_DECAY = 350
PLOT = pathlib.Path("runs/cifar10_loss.png")


class TutorialCNN(nn.Module):
    """Two convolutions and three dense layers, for images of shape (N, 24, 24, 3)."""

    def __init__(self, key: tl.Tensor, classes: int = 10):
        k1, k2, k3, k4, k5 = random.split(key, 5)
        wide, narrow = truncated_normal(0.05), truncated_normal(0.04)
        bias = constant(0.1)
        self.conv1 = nn.Conv(3, 64, 5, key=k1, weight_init=wide)
        self.conv2 = nn.Conv(64, 64, 5, key=k2, weight_init=wide, bias_init=bias)
        self.dense1 = nn.Linear(6 * 6 * 64, 384, key=k3, weight_init=narrow, bias_init=bias)
        self.dense2 = nn.Linear(384, 192, key=k4, weight_init=narrow, bias_init=bias)
        self.head = nn.Linear(192, classes, key=k5, weight_init=truncated_normal(1 / 192))

    def __call__(self, x: tl.Tensor) -> tl.Tensor:
        x = nn.relu(self.conv1(x))
        x = nn.max_pool(x, 3, stride=2, padding="same")
        x = nn.local_response_norm(x, 9, alpha=0.001, beta=0.75, k=1.0)
        x = nn.relu(self.conv2(x))
        x = nn.local_response_norm(x, 9, alpha=0.001, beta=0.75, k=1.0)
        x = nn.max_pool(x, 3, stride=2, padding="same")
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(self.dense1(x))
        x = nn.relu(self.dense2(x))
        return self.head(x)


def loss_fn(model: TutorialCNN, images: tl.Tensor, labels: tl.Tensor) -> tl.Tensor:
    """Mean cross-entropy, and the decay of the dense layers' weights."""
    cross_entropy = tl.mean(nn.softmax_cross_entropy(model(images), labels))
    decay = nn.l2_loss(model.dense1.weight) + nn.l2_loss(model.dense2.weight)
    return cross_entropy + WEIGHT_DECAY * decay


def optimizer(rows: int, batch_size: int) -> optim.Optimizer:
    """SGD from a rate of 0.1, which falls to a tenth every 350 epochs."""
    decay_steps = EPOCHS_PER_DECAY * rows // batch_size
    return optim.sgd(optim.exponential_decay(0.1, decay_steps, 0.1, staircase=True))


def accuracy(model: TutorialCNN, data: ArrayDataset, batch_size: int = 256) -> float:
    """The share of images whose class the model gets right."""
    predict = tl.jit(lambda model, images: tl.argmax(model(augment.cifar10_eval(images)), axis=-1))
    hits = 0
    for images, labels in data.batches(batch_size):
        hits += int(np.sum(np.asarray(predict(model, images)) == labels))
    return hits / len(data)


def plot_loss(losses: list[float], path: pathlib.Path) -> None:
    """The loss at every step as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(range(1, len(losses) + 1), losses, linewidth=1)
    axes.set(xlabel="step", ylabel="loss", title="Training loss", ylim=(0, None))
    axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", help="folder of CIFAR-10 binary records; default: handwritten digits")
    add("--workers", type=int, default=2, help="Spark barrier tasks; 0: without Spark (default 2)")
    add("--master", help="Spark master; default: spark-submit's, else local[workers]")
    add("--device", default="auto", help="device of each worker (default auto)")
    add("--batch-size", type=int, default=128, help="rows of a global batch (default 128)")
    add("--steps", type=int, help="training steps (default 400 on the digits, else 20000)")
    add("--checkpoint", help="folder for checkpoints; a run goes on from the newest one there")
    add("--checkpoint-every", type=int, default=500, metavar="STEPS", help="(default 500)")
    add("--plot", type=pathlib.Path, default=PLOT, help=f"loss curve (default {PLOT})")
    add("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    for option in ("batch_size", "steps", "checkpoint_every"):
        value = getattr(args, option)
        if value is not None and value < 1:
            parser.error(f"--{option.replace('_', '-')} must be at least 1, got {value}")
    if args.workers < 0 or args.workers > args.batch_size:
        parser.error(f"--workers must be between 0 and the batch size, got {args.workers}")
    if args.master and not args.workers:
        parser.error("--master needs workers; --workers 0 trains without Spark")
    if args.plot.exists() and not args.plot.is_file():
        parser.error(f"--plot names a file, and {args.plot} is none")
    return args


def main() -> None:
    """Train, report, evaluate, draw."""
    args = parse()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    digits = args.data is None
    try:
        with tempfile.TemporaryDirectory() as scratch:
            folder = tl.data.digits_as_cifar10(scratch) if digits else args.data
            train, test = tl.data.cifar10(folder), tl.data.cifar10(folder, train=False)
    except (OSError, ValueError) as error:  # a missing folder, or files that are no CIFAR-10
        sys.exit(str(error))
    steps = (400 if digits else 20_000) if args.steps is None else args.steps
    name = "handwritten digits as CIFAR-10 records" if digits else args.data
    print(f"{name}: {len(train)} training images, {len(test)} test images")

    if args.master:
        from pyspark.sql import SparkSession

        SparkSession.builder.master(args.master).appName("tensorlite CIFAR-10").getOrCreate()

    def augmented(key: tl.Tensor, images: tl.Tensor) -> tl.Tensor:
        # The mirror image of a digit is no digit.
        return augment.cifar10_train(key, images, size=24, flip=not digits)

    trainer = dist.Trainer(
        loss=loss_fn,
        optimizer=optimizer(len(train), args.batch_size),
        batch_size=args.batch_size,
        num_workers=args.workers,
        device=args.device,
        augment=augmented,
        ema=0.9999,
        # The same bits with 1, 2 and 4 workers; other numbers of them cannot share 4 shards.
        shards=4 if args.workers in (0, 1, 2, 4) else None,
        checkpoint=args.checkpoint,
        checkpoint_every=args.checkpoint_every if args.checkpoint else None,
        seed=args.seed,
    )
    where = f"{args.workers} Spark barrier tasks" if args.workers else "this process"
    print(f"training {steps} steps of {args.batch_size} images in {where}")
    began = time.perf_counter()
    result = trainer.fit(TutorialCNN(random.key(args.seed)), train, steps=steps)
    seconds = time.perf_counter() - began

    summary = result.summary
    print(
        f"trained in {seconds:.0f} s: {summary['images_per_second']:.0f} images/s; of a step's "
        f"time {summary['compute']:.0%} compute, {summary['communication']:.0%} communication "
        f"(and {summary['hidden_communication']:.0%} behind compute), {summary['input']:.0%} input"
    )
    losses = result.history["loss"]
    print(f"loss {losses[0]:.3f} at the first step, {losses[-1]:.3f} at the last")
    print(f"held-out accuracy {accuracy(result.averaged_model, test):.2%} (averaged parameters)")
    plot_loss(losses, args.plot)
    print(f"loss curve written to {args.plot}")


if __name__ == "__main__":
    main()
