"""Counters in memory that processes share: one of them counts up, the others wait.

A counter is a line of 64 bytes, so that two of them never share a line of a cache:

    i32 count      how often its owner has posted; wraps around
    i32 sleepers   how many wait for it in the kernel
    i32 closed     not 0 when its owner will post no more

All of it is machine code, so that loads and stores are ordered on every processor and nobody holds
the GIL while waiting. A waiter looks a bounded number of times, and then sleeps in the kernel (the
futex of Linux) until it is woken, for a slice of time at most: its caller may look at signals and
clocks in between.
"""

from __future__ import annotations

import ctypes
import functools
import platform
import sys
from collections.abc import Sequence
from ctypes import c_int32, c_int64, c_void_p

from .backends.cpu import llvm

LINE = 64
SLICE_SECONDS = 0.05

# What a wait that did not see its counters arrive has seen instead.
STOPPED, CLOSED, LATE = 1, 2, 3

_SYSTEM_CALLS = {"x86_64": 202, "aarch64": 98}  # the number of futex
# What tells the processor that this thread only waits.
_PAUSE = {"x86_64": "@llvm.x86.sse2.pause()", "aarch64": "@llvm.aarch64.hint(i32 1)"}

_IR = """
declare void DECLARED

define void @tensorlite_counter_post(ptr %line, ptr %syscall, i64 %number) {
entry:
  %old = atomicrmw add ptr %line, i32 1 seq_cst
  br label %wake
wake:
  %sleepers.at = getelementptr i32, ptr %line, i64 1
  %sleepers = load atomic i32, ptr %sleepers.at seq_cst, align 4
  %some = icmp sgt i32 %sleepers, 0
  br i1 %some, label %call, label %done
call:
  %woken = call i64 (i64, ...) %syscall(i64 %number, ptr %line, i64 1, i64 2147483647,
                                        ptr null, ptr null, i64 0)
  br label %done
done:
  ret void
}

define void @tensorlite_counter_close(ptr %line, ptr %syscall, i64 %number) {
  %closed.at = getelementptr i32, ptr %line, i64 2
  store atomic i32 1, ptr %closed.at seq_cst, align 4
  %woken = call i64 (i64, ...) %syscall(i64 %number, ptr %line, i64 1, i64 2147483647,
                                        ptr null, ptr null, i64 0)
  ret void
}

; Returns -1 when all counters have reached the target, else 4 * (number of the one that has not)
; and what was seen instead.
define i64 @tensorlite_counter_wait(ptr %lines, i64 %count, i32 %target, ptr %stop, i64 %looks,
                                    i64 %nanoseconds, ptr %syscall, i64 %number) {
entry:
  %time = alloca { i64, i64 }
  store i64 0, ptr %time
  %time.nanoseconds = getelementptr { i64, i64 }, ptr %time, i64 0, i32 1
  store i64 %nanoseconds, ptr %time.nanoseconds
  br label %next
next:
  %i = phi i64 [ 0, %entry ], [ %i.next, %arrived ]
  %left = phi i64 [ %looks, %entry ], [ %left.now, %arrived ]
  %slept = phi i64 [ 0, %entry ], [ %slept.now, %arrived ]
  %more = icmp slt i64 %i, %count
  br i1 %more, label %counter, label %all
counter:
  %line.at = getelementptr ptr, ptr %lines, i64 %i
  %line = load ptr, ptr %line.at
  %sleepers.at = getelementptr i32, ptr %line, i64 1
  %closed.at = getelementptr i32, ptr %line, i64 2
  br label %look
look:
  %left.now = phi i64 [ %left, %counter ], [ %left.less, %spin ], [ 0, %slept.out ]
  %slept.now = phi i64 [ %slept, %counter ], [ %slept.now, %spin ], [ 1, %slept.out ]
  ; Read before the count: a counter that is closed after its last post has arrived all the same.
  %closed = load atomic i32, ptr %closed.at acquire, align 4
  %value = load atomic i32, ptr %line acquire, align 4
  %ahead = sub i32 %value, %target
  %there = icmp sge i32 %ahead, 0
  br i1 %there, label %arrived, label %missing
arrived:
  %i.next = add i64 %i, 1
  br label %next
missing:
  %is.closed = icmp ne i32 %closed, 0
  br i1 %is.closed, label %report, label %ask
ask:
  %stopping = load atomic i32, ptr %stop acquire, align 4
  %is.stopped = icmp ne i32 %stopping, 0
  br i1 %is.stopped, label %report, label %choose
choose:
  %may.spin = icmp sgt i64 %left.now, 0
  br i1 %may.spin, label %spin, label %tired
spin:
  %left.less = sub i64 %left.now, 1
  call void PAUSE
  br label %look
tired:
  %enough = icmp ne i64 %slept.now, 0
  br i1 %enough, label %report, label %sleep
sleep:
  %before = atomicrmw add ptr %sleepers.at, i32 1 seq_cst
  %again = load atomic i32, ptr %line seq_cst, align 4
  %again.ahead = sub i32 %again, %target
  %late.there = icmp sge i32 %again.ahead, 0
  br i1 %late.there, label %slept.out, label %call
call:
  %expected = sext i32 %again to i64
  %woken = call i64 (i64, ...) %syscall(i64 %number, ptr %line, i64 0, i64 %expected,
                                        ptr %time, ptr null, i64 0)
  %early = icmp eq i64 %woken, 0
  br label %slept.out
slept.out:
  %after = atomicrmw sub ptr %sleepers.at, i32 1 seq_cst
  br label %look
report:
  %what = phi i64 [ 2, %missing ], [ 1, %ask ], [ 3, %tired ]
  %scaled = mul i64 %i, 4
  %result = add i64 %scaled, %what
  ret i64 %result
all:
  ret i64 -1
}
"""


def missing() -> str | None:
    """Why there are no such counters on this machine, or None where there are."""
    if sys.platform != "linux" or platform.machine() not in _SYSTEM_CALLS:
        return f"counters in shared memory are made for Linux on {' and '.join(_SYSTEM_CALLS)}"
    if not llvm.available():
        return "counters in shared memory need llvmlite and libgomp"
    return None


def post(line: int) -> None:
    """Count up and wake who sleeps; what was written before is seen by who sees the count."""
    machine = _machine()
    machine.post(line, machine.syscall, machine.number)


def close(line: int) -> None:
    """Say that nothing more will come, and wake who sleeps."""
    machine = _machine()
    machine.close(line, machine.syscall, machine.number)


class Waiter:
    """Waits for counters of others, in one thread at a time.

    Args:
        lines: addresses of the counters.
        looks: how often to look before sleeping, some tens of nanoseconds each.
    """

    def __init__(self, lines: Sequence[int], looks: int):
        self._machine = _machine()
        self._lines = (c_void_p * len(lines))(*lines)
        self._all = ctypes.addressof(self._lines)
        self._looks = looks
        self._stop = c_int32(0)
        self._stop_at = ctypes.addressof(self._stop)

    def wait(self, target: int, only: int | None = None) -> tuple[int, int] | None:
        """Wait until all counters, or the one with the number `only`, have reached `target`.

        Returns:
            None when they have; else the number of the first one that has not, and STOPPED, CLOSED
            or LATE: a slice of time went by (or a wake-up for nothing), so wait again.
        """
        machine = self._machine
        lines, count = (self._all, len(self._lines)) if only is None else (self._all + 8 * only, 1)
        seen = machine.wait(
            lines,
            count,
            target,
            self._stop_at,
            self._looks,
            int(SLICE_SECONDS * 1e9),
            machine.syscall,
            machine.number,
        )
        return None if seen < 0 else (seen // 4 + (only or 0), seen % 4)

    def stop(self) -> None:
        """Make this and every later `wait` that would have to wait return STOPPED, from any
        thread; one that sleeps sees it within a slice."""
        self._stop.value = 1


class _Machine:
    def __init__(self) -> None:
        pause = _PAUSE[platform.machine()]
        text = _IR.replace("PAUSE", pause).replace("DECLARED", pause.replace("i32 1", "i32"))
        names = ("post", "close", "wait")
        codes = llvm.compile_ir(text, [f"tensorlite_counter_{name}" for name in names])
        post, close, wait = codes
        self.number = _SYSTEM_CALLS[platform.machine()]
        self.syscall = ctypes.cast(ctypes.CDLL(None).syscall, c_void_p).value
        self.post = ctypes.CFUNCTYPE(None, c_void_p, c_void_p, c_int64)(post)
        self.close = ctypes.CFUNCTYPE(None, c_void_p, c_void_p, c_int64)(close)
        self.wait = ctypes.CFUNCTYPE(
            c_int64, c_void_p, c_int64, c_int32, c_void_p, c_int64, c_int64, c_void_p, c_int64
        )(wait)


@functools.cache
def _machine() -> _Machine:
    return _Machine()
