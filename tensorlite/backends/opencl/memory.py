"""Arrays on OpenCL devices, and their way there and back.

On a CPU device, large arrays are not copied where host and device can use the same memory.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ... import dtypes
from .pool import Block, Label

if TYPE_CHECKING:
    from .runtime import Runtime

try:
    import pyopencl as cl
except ImportError:
    cl: Any = None  # type: ignore[no-redef]

# Bytes. Below, a copy is cheaper than a mapping or a buffer of its own.
_LARGE = 1 << 16


class Buffer:
    """A C-contiguous array on a device. bool is stored as bytes 0 and 1."""

    __slots__ = ("__weakref__", "dtype", "memory", "owner", "runtime", "shape")

    def __init__(
        self,
        runtime: Runtime,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        memory: Any,
        owner: Block | np.ndarray | None,
    ):
        self.runtime = runtime
        self.shape = shape
        self.dtype = dtype
        self.memory = memory  # pyopencl.Buffer
        self.owner = owner  # what has to live as long as the memory is used

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def reshape(self, shape: tuple[int, ...]) -> Buffer:
        """The same memory, seen with another shape of the same size."""
        return Buffer(self.runtime, shape, self.dtype, self.memory, self.owner)


def empty(runtime: Runtime, shape: tuple[int, ...], dtype: np.dtype[Any], label: str) -> Buffer:
    """An uninitialized buffer; `label` says what for.

    Raises:
        TypeError: the device has no such dtype.
        DeviceMemoryError: it has not so much memory.
    """
    check_dtype(runtime, dtype)
    size = math.prod(shape) * dtype.itemsize
    what: Label = (label, shape, dtype)
    block = runtime.pool.allocate(size, what)
    return Buffer(runtime, shape, dtype, block.memory, block)


def check_dtype(runtime: Runtime, dtype: np.dtype[Any]) -> None:
    """Raise TypeError if the device cannot compute with `dtype`."""
    if dtype == dtypes.float64 and not runtime.traits.float64:
        raise TypeError(
            f"{runtime.name} has no float64 (cl_khr_fp64); make the tensor float32 with "
            "dtype=tl.float32, or keep it on the CPU"
        )


def from_numpy(runtime: Runtime, array: np.ndarray) -> Buffer:
    """The values of `array` on the device. On a CPU device, the memory of a large read-only array
    is used where it lies if it begins at a multiple of `traits.alignment`.

    Raises:
        TypeError: the device has no such dtype.
        DeviceMemoryError: it has not so much memory.
    """
    check_dtype(runtime, array.dtype)
    array = np.require(array, requirements="C")
    if _is_shareable(runtime, array):
        flags = cl.mem_flags.READ_ONLY | cl.mem_flags.USE_HOST_PTR
        source = as_bytes(array)
        memory = runtime.wait(lambda: cl.Buffer(runtime.context, flags, hostbuf=source))
        return Buffer(runtime, array.shape, array.dtype, memory, array)
    result = empty(runtime, array.shape, array.dtype, "arrays from the host")
    if array.size:
        write(result, array)
    return result


def _is_shareable(runtime: Runtime, array: np.ndarray) -> bool:
    """Whether the device can use the memory of an array. A driver to which it is not aligned well
    enough makes a copy of its own and keeps both."""
    if runtime.traits.kind != "cpu" or array.flags.writeable or array.nbytes < _LARGE:
        return False
    return array.__array_interface__["data"][0] % runtime.traits.alignment == 0


def write(target: Buffer, array: np.ndarray) -> None:
    """Copy an array that is not empty to `target`, in the order of the queue. It may be changed as
    soon as this returns."""
    runtime = target.runtime
    source = as_bytes(array)
    if source.size >= _LARGE and runtime.is_idle():
        runtime.wait(lambda: cl.enqueue_copy(runtime.queue, target.memory, source))
        return
    # The host need not wait for what the device does now, but what it copies from must stay.
    if array.flags.writeable:
        source = source.copy()
    runtime.upload(target.memory, source)


def copy(
    target: Buffer,
    source: Buffer,
    *,
    target_start: int = 0,
    source_start: int = 0,
    size: int | None = None,
) -> None:
    """Copy `size` bytes (all that `target` has) from buffer to buffer of one device, from and to
    the byte where each starts."""
    runtime, count = target.runtime, target.nbytes if size is None else size
    if count:
        runtime.wait(
            lambda: cl.enqueue_copy(
                runtime.queue,
                target.memory,
                source.memory,
                byte_count=count,
                src_offset=source_start,
                dst_offset=target_start,
            )
        )


def to_numpy(buffer: Buffer) -> np.ndarray:
    """The values of `buffer`, read-only, when they are computed. On a CPU device a large array is
    the device's own memory, which lives as long as the array does.

    Raises:
        DeviceError: an operation that was launched before has failed.
    """
    runtime, size = buffer.runtime, buffer.nbytes
    if size >= _LARGE and runtime.traits.kind == "cpu":
        flat: Any = _Mapped(runtime.wait(lambda: _map(buffer, size)), buffer)
        result = np.asarray(flat).view(buffer.dtype).reshape(buffer.shape)
    else:
        result = np.empty(buffer.shape, buffer.dtype)
        if size:
            runtime.wait(lambda: cl.enqueue_copy(runtime.queue, as_bytes(result), buffer.memory))
    result.flags.writeable = False
    return result


def _map(buffer: Buffer, size: int) -> np.ndarray:
    queue, byte = buffer.runtime.queue, np.dtype(np.uint8)
    return cl.enqueue_map_buffer(queue, buffer.memory, cl.map_flags.READ, 0, (size,), byte)[0]


class _Mapped:
    """A view of mapped memory: keeps the buffer, and gives the mapping back in the end."""

    __slots__ = ("__array_interface__", "_buffer", "_mapping")

    def __init__(self, array: np.ndarray, buffer: Buffer):
        self.__array_interface__ = {**array.__array_interface__}
        self._mapping: Any = array.base
        self._buffer = buffer

    def __del__(self) -> None:
        self._buffer.runtime.unmap(self._mapping)


def as_bytes(array: np.ndarray) -> np.ndarray:
    """The bytes of a C-contiguous array; PyOpenCL does not know all dtypes."""
    return array.reshape(-1).view(np.uint8)
