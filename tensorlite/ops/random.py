"""The random number generator: Philox-4x32-10, a function from (key, position) to bits, so the same
on every device.

J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel random numbers: as easy as 1, 2, 3",
SC 2011. A 64-bit key scrambles a 128-bit counter into four 32-bit words. Nothing is carried from
one word to the next, so any worker can compute any part of a draw.

A key is four uint32: the Philox key (k0, k1), and (first_row, rows), which are zero for an ordinary
key. In a *sharded* key they say that this process holds rows [first_row, first_row + rows) of a
batch: a draw whose number of elements is a multiple of `rows` starts at the counter where those
rows lie in the draw of the whole batch. The counter of a draw is (position // 4 as two words, 0,
stream).
"""

from __future__ import annotations

import numpy as np

from .. import dtypes
from ..core import Aval, Primitive, Tensor, bind
from .creation import Shape
from .shape import pad_rank

DRAW, SPLIT, FOLD = 0, 1, 2  # streams, which keep draws and the derivation of keys apart

_CHUNK = 1 << 13  # counters scrambled at once, so that the working set stays in the cache

# (key) -> uniform uint32 or uint64 of `shape`
bits_p = Primitive("random_bits", differentiable=False)


@bits_p.shape
def _(key: Aval, *, shape: Shape, dtype: np.dtype) -> Aval:
    _check_key("random_bits", key)
    if dtype not in (dtypes.uint32, dtypes.uint64):
        raise TypeError(f"random_bits: draws uint32 or uint64, got dtype {dtype}")
    return Aval((*key.shape[:-1], *shape), dtype)


@bits_p.numpy
def _(key: np.ndarray, *, shape: Shape, dtype: np.dtype) -> np.ndarray:
    count = int(np.prod(shape, dtype=np.int64))
    keys = key.reshape(-1, 4).astype(np.uint64)
    width = dtype.itemsize // 4
    words = _words(keys, _starts(keys, count) * np.uint64(width), count * width)
    if width == 2:
        words = _pairs(words)
    return words.reshape((*key.shape[:-1], *shape))


@bits_p.batch
def _(args: list[Tensor], batched: list[bool], *, shape: Shape, dtype: np.dtype) -> Tensor:
    return bind(bits_p, args[0], shape=shape, dtype=dtype)


# (key, int64) -> the key of that number; leading axes broadcast
fold_p = Primitive("random_fold", differentiable=False)


@fold_p.shape
def _(key: Aval, data: Aval, *, stream: int) -> Aval:
    _check_key("random_fold", key)
    if data.dtype != dtypes.int64:
        raise TypeError(f"random_fold: data is int64, got {data}")
    return Aval((*np.broadcast_shapes(key.shape[:-1], data.shape), 4), key.dtype)


@fold_p.numpy
def _(key: np.ndarray, data: np.ndarray, *, stream: int) -> np.ndarray:
    shape = np.broadcast_shapes(key.shape[:-1], data.shape)
    keys = np.broadcast_to(key, (*shape, 4)).reshape(-1, 4).astype(np.uint64)
    blocks = np.broadcast_to(data, shape).reshape(-1).astype(np.uint64)
    out = keys.astype(np.uint32)
    out[:, :2] = _philox(blocks, keys[:, 0], keys[:, 1], stream)[:2].T
    return out.reshape((*shape, 4))


@fold_p.batch
def _(args: list[Tensor], batched: list[bool], *, stream: int) -> Tensor:
    ranks = [x.ndim - b - after for x, b, after in zip(args, batched, (1, 0), strict=True)]
    key, data = args
    if batched[0]:
        key = pad_rank(key, max(ranks) + 1)
    if batched[1]:
        data = pad_rank(data, max(ranks))
    return bind(fold_p, key, data, stream=stream)


# (key) -> a permutation of 0, ..., n - 1. It sorts random words, and is a primitive of its own
# until there is one that sorts.
permutation_p = Primitive("random_permutation", differentiable=False)


@permutation_p.shape
def _(key: Aval, *, n: int) -> Aval:
    _check_key("random_permutation", key)
    return Aval((*key.shape[:-1], n), dtypes.int64)


@permutation_p.numpy
def _(key: np.ndarray, *, n: int) -> np.ndarray:
    keys = key.reshape(-1, 4).astype(np.uint64)
    words = _words(keys, np.zeros(len(keys), np.uint64), 2 * n)
    tickets = _pairs(words)
    return np.argsort(tickets, axis=-1, kind="stable").reshape((*key.shape[:-1], n))


@permutation_p.batch
def _(args: list[Tensor], batched: list[bool], *, n: int) -> Tensor:
    return bind(permutation_p, args[0], n=n)


# ---- Philox --------------------------------------------------------------------------------------


def _check_key(op: str, key: Aval) -> None:
    if key.dtype != dtypes.uint32 or key.shape[-1:] != (4,):
        raise TypeError(f"{op}: a key is uint32[...,4], got {key}")


def _starts(keys: np.ndarray, count: int) -> np.ndarray:
    """For each key the position of the first of `count` elements: not zero for the rows of a
    sharded key.
    """
    first_row, rows = keys[:, 2], keys[:, 3]
    per_row, rest = np.divmod(np.uint64(count), np.maximum(rows, np.uint64(1)))
    return np.where((rows > 0) & (rest == 0), first_row * per_row, np.uint64(0))


def _words(keys: np.ndarray, starts: np.ndarray, count: int) -> np.ndarray:
    """For each key the `count` words from its start: uint32 of shape (number of keys, count)."""
    four = np.uint64(4)
    skipped = starts % four
    blocks = -(-(count + int(skipped.max(initial=0))) // 4)  # of four words, for each key
    words = np.empty((len(keys) * blocks, 4), np.uint32)
    for begin in range(0, len(words), _CHUNK):
        row, block = np.divmod(np.arange(begin, min(begin + _CHUNK, len(words))), blocks)
        first = starts[row] // four + block.astype(np.uint64)
        words[begin : begin + _CHUNK] = _philox(first, keys[row, 0], keys[row, 1], DRAW).T
    words = words.reshape(len(keys), 4 * blocks)
    if not skipped.any():
        return words[:, :count]
    columns = skipped[:, None].astype(np.int64) + np.arange(count)
    return np.take_along_axis(words, columns, axis=1)


def _pairs(words: np.ndarray) -> np.ndarray:
    """Each two uint32 as one uint64, the first as its low half on every machine."""
    return words[:, 0::2].astype(np.uint64) | (words[:, 1::2].astype(np.uint64) << _SHIFT)


def _philox(block: np.ndarray, k0: np.ndarray, k1: np.ndarray, stream: int) -> np.ndarray:
    """The words (4, n) of n blocks: `philox` of the counters (block low, block high, 0, stream).
    All uint64.
    """
    counter = np.zeros((4, len(block)), np.uint64)
    counter[0] = block & _LOW
    counter[1] = block >> _SHIFT
    counter[3] = stream
    return philox(counter, np.stack([k0, k1]))


_LOW, _SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)
_MULTIPLIERS = np.array([[0xD2511F53], [0xCD9E8D57]], np.uint64)
_KEY_STEPS = np.array([[0x9E3779B9], [0xBB67AE85]], np.uint64)


def philox(counter: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Philox-4x32-10 of counters (4, n) with keys (2, n): the words (4, n). All are uint64 arrays
    that hold 32-bit words.
    """
    even, odd = counter[0::2], counter[1::2]
    for number in range(10):
        if number:
            key = key + _KEY_STEPS
        product = even * _MULTIPLIERS
        # The high halves go into the other lane. What lies above 32 bits in `odd` and `key` is cut
        # off only here, once a round.
        even = (product >> _SHIFT)[::-1]
        even ^= odd
        even ^= key
        even &= _LOW
        odd = product[::-1]
    return np.stack([even[0], odd[0] & _LOW, even[1], odd[1] & _LOW])
