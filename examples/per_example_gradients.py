"""The gradient of each example by itself: `tl.vmap` of `tl.grad`, and what it is good for.

    python examples/per_example_gradients.py
    python examples/per_example_gradients.py --clip 0.5 --noise 1.1 --epochs 30

`tl.grad` of the loss of one example, mapped over a batch, gives one gradient for each of them. They
are compared with those of a plain loop, for equality and for time. Then they serve in
differentially private SGD (Abadi et al., CCS 2016): each gradient is scaled to a norm of at most
`--clip`, so that no single person's data moves the model much, and noise hides the rest.

How private that is depends on noise, batch size and steps; an accountant such as Opacus' can tell.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import tensorlite as tl
from tensorlite import nn, optim, random


class Net(nn.Module):
    """A convolution and two dense layers, for one image or several: (..., 8, 8, 1)."""

    def __init__(self, key: tl.Tensor):
        k1, k2, k3 = random.split(key, 3)
        self.conv = nn.Conv(1, 16, 3, stride=2, key=k1)
        self.dense = nn.Linear(4 * 4 * 16, 32, key=k2)
        self.head = nn.Linear(32, 10, key=k3)

    def __call__(self, x: Any) -> tl.Tensor:
        x = tl.tanh(self.conv(x))  # bounded, which keeps gradients small (Papernot et al., 2021)
        return self.head(tl.tanh(self.dense(x.reshape(x.shape[0], -1))))


def loss_of_one(model: Net, image: tl.Tensor, label: tl.Tensor) -> tl.Tensor:
    """The cross-entropy of one example: image (8, 8, 1), label ()."""
    logits = model(tl.expand_dims(image, axis=0))[0]
    return nn.softmax_cross_entropy(logits, label)


# A gradient for each example, in the structure of the model: leaves (N, *shape of the parameter).
gradients_of_each = tl.vmap(tl.grad(loss_of_one), in_axes=(None, 0, 0))


# The norm of each example's gradient over all parameters: (N,).
norms_of = tl.vmap(optim.global_norm)


def clipped_sum(gradients: Any, norms: tl.Tensor, limit: float) -> Any:
    """The sum over the examples, each scaled to a norm of at most `limit`."""
    factors = limit / tl.maximum(norms, limit)
    return tl.tree.map(lambda g: tl.tensordot(factors, g, axes=1), gradients)


def private_gradient(
    model: Net, images: Any, labels: Any, key: tl.Tensor, limit: float, noise: float
) -> tuple[Any, tl.Tensor]:
    """The mean of the clipped gradients with noise of deviation noise * limit in the sum, and the
    share of examples that were clipped."""
    gradients = gradients_of_each(model, images, labels)
    norms = norms_of(gradients)
    leaves, treedef = tl.tree.flatten(clipped_sum(gradients, norms, limit))
    keys = random.split(key, len(leaves))
    noisy = [
        (leaf + noise * limit * random.normal(k, leaf.shape)) / len(labels)
        for leaf, k in zip(leaves, keys, strict=True)
    ]
    return tl.tree.unflatten(treedef, noisy), tl.mean((norms > limit).astype(tl.float32))


def compare(model: Net, images: Any, labels: Any) -> None:
    """vmap against a loop: the same gradients, and how long each takes."""
    in_one = tl.jit(gradients_of_each)
    of_one = tl.jit(tl.grad(loss_of_one))

    def in_a_loop(model: Net, images: Any, labels: Any) -> Any:
        each = [of_one(model, x, y) for x, y in zip(images, labels, strict=True)]
        return tl.tree.map(lambda *leaves: tl.stack(leaves), *each)

    mapped, looped = in_one(model, images, labels), in_a_loop(model, images, labels)
    apart = max(
        float(tl.max(tl.abs(a - b)))
        for a, b in zip(tl.tree.leaves(mapped), tl.tree.leaves(looped), strict=True)
    )
    norms = np.asarray(norms_of(mapped))
    print(f"norms of {len(labels)} gradients: {norms.min():.3f} to {norms.max():.3f}")
    print(f"largest difference between vmap and loop: {apart:.1e}")
    times = [seconds(f, model, images, labels) for f in (in_one, in_a_loop)]
    milliseconds = "vmap {:.2f} ms, loop {:.2f} ms".format(*[t * 1000 for t in times])
    print(f"{milliseconds}: {times[1] / times[0]:.1f} times as fast")


def seconds(function: Callable[..., Any], *args: Any, runs: int = 5) -> float:
    """The shortest of some runs."""
    took = []
    for _ in range(runs):
        began = time.perf_counter()
        function(*args)
        took.append(time.perf_counter() - began)
    return min(took)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--clip", type=float, default=1.0, help="largest norm (default %(default)s)")
    add("--noise", type=float, default=0.6, help="its deviation / clip (default %(default)s)")
    add("--epochs", type=int, default=20, help="(default %(default)s)")
    add("--batch-size", type=int, default=128, help="(default %(default)s)")
    args = parser.parse_args()
    if not args.clip > 0 or args.noise < 0:
        parser.error(f"--clip {args.clip} must be positive, --noise {args.noise} not negative")
    if args.epochs < 1 or not 1 <= args.batch_size <= 1438:
        parser.error("--epochs must be at least 1, --batch-size between 1 and 1438 images")
    return args


def main() -> None:
    """Compare, then train in private."""
    args = parse()
    train, test = tl.data.handwritten_digits(), tl.data.handwritten_digits(train=False)
    model = Net(random.key(0))
    compare(model, *train[: args.batch_size])

    opt = optim.sgd(0.5, momentum=0.5)
    state = opt.init(model)

    @tl.jit
    def step(model: Net, state: Any, images: Any, labels: Any, key: tl.Tensor) -> Any:
        grads, clipped = private_gradient(model, images, labels, key, args.clip, args.noise)
        updates, state = opt.update(grads, state, model)
        return optim.apply_updates(model, updates), state, clipped

    clipped, key = [], random.key(1)
    for epoch in range(args.epochs):
        for images, labels in train.batches(args.batch_size, 0, epoch, drop_last=True):
            key, of_step = random.split(key)
            model, state, share = step(model, state, images, labels, of_step)
            clipped.append(float(share))
    images, labels = test.arrays
    hits = np.asarray(tl.argmax(model(images), axis=-1)) == labels
    print(f"private SGD clipped {np.mean(clipped):.0%} of the gradients in {len(clipped)} steps")
    print(f"held-out accuracy {np.mean(hits):.2%}")


if __name__ == "__main__":
    main()
