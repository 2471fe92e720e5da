"""A small vision transformer (Dosovitskiy et al., ICLR 2021) on the handwritten digits.

    python examples/transformer.py
    python examples/transformer.py --depth 6 --width 96 --heads 6 --epochs 60

An image is cut into patches, each of which becomes a vector, a token; what a token says of its
place is added. Then layers of attention, in which tokens look at each other, and of dense networks,
in which each thinks for itself, are added to the tokens one after the other. The mean of them is
classified.

On so few images a transformer needs help: they are moved about while it learns, weights decay, and
the learning rate rises slowly before it falls.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

import tensorlite as tl
from tensorlite import nn, optim, random
from tensorlite.data import ArrayDataset, augment

SIDE, PATCH = 8, 2  # pixels of an image and of a patch


class Attention(nn.Module):
    """Each token takes from the others what its query finds in their keys, in several heads."""

    def __init__(self, width: int, heads: int, key: tl.Tensor):
        k1, k2 = random.split(key)
        self.qkv = nn.Linear(width, 3 * width, key=k1)
        self.out = nn.Linear(width, width, key=k2)
        self.heads = heads

    def __call__(self, x: tl.Tensor) -> tl.Tensor:
        n, tokens, width = x.shape
        qkv = self.qkv(x).reshape(n, tokens, 3, self.heads, width // self.heads)
        q, k, v = tl.permute_dims(qkv, (2, 0, 3, 1, 4))  # each (N, heads, tokens, width / heads)
        mixed = nn.attention(q, k, v)
        return self.out(tl.permute_dims(mixed, (0, 2, 1, 3)).reshape(n, tokens, width))


class Layer(nn.Module):
    """Attention and a dense network, each normalized before it and added to what came in."""

    def __init__(self, width: int, heads: int, key: tl.Tensor):
        k1, k2, k3 = random.split(key, 3)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, k1)
        self.wide = nn.Linear(width, 4 * width, key=k2)
        self.narrow = nn.Linear(4 * width, width, key=k3)

    def __call__(self, x: tl.Tensor) -> tl.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.narrow(nn.gelu(self.wide(self.norm2(x))))


class Transformer(nn.Module):
    """For images of shape (N, 8, 8, 1)."""

    def __init__(self, width: int, depth: int, heads: int, key: tl.Tensor):
        k1, k2, k3, *keys = random.split(key, 3 + depth)
        # A convolution that moves by its own size gives each patch its vector.
        self.patches = nn.Conv(1, width, PATCH, stride=PATCH, padding="valid", key=k1)
        self.positions = random.normal(k2, ((SIDE // PATCH) ** 2, width))
        self.layers = [Layer(width, heads, k) for k in keys]
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10, key=k3)

    def __call__(self, x: tl.Tensor) -> tl.Tensor:
        x = self.patches(x)
        x = x.reshape(x.shape[0], -1, x.shape[-1]) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.head(tl.mean(self.norm(x), axis=1))


def loss_fn(model: Transformer, images: tl.Tensor, labels: tl.Tensor) -> tl.Tensor:
    """The mean cross-entropy of a batch."""
    return tl.mean(nn.softmax_cross_entropy(model(images), labels))


def moved(key: tl.Tensor, images: Any) -> tl.Tensor:
    """Each image moved by up to one pixel in each direction."""
    return augment.random_crop(key, tl.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0))), SIDE)


def accuracy(model: Transformer, data: ArrayDataset) -> float:
    """The share of images whose class the model gets right."""
    images, labels = data.arrays
    predict = tl.jit(lambda model, images: tl.argmax(model(images), axis=-1))
    return float(np.mean(np.asarray(predict(model, images)) == labels))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--width", type=int, default=64, help="numbers of a token (default %(default)s)")
    add("--depth", type=int, default=4, help="layers (default %(default)s)")
    add("--heads", type=int, default=4, help="of each layer (default %(default)s)")
    add("--epochs", type=int, default=40, help="times through the images (default %(default)s)")
    add("--batch-size", type=int, default=64, help="(default %(default)s)")
    add("--seed", type=int, default=0, help="(default %(default)s)")
    args = parser.parse_args()
    for option in ("width", "depth", "heads", "epochs"):
        if getattr(args, option) < 1:
            parser.error(f"--{option} must be at least 1, got {getattr(args, option)}")
    if args.width % args.heads:
        parser.error(f"--heads {args.heads} must divide --width {args.width}")
    if not 1 <= args.batch_size <= 1438:
        parser.error(f"--batch-size must be between 1 and 1438 images, got {args.batch_size}")
    return args


def main() -> None:
    """Train, and tell how well."""
    args = parse()
    train, test = tl.data.handwritten_digits(), tl.data.handwritten_digits(train=False)
    key, of_moves = random.split(random.key(args.seed))
    model = Transformer(args.width, args.depth, args.heads, key)
    steps = args.epochs * (len(train) // args.batch_size)
    opt = optim.adamw(optim.warmup_cosine(0.003, max(steps // 10, 1), steps + 1), weight_decay=0.05)
    state = opt.init(model)
    print(f"{len(train)} training images, {nn.count_parameters(model):,} parameters, {steps} steps")

    @tl.jit(donate_argnums=(0, 1))
    def step(model: Transformer, state: Any, images: Any, labels: Any, key: tl.Tensor) -> Any:
        loss, grads = tl.value_and_grad(loss_fn)(model, moved(key, images), labels)
        updates, state = opt.update(grads, state, model)
        return optim.apply_updates(model, updates), state, loss

    began = time.perf_counter()
    for epoch in range(args.epochs):
        losses = []
        for images, labels in train.batches(args.batch_size, args.seed, epoch, drop_last=True):
            of_moves, now = random.split(of_moves)
            model, state, loss = step(model, state, images, labels, now)
            losses.append(float(loss))
        if epoch == 0 or (epoch + 1) % 5 == 0:
            print(f"epoch {epoch + 1:2d}  loss {np.mean(losses):.4f}  {accuracy(model, test):.2%}")
    seconds = time.perf_counter() - began
    print(f"held-out accuracy {accuracy(model, test):.2%} after {seconds:.1f} s")


if __name__ == "__main__":
    main()
