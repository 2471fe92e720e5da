"""Random functions of what fusion takes, for property-based tests of passes."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np

import tensorlite as tl
from tensorlite import nn
from tensorlite.core import Tensor, bind
from tensorlite.ops.control import optimization_barrier
from tensorlite.ops.pool import pool_argmax_p, pool_gather_p, pool_scatter_p
from tensorlite.ops.window import Window

Function = Callable[..., tuple[Tensor, ...]]
MAX_ELEMENTS = 400


def arguments(rng: random.Random, count: int) -> list[np.ndarray]:
    """Arrays of small integers as float64, so that sums and products are exact, whose shapes
    broadcast together more often than not."""
    values = np.random.default_rng(rng.randrange(1 << 30))
    full = [rng.choice([1, 2, 3, 4, 6]) for _ in range(rng.randrange(1, 5))]
    result = []
    for _ in range(count):
        shape = [n if rng.random() < 0.8 else 1 for n in full[rng.randrange(len(full) + 1) :]]
        if rng.random() < 0.5:
            shape = list(full)
        result.append(values.integers(-3, 4, shape).astype(np.float64))
    return result


def function(seed: int, steps: int) -> Function:
    """A function of tensors: `steps` random operations, some of whose results it returns."""

    def f(*args: Tensor) -> tuple[Tensor, ...]:
        rng = random.Random(seed)
        values = list(args)
        for _ in range(steps):
            made = rng.choice(_OPERATIONS)(rng, rng.choice(values[-6:]), values)
            values += [v for v in made if 0 < v.size <= MAX_ELEMENTS]
        new = values[len(args) :] or values
        chosen = rng.sample(new, min(len(new), rng.randrange(1, 4)))
        return (*chosen, values[-1])

    return f


def _tame(x: Tensor) -> Tensor:
    """`x` as small integers again: products would grow without end."""
    return x - 7 * tl.floor(x / 7) - 3


def _rounded(x: Tensor) -> Tensor:
    """A number between 0 and 1 without its last digits, which may differ."""
    return tl.round(60 * x) / 64


def _unary(rng: random.Random, x: Tensor, values: list[Tensor]) -> list[Tensor]:
    return [
        rng.choice(
            [
                tl.negative,
                tl.square,
                tl.abs,
                nn.relu,
                tl.sign,
                lambda x: _rounded(tl.exp(-tl.abs(x))),
                lambda x: tl.where(x > 0, x, 1.0),
                lambda x: x.astype(tl.int32).astype(tl.float64),
                lambda x: x.astype(tl.float32).astype(tl.float64),
                lambda x: x / 4,
                lambda x: x + 0.0,
                lambda x: x * 1,
                tl.stop_gradient,
                lambda x: optimization_barrier(x)[0],
                lambda x: _rounded(nn.softmax(x)) if x.ndim else x,
            ]
        )(x)
    ]


def _binary(rng: random.Random, x: Tensor, values: list[Tensor]) -> list[Tensor]:
    for y in rng.sample(values, len(values)):
        try:
            np.broadcast_shapes(x.shape, y.shape)
        except ValueError:
            continue
        op = rng.choice([tl.add, tl.subtract, tl.multiply, tl.maximum, tl.minimum, _choose])
        return [_tame(op(x, y))]
    return []


def _choose(x: Tensor, y: Tensor) -> Tensor:
    return tl.where(tl.logical_and(x > y, y < 2), x, y)


def _reduce(rng: random.Random, x: Tensor, values: list[Tensor]) -> list[Tensor]:
    axes = tuple(a for a in range(x.ndim) if rng.random() < 0.5)
    keepdims = rng.random() < 0.5
    op = rng.choice([tl.sum, tl.max, tl.min, _any, _all])
    result = op(x, axis=axes, keepdims=keepdims)
    made = [_tame(result)]
    if keepdims:
        made.append(x - result)
    if x.ndim and rng.random() < 0.3:
        position = rng.choice([tl.argmax, tl.argmin])(x, axis=rng.randrange(x.ndim))
        made.append(position.astype(tl.float64))
    if x.ndim and rng.random() < 0.3:
        made.append(_tame(tl.prod(tl.where(x > 0, 2.0, -1.0), axis=rng.randrange(x.ndim))))
    return made


def _any(x: Tensor, **options: Any) -> Tensor:
    return tl.any(x > 2, **options).astype(tl.float64)


def _all(x: Tensor, **options: Any) -> Tensor:
    return tl.all(x > -3, **options).astype(tl.float64)


def _move(rng: random.Random, x: Tensor, values: list[Tensor]) -> list[Tensor]:
    kind = rng.randrange(8)
    axis = rng.randrange(x.ndim) if x.ndim else 0
    if kind == 0 or not x.ndim:
        return [x.reshape(_factors(rng, x.size))]
    if kind == 1:
        return [tl.permute_dims(x, tuple(rng.sample(range(x.ndim), x.ndim)))]
    if kind == 2:
        return [x[_slices(rng, x)]]
    if kind == 3:
        return [tl.flip(x, axis=axis)]
    if kind == 4:
        widths = [(rng.randrange(3), rng.randrange(3)) for _ in x.shape]
        return [tl.pad(x, widths, constant_values=rng.choice([0, 2]))]
    if kind == 5:
        others = [v for v in values if v.shape == x.shape]
        return [tl.concat([rng.choice(others), x, rng.choice(others)], axis=axis)]
    if kind == 6:
        spread = tl.permute_dims(x, tuple(range(x.ndim))[::-1])
        return [tl.broadcast_to(spread, (rng.choice([1, 2, 3]), *spread.shape))]
    return [tl.zeros_like(x).at[_slices(rng, x)].set(2.0) + x]


def _factors(rng: random.Random, size: int) -> tuple[int, ...]:
    shape: list[int] = []
    while size > 1:
        factor = rng.choice([d for d in range(2, size + 1) if size % d == 0])
        shape.append(factor)
        size //= factor
    for _ in range(rng.randrange(2)):
        shape.insert(rng.randrange(len(shape) + 1), 1)
    return tuple(shape)


def _slices(rng: random.Random, x: Tensor) -> tuple[slice, ...]:
    result = []
    for n in x.shape:
        start = rng.randrange(n)
        result.append(slice(start, rng.randrange(start, n) + 1, rng.choice([1, 1, 2])))
    return tuple(result)


def _index(rng: random.Random, x: Tensor, values: list[Tensor]) -> list[Tensor]:
    if not x.ndim:
        return []
    axis = rng.randrange(x.ndim)
    n = x.shape[axis]
    rows = tl.asarray(
        np.random.default_rng(rng.randrange(99)).integers(-n, n, (rng.choice([1, 4])))
    )
    made = [tl.take(x, rows, axis=axis)]
    computed = tl.remainder(x.reshape(-1)[:5].astype(tl.int64), x.shape[0])
    made.append(x[computed])
    if x.ndim > 1:
        chosen = tl.argmax(x, axis=-1, keepdims=True)
        made.append(tl.take_along_axis(x, chosen, axis=-1) - tl.max(x, axis=-1, keepdims=True))
    return made


def _pool(rng: random.Random, x: Tensor, values: list[Tensor]) -> list[Tensor]:
    if not 3 <= x.ndim <= 4:
        return []
    ndim = x.ndim - 2
    size, stride = rng.choice([(1, 1), (2, 2), (2, 1), (3, 2), (3, 1), (3, 3)])
    low, high = (rng.randrange(size) for _ in range(2))
    window = Window((size,) * ndim, (stride,) * ndim, ((low, high),) * ndim, (1,) * ndim)
    if any(n + low + high < size for n in x.shape[1:-1]):
        return []
    largest, cells = bind(pool_argmax_p, x, window=window)
    back = bind(pool_scatter_p, largest, cells, window=window, spatial=x.shape[1:-1])
    mean = tl.vjp(lambda x: nn.avg_pool(x, size, stride=stride, padding=[(low, high)] * ndim), x)
    made = [largest, cells.astype(tl.float64), bind(pool_gather_p, x, cells, window=window), back]
    return [*rng.sample(made, 2), _tame(mean[0]), *map(_tame, mean[1](mean[0]))]


def _product(rng: random.Random, x: Tensor, values: list[Tensor]) -> list[Tensor]:
    if x.ndim < 2:
        return []
    transposed = tl.matrix_transpose(x)
    return [_tame(tl.matmul(x, transposed) if rng.random() < 0.5 else tl.matmul(transposed, x))]


_OPERATIONS = [_unary, _unary, _binary, _binary, _binary, _reduce, _reduce, _move, _move, _move]
_OPERATIONS += [_index, _pool, _product]
