"""VGG-11 (Simonyan and Zisserman, ICLR 2015) for images of 32x32, with batch norm and dropout.

    python examples/vgg.py                            real digits, a quarter of the width
    python examples/vgg.py --precision bf16           products of bfloat16: see docs/precision.md
    python examples/vgg.py --checkpoint               less memory, for a second forward pass
    python examples/vgg.py --data cifar-10-batches-bin --width 64 --epochs 100

A deep network by hand: `tl.precision` decides in what its products are computed; `tl.checkpoint`
around each stage keeps only what goes in, and computes what is inside again for the derivative.
Dropout takes a key in each step. Each of them is a line or two.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from typing import Any

import numpy as np

import tensorlite as tl
from tensorlite import nn, optim, random
from tensorlite.data import ArrayDataset, augment
from tensorlite.nn.init import he_normal

STAGES = ((1,), (2,), (4, 4), (8, 8), (8, 8))  # layers of each stage, in multiples of the width


class Stage(nn.Module):
    """Convolutions with batch norm, and a pooling that halves the image."""

    def __init__(self, inner: int, widths: list[int], key: tl.Tensor):
        pairs = zip([inner, *widths], widths, random.split(key, len(widths)), strict=False)
        self.convs = [
            nn.Conv(i, o, 3, bias=False, weight_init=he_normal, key=k) for i, o, k in pairs
        ]
        self.norms = [nn.BatchNorm(width) for width in widths]

    def __call__(self, x: tl.Tensor, training: bool) -> tl.Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = nn.relu(norm(conv(x), training=training))
        return nn.max_pool(x, 2)


class VGG11(nn.Module):
    """For standardized images of shape (N, 32, 32, 3)."""

    def __init__(self, width: int, key: tl.Tensor, checkpoint: bool = False):
        head_key, *keys = random.split(key, 1 + len(STAGES))
        widths = [[width * multiple for multiple in stage] for stage in STAGES]
        inner = [3] + [stage[-1] for stage in widths]
        self.stages = [Stage(*each) for each in zip(inner, widths, keys, strict=False)]
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(inner[-1], 10, key=head_key)
        self.checkpoint = checkpoint

    def __call__(
        self, x: tl.Tensor, key: tl.Tensor | None = None, training: bool = False
    ) -> tl.Tensor:
        run = tl.checkpoint(run_stage) if self.checkpoint and training else run_stage
        for place, stage in enumerate(self.stages):
            self.stages[place], x = run(stage, x, training)
        x = self.dropout(x.reshape(x.shape[0], -1), key=key, training=training)
        return self.head(x)


def run_stage(stage: Stage, x: tl.Tensor, training: bool) -> tuple[Stage, tl.Tensor]:
    """What `stage` makes of x. It is returned, too: what a transform runs is a copy, and the copy
    has the new running statistics."""
    y = stage(x, training)
    return stage, y


def loss_fn(model: VGG11, images: Any, labels: Any, key: tl.Tensor) -> Any:
    """The mean cross-entropy, and the model with its new running statistics."""
    logits = model(augment.per_image_standardization(images), key, training=True)
    return tl.mean(nn.softmax_cross_entropy(logits, labels)), model


def accuracy(model: VGG11, data: ArrayDataset) -> float:
    """The share of images whose class the model gets right."""
    standardized = augment.per_image_standardization
    predict = tl.jit(lambda model, images: tl.argmax(model(standardized(images)), axis=-1))
    batches = data.batches(256)
    return sum(int(np.sum(np.asarray(predict(model, x)) == y)) for x, y in batches) / len(data)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--data", help="folder of CIFAR-10 binary records; default: handwritten digits")
    add("--width", type=int, default=16, help="of the first stage; the paper's is 64 (default 16)")
    add("--precision", choices=("f32", "bf16"), default="f32", help="(default %(default)s)")
    add("--checkpoint", action="store_true", help="compute stages twice, to save memory")
    add("--epochs", type=int, default=8, help="times through the images (default %(default)s)")
    add("--batch-size", type=int, default=64, help="(default %(default)s)")
    add("--learning-rate", type=float, default=0.05, help="the first one (default %(default)s)")
    args = parser.parse_args()
    for option in ("width", "epochs", "batch_size"):
        if getattr(args, option) < 1:
            parser.error(f"--{option.replace('_', '-')} must be at least 1")
    if not args.learning_rate > 0:
        parser.error(f"--learning-rate must be positive, got {args.learning_rate}")
    return args


def main() -> None:
    """Train, and tell how well and how fast."""
    args = parse()
    try:
        with tempfile.TemporaryDirectory() as scratch:
            folder = args.data or tl.data.digits_as_cifar10(scratch)
            train, test = tl.data.cifar10(folder), tl.data.cifar10(folder, train=False)
    except (OSError, ValueError) as error:  # a missing folder, or files that are no CIFAR-10
        sys.exit(str(error))
    if args.batch_size > len(train):
        sys.exit(f"--batch-size {args.batch_size} is more than there are images, {len(train)}")
    key, of_dropout = random.split(random.key(0))
    model = VGG11(args.width, key, args.checkpoint)
    schedule = optim.cosine_decay(args.learning_rate, args.epochs * (len(train) // args.batch_size))
    opt = optim.chain(optim.add_l2(5e-4), optim.sgd(schedule, momentum=0.9))
    state = opt.init(model)
    print(f"{nn.count_parameters(model):,} parameters, products of {args.precision}")

    @tl.jit(donate_argnums=(0, 1))
    @tl.precision(args.precision)
    def step(model: VGG11, state: Any, images: Any, labels: Any, key: tl.Tensor) -> Any:
        gradient = tl.value_and_grad(loss_fn, has_aux=True)
        (loss, model), grads = gradient(model, images, labels, key)
        updates, state = opt.update(grads, state, model)
        return optim.apply_updates(model, updates), state, loss

    for epoch in range(args.epochs):
        began, losses = time.perf_counter(), []
        for images, labels in train.batches(args.batch_size, 0, epoch, drop_last=True):
            of_dropout, now = random.split(of_dropout)
            model, state, loss = step(model, state, images, labels, now)
            losses.append(float(loss))
        rate = len(losses) * args.batch_size / (time.perf_counter() - began)
        print(f"epoch {epoch + 1:2d}  loss {np.mean(losses):.4f}  {rate:.0f} images/s")
    print(f"held-out accuracy {accuracy(model, test):.2%}")


if __name__ == "__main__":
    main()
