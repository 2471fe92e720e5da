"""The native function that runs a step: a loop over a table of launches.

Between two launches nothing runs in Python and nobody holds the GIL. A launch is a fused loop nest,
called with a table of pointers, or a oneDNN primitive, executed with a table of arguments, or a
copy, or half of an exchange with the communication thread: the number of a job written to a pipe,
or its outcome read from another. Tables are made once; buffers that change from call to call
(arguments and results) are written into them by `bind`, which is native too.
"""

from __future__ import annotations

import ctypes
import functools
from ctypes import c_int32, c_int64, c_void_p

import numpy as np

from . import llvm

# One line of a table of launches: (kind, number of arguments, function or primitive, arguments).
LAUNCH = np.dtype(
    [("kind", "<i4"), ("count", "<i4"), ("target", "<u8"), ("arguments", "<u8")], align=True
)
NEST, ONEDNN, COPY, START, WAIT = range(5)
# The arguments of a copy are two pointers and the number of bytes. Of a start: where to write, and
# the number of the job. Of a wait: where to read, a RECORD, and the function that reads clocks. The
# record has the outcome, 0 if all went well, and when the wait began and ended.
RECORD = np.dtype(
    [
        ("outcome", "<i8"),
        ("began", "<i8", 2),  # seconds and nanoseconds of the monotonic clock
        ("ended", "<i8", 2),
    ]
)
FAILED, INTERRUPTED = 1, 2  # statuses of a start or a wait
# One line of a table of what `bind` writes: where, the number of the buffer, and bytes behind its
# start.
PATCH = np.dtype([("target", "<u8"), ("buffer", "<u8"), ("offset", "<u8")])

_IR = """
; Runs launches first to end - 1. Returns -1, or the number of a launch that failed, with its status
; in the upper half.
define i64 @tensorlite_drive(ptr %launches, i64 %first, i64 %end, ptr %execute, ptr %stream) {
entry:
  br label %head
head:
  %i = phi i64 [ %first, %entry ], [ %next, %continue ]
  %more = icmp slt i64 %i, %end
  br i1 %more, label %body, label %done
body:
  %launch = getelementptr { i32, i32, ptr, ptr }, ptr %launches, i64 %i
  %kind = load i32, ptr %launch
  %count.at = getelementptr { i32, i32, ptr, ptr }, ptr %launch, i64 0, i32 1
  %count = load i32, ptr %count.at
  %target.at = getelementptr { i32, i32, ptr, ptr }, ptr %launch, i64 0, i32 2
  %target = load ptr, ptr %target.at
  %arguments.at = getelementptr { i32, i32, ptr, ptr }, ptr %launch, i64 0, i32 3
  %arguments = load ptr, ptr %arguments.at
  %second.at = getelementptr i64, ptr %arguments, i64 1
  switch i32 %kind, label %nest [ i32 1, label %primitive
                                  i32 2, label %copy
                                  i32 3, label %start
                                  i32 4, label %wait ]
nest:
  call void %target(ptr %arguments)
  br label %continue
primitive:
  %status = call i32 %execute(ptr %target, ptr %stream, i32 %count, ptr %arguments)
  %failed = icmp ne i32 %status, 0
  br i1 %failed, label %failure, label %continue
copy:
  %from = load ptr, ptr %arguments
  %to = load ptr, ptr %second.at
  %size.at = getelementptr i64, ptr %arguments, i64 2
  %size = load i64, ptr %size.at
  call ptr %target(ptr %to, ptr %from, i64 %size)
  br label %continue
start:
  %out = load i32, ptr %arguments
  %written = call i64 %target(i32 %out, ptr %second.at, i64 8)
  %complete = icmp eq i64 %written, 8
  br i1 %complete, label %continue, label %failure
wait:
  %in = load i32, ptr %arguments
  %record = load ptr, ptr %second.at
  %clock.at = getelementptr i64, ptr %arguments, i64 2
  %clock = load ptr, ptr %clock.at
  %began.at = getelementptr i64, ptr %record, i64 1
  %ended.at = getelementptr i64, ptr %record, i64 3
  call i32 %clock(i32 1, ptr %began.at)
  %read = call i64 %target(i32 %in, ptr %record, i64 8)
  call i32 %clock(i32 1, ptr %ended.at)
  %arrived = icmp eq i64 %read, 8
  br i1 %arrived, label %outcome, label %failure
outcome:
  %how = load i64, ptr %record
  %well = icmp eq i64 %how, 0
  br i1 %well, label %continue, label %failure
continue:
  %next = add i64 %i, 1
  br label %head
failure:
  %reason = phi i32 [ %status, %primitive ], [ 2, %start ], [ 2, %wait ], [ 1, %outcome ]
  %wide = zext i32 %reason to i64
  %upper = shl i64 %wide, 32
  %result = or i64 %upper, %i
  ret i64 %result
done:
  ret i64 -1
}

; Writes the pointers of buffers into tables of pointers, and into oneDNN's memory objects. A buffer
; is given as the place where its pointer is.
define void @tensorlite_bind(ptr %cells, i64 %cell.count, ptr %memories, i64 %memory.count,
                             ptr %buffers, ptr %set.handle) {
entry:
  br label %cell.head
cell.head:
  %i = phi i64 [ 0, %entry ], [ %i.next, %cell.body ]
  %more.cells = icmp slt i64 %i, %cell.count
  br i1 %more.cells, label %cell.body, label %memory.head
cell.body:
  %cell = getelementptr { ptr, i64, i64 }, ptr %cells, i64 %i
  %cell.target = load ptr, ptr %cell
  %cell.number.at = getelementptr { ptr, i64, i64 }, ptr %cell, i64 0, i32 1
  %cell.number = load i64, ptr %cell.number.at
  %cell.buffer = getelementptr ptr, ptr %buffers, i64 %cell.number
  %cell.place = load ptr, ptr %cell.buffer
  %cell.start = load ptr, ptr %cell.place
  %cell.offset.at = getelementptr { ptr, i64, i64 }, ptr %cell, i64 0, i32 2
  %cell.offset = load i64, ptr %cell.offset.at
  %cell.pointer = getelementptr i8, ptr %cell.start, i64 %cell.offset
  store ptr %cell.pointer, ptr %cell.target
  %i.next = add i64 %i, 1
  br label %cell.head
memory.head:
  %j = phi i64 [ 0, %cell.head ], [ %j.next, %memory.body ]
  %more.memories = icmp slt i64 %j, %memory.count
  br i1 %more.memories, label %memory.body, label %done
memory.body:
  %memory = getelementptr { ptr, i64, i64 }, ptr %memories, i64 %j
  %memory.target = load ptr, ptr %memory
  %memory.number.at = getelementptr { ptr, i64, i64 }, ptr %memory, i64 0, i32 1
  %memory.number = load i64, ptr %memory.number.at
  %memory.buffer = getelementptr ptr, ptr %buffers, i64 %memory.number
  %memory.place = load ptr, ptr %memory.buffer
  %memory.start = load ptr, ptr %memory.place
  %memory.offset.at = getelementptr { ptr, i64, i64 }, ptr %memory, i64 0, i32 2
  %memory.offset = load i64, ptr %memory.offset.at
  %memory.pointer = getelementptr i8, ptr %memory.start, i64 %memory.offset
  call i32 %set.handle(ptr %memory.target, ptr %memory.pointer)
  %j.next = add i64 %j, 1
  br label %memory.head
done:
  ret void
}
"""


@functools.cache
def functions() -> tuple[ctypes._FuncPointer, ctypes._FuncPointer]:
    """`drive(launches, first, end, execute, stream)` and `bind(cells, count, memories, count,
    buffers, set_handle)`; both give the GIL back while they run."""
    drive, bind = llvm.compile_ir(_IR, ["tensorlite_drive", "tensorlite_bind"])
    return (
        ctypes.CFUNCTYPE(c_int64, c_void_p, c_int64, c_int64, c_void_p, c_void_p)(drive),
        ctypes.CFUNCTYPE(None, c_void_p, c_int64, c_void_p, c_int64, c_void_p, c_void_p)(bind),
    )


@functools.cache
def address(name: str) -> int:
    """The address of a function of the C library."""
    return ctypes.cast(getattr(ctypes.CDLL(None), name), c_void_p).value or 0


# A NumPy array is an object whose first field, behind the head that all objects have, is the
# pointer to its data. Reading it there is ten times faster than asking the array for it.
_HEAD = object.__basicsize__


def _keeps_its_pointer_there() -> bool:
    probe = np.empty(1)
    there = ctypes.c_void_p.from_address(id(probe) + _HEAD).value
    return there == probe.__array_interface__["data"][0]


_direct = _keeps_its_pointer_there()


class Pointers:
    """Places of the pointers of `count` arrays, as `bind` wants them."""

    def __init__(self, count: int):
        self.table = (c_int64 * count)()
        self._copies = (c_int64 * count)()

    def set(self, arrays: list[np.ndarray]) -> None:
        """Take the pointers of these arrays, which the caller keeps alive."""
        if _direct:
            self.table[:] = [id(array) + _HEAD for array in arrays]
            return
        self._copies[:] = [array.__array_interface__["data"][0] for array in arrays]
        start = ctypes.addressof(self._copies)
        self.table[:] = [start + 8 * i for i in range(len(arrays))]


def describe_failure(result: int) -> tuple[int, int]:
    """The number of the launch and its status (oneDNN's, or one of those above), from what `drive`
    returned."""
    return result & 0xFFFFFFFF, c_int32(result >> 32).value
