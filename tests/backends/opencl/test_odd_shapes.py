"""Operations on arrays of odd shapes: primes, ones, nothing at all, longer than any vector; jitted
and with gradients, against the CPU. Samples of the primitives themselves are small."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import tensorlite as tl
from tensorlite import dtypes, nn, random

SIDES = st.sampled_from([0, 1, 1, 2, 3, 5, 7, 13, 17, 31, 61, 127, 257])
MOST = 30_000  # elements
Function = Callable[..., Any]


@st.composite
def shapes(draw: st.DrawFn, least: int = 0, most: int = 4) -> tuple[int, ...]:
    shape = tuple(draw(st.lists(SIDES, min_size=least, max_size=most)))
    while math.prod(shape) > MOST:
        largest = shape.index(max(shape))
        shape = (*shape[:largest], draw(st.sampled_from([1, 2, 3])), *shape[largest + 1 :])
    return shape


def agree(f: Function, *arrays: np.ndarray, differentiable: bool = True) -> None:
    """`f` jitted on the device gives what it gives on the CPU, and so does its gradient."""
    functions = [f]
    if differentiable:
        functions.append(
            tl.grad(lambda *xs: tl.sum(f(*xs) ** 2), argnums=tuple(range(len(arrays))))
        )
    for function in functions:
        here = function(*map(tl.asarray, arrays))
        there = tl.jit(function)(*[tl.asarray(a, device="opencl:0") for a in arrays])
        for want, got in zip(tl.tree.leaves(here), tl.tree.leaves(there), strict=True):
            assert got.device == "opencl:0"
            close(np.asarray(got), np.asarray(want))


def close(got: np.ndarray, want: np.ndarray) -> None:
    assert got.shape == want.shape and got.dtype == want.dtype
    if want.dtype not in dtypes.FLOATS:
        np.testing.assert_array_equal(got, want)
        return
    tolerance = {dtypes.float64: 1e-10, dtypes.float32: 2e-4}.get(want.dtype, 4e-2)
    got, want = got.astype(np.float64), want.astype(np.float64)
    scale = max(float(np.abs(want[np.isfinite(want)]).max(initial=0)), 1.0)
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * scale)


def numbers(shape: tuple[int, ...], dtype: Any = np.float32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(dtype)


POINTWISE: dict[str, Function] = {
    "gelu": lambda x: nn.gelu(x) * 2 + 1,
    "where": lambda x: tl.where(x > 0.1, tl.exp(x), x * x),
    "reversed": lambda x: tl.permute_dims(x, tuple(range(x.ndim))[::-1]) * 2,
    "flat": lambda x: tl.reshape(x, (-1,)) + 1 if x.size else x,
    "flip": lambda x: tl.flip(x) - x,
}
AXIS: dict[str, Function] = {
    "sum": lambda x, a: tl.sum(x, axis=a),
    "mean of squares": lambda x, a: tl.mean(x * x, axis=a) if x.shape[a] else tl.sum(x, axis=a),
    "max": lambda x, a: tl.max(x, axis=a) if x.shape[a] else x,
    "softmax": lambda x, a: nn.softmax(x, axis=a) if x.shape[a] else x,
    "log_softmax": lambda x, a: nn.log_softmax(x, axis=a) if x.shape[a] else x,
    "standardized": lambda x, a: (x - tl.mean(x, axis=a, keepdims=True)) * 0.5 if x.size else x,
    "product": lambda x, a: tl.prod(1 + x * 0.1, axis=a),
    "cumulative": lambda x, a: tl.cumulative_sum(x, axis=a),
    "halves": lambda x, a: tl.concat(tl.unstack(tl.stack([x, x + 1], axis=a), axis=a), axis=a),
    "every second": lambda x, a: tl.moveaxis(tl.moveaxis(x, a, 0)[::-2], 0, a),
    "sorted": lambda x, a: tl.sort(x, axis=a),
}
HALVES: dict[str, Function] = {  # chains keep float32 between their steps, so results are halves
    "bfloat16": lambda x: x.astype(tl.bfloat16) * 3,
    "float16": lambda x: tl.tanh(x.astype(tl.float16)),
}
INTEGERS: dict[str, Function] = {
    "argmax": lambda x, a: tl.argmax(x, axis=a) if x.shape[a] else x,
    "argmin": lambda x, a: tl.argmin(x, axis=a) if x.shape[a] else x,
    "any": lambda x, a: tl.any(x > 0.9, axis=a),
    "all": lambda x, a: tl.all(x > -0.99, axis=a),
    "counts": lambda x, a: tl.sum((x * 100).astype(tl.int8), axis=a),
    "bytes": lambda x, a: (tl.abs(x) * 100).astype(tl.uint8) // 7,
}


@pytest.mark.parametrize("name", [*POINTWISE, *HALVES])
@settings(max_examples=5)
@given(shape=shapes())
@example(shape=(0, 5))
@example(shape=(127, 1, 61))
def test_pointwise(name: str, shape: tuple[int, ...]) -> None:
    agree({**POINTWISE, **HALVES}[name], numbers(shape), differentiable=name in POINTWISE)


@settings(max_examples=10)
@given(shape=shapes(), data=st.data())
def test_what_broadcasts(shape: tuple[int, ...], data: Any) -> None:
    keeps = data.draw(st.lists(st.booleans(), min_size=len(shape), max_size=len(shape)))
    cut = data.draw(st.integers(0, len(shape)))
    other = tuple(n if keep else 1 for n, keep in zip(shape, keeps, strict=True))[cut:]
    agree(lambda x, y: x * y + tl.maximum(x, y), numbers(shape), numbers(other, seed=1))


@pytest.mark.parametrize("name", [*AXIS, *INTEGERS])
@settings(max_examples=5)
@given(shape=shapes(least=1), data=st.data())
@example(shape=(1031,), data=None)
@example(shape=(257, 61), data=None)
def test_along_an_axis(name: str, shape: tuple[int, ...], data: Any) -> None:
    axis = 0 if data is None else data.draw(st.integers(-len(shape), len(shape) - 1))
    f = {**AXIS, **INTEGERS}[name]
    agree(lambda x: f(x, axis), numbers(shape), differentiable=name in AXIS)


@settings(max_examples=10)
@given(m=SIDES, k=SIDES, n=SIDES, batch=st.sampled_from([(), (1,), (3,), (0,), (2, 5)]))
@example(m=127, k=257, n=61, batch=())
@example(m=0, k=3, n=5, batch=())
@example(m=3, k=0, n=5, batch=())
def test_products(m: int, k: int, n: int, batch: tuple[int, ...]) -> None:
    x, y, bias = numbers((*batch, m, k)), numbers((k, n), seed=1), numbers((n,), seed=2)
    agree(lambda x, y, b: nn.relu(x @ y + b), x, y, bias)


@settings(max_examples=8)
@given(
    count=st.sampled_from([0, 1, 3]),
    sides=st.tuples(*[st.sampled_from([5, 7, 11, 13])] * 2),
    channels=st.tuples(*[st.sampled_from([1, 3, 5, 16, 17])] * 2),
    window=st.tuples(*[st.sampled_from([1, 2, 3, 5])] * 2),
    stride=st.sampled_from([1, 2, 3]),
    dilation=st.sampled_from([1, 2]),
    groups=st.sampled_from([1, 1, 2, 3]),
)
def test_convolutions(
    count: int,
    sides: tuple[int, int],
    channels: tuple[int, int],
    window: tuple[int, int],
    stride: int,
    dilation: int,
    groups: int,
) -> None:
    inside, out = channels
    x = numbers((count, *sides, inside * groups))
    w = numbers((*window, inside, out * groups), seed=1)

    def f(x: Any, w: Any) -> Any:
        return tl.tanh(nn.conv(x, w, stride=stride, dilation=dilation, groups=groups))

    agree(f, x, w)


@settings(max_examples=6)
@given(
    shape=st.tuples(st.sampled_from([0, 1, 2]), *[st.sampled_from([5, 7, 13])] * 2, SIDES),
    window=st.sampled_from([1, 2, 3]),
    stride=st.sampled_from([1, 2, 3]),
)
def test_pooling(shape: tuple[int, ...], window: int, stride: int) -> None:
    x = np.random.default_rng(0).permutation(math.prod(shape)).reshape(shape)  # no ties
    x = (x / max(x.size, 1)).astype(np.float32)
    agree(lambda x: nn.max_pool(x, window, stride=stride), x)
    agree(lambda x: nn.avg_pool(x, window, stride=stride, padding="same"), x)


@settings(max_examples=6)
@given(rows=SIDES.filter(bool), width=SIDES, reads=SIDES)
def test_lookups(rows: int, width: int, reads: int) -> None:
    places = np.random.default_rng(0).integers(0, rows, reads)
    table = numbers((rows, width))
    for device in ("cpu", "opencl:0"):
        index, there = (tl.asarray(a, device=device) for a in (places, table))
        f = tl.jit(lambda t, i: tl.take(t, i, axis=0) * 2)
        g = tl.jit(tl.grad(lambda t, i: tl.sum(tl.take(t, i, axis=0) ** 2)))
        np.testing.assert_array_equal(np.asarray(f(there, index)), 2 * table[places])
        want = np.zeros_like(table)
        np.add.at(want, places, 2 * table[places])
        close(np.asarray(g(there, index)), want)


@settings(max_examples=6)
@given(shape=shapes(), seed=st.integers(0, 2**32 - 1))
def test_random_bits_are_the_same_everywhere(shape: tuple[int, ...], seed: int) -> None:
    def f(key: Any) -> Any:
        return random.bits(key, shape), random.uniform(key, shape), random.normal(key, shape)

    here = f(random.key(seed))
    with tl.default_device("opencl:0"):
        there = tl.jit(f)(random.key(seed))
    for want, got in zip(here, there, strict=True):
        assert got.device == "opencl:0"
        close(np.asarray(got), np.asarray(want))
