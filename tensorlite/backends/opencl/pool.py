"""The memory of a device: a pool that keeps what is dropped, with a limit and statistics.

A device's launches run in order, so memory that nobody on the host can name any more may be given
to the next launch at once, while an earlier one still uses it. PyOpenCL's own pool knows no limit
and not what memory is for, which is what somebody who runs out of it has to be told.
"""

from __future__ import annotations

import collections
import os
import re
import threading
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ...core import Aval

if TYPE_CHECKING:
    from .runtime import Runtime

try:
    import pyopencl as cl
except ImportError:
    cl: Any = None  # type: ignore[no-redef]

# What memory is for: "values of step", or of one array also its shape and dtype. A text is only
# made of it for somebody who reads it.
Label = str | tuple[str, tuple[int, ...], np.dtype[Any]]


class DeviceMemoryError(MemoryError):
    """A device has not the memory that an operation needs."""


class Use(NamedTuple):
    """What some of a device's memory is for."""

    label: str
    blocks: int
    size: int  # bytes, all blocks together


class Statistics(NamedTuple):
    """The memory of a device, in bytes."""

    in_use: int  # by tensors and programs that are alive
    held: int  # taken from the device: in use, or waiting for the next user
    peak: int  # the most that was in use
    limit: int
    uses: tuple[Use, ...]  # what is in use, the most first


class Block:
    """Memory that goes back to its pool when the last reference is gone."""

    __slots__ = ("__weakref__", "_pool", "label", "memory", "size")

    def __init__(self, pool: Pool, memory: Any, size: int, label: Label):
        self._pool = pool
        self.memory = memory  # pyopencl.Buffer
        self.size = size
        self.label = label

    def __del__(self) -> None:
        self._pool.dropped.append((self.memory, self.size, self.label))


class Pool:
    """The memory of one device.

    Sizes are rounded up by at most a sixteenth, so that what was dropped fits what comes.
    """

    def __init__(self, runtime: Runtime, limit: int):
        self._runtime = weakref.proxy(runtime)
        self.limit = limit
        # Blocks may die in any thread and in the middle of any function here, so they only leave
        # a note, which is read when the pool is next used.
        self.dropped: collections.deque[tuple[Any, int, Label]] = collections.deque()
        self._waiting: dict[int, list[Any]] = {}
        self._uses: dict[Label, list[int]] = {}  # count and bytes
        self._in_use = self._held = self._peak = 0
        self._relievers: weakref.WeakSet[Any] = weakref.WeakSet()
        self._lock = threading.Lock()

    def allocate(self, size: int, label: Label) -> Block:
        """At least `size` bytes, and one; `label` says for what.

        Raises:
            DeviceMemoryError: there are not so many, even after everything unused was given back.
        """
        with self._lock:
            self._collect()
            rounded = self._rounded(size)
            waiting = self._waiting.get(rounded)
            memory = waiting.pop() if waiting else self._new(rounded, size, label)
            self._in_use += rounded
            if self._in_use > self._peak:
                self._peak = self._in_use
            use = self._uses.get(label)
            if use is None:
                self._uses[label] = [1, rounded]
            else:
                use[0] += 1
                use[1] += rounded
            return Block(self, memory, rounded, label)

    def on_pressure(self, holder: Any) -> None:
        """Call `holder.release_memory()` when memory is short, from a thread of its own: a holder
        that has locked itself against others is also safe from the one who asks for memory, which
        may be the holder itself."""
        with self._lock:
            self._relievers.add(holder)

    def trim(self) -> None:
        """Give everything that is not in use back to the device."""
        with self._lock:
            self._trim()

    def statistics(self) -> Statistics:
        """How much is in use now, and for what."""
        with self._lock:
            self._collect()
            return Statistics(self._in_use, self._held, self._peak, self.limit, self._largest())

    def exhausted(self, what: str) -> DeviceMemoryError:
        """The error to raise when a device has no memory left: `what`, then what holds how much."""
        with self._lock:
            self._collect()
            return self._exhausted(what)

    def _exhausted(self, what: str) -> DeviceMemoryError:
        lines, uses = [what], self._largest()
        for use in uses[:6]:
            lines.append(f"  {_in_words(use.size)} in {use.blocks} x {use.label}")
        if uses[6:]:
            rest = _in_words(sum(use.size for use in uses[6:]))
            lines.append(f"  {rest} in {sum(use.blocks for use in uses[6:])} others")
        if self._runtime.failed:
            lines.append(
                f"  after {self._runtime.failed} failed, which some devices do not survive: if "
                "little is in use, start the process again"
            )
        lines.append(
            "use smaller batches or tl.checkpoint, drop tensors that are not needed, donate "
            "(tl.jit's donate_argnums) what a step replaces, or raise TENSORLITE_MEMORY_LIMIT "
            "if it is set"
        )
        return DeviceMemoryError("\n".join(lines))

    def _rounded(self, size: int) -> int:
        """`size` with its first five bits, rounded up; at least 256."""
        step = max(1 << max(size.bit_length() - 5, 0), 256)
        rounded = max(-(-size // step), 1) * step
        # Near the most that the device gives in one piece, rounding must not ask for more.
        most = self._runtime.traits.max_allocation
        return rounded if rounded <= most else max(size, 1)

    def _collect(self) -> None:
        """Put what was dropped where the next user finds it."""
        while self.dropped:
            memory, size, label = self.dropped.popleft()
            self._in_use -= size
            use = self._uses[label]
            use[0] -= 1
            use[1] -= size
            if not use[0]:
                del self._uses[label]
            self._waiting.setdefault(size, []).append(memory)
        # The memory of a CPU device is the host's, which others want to use, too.
        if self._runtime.traits.kind == "cpu" and self._held - self._in_use > self.limit // 4:
            self._release_waiting()

    def _trim(self) -> None:
        holders = list(self._relievers)
        thread = threading.Thread(target=_relieve, args=(holders,), name="tensorlite-relieve")
        thread.start()
        thread.join()
        self._collect()
        self._release_waiting()

    def _release_waiting(self) -> None:
        # Launches that still use the memory keep it until they are done.
        for size, memories in self._waiting.items():
            self._held -= size * len(memories)
            for memory in memories:
                memory.release()
        self._waiting.clear()

    def _new(self, size: int, asked: int, label: Label) -> Any:
        if size <= self._runtime.traits.max_allocation:
            for attempt in range(2):
                if self._held + size <= self.limit:
                    memory = self._from_device(size)
                    if memory is not None:
                        self._held += size
                        return memory
                if attempt == 0:
                    self._trim()
            raise self._exhausted(
                f"{_text(label)}: {self._runtime.name} has no room for {_in_words(asked)}; "
                f"{_in_words(self._in_use)} are in use, the limit is {_in_words(self.limit)}"
            )
        most = _in_words(self._runtime.traits.max_allocation)
        raise DeviceMemoryError(
            f"{_text(label)}: {self._runtime.name} gives at most {most} in one piece, and this is "
            f"{_in_words(asked)}; use smaller batches, or split the array"
        )

    def _from_device(self, size: int) -> Any:
        """A buffer of the device; None if it has no more."""
        runtime = self._runtime
        flags: Any = cl.mem_flags.READ_WRITE
        on_host = runtime.traits.kind == "cpu"
        if on_host:
            flags |= cl.mem_flags.ALLOC_HOST_PTR
        try:
            memory = cl.Buffer(runtime.context, flags, size)
            if not on_host:
                # Drivers of GPUs find the memory when it is first used, and fail only then.
                cl.enqueue_copy(runtime.queue, memory, np.zeros(1, np.uint8))
        except cl.Error as error:
            if code_of(error) in OUT_OF_MEMORY:
                return None
            raise runtime.failure(f"an allocation of {_in_words(size)}", error) from error
        return memory

    def _largest(self) -> tuple[Use, ...]:
        uses = [Use(_text(label), *use) for label, use in self._uses.items()]
        return tuple(sorted(uses, key=lambda use: -use.size))


# CL_MEM_OBJECT_ALLOCATION_FAILURE, CL_OUT_OF_RESOURCES, CL_OUT_OF_HOST_MEMORY,
# CL_INVALID_BUFFER_SIZE
OUT_OF_MEMORY = (-4, -5, -6, -61)


def _relieve(holders: list[Any]) -> None:
    for holder in holders:
        holder.release_memory()


def code_of(error: Exception) -> int:
    """The status that an OpenCL function returned; 0 of an error that PyOpenCL itself found."""
    record = error.args[0] if error.args else None
    return 0 if isinstance(record, str | None) else record.code()


def _text(label: Label) -> str:
    return label if isinstance(label, str) else f"{label[0]}: {Aval(*label[1:])}"


def _in_words(size: int) -> str:
    """`1.5 GiB`."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size} bytes"


# ---- the limit -----------------------------------------------------------------------------------

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*(%|(?:[kmg]i?)?b?)", re.IGNORECASE)
_DEVICE = re.compile(r"opencl:\d+")


def limit_of(name: str, total: int, share: float = 1.0) -> int:
    """How many bytes of a device with `total` may be used, by TENSORLITE_MEMORY_LIMIT.

    The variable is an amount such as 4GiB, 500MB or 50%, or has amounts for devices,
    `opencl:0=4GiB,opencl:1=50%`; an amount without a device is for all others. Without it, all may
    be used. A part of a device has its share of that.

    Raises:
        ValueError: the variable is not written so.
    """
    text = os.environ.get("TENSORLITE_MEMORY_LIMIT", "").strip()
    amounts: dict[str, int] = {}
    for item in filter(None, (item.strip() for item in text.split(","))):
        device, equals, amount = (part.strip() for part in item.rpartition("="))
        if equals and not _DEVICE.fullmatch(device):
            raise _badly_written(item)
        amounts[device] = _amount(amount, total)
    whole = name.partition("/")[0]
    return int(amounts.get(whole, amounts.get("", total)) * share)


def _amount(text: str, total: int) -> int:
    match = _AMOUNT.fullmatch(text)
    if match is None:
        raise _badly_written(text)
    number, unit = float(match[1]), match[2].lower()
    amount = number * total / 100 if unit == "%" else number * _UNITS[unit.removesuffix("b")]
    return min(int(amount), total)


def _badly_written(text: str) -> ValueError:
    return ValueError(
        "TENSORLITE_MEMORY_LIMIT is an amount such as 4GiB, 500MB or 50%, or amounts for whole "
        f"devices such as opencl:0=4GiB,opencl:1=50%; got {text!r}"
    )
