"""Scatter: updates that are combined into an array at indices, in their order.

First all threads copy (or fill) the result, then they combine, each into elements of its own: long
rows are divided by columns; short ones are dealt out in blocks, and every thread looks through all
indices for its own. So whatever the number of threads, several updates of one element are combined
in their order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .... import dtypes
from ....core import exactly
from .place import Place
from .render import write_parallel
from .scalar import apply, cast
from .text import Function, Module, literal, memory_type

LANES = 16
COPIED = 1 << 14  # elements that a thread copies at a time
LONG = 256  # elements of a row that is divided by columns
OWNED = 1 << 12  # bytes, at least, of neighbouring short rows that one thread owns
CLASSES = 256  # of blocks of rows, which are dealt out to threads
PARALLEL_ELEMENTS = 1 << 15  # moved, below which a second thread costs more than it saves

_OPERATIONS = {"add": "add", "multiply": "multiply", "min": "min", "max": "max", "set": None}


class Scatter(NamedTuple):
    """Updates combined by `mode` into an array of `shape`, at indices along its first axes.

    Attributes:
        indices: the dtypes of the index arrays.
        updates: their size.
        fill: what the array holds at first; None if that is an input.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    indices: tuple[np.dtype[Any], ...]
    updates: int
    mode: str
    fill: Any = None

    def key(self) -> Any:
        """What distinguishes functions."""
        return (*self[:-1], exactly(self.fill))

    @property
    def row(self) -> int:
        """Elements at an index."""
        return math.prod(self.shape[len(self.indices) :])

    @property
    def rows(self) -> int:
        """How many of them there are."""
        return math.prod(self.shape[: len(self.indices)])


def render_scatter(module: Module, name: str, scatter: Scatter) -> None:
    """Add a function of (base unless it is filled, updates, index buffers, result). Indices count
    from the end if they are negative; one that is out of bounds takes the nearest element. Nothing
    is empty. The result may lie over the base."""
    _write_start(module, f"{name}.start", scatter)
    _write_part(module, f"{name}.combine", scatter)
    function = Function(module, f"define void @{name}(ptr %buffers)")
    for stage in ("start", "combine"):
        function.line(f"call void @{name}.{stage}(ptr %buffers)")
    function.finish()


def _write_start(module: Module, name: str, scatter: Scatter) -> None:
    """The function that makes the result what it is before the first update."""
    size = scatter.rows * scatter.row
    function = Function(
        module, f"define internal void @{name}.units(ptr %buffers, i64 %begin, i64 %end)"
    )
    kind = memory_type(scatter.dtype)
    target = _buffer(function, _result_number(scatter))
    with function.loop("%begin", "%end") as unit:
        low = function.integer("mul", unit, str(COPIED))
        high = _smaller(function, function.integer("add", low, str(COPIED)), str(size))
        at = function.value(f"getelementptr {kind}, ptr {target}, i64 {low}")
        if scatter.fill is None:
            source = _buffer(function, 0)
            start = function.value(f"getelementptr {kind}, ptr {source}, i64 {low}")
            count = function.integer("sub", high, low)
            size_of = function.integer("mul", count, str(scatter.dtype.itemsize))
            module.declare("void", "llvm.memmove.p0.p0.i64", "ptr, ptr, i64, i1")
            function.line(
                f"call void @llvm.memmove.p0.p0.i64(ptr {at}, ptr {start}, i64 {size_of}, i1 false)"
            )
        else:
            _write_fill(function, scatter, target, low, high)
    function.finish()
    _write_entry(module, name, size, -(-size // COPIED))


def _write_fill(function: Function, scatter: Scatter, target: str, low: str, high: str) -> None:
    def fill(lanes: int) -> Callable[[str], None]:
        kind, dtype = memory_type(scatter.dtype, lanes), scatter.dtype
        stored = dtypes.int8 if dtype == dtypes.bool_ else dtype

        def write(index: str) -> None:
            at = function.value(f"getelementptr {memory_type(dtype)}, ptr {target}, i64 {index}")
            value = literal(scatter.fill, stored, lanes)
            function.line(f"store {kind} {value}, ptr {at}, align {dtype.itemsize}")

        return write

    _along(function, low, high, fill)


def _write_part(module: Module, name: str, scatter: Scatter) -> None:
    """The function that combines all updates, `name.units` with the part of the work between two
    numbers, of `parts`."""
    by_columns = scatter.row >= LONG
    parts = -(-scatter.row // LANES) if by_columns else CLASSES
    header = f"define internal void @{name}.units(ptr %buffers, i64 %begin, i64 %end)"
    function = Function(module, header)
    first = scatter.fill is None
    updates = _buffer(function, int(first))
    indices = [_buffer(function, int(first) + 1 + i) for i in range(len(scatter.indices))]
    target = _buffer(function, _result_number(scatter))
    low, high = "0", str(scatter.row)
    if by_columns:
        low = function.integer("mul", "%begin", str(LANES))
        high = _smaller(function, function.integer("mul", "%end", str(LANES)), str(scatter.row))
    with function.loop("0", str(scatter.updates)) as number:
        row = _row(function, scatter, indices, number)
        source = function.integer("mul", number, str(scatter.row))
        goal = function.integer("mul", row, str(scatter.row))
        body = _combiner(function, scatter, updates, source, target, goal)
        if by_columns:
            _along(function, low, high, body)
        else:
            with function.when(_is_own(function, scatter, row)):
                _along(function, low, high, body)
    function.finish()
    _write_entry(module, name, scatter.updates * scatter.row, parts)


def _write_entry(module: Module, name: str, elements: int, units: int) -> None:
    if elements >= PARALLEL_ELEMENTS and units > 1:
        write_parallel(module, name, units)
        return
    function = Function(module, f"define void @{name}(ptr %buffers)")
    function.line(f"call void @{name}.units(ptr %buffers, i64 0, i64 {units})")
    function.finish()


# ---- rows ----------------------------------------------------------------------------------------


def _row(function: Function, scatter: Scatter, indices: list[str], number: str) -> str:
    """The number of the row that update `number` goes to."""
    row = "0"
    sizes = scatter.shape[: len(indices)]
    for pointer, dtype, size in zip(indices, scatter.indices, sizes, strict=True):
        kind = memory_type(dtype)
        at = function.value(f"getelementptr {kind}, ptr {pointer}, i64 {number}")
        index = function.value(f"load {kind}, ptr {at}, align {dtype.itemsize}")
        index = cast(Place(function, 1), index, dtype, dtypes.int64)
        if dtype == dtypes.uint64:  # too large for int64 is too large for any axis
            index = _smaller(function, index, str(size - 1), unsigned=True)
        elif dtype in dtypes.SIGNED:
            counted = function.integer("add", index, str(size))
            negative = function.value(f"icmp slt i64 {index}, 0")
            index = function.value(f"select i1 {negative}, i64 {counted}, i64 {index}")
            index = function.call("i64", "llvm.smax.i64", ("i64", index), ("i64", "0"))
        index = _smaller(function, index, str(size - 1))
        row = function.integer("add", function.integer("mul", row, str(size)), index)
    return row


def _is_own(function: Function, scatter: Scatter, row: str) -> str:
    """Whether a row is in a block of those that this part of the work owns."""
    shift = max(OWNED // (scatter.row * scatter.dtype.itemsize), 1).bit_length() - 1
    block = function.value(f"lshr i64 {row}, {shift}")
    number = function.value(f"and i64 {block}, {CLASSES - 1}")
    after = function.value(f"icmp sge i64 {number}, %begin")
    before = function.value(f"icmp slt i64 {number}, %end")
    return function.value(f"and i1 {after}, {before}")


def _combiner(
    function: Function, scatter: Scatter, updates: str, source: str, target: str, goal: str
) -> Callable[[int], Callable[[str], None]]:
    """What combines some neighbouring columns of an update into those of a row."""
    dtype, op = scatter.dtype, _OPERATIONS[scatter.mode]
    wide = dtypes.float32 if dtype in (dtypes.float16, dtypes.bfloat16) else dtype

    def combine(lanes: int) -> Callable[[str], None]:
        place, kind = Place(function, lanes), memory_type(dtype, lanes)

        def pointer(base: str, row: str, column: str) -> str:
            offset = function.integer("add", row, column)
            return function.value(f"getelementptr {memory_type(dtype)}, ptr {base}, i64 {offset}")

        def load(at: str) -> str:
            value = function.value(f"load {kind}, ptr {at}, align {dtype.itemsize}")
            if dtype == dtypes.bool_:
                zero = literal(0, dtypes.int8, lanes)
                return function.value(f"icmp ne {kind} {value}, {zero}")
            return cast(place, value, dtype, wide)

        def write(column: str) -> None:
            at = pointer(target, goal, column)
            value = load(pointer(updates, source, column))
            if op is not None:
                value = apply(place, op, None, wide, [wide, wide], [load(at), value])
            value = cast(place, value, wide, dtype)
            if dtype == dtypes.bool_:
                value = function.value(f"zext {place.type(dtype)} {value} to {kind}")
            function.line(f"store {kind} {value}, ptr {at}, align {dtype.itemsize}")

        return write

    return combine


# ---- helpers -------------------------------------------------------------------------------------


def _result_number(scatter: Scatter) -> int:
    return len(scatter.indices) + 1 + (scatter.fill is None)


def _buffer(function: Function, number: int) -> str:
    at = function.value(f"getelementptr ptr, ptr %buffers, i64 {number}")
    return function.value(f"load ptr, ptr {at}")


def _smaller(function: Function, x: str, y: str, unsigned: bool = False) -> str:
    name = "llvm.umin.i64" if unsigned else "llvm.smin.i64"
    return function.call("i64", name, ("i64", x), ("i64", y))


def _along(
    function: Function, low: str, high: str, body: Callable[[int], Callable[[str], None]]
) -> None:
    """`body` for columns low to high - 1, in vectors as far as these go."""
    if high.isdigit() and low.isdigit():
        whole = str(int(low) + (int(high) - int(low)) // LANES * LANES)
    else:
        count = function.integer("sub", high, low)
        rest = function.value(f"and i64 {count}, {LANES - 1}")
        whole = function.integer("sub", high, rest)
    if whole != low:
        with function.loop(low, whole, LANES) as column:
            body(LANES)(column)
    if whole != high:
        with function.loop(whole, high) as column:
            body(1)(column)
