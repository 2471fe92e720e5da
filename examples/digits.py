"""The smallest whole training: a convolutional network learns handwritten digits on a laptop.

    python examples/digits.py
    python examples/digits.py --epochs 40 --learning-rate 0.002 --seed 1

Everything is here: a model as a plain class, a loss, a step that `tl.jit` compiles into one native
function, the loop over batches, and the accuracy on images that were held out. `dist.Trainer`
replaces the loop where one process is not enough: see resnet20.py and cifar10.py.

The digits are scikit-learn's: 1797 grey images of 8x8 pixels, which need no download.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

import tensorlite as tl
from tensorlite import nn, optim, random
from tensorlite.data import ArrayDataset


class Net(nn.Module):
    """Two convolutions and a dense layer, for images of shape (N, 8, 8, 1)."""

    def __init__(self, key: tl.Tensor):
        k1, k2, k3 = random.split(key, 3)
        self.conv1 = nn.Conv(1, 32, 3, key=k1)
        self.conv2 = nn.Conv(32, 64, 3, key=k2)
        self.head = nn.Linear(64 * 4 * 4, 10, key=k3)

    def __call__(self, x: tl.Tensor) -> tl.Tensor:
        x = nn.relu(self.conv1(x))
        x = nn.max_pool(nn.relu(self.conv2(x)), 2)  # (N, 4, 4, 64)
        return self.head(x.reshape(x.shape[0], -1))


def loss_fn(model: Net, images: tl.Tensor, labels: tl.Tensor) -> tl.Tensor:
    """The mean cross-entropy of a batch."""
    return tl.mean(nn.softmax_cross_entropy(model(images), labels))


@tl.jit
def predict(model: Net, images: tl.Tensor) -> tl.Tensor:
    """The class with the largest logit, for each image."""
    return tl.argmax(model(images), axis=-1)


def accuracy(model: Net, data: ArrayDataset) -> float:
    """The share of images whose class the model gets right."""
    images, labels = data.arrays
    return float(np.mean(np.asarray(predict(model, images)) == labels))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--epochs", type=int, default=15, help="times through the images (default %(default)s)")
    add("--batch-size", type=int, default=64, help="images of a step (default %(default)s)")
    add("--learning-rate", type=float, default=0.003, help="Adam's (default %(default)s)")
    add("--seed", type=int, default=0, help="of weights, split and order (default %(default)s)")
    args = parser.parse_args()
    if args.epochs < 1:
        parser.error(f"--epochs must be at least 1, got {args.epochs}")
    if not 1 <= args.batch_size <= 1438:
        parser.error(f"--batch-size must be between 1 and 1438 images, got {args.batch_size}")
    if not args.learning_rate > 0:
        parser.error(f"--learning-rate must be positive, got {args.learning_rate}")
    if args.seed < 0:
        parser.error(f"--seed must not be negative, got {args.seed}")
    return args


def main() -> None:
    """Train, and tell how well."""
    args = parse()
    train = tl.data.handwritten_digits(seed=args.seed)
    test = tl.data.handwritten_digits(train=False, seed=args.seed)
    model = Net(random.key(args.seed))
    opt = optim.adam(args.learning_rate)
    state = opt.init(model)
    print(f"{len(train)} training images, {len(test)} test images")
    print(f"{nn.count_parameters(model):,} parameters")

    @tl.jit(donate_argnums=(0, 1))  # the old model and state are not needed again
    def step(model: Net, state: Any, images: Any, labels: Any) -> tuple[Net, Any, tl.Tensor]:
        loss, grads = tl.value_and_grad(loss_fn)(model, images, labels)
        updates, state = opt.update(grads, state, model)
        return optim.apply_updates(model, updates), state, loss

    began = time.perf_counter()
    for epoch in range(args.epochs):
        losses = []
        for images, labels in train.batches(args.batch_size, args.seed, epoch, drop_last=True):
            model, state, loss = step(model, state, images, labels)
            losses.append(float(loss))
        print(f"epoch {epoch + 1:2d}  loss {np.mean(losses):.4f}  {accuracy(model, test):.2%}")
    seconds = time.perf_counter() - began
    print(f"held-out accuracy {accuracy(model, test):.2%} after {seconds:.1f} s")


if __name__ == "__main__":
    main()
