"""Memory of OpenCL devices: buffers, and a pool that keeps what is dropped.

A device's launches run in order, so memory that nobody on the host can name any more may be given
to the next launch at once, while an earlier one still uses it.
"""

from __future__ import annotations

import os
import re
import threading
import weakref
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ... import dtypes

if TYPE_CHECKING:
    from .runtime import Runtime

try:
    import pyopencl as cl
except ImportError:
    cl: Any = None  # type: ignore[no-redef]


class DeviceMemoryError(MemoryError):
    """A device has not the memory that an operation needs."""


class Statistics(NamedTuple):
    """Bytes of a device."""

    in_use: int  # by buffers and programs that are alive
    held: int  # taken from the device: in use, or waiting for the next user
    peak: int  # the most that was in use
    limit: int


class Block:
    """Memory that is given back to its pool when the last reference is gone."""

    __slots__ = ("__weakref__", "_pool", "label", "memory", "size")

    def __init__(self, pool: Pool, memory: Any, size: int, label: str):
        self._pool = pool
        self.memory = memory  # pyopencl.Buffer
        self.size = size
        self.label = label

    def __del__(self) -> None:
        self._pool.give_back(self)


class Pool:
    """The memory of one device.

    Sizes are rounded up to a sixteenth of a power of two, so that what was dropped fits what comes.
    """

    def __init__(self, runtime: Runtime, limit: int):
        self._runtime = weakref.proxy(runtime)
        self.limit = limit
        self._waiting: dict[int, list[Any]] = {}
        self._labels: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._in_use = self._held = self._peak = 0
        self._lock = threading.RLock()  # a block may die while the lock is held by its own thread
        self._relievers: weakref.WeakSet[Any] = weakref.WeakSet()

    def allocate(self, size: int, label: str) -> Block:
        """At least `size` bytes, and one; `label` says for what.

        Raises:
            DeviceMemoryError: there are not so many, even after everything unused was given back.
        """
        rounded = _rounded(size)
        with self._lock:
            waiting = self._waiting.get(rounded)
            memory = waiting.pop() if waiting else self._new(rounded, size, label)
            self._in_use += rounded
            self._peak = max(self._peak, self._in_use)
            self._labels[label] += rounded
            self._counts[label] += 1
            return Block(self, memory, rounded, label)

    def give_back(self, block: Block) -> None:
        """Keep the memory of a block that nobody refers to for the next one."""
        with self._lock:
            self._in_use -= block.size
            self._labels[block.label] -= block.size
            self._counts[block.label] -= 1
            if not self._labels[block.label]:
                del self._labels[block.label], self._counts[block.label]
            self._waiting.setdefault(block.size, []).append(block.memory)

    def on_pressure(self, holder: Any) -> None:
        """Call `holder.release_memory()` when memory is short."""
        self._relievers.add(holder)

    def trim(self) -> None:
        """Give everything that is not in use back to the device."""
        for holder in list(self._relievers):
            holder.release_memory()
        with self._lock:
            waiting, self._waiting = self._waiting, {}
            for size, memories in waiting.items():
                self._held -= size * len(memories)
                for memory in memories:
                    memory.release()

    def statistics(self) -> Statistics:
        """How much is in use now."""
        with self._lock:
            return Statistics(self._in_use, self._held, self._peak, self.limit)

    def by_label(self) -> dict[str, int]:
        """The bytes in use by what they are for, the most first."""
        with self._lock:
            return dict(self._labels.most_common())

    def _new(self, size: int, asked: int, label: str) -> Any:
        for attempt in range(2):
            if self._held + size <= self.limit:
                memory = self._from_device(size)
                if memory is not None:
                    self._held += size
                    return memory
            if attempt == 0:
                self.trim()
        raise DeviceMemoryError(self._complaint(asked, label))

    def _from_device(self, size: int) -> Any:
        """A buffer of the device; None if it has no more."""
        runtime = self._runtime
        flags: Any = cl.mem_flags.READ_WRITE
        if runtime.traits.kind == "cpu":
            flags |= cl.mem_flags.ALLOC_HOST_PTR
        try:
            return cl.Buffer(runtime.context, flags, size)
        except (cl.MemoryError, cl.RuntimeError, cl.LogicError) as error:
            if error.code in _NO_MEMORY:
                return None
            raise runtime.failure(f"an allocation of {size:,} bytes", error) from error

    def _complaint(self, size: int, label: str) -> str:
        lines = [
            f"{label}: {self._runtime.name} has no {size:,} bytes left; {self._in_use:,} of "
            f"{self.limit:,} bytes are in use"
        ]
        for name, held in self._labels.most_common(5):
            lines.append(f"  {held:,} bytes in {self._counts[name]} of {name}")
        lines.append(
            "use smaller batches, tl.checkpoint, or drop tensors; the limit is set by "
            "TENSORLITE_MEMORY_LIMIT"
        )
        return "\n".join(lines)


# CL_MEM_OBJECT_ALLOCATION_FAILURE, CL_OUT_OF_RESOURCES, CL_OUT_OF_HOST_MEMORY,
# CL_INVALID_BUFFER_SIZE (more than the device gives in one piece)
_NO_MEMORY = (-4, -5, -6, -61)


def _rounded(size: int) -> int:
    """`size` with its first five bits, rounded up; at least 256."""
    step = max(1 << max(size.bit_length() - 5, 0), 256)
    return max(-(-size // step), 1) * step


# ---- the limit -----------------------------------------------------------------------------------

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*(%|[kmg]?i?)b?", re.IGNORECASE)


def limit_of(name: str, total: int, share: float = 1.0) -> int:
    """How many bytes of a device with `total` may be used, by TENSORLITE_MEMORY_LIMIT: an amount
    such as 4GiB, 500MB or 50%, or amounts for devices, `opencl:0=4GiB,opencl:1=50%`. Without it,
    all. A part of a device has its share of that.

    Raises:
        ValueError: the variable is not written so.
    """
    text = os.environ.get("TENSORLITE_MEMORY_LIMIT", "").strip()
    limit = float(total)
    for item in filter(None, (item.strip() for item in text.split(","))):
        device, equals, amount = item.rpartition("=")
        if not equals or device.strip() == name.partition("/")[0]:
            limit = _amount(amount, total)
        else:
            _amount(amount, total)  # so that a mistake is found on every device
    return int(limit * share)


def _amount(text: str, total: int) -> float:
    match = _AMOUNT.fullmatch(text.strip())
    if match is None or match[2].lower() == "i":
        raise ValueError(
            "TENSORLITE_MEMORY_LIMIT is an amount such as 4GiB, 500MB or 50%, or amounts for "
            f"devices such as opencl:0=4GiB,opencl:1=50%; got {text!r}"
        )
    number, unit = float(match[1]), match[2].lower()
    return number * total / 100 if unit == "%" else min(number * _UNITS[unit], total)


# ---- buffers -------------------------------------------------------------------------------------


class Buffer:
    """A C-contiguous array on a device. bool is stored as bytes 0 and 1."""

    __slots__ = ("__weakref__", "dtype", "memory", "owner", "runtime", "shape")

    def __init__(
        self,
        runtime: Runtime,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        memory: Any,
        owner: Any,
    ):
        self.runtime = runtime
        self.shape = shape
        self.dtype = dtype
        self.memory = memory  # pyopencl.Buffer
        self.owner = owner  # what has to live as long as the memory is used

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def reshape(self, shape: tuple[int, ...]) -> Buffer:
        """The same memory, seen with another shape of the same size."""
        return Buffer(self.runtime, shape, self.dtype, self.memory, self.owner)


def empty(runtime: Runtime, shape: tuple[int, ...], dtype: np.dtype[Any], label: str) -> Buffer:
    """An uninitialized buffer."""
    check_dtype(runtime, dtype)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    block = runtime.pool.allocate(size, label)
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
    is used where it lies."""
    check_dtype(runtime, array.dtype)
    array = np.require(array, requirements="C")
    if _is_shareable(runtime, array):
        flags = cl.mem_flags.READ_ONLY | cl.mem_flags.USE_HOST_PTR
        memory = cl.Buffer(runtime.context, flags, hostbuf=_bytes(array))
        return Buffer(runtime, array.shape, array.dtype, memory, array)
    result = empty(runtime, array.shape, array.dtype, f"arrays of {array.dtype.name}")
    if array.size:
        source = array.copy() if array.flags.writeable else array
        write(result, source)
    return result


# Below this a copy is cheaper than a buffer of its own.
_LARGE = 1 << 16


def _is_shareable(runtime: Runtime, array: np.ndarray) -> bool:
    if runtime.traits.kind != "cpu" or array.flags.writeable or array.nbytes < _LARGE:
        return False
    return array.__array_interface__["data"][0] % 64 == 0 and array.nbytes % 64 == 0


def write(target: Buffer, array: np.ndarray) -> None:
    """Copy `array`, which nobody changes any more, to `target`, in the order of the queue."""
    runtime = target.runtime
    source = _bytes(array)
    runtime.wait(lambda: cl.enqueue_copy(runtime.queue, target.memory, source, is_blocking=False))


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
    """The values of `buffer`, read-only. On a CPU device it is the device's own memory, which lives
    as long as the array does."""
    runtime, size = buffer.runtime, buffer.nbytes
    if size == 0:
        result = np.empty(buffer.shape, buffer.dtype)
    elif runtime.traits.kind == "cpu":
        flat: Any = _Mapped(runtime.wait(lambda: _map(buffer, size)), buffer)
        result = np.asarray(flat).view(buffer.dtype).reshape(buffer.shape)
    else:
        result = np.empty(buffer.shape, buffer.dtype)
        runtime.wait(lambda: cl.enqueue_copy(runtime.queue, _bytes(result), buffer.memory))
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
        self._mapping.release(self._buffer.runtime.queue)


def _bytes(array: np.ndarray) -> np.ndarray:
    """The bytes of a C-contiguous array; PyOpenCL does not know all dtypes."""
    return array.reshape(-1).view(np.uint8)
