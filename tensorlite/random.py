"""Random numbers from explicit keys.

    key = random.key(0)
    k1, k2 = random.split(key)
    x = random.normal(k1, (128, 64))

A function of this file gives the same values whenever it is given the same key, on every device;
use each key once and `split` it for more. Nothing is hidden in a global state, so runs can be
repeated. `tl.vmap` changes nothing, `tl.jit` at most the rounding of what floating-point functions
made of the bits, as in `normal`: keys, integers and `uniform` on [0, 1) stay the same.

A key is a uint32 tensor of shape (4,). `shard` makes the key of a process that holds some rows of a
batch, so that what all processes draw together is what one process would draw for the whole batch.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from . import dtypes
from .core import Tensor, bind
from .ops import random as generator
from .ops.creation import arange, as_integer, as_shape, asarray, cast, full
from .ops.elementwise import clip, erf, erfinv, log, where
from .ops.index import take
from .ops.reduce import argmax
from .ops.shape import Shape, concat, normalize_axes

__all__ = [
    "bernoulli",
    "bits",
    "categorical",
    "choice",
    "fold_in",
    "key",
    "normal",
    "permutation",
    "randint",
    "shard",
    "split",
    "truncated_normal",
    "uniform",
]

_SQRT2 = math.sqrt(2)

# ---- keys ----------------------------------------------------------------------------------------


def key(seed: int) -> Tensor:
    """The key of a seed: uint32 of shape (4,). Any integer serves, negative ones too; it counts
    modulo 2**64.

    Raises:
        TypeError: `seed` is not an integer.

    Example:
        >>> print(random.key(7))
        [7 0 0 0]
    """
    number = as_integer("random.key: the seed is an integer", seed) % 2**64
    return asarray(np.array([number & 0xFFFFFFFF, number >> 32, 0, 0], np.uint32))


def split(key: Tensor, num: int = 2) -> Tensor:
    """`num` new keys, independent of each other and of `key`: uint32 of shape (num, 4).

    It unpacks, `k1, k2 = random.split(key)`, and `tl.vmap` maps over it.

    Raises:
        TypeError: `num` is not an integer.
        ValueError: `num` is less than 1.

    Example:
        >>> k1, k2 = random.split(random.key(0))
        >>> keys = random.split(k1, 10)
        >>> keys.shape
        (10, 4)
    """
    key = _checked("split", key)
    count = as_integer("random.split: num is an integer of at least 1", num)
    if count < 1:
        raise ValueError(f"random.split: num must be at least 1, got {num}")
    numbers = arange(count, dtype=dtypes.int64, device=key.device)
    return bind(generator.fold_p, key, numbers, stream=generator.SPLIT)


def fold_in(key: Tensor, data: Any) -> Tensor:
    """The key of number `data` among those that `key` has, one for every 64-bit integer: uint32 of
    shape (4,).

    For a key per step, row or layer: `random.fold_in(key, step)`. `data` is an int or an integer
    tensor of shape (), which may be traced.

    Raises:
        TypeError: `data` is not an integer.

    Example:
        >>> key = random.key(0)
        >>> for step in range(3):
        ...     step_key = random.fold_in(key, step)
        >>> print(random.randint(step_key, (4,), 0, 10))
        [2 4 4 9]
    """
    key = _checked("fold_in", key)
    if isinstance(data, int) and not isinstance(data, bool):
        data = np.int64((data + 2**63) % 2**64 - 2**63)
    number = asarray(data)
    if number.dtype not in dtypes.INTEGERS or number.shape:
        raise TypeError(f"random.fold_in: data is one integer, got {number.aval}")
    return bind(generator.fold_p, key, cast(number, dtypes.int64), stream=generator.FOLD)


def shard(key: Tensor, first_row: int, rows: int) -> Tensor:
    """The key of a process that holds rows [first_row, first_row + rows) of a batch that is split
    over processes.

    A draw whose number of elements is a multiple of `rows`, such as one of shape (rows, ...), gives
    those rows of the draw that `key` gives for the whole batch; any other draw is that of `key`.
    Keys made from it by `split` and `fold_in` behave in the same way.

    Raises:
        TypeError: `first_row` or `rows` is not an integer.
        ValueError: `first_row` or `rows` is negative, or 2**32 or more.
    """
    key = _checked("shard", key)
    first_row = as_integer("random.shard: first_row is an integer", first_row)
    rows = as_integer("random.shard: rows is an integer", rows)
    if not (0 <= first_row < 2**32 and 0 <= rows < 2**32):
        raise ValueError(
            f"random.shard: first_row and rows must be in [0, 2**32), got {first_row} and {rows}"
        )
    return concat([key[:2], asarray(np.array([first_row, rows], np.uint32), device=key.device)])


# ---- draws ---------------------------------------------------------------------------------------


def bits(key: Tensor, shape: int | Shape = (), dtype: Any = dtypes.uint32) -> Tensor:
    """Uniformly distributed bits: uint32 (default) or uint64 of `shape`."""
    key, wanted = _checked("bits", key), dtypes.canonical(dtype)
    if wanted not in (dtypes.uint32, dtypes.uint64):
        raise TypeError(
            f"random.bits: draws uint32 or uint64, got dtype {wanted}; use randint for others"
        )
    return bind(generator.bits_p, key, shape=_shape("bits", shape), dtype=wanted)


def uniform(
    key: Tensor,
    shape: int | Shape = (),
    dtype: Any = dtypes.float32,
    minval: Any = 0.0,
    maxval: Any = 1.0,
) -> Tensor:
    """Uniform on [minval, maxval), of `shape` and a float `dtype`. The bounds are numbers or
    tensors that broadcast to `shape`.

    Example:
        >>> print(random.uniform(random.key(0), (3,)))
        [0.39904642 0.88052016 0.73571277]
    """
    wanted = _float("uniform", dtype)
    _check_bounds("uniform", minval, maxval)
    digits = {dtypes.float64: 53, dtypes.float32: 24, dtypes.float16: 11, dtypes.bfloat16: 8}[
        wanted
    ]
    unit = cast(_random_digits("uniform", key, shape, wanted, digits), wanted) * 2.0**-digits
    if _is(minval, 0) and _is(maxval, 1):
        return unit
    low, high = asarray(minval, dtype=wanted), asarray(maxval, dtype=wanted)
    result = low + unit * (high - low)
    return where(result < high, result, low)  # rounding may have reached maxval


def normal(key: Tensor, shape: int | Shape = (), dtype: Any = dtypes.float32) -> Tensor:
    """Normal with mean 0 and standard deviation 1, of `shape` and a float `dtype`, by inversion of
    the distribution function.

    Example:
        >>> x = random.normal(random.key(0), (1000,))
        >>> x.dtype, bool(tl.abs(tl.mean(x)) < 0.1), bool(tl.abs(tl.std(x) - 1) < 0.1)
        (dtype('float32'), True, True)
    """
    wanted = _float("normal", dtype)
    return cast(erfinv(_open_unit("normal", key, shape, wanted) * 2 - 1) * _SQRT2, wanted)


def truncated_normal(
    key: Tensor, lower: Any, upper: Any, shape: int | Shape = (), dtype: Any = dtypes.float32
) -> Tensor:
    """Normal with mean 0 and standard deviation 1, conditioned to lie in [lower, upper] (numbers,
    or tensors that broadcast to `shape`).

    By inversion of the distribution function; where both bounds lie beyond about 5 standard
    deviations the tail's shape is coarse.
    """
    wanted = _float("truncated_normal", dtype)
    _check_bounds("truncated_normal", lower, upper)
    unit = _open_unit("truncated_normal", key, shape, wanted)
    low, high = asarray(lower, dtype=unit.dtype), asarray(upper, dtype=unit.dtype)
    start, end = erf(low / _SQRT2), erf(high / _SQRT2)
    return cast(clip(erfinv(start + unit * (end - start)) * _SQRT2, low, high), wanted)


def bernoulli(key: Tensor, p: Any = 0.5, shape: int | Shape | None = None) -> Tensor:
    """True with probability `p` (a number, or a tensor that broadcasts to `shape`): booleans of
    `shape`, by default that of `p`.

    Raises:
        ValueError: `p` is a number outside [0, 1].
    """
    if isinstance(p, int | float) and not 0 <= p <= 1:
        raise ValueError(f"random.bernoulli: p is a probability, got {p}")
    p = asarray(p)
    wanted = p.dtype if p.dtype in (dtypes.float32, dtypes.float64) else dtypes.float32
    return uniform(key, p.shape if shape is None else shape, wanted) < cast(p, wanted)


def randint(
    key: Tensor, shape: int | Shape, minval: int, maxval: int, dtype: Any = dtypes.int64
) -> Tensor:
    """Integers of `shape`, uniform on [minval, maxval), to within (maxval - minval) / 2**64.

    Raises:
        TypeError: `dtype` is no integer dtype, or a bound is no integer.
        ValueError: the range is empty or does not fit `dtype`.
    """
    wanted = dtypes.canonical(dtype)
    if wanted not in dtypes.INTEGERS:
        raise TypeError(
            f"random.randint: draws integers, got dtype {wanted}; use uniform for floats"
        )
    low = as_integer("random.randint: minval is an integer", minval)
    high = as_integer("random.randint: maxval is an integer", maxval)
    limits = np.iinfo(wanted)
    if low >= high:
        raise ValueError(f"random.randint: minval must be less than maxval, got [{low}, {high})")
    if low < limits.min or high > int(limits.max) + 1:
        raise ValueError(
            f"random.randint: [{low}, {high}) does not fit {wanted}, which ends at {limits.max}"
        )
    words = bits(key, shape, dtypes.uint64)
    if high - low < 2**64:
        words = words % (high - low)
    carrier = dtypes.uint64 if wanted == dtypes.uint64 else dtypes.int64
    return cast(cast(words, carrier) + low, wanted)


def permutation(key: Tensor, x: Any, *, axis: int = 0) -> Tensor:
    """A random permutation of 0, ..., x - 1 (int64) for an int, or of the slices of a tensor along
    `axis`.

    The order is that of the whole, also with a sharded key.

    Example:
        >>> print(random.permutation(random.key(0), 5))
        [3 4 2 1 0]
    """
    key = _checked("permutation", key)
    if isinstance(x, int | np.integer) and not isinstance(x, bool):
        if x < 0:
            raise ValueError(f"random.permutation: cannot permute {x} numbers")
        return bind(generator.permutation_p, key, n=int(x))
    x = asarray(x)
    if not x.ndim:
        raise ValueError(
            "random.permutation: takes an int or a tensor with at least one dimension, got shape ()"
        )
    along = normalize_axes("random.permutation", axis, x.ndim)[0]
    return take(x, bind(generator.permutation_p, key, n=x.shape[along]), axis=along)


def categorical(key: Tensor, logits: Any, *, axis: int = -1) -> Tensor:
    """Class numbers (int64), each class with probability softmax(logits) along `axis`: the shape of
    `logits` without `axis`.

    By the Gumbel-max method: the position of the largest of logits + noise.
    """
    logits = asarray(logits)
    if logits.dtype not in dtypes.FLOATS or not logits.ndim:
        raise TypeError(
            f"random.categorical: logits are floats with at least one dimension, got {logits.aval}"
        )
    unit = _open_unit("categorical", key, logits.shape, logits.dtype)
    return argmax(cast(logits, unit.dtype) - log(-log(unit)), axis=axis)


def choice(
    key: Tensor, a: Any, shape: int | Shape = (), *, replace: bool = True, p: Any = None
) -> Tensor:
    """Elements of `a` (an int n stands for 0, ..., n - 1; of a tensor, slices along axis 0), drawn
    with or without replacement.

    Args:
        p: probabilities of the elements (with replacement only); uniform by default.

    Raises:
        ValueError: nothing to draw from, more draws than elements without replacement, or `p` does
            not fit.
    """
    sizes = _shape("choice", shape)
    population = None if isinstance(a, int | np.integer) else asarray(a)
    n = int(a) if population is None else population.shape[0]
    count = math.prod(sizes)
    if n < 1 and count:
        raise ValueError("random.choice: there is nothing to draw from")
    if p is not None:
        chances = asarray(p)
        if chances.shape != (n,) or not replace:
            raise ValueError(
                f"random.choice: p holds one probability for each of the {n} elements and needs "
                f"replace=True, got shape {chances.shape}, replace={replace}"
            )
        logits = log(cast(chances, dtypes.float32)) + full((*sizes, 1), 0.0, device=chances.device)
        places = categorical(key, logits)
    elif replace:
        places = randint(key, sizes, 0, max(n, 1))
    else:
        if count > n:
            raise ValueError(
                f"random.choice: cannot draw {count} of {n} elements without replacement"
            )
        places = permutation(key, n)[:count].reshape(sizes)
    return places if population is None else take(population, places, axis=0)


# ---- helpers -------------------------------------------------------------------------------------


def _checked(op: str, key: Any) -> Tensor:
    if isinstance(key, int | float) or key is None:
        raise TypeError(
            f"random.{op}: needs a key, got {key!r}; did you pass a seed? use random.key(seed)"
        )
    key = asarray(key)
    if key.dtype != dtypes.uint32 or key.shape != (4,):
        several = key.dtype == dtypes.uint32 and key.ndim > 1 and key.shape[-1] == 4
        hint = (
            "these are several keys: unpack them, or use tl.vmap"
            if several
            else "make one with random.key(seed)"
        )
        raise TypeError(f"random.{op}: a key is uint32[4], got {key.aval}; {hint}")
    return key


def _shape(op: str, shape: int | Shape) -> Shape:
    try:
        return as_shape(shape)
    except (ValueError, TypeError) as error:
        raise type(error)(f"random.{op}: {error}") from None


def _float(op: str, dtype: Any) -> np.dtype:
    wanted = dtypes.canonical(dtype)
    if wanted not in dtypes.FLOATS:
        raise TypeError(f"random.{op}: draws floats, got dtype {wanted}")
    return wanted


def _check_bounds(op: str, low: Any, high: Any) -> None:
    if isinstance(low, int | float) and isinstance(high, int | float) and not low < high:
        raise ValueError(
            f"random.{op}: the lower bound must be less than the upper one, got {low} and {high}"
        )


def _is(bound: Any, value: int) -> bool:
    return isinstance(bound, int | float) and bound == value


def _random_digits(
    op: str, key: Tensor, shape: int | Shape, dtype: np.dtype, digits: int
) -> Tensor:
    """Uniform integers below 2**digits."""
    key, sizes = _checked(op, key), _shape(op, shape)
    word = dtypes.uint64 if dtype == dtypes.float64 else dtypes.uint32
    return bind(generator.bits_p, key, shape=sizes, dtype=word) >> (8 * word.itemsize - digits)


def _open_unit(op: str, key: Tensor, shape: int | Shape, dtype: np.dtype) -> Tensor:
    """Uniform on (0, 1), both ends excluded, symmetric about 1/2: float64 for float64, else
    float32.
    """
    carrier = dtypes.float64 if dtype == dtypes.float64 else dtypes.float32
    digits = 52 if carrier == dtypes.float64 else 23
    odd = _random_digits(op, key, shape, carrier, digits) * 2 + 1
    return cast(odd, carrier) * 2.0 ** -(digits + 1)
