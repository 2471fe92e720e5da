"""Whole training steps: few launches, few bytes, the results of NumPy."""

from __future__ import annotations

import pathlib
import runpy
from typing import Any

import numpy as np
import pytest

import tensorlite as tl
from tensorlite import nn, optim, random
from tensorlite.compiler.bands import slide
from tensorlite.compiler.fuse import fuse
from tensorlite.compiler.inline import inline
from tensorlite.compiler.simplify import simplify
from tensorlite.graph import Graph
from tests.compiler import nests

EXAMPLE = pathlib.Path(__file__).parent.parent.parent / "examples" / "cifar10.py"
cifar10 = runpy.run_path(str(EXAMPLE))
TutorialCNN, WEIGHT_DECAY = cifar10["TutorialCNN"], cifar10["WEIGHT_DECAY"]


class LeNet(nn.Module):
    def __init__(self, key: tl.Tensor):
        k1, k2, k3, k4 = random.split(key, 4)
        self.conv1 = nn.Conv(1, 6, 5, key=k1)
        self.conv2 = nn.Conv(6, 16, 5, key=k2, padding="valid")
        self.dense1 = nn.Linear(16, 24, key=k3)
        self.head = nn.Linear(24, 10, key=k4)

    def __call__(self, x: tl.Tensor) -> tl.Tensor:
        x = nn.max_pool(tl.tanh(self.conv1(x)), 2)
        x = nn.avg_pool(tl.tanh(self.conv2(x)), 2)
        return self.head(tl.tanh(self.dense1(x.reshape(x.shape[0], -1))))


class ResidualNet(nn.Module):
    def __init__(self, key: tl.Tensor, blocks: int = 2, width: int = 16):
        first, head, *keys = random.split(key, 2 + 2 * blocks)
        self.first = nn.Conv(3, width, 3, key=first)
        self.convs = [nn.Conv(width, width, 3, key=k) for k in keys]
        self.norms = [nn.BatchNorm(width) for _ in keys]
        self.head = nn.Linear(width, 10, key=head)

    def __call__(self, x: tl.Tensor) -> tl.Tensor:
        x = self.first(x)
        for i in range(0, len(self.convs), 2):
            y = nn.relu(self.norms[i](self.convs[i](x), training=True))
            x = nn.relu(self.norms[i + 1](self.convs[i + 1](y), training=True) + x)
        return self.head(tl.mean(x, axis=(1, 2)))


class Transformer(nn.Module):
    def __init__(self, key: tl.Tensor, width: int = 16):
        keys = random.split(key, 6)
        self.embed = nn.Linear(12, width, key=keys[0])
        self.qkv = nn.Linear(width, 3 * width, key=keys[1])
        self.out = nn.Linear(width, width, key=keys[2])
        self.up = nn.Linear(width, 4 * width, key=keys[3])
        self.down = nn.Linear(4 * width, width, key=keys[4])
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.head = nn.Linear(width, 10, key=keys[5])

    def __call__(self, x: tl.Tensor) -> tl.Tensor:
        x = self.embed(x)
        n, length, width = x.shape
        parts = self.qkv(self.norm1(x)).reshape(n, length, 3, 4, width // 4)
        q, k, v = [tl.permute_dims(part, (0, 2, 1, 3)) for part in tl.unstack(parts, axis=2)]
        y = tl.permute_dims(nn.attention(q, k, v, causal=True), (0, 2, 1, 3))
        x = x + self.out(y.reshape(n, length, width))
        x = x + self.down(nn.gelu(self.up(self.norm2(x))))
        return self.head(tl.mean(x, axis=1))


class Perceptron(nn.Module):
    def __init__(self, key: tl.Tensor):
        self.layers = [nn.Linear(20, 20, key=k) for k in random.split(key, 4)]

    def __call__(self, x: tl.Tensor) -> tl.Tensor:
        for layer in self.layers[:-1]:
            x = nn.dropout(nn.relu(layer(x)), 0.25, random.key(1))
        return self.layers[-1](x)


def training_step(optimizer: Any, decay: bool = False) -> Any:
    def loss_fn(model: Any, x: tl.Tensor, labels: tl.Tensor) -> Any:
        loss = tl.mean(nn.softmax_cross_entropy(model(x), labels))
        if decay:
            weights = nn.l2_loss(model.dense1.weight) + nn.l2_loss(model.dense2.weight)
            loss = loss + WEIGHT_DECAY * weights
        return loss, model

    def step(model: Any, state: Any, x: tl.Tensor, labels: tl.Tensor) -> Any:
        (loss, model), grads = tl.value_and_grad(loss_fn, has_aux=True)(model, x, labels)
        updates, state = optimizer.update(grads, state, model)
        return optim.apply_updates(model, updates), state, loss

    return step


def moved(graph: Graph) -> int:
    """The bytes that all equations read and write, which reshapes do not."""
    return sum(
        a.aval.size * a.aval.dtype.itemsize
        for eqn in graph.equations
        if eqn.prim.name != "reshape"
        for a in (*eqn.inputs, *eqn.outputs)
    )


SGD, ADAM = (
    optim.sgd(0.1, momentum=0.9),
    # The gradient of some parameters is zero but for rounding, which a small eps would blow up.
    optim.chain(optim.clip_by_global_norm(1.0), optim.adam(1e-3, eps=1e-4)),
)


@pytest.mark.parametrize(
    ("model", "shape", "optimizer", "launches", "share"),
    [
        (TutorialCNN, (2, 24, 24, 3), optim.sgd(0.1), 37, 0.31),
        (LeNet, (3, 12, 12, 1), SGD, 25, 0.5),
        (ResidualNet, (4, 6, 6, 3), SGD, 47, 0.38),
        (Transformer, (3, 5, 12), ADAM, 81, 0.28),
        (Perceptron, (8, 20), ADAM, 37, 0.29),
    ],
)
def test_training_steps(
    model: Any, shape: tuple[int, ...], optimizer: Any, launches: int, share: float
) -> None:
    rng = np.random.default_rng(0)
    net = model(random.key(0))
    step = training_step(optimizer, decay=model is TutorialCNN)
    x = tl.asarray(rng.normal(size=shape).astype(np.float32))
    args = (net, optimizer.init(net), x, tl.asarray(rng.integers(0, 10, shape[0])))
    graph = inline(tl.make_graph(step)(*args))
    fused = fuse(slide(simplify(graph)), guards=True)
    leaves = [tl.asarray(leaf) for leaf in tl.tree.leaves(args)]
    values = nests.run_graph(fused, *leaves), nests.run_graph(graph, *leaves)
    for value, wanted in zip(*values, strict=True):
        np.testing.assert_allclose(
            value.astype(np.float64), wanted.astype(np.float64), rtol=1e-3, atol=1e-4
        )
    count = sum(eqn.prim.name != "reshape" for eqn in fused.equations)
    assert count <= launches, (count, launches)
    assert moved(fused) < share * moved(graph), moved(fused) / moved(graph)
    again = fuse(slide(simplify(graph)), guards=True)
    assert [e.params.get("nest") for e in again.equations] == [
        e.params.get("nest") for e in fused.equations
    ]
