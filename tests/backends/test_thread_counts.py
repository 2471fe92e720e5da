"""Results do not depend on the number of threads: neither those of single reductions nor those of
whole programs."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import tensorlite as tl
from tensorlite import nn, optim, threads

llvm = pytest.importorskip("tensorlite.backends.cpu.llvm")
pytestmark = pytest.mark.skipif(not llvm.available(), reason="nests cannot be compiled here")

COUNTS = (1, 2, 3, 7)


@contextmanager
def threads_set(count: int) -> Iterator[None]:
    before = threads.get_num_threads()
    threads.set_num_threads(count)
    try:
        yield
    finally:
        threads.set_num_threads(before)


def results(f: Callable[..., Any], *args: Any) -> list[list[bytes]]:
    """The bits of all results of `f`, jitted anew, for each number of threads."""
    found = []
    for count in COUNTS:
        with threads_set(count):
            leaves = tl.tree.leaves(tl.jit(lambda *xs: f(*xs))(*args))
            found.append([np.asarray(leaf).tobytes() for leaf in leaves])
    return found


def assert_equal_bits(f: Callable[..., Any], *args: Any) -> None:
    first, *others = results(f, *args)
    for count, other in zip(COUNTS[1:], others, strict=True):
        assert other == first, f"{count} threads compute other bits than one"


def normal(*shape: int) -> tl.Tensor:
    return tl.asarray(np.random.default_rng(sum(shape)).standard_normal(shape, dtype=np.float32))


REDUCTIONS: dict[str, Callable[[tl.Tensor], Any]] = {
    "sum": lambda x: tl.sum(x),
    "sum of rows": lambda x: tl.sum(x, axis=1),
    "sum of columns": lambda x: tl.sum(x, axis=0),
    "product": lambda x: tl.prod(1 + 1e-3 * x, axis=0),
    "variance": lambda x: tl.var(x),
    "variance of columns": lambda x: tl.var(x, axis=0),
    "norm": lambda x: tl.sqrt(tl.sum(x * x)),
    "argmax": lambda x: tl.argmax(x),
    "softmax of columns": lambda x: nn.softmax(x, axis=0),
    "log of sum of exponentials": lambda x: tl.log(tl.sum(tl.exp(x - tl.max(x)))),
}


@pytest.mark.parametrize("shape", [(300_001, 1), (7, 40_003), (20_011, 33), (64, 5000)])
@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions(name: str, shape: tuple[int, int]) -> None:
    assert_equal_bits(REDUCTIONS[name], normal(*shape))


def test_normalization_and_its_gradient() -> None:
    def loss(x: tl.Tensor, scale: tl.Tensor, offset: tl.Tensor) -> tl.Tensor:
        y = nn.gelu(nn.layer_norm(x, scale, offset))
        rows = tl.reshape(y, (-1, 8, 8, 32))
        centred = rows - tl.mean(rows, axis=(0, 1, 2))
        return tl.mean(nn.softmax(centred / tl.std(rows, axis=(0, 1, 2)), axis=-1) ** 2)

    assert_equal_bits(
        tl.value_and_grad(loss, argnums=(0, 1, 2)), normal(4096, 32), normal(32), normal(32)
    )


# Products are oneDNN's; what it has for AVX2 cuts some sums by the number of threads.
@pytest.mark.skipif(
    "avx512bw" not in pathlib.Path("/proc/cpuinfo").read_text(),
    reason="needs a processor with AVX-512",
)
def test_a_training_step() -> None:
    class Net(nn.Module):
        def __init__(self, key: tl.Tensor):
            first, second, third = tl.random.split(key, 3)
            self.table = tl.random.normal(first, (500, 48))
            self.hidden = nn.Linear(48, 64, key=second)
            self.norm = nn.BatchNorm(64)
            self.head = nn.Linear(64, 10, key=third)

        def __call__(self, ids: tl.Tensor) -> tl.Tensor:
            x = tl.mean(nn.embedding(self.table, ids), axis=1)
            return self.head(nn.relu(self.norm(self.hidden(x), training=True)))

    optimizer = optim.chain(optim.clip_by_global_norm(1.0), optim.adam(1e-2))

    def loss_fn(model: Net, ids: tl.Tensor, labels: tl.Tensor) -> Any:
        return tl.mean(nn.softmax_cross_entropy(model(ids), labels)), model

    def step(model: Net, state: Any, ids: tl.Tensor, labels: tl.Tensor) -> Any:
        gradient = tl.value_and_grad(loss_fn, has_aux=True)
        (loss, model), gradients = gradient(model, ids, labels)
        updates, state = optimizer.update(gradients, state, model)
        return optim.apply_updates(model, updates), loss

    rng = np.random.default_rng(0)
    model = Net(tl.random.key(0))
    ids = tl.asarray(rng.integers(0, 500, (512, 20)))
    labels = tl.asarray(rng.integers(0, 10, 512))
    assert_equal_bits(step, model, optimizer.init(model), ids, labels)
