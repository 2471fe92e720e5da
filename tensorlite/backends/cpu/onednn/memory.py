"""Memory descriptors: how oneDNN sees an array.

oneDNN numbers the axes of an image (N, C, *spatial), wherever they lie in memory. Strides say where
they lie, so an array of tensorlite needs no copy to be understood: `of_array` describes a plain
array with its axes in any order. `free` leaves the layout to the primitive, which may want another
one than ours.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .... import dtypes
from .library import Handle, library, make

Sizes = tuple[int, ...]

# dnnl_data_type_t
DATA_TYPES = {
    dtypes.float16: 1,
    dtypes.bfloat16: 2,
    dtypes.float32: 3,
    dtypes.int32: 4,
    dtypes.uint8: 6,
}
FLOATS = (dtypes.float32, dtypes.bfloat16, dtypes.float16)
TAG_ANY = 1  # dnnl_format_tag_any
ALIGNMENT = 64  # bytes; what a temporary starts at a multiple of


class Desc(Handle):
    """A memory descriptor: sizes, dtype and layout."""

    __slots__ = ("size",)

    def __init__(self, value: int):
        super().__init__(value, library().functions["memory_desc_destroy"])
        self.size: int = library().functions["memory_desc_get_size"](value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Desc) and bool(
            library().functions["memory_desc_equal"](self.value, other.value)
        )

    __hash__ = None  # type: ignore[assignment]


def integers(values: Sequence[int]) -> Any:
    """A C array of dnnl_dim_t."""
    return (ctypes.c_int64 * len(values))(*values)


def plain_strides(shape: Sequence[int]) -> Sizes:
    """The strides, in elements, of a C-contiguous array."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


@functools.lru_cache(maxsize=4096)
def strided(dims: Sizes, strides: Sizes, dtype: np.dtype[Any]) -> Desc:
    """`dims` in oneDNN's order of axes, each with its stride in elements."""
    return Desc(
        library().create(
            "memory",
            "memory_desc_create_with_strides",
            len(dims),
            integers(dims),
            DATA_TYPES[dtype],
            integers(strides),
        )
    )


def of_array(shape: Sizes, dtype: np.dtype[Any], order: Sequence[int] | None = None) -> Desc:
    """A C-contiguous array, its axes taken in `order`."""
    strides = plain_strides(shape)
    order = range(len(shape)) if order is None else order
    return strided(tuple(shape[i] for i in order), tuple(strides[i] for i in order), dtype)


@functools.lru_cache(maxsize=4096)
def free(dims: Sizes, dtype: np.dtype[Any]) -> Desc:
    """`dims` in whatever layout suits the primitive."""
    return Desc(
        library().create(
            "memory",
            "memory_desc_create_with_tag",
            len(dims),
            integers(dims),
            DATA_TYPES[dtype],
            TAG_ANY,
        )
    )


@functools.lru_cache(maxsize=4096)
def part(shape: Sizes, dtype: np.dtype[Any], starts: Sizes, counts: Sizes) -> Desc:
    """The box of `counts` elements from `starts` on in a C-contiguous array, whose memory is
    passed."""
    whole = of_array(shape, dtype)
    return Desc(
        library().create(
            "memory",
            "memory_desc_create_submemory",
            whole.value,
            integers(counts),
            integers(starts),
        )
    )


def clone(desc: int) -> Desc:
    """A descriptor of one's own, like one that a primitive descriptor holds."""
    return Desc(library().create("memory", "memory_desc_clone", desc))


def make_memory(desc: int, pointer: int) -> Handle:
    """A memory object (dnnl_memory_t) over the bytes at `pointer`, which the caller keeps alive;
    `desc` is the handle of a descriptor. dnnl_memory_set_data_handle moves it elsewhere."""
    return make("memory", "memory_create", desc, library().engine, pointer, of="memory")


def images(shape: Sizes, dtype: np.dtype[Any]) -> Desc:
    """Images (N, *spatial, C)."""
    return of_array(shape, dtype, (0, len(shape) - 1, *range(1, len(shape) - 1)))
