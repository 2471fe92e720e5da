"""Functions whose result's shape depends on the values of their argument: nonzero and the unique
elements.

They run on concrete tensors only: inside jit and vmap, where shapes must be known before values
are, they raise `TracerError`. The unique values are gathered from the argument, so they have a
derivative.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .. import dtypes
from ..core import Tensor
from .creation import asarray
from .index import take
from .shape import reshape


class UniqueAll(NamedTuple):
    """What `unique_all` finds."""

    values: Tensor
    indices: Tensor
    inverse_indices: Tensor
    counts: Tensor


class UniqueCounts(NamedTuple):
    """What `unique_counts` finds."""

    values: Tensor
    counts: Tensor


class UniqueInverse(NamedTuple):
    """What `unique_inverse` finds."""

    values: Tensor
    inverse_indices: Tensor


def unique_all(x: Tensor, /) -> UniqueAll:
    """The different elements of `x` in ascending order, where each occurs first in the flattened
    `x`, which of them each element of `x` is, and how often each occurs. Every NaN differs from
    every other.

    Raises:
        TracerError: inside jit or vmap, since the shapes depend on the values.
    """
    return _unique(x, "unique_all")


def unique_counts(x: Tensor, /) -> UniqueCounts:
    """The different elements of `x` in ascending order and how often each occurs; see
    `unique_all`."""
    found = _unique(x, "unique_counts")
    return UniqueCounts(found.values, found.counts)


def unique_inverse(x: Tensor, /) -> UniqueInverse:
    """The different elements of `x` in ascending order and which of them each element of `x` is;
    see `unique_all`."""
    found = _unique(x, "unique_inverse")
    return UniqueInverse(found.values, found.inverse_indices)


def unique_values(x: Tensor, /) -> Tensor:
    """The different elements of `x` in ascending order; see `unique_all`."""
    return _unique(x, "unique_values").values


def _unique(x: Tensor, op: str) -> UniqueAll:
    x = asarray(x)
    array = x.concrete(f"{op}, whose result's shape depends on the values,").numpy()
    if x.dtype == dtypes.bfloat16:  # which NumPy cannot sort
        array = array.astype(np.float32)
    _, indices, inverse, counts = np.unique(
        array.reshape(-1),
        return_index=True,
        return_inverse=True,
        return_counts=True,
        equal_nan=False,
    )
    return UniqueAll(
        take(reshape(x, -1), _positions(indices, x), axis=0),
        _positions(indices, x),
        _positions(inverse.reshape(x.shape), x),
        _positions(counts, x),
    )


def nonzero(x: Tensor, /) -> tuple[Tensor, ...]:
    """The positions of the elements that are not zero, in row-major order: one int64 vector for
    each axis.

    Raises:
        ValueError: `x` has no dimensions.
        TracerError: inside jit or vmap, since the shapes depend on the values.
    """
    x = asarray(x)
    if x.ndim == 0:
        raise ValueError("nonzero: needs at least one dimension, got a 0-d tensor")
    array = x.concrete("nonzero, whose result's shape depends on the values,").numpy()
    return tuple(_positions(found, x) for found in np.nonzero(array))


def _positions(found: np.ndarray, x: Tensor) -> Tensor:
    return asarray(found.astype(np.int64, copy=False), device=x.device)
