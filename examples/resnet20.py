"""ResNet-20 (He et al., CVPR 2016, section 4.2) for images of 32x32, on Spark or without it.

    python examples/resnet20.py                       real digits, in this process
    python examples/resnet20.py --workers 2           the same in two Spark barrier tasks
    python examples/resnet20.py --data cifar-10-batches-bin --epochs 164 --workers 4
    spark-submit examples/resnet20.py --data /shared/cifar-10-batches-bin --workers 8

Batch norm takes its statistics over the global batch, so that the model does not depend on the
number of workers. The learning rate rises, and falls along a cosine; weights decay, but neither
biases nor norms; after every epoch the images that were held out are measured.

Without `--data` it trains on scikit-learn's handwritten digits, written as CIFAR-10 records.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from typing import Any

import tensorlite as tl
import tensorlite.distributed as dist
from tensorlite import nn, optim, random
from tensorlite.data import augment
from tensorlite.nn.init import he_normal

WIDTHS = (16, 32, 64)  # channels of the three stages
BLOCKS = 3  # in each; 6 n + 2 layers have weights
WEIGHT_DECAY = 1e-4


class ConvNorm(nn.Module):
    """A convolution and batch norm over the global batch."""

    def __init__(self, inner: int, outer: int, window: int, stride: int, key: tl.Tensor):
        # The offset of batch norm makes a bias superfluous.
        self.conv = nn.Conv(
            inner, outer, window, stride=stride, bias=False, weight_init=he_normal, key=key
        )
        self.norm = nn.BatchNorm(outer, across_workers=True)

    def __call__(self, x: tl.Tensor, training: bool) -> tl.Tensor:
        return self.norm(self.conv(x), training=training)


class Block(nn.Module):
    """Two convolutions beside a shortcut, which is a projection where the shape changes."""

    def __init__(self, inner: int, outer: int, key: tl.Tensor):
        k1, k2, k3 = random.split(key, 3)
        stride = 1 if inner == outer else 2
        self.first = ConvNorm(inner, outer, 3, stride, k1)
        self.second = ConvNorm(outer, outer, 3, 1, k2)
        self.shortcut = None if inner == outer else ConvNorm(inner, outer, 1, stride, k3)

    def __call__(self, x: tl.Tensor, training: bool) -> tl.Tensor:
        y = self.second(nn.relu(self.first(x, training)), training)
        return nn.relu(y + (x if self.shortcut is None else self.shortcut(x, training)))


class ResNet20(nn.Module):
    """For standardized images of shape (N, 32, 32, 3)."""

    def __init__(self, key: tl.Tensor, classes: int = 10):
        stem_key, head_key, *keys = random.split(key, 2 + len(WIDTHS) * BLOCKS)
        self.stem = ConvNorm(3, WIDTHS[0], 3, 1, stem_key)
        widths = [width for width in WIDTHS for _ in range(BLOCKS)]
        pairs = zip([WIDTHS[0], *widths], widths, keys, strict=False)
        self.blocks = [Block(inner, outer, k) for inner, outer, k in pairs]
        self.head = nn.Linear(WIDTHS[-1], classes, key=head_key)

    def __call__(self, x: tl.Tensor, training: bool = False) -> tl.Tensor:
        x = nn.relu(self.stem(x, training))
        for block in self.blocks:
            x = block(x, training)
        return self.head(tl.mean(x, axis=(1, 2)))


def loss_fn(model: ResNet20, images: tl.Tensor, labels: tl.Tensor) -> Any:
    """The mean cross-entropy, and the model with its new running statistics."""
    return tl.mean(nn.softmax_cross_entropy(model(images, training=True), labels)), model


def evaluate(model: ResNet20, images: tl.Tensor, labels: tl.Tensor) -> dict[str, tl.Tensor]:
    """Loss and accuracy on images as they are read."""
    logits = model(augment.per_image_standardization(images))
    hits = tl.argmax(logits, axis=-1) == labels
    return {
        "loss": tl.mean(nn.softmax_cross_entropy(logits, labels)),
        "accuracy": tl.mean(hits.astype(tl.float32)),
    }


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--data", help="folder of CIFAR-10 binary records; default: handwritten digits")
    add("--workers", type=int, default=0, help="Spark barrier tasks; 0: no Spark (default 0)")
    add("--epochs", type=int, default=9, help="times through the images (default %(default)s)")
    add("--batch-size", type=int, default=64, help="of all workers (default %(default)s)")
    add("--learning-rate", type=float, default=0.1, help="its peak (default %(default)s)")
    add("--seed", type=int, default=0, help="(default %(default)s)")
    args = parser.parse_args()
    if args.epochs < 1:
        parser.error(f"--epochs must be at least 1, got {args.epochs}")
    if args.batch_size < 1 or not 0 <= args.workers <= args.batch_size:
        parser.error(f"--workers must be between 0 and the batch size, got {args.workers}")
    if not args.learning_rate > 0:
        parser.error(f"--learning-rate must be positive, got {args.learning_rate}")
    return args


def main() -> None:
    """Train with validation, and print what came of it."""
    args = parse()
    try:
        with tempfile.TemporaryDirectory() as scratch:
            folder = args.data or tl.data.digits_as_cifar10(scratch)
            train, test = tl.data.cifar10(folder), tl.data.cifar10(folder, train=False)
    except (OSError, ValueError) as error:  # a missing folder, or files that are no CIFAR-10
        sys.exit(str(error))

    def augmented(key: tl.Tensor, images: tl.Tensor) -> tl.Tensor:
        crop_key, flip_key = random.split(key)
        images = augment.random_crop(crop_key, tl.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0))), 32)
        if args.data:  # the mirror image of a digit is no digit
            images = augment.random_flip_left_right(flip_key, images)
        return augment.per_image_standardization(images)

    steps = args.epochs * math.ceil(len(train) / args.batch_size)
    schedule = optim.warmup_cosine(args.learning_rate, steps // 20 or 1, steps)
    trainer = dist.Trainer(
        loss=loss_fn,
        optimizer=optim.chain(
            optim.add_l2(WEIGHT_DECAY, mask=lambda name: name.endswith("weight")),
            optim.sgd(schedule, momentum=0.9, nesterov=True),
        ),
        batch_size=args.batch_size,
        num_workers=args.workers,
        augment=augmented,
        evaluate=evaluate,
        seed=args.seed,
    )
    model = ResNet20(random.key(args.seed))
    where = f"{args.workers} Spark barrier tasks" if args.workers else "this process"
    print(f"{len(train)} images, {nn.count_parameters(model):,} parameters, in {where}")
    result = trainer.fit(model, train, epochs=args.epochs, validation=test)
    losses, accuracies = result.history["loss"], result.history["validation_accuracy"]
    rate, seconds = result.summary["images_per_second"], result.summary["seconds"]
    print(f"{rate:.0f} images/s, {seconds:.0f} s in all")
    print(f"loss {losses[0]:.3f} at the first step, {losses[-1]:.3f} at the last")
    print(f"held-out accuracy {accuracies[-1]:.2%}")


if __name__ == "__main__":
    main()
