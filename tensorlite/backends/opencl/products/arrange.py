"""Operands made ready: zeros around images, panels of columns, dtypes as they are computed in.

On CPUs a product is fastest if its inner loop reads plain contiguous floats, and the copies that
make that true cost little beside it: one pass over an operand.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

from ....compiler.launches import Ref
from .contraction import Contraction, Digit, merged, padded, start, strides
from .draft import (
    Counter,
    Draft,
    Scalars,
    Source,
    digit_names,
    indented,
    index_type,
    kernel_text,
    total,
)
from .epilogue import Operation, Steps, functions, parameters, statements
from .types import Number, preamble

_PER_ITEM = 1 << 14  # elements that a work-item copies
_GROUP = 64  # work-items of a work-group, where each has one element
_DEPTH = 256  # steps of a sum that a work-item packs


# ---- zeros around an operand -----------------------------------------------------------------


def pad(
    draft: Draft, contraction: Contraction, place: Ref, pads: tuple[tuple[int, int], ...]
) -> tuple[Contraction, Ref]:
    """Launch the copy of `a` into zeros, in the type of sums; the same product of that copy."""
    a = contraction.a
    number = Number(a.dtype)
    result = padded(contraction, pads)
    result = result._replace(a=result.a._replace(dtype=number.accumulator))
    copy = draft.temporary(result.a.size * number.accumulator.itemsize)
    last = max([axis for axis, pair in enumerate(pads) if any(pair)], default=None)
    if last is None:
        widen(draft, number, a.size, place, copy)
        return result, copy
    # The innermost padded axis and all behind it are one run of zeros, elements, zeros.
    inner = math.prod(a.shape[last + 1 :])
    low, high = (amount * inner for amount in pads[last])
    run, outer = a.shape[last] * inner, range(last)
    wide = index_type(max(a.size, result.a.size))
    source = _pad_source(number, len(outer), wide)
    scalars = Scalars()
    rows = math.prod(result.a.shape[:last])
    per_item = max(1, _PER_ITEM // (low + run + high))
    scalars.add(rows=rows, rows_per_item=per_item, low=low, run=run, high=high)
    along = strides(a.shape)
    for axis in outer:
        scalars.add(**{f"outer{axis}": result.a.shape[axis]})
        scalars.add(**{f"outer{axis}_from": along[axis]})
        scalars.add(**{f"outer{axis}_low": pads[axis][0], f"outer{axis}_size": a.shape[axis]})
    draft.launch(source, scalars, (place, copy), (-(-rows // per_item),), (1,))
    return result, copy


@functools.lru_cache(maxsize=256)
def _pad_source(number: Number, outer: int, wide: str) -> Source:
    names = ["rows", "rows_per_item", "low", "run", "high"]
    for axis in range(outer):
        names += [f"outer{axis}{part}" for part in ("", "_from", "_low", "_size")]
    counter = Counter("at", "outer", outer)
    inside = " && ".join(
        f"at{axis} >= outer{axis}_low && at{axis} < outer{axis}_low + outer{axis}_size"
        for axis in range(outer)
    )
    terms = [f"(Index)(at{axis} - outer{axis}_low) * outer{axis}_from" for axis in range(outer)]
    body = f"""
const int first = get_global_id(0) * rows_per_item;
const int end = first + rows_per_item < rows ? first + rows_per_item : rows;
{counter.begin("first")}
Index to = (Index)first * (low + run + high);
for (int row = first; row < end; ++row) {{
  const int inside = {inside or "1"};
  const Index from = {total(*terms)};
  for (int k = 0; k < low; ++k) padded[to + k] = 0;
  to += low;
  if (inside) {{
    for (int k = 0; k < run; ++k) padded[to + k] = {number.load("image", "from + k")};
  }} else {{
    for (int k = 0; k < run; ++k) padded[to + k] = 0;
  }}
  to += run;
  for (int k = 0; k < high; ++k) padded[to + k] = 0;
  to += high;
  {counter.step()}
}}
"""
    buffers = [
        f"__global const {number.stored} *restrict image",
        f"__global {number.computed} *restrict padded",
    ]
    name = f"pad_{number.dtype.name}"
    comment = "Images in a frame of zeros. A work-item copies `rows_per_item` rows."
    text = preamble(number) + wide + kernel_text(name, buffers, names, body, comment)
    return Source(name, text, names)


# ---- panels of columns -----------------------------------------------------------------------


class Panels(NamedTuple):
    """Where an operand of columns lies: step k of the sum of panel p of batch i is at i * batch +
    p * panel + k * step, and its columns are contiguous from there."""

    place: Ref
    step: int
    panel: int
    size: int  # elements of all panels together


def pack(
    draft: Draft,
    contraction: Contraction,
    source: Ref,
    columns: Digit,
    sums: tuple[Digit, ...],
    batches: tuple[Digit, ...],
    width: int,
) -> Panels:
    """Launch the copy of `b` into panels of `width` columns, filled up with zeros. Batches in which
    b does not move share their panels.

    Args:
        batches: those in which b moves.
    """
    b = contraction.b
    number = Number(b.dtype)
    depth = math.prod(digit.size for digit in sums)
    panels, batch = -(-columns.size // width), math.prod(digit.size for digit in batches)
    size = batch * panels * depth * width
    place = draft.temporary(size * number.accumulator.itemsize)
    sums, batches = merged(sums, "b"), merged(batches, "b")
    is_row = columns.b == 1 or columns.size == 1
    wide = index_type(max(b.size, size))
    kernel = _pack_source(number, len(sums), len(batches), width, is_row, wide)
    scalars = Scalars()
    scalars.add(origin=start(b), columns=columns.size, depth=depth)
    if not is_row:
        scalars.add(column_b=columns.b)
    scalars.add_digits("sum", sums, "b")
    scalars.add_digits("batch", batches, "b")
    grid = (panels, -(-depth // _DEPTH), batch)
    draft.launch(kernel, scalars, (source, place), grid, (1, 1, 1))
    return Panels(place, width, depth * width, size)


@functools.lru_cache(maxsize=256)
def _pack_source(
    number: Number, sums: int, batches: int, width: int, is_row: bool, wide: str
) -> Source:
    names = ["origin", "columns", "depth", *([] if is_row else ["column_b"])]
    names += [*digit_names("sum", sums, "b"), *digit_names("batch", batches, "b")]
    k, batch = Counter("k", "sum", sums), Counter("at", "batch", batches)
    along = "i" if is_row else "(Index)i * column_b"
    across = "column" if is_row else "(Index)column * column_b"
    value = number.load("matrix", f"from + {along}")
    body = f"""
const int column = get_global_id(0) * {width};
const int first = get_global_id(1) * {_DEPTH};
const int end = first + {_DEPTH} < depth ? first + {_DEPTH} : depth;
const int used = columns - column < {width} ? columns - column : {width};
{batch.begin("get_global_id(2)")}
{k.begin("first")}
const Index panel = (Index)get_global_id(2) * get_global_size(0) + get_global_id(0);
const Index corner = {total("origin", across, batch.place("b"))};
for (int step = first; step < end; ++step) {{
  const Index from = {total("corner", k.place("b"))};
  __global {number.computed} *to = panels + (panel * depth + step) * {width};
  if (used == {width}) {{
    for (int i = 0; i < {width}; ++i) to[i] = {value};
  }} else {{
    for (int i = 0; i < used; ++i) to[i] = {value};
    for (int i = used; i < {width}; ++i) to[i] = 0;
  }}
  {k.step()}
}}
"""
    buffers = [
        f"__global const {number.stored} *restrict matrix",
        f"__global {number.computed} *restrict panels",
    ]
    name = f"pack_{number.dtype.name}_{width}"
    comment = (
        f"A matrix in panels of {width} columns. A work-item copies up to {_DEPTH} rows of one."
    )
    text = preamble(number) + wide + kernel_text(name, buffers, names, body, comment)
    return Source(name, text, names)


# ---- element by element ----------------------------------------------------------------------


def widen(draft: Draft, number: Number, size: int, place: Ref, copy: Ref) -> None:
    """Launch the copy of an array in the type of sums."""
    wide = index_type(size)
    per_item = _per_item(size)
    scalars = Scalars()
    scalars.add(per_item=per_item, tail=size - (size - 1) // per_item * per_item)
    body = f"""
const Index first = (Index)get_global_id(0) * per_item;
const int count = get_global_id(0) + 1 == get_global_size(0) ? tail : per_item;
for (int k = 0; k < count; ++k) copy[first + k] = {number.load("array", "first + k")};
"""
    buffers = [
        f"__global const {number.stored} *restrict array",
        f"__global {number.computed} *restrict copy",
    ]
    name = f"widen_{number.dtype.name}"
    names = ["per_item", "tail"]
    text = preamble(number) + wide + kernel_text(name, buffers, names, body, "A wider copy.")
    items = -(-size // per_item)
    draft.launch(Source(name, text, names), scalars, (place, copy), (items,), (1,))


def _per_item(size: int) -> int:
    return min(_PER_ITEM, max(1, size))


def finish(
    draft: Draft,
    contraction: Contraction,
    parts: int,
    partial: Ref,
    steps: Steps,
    result: Ref,
    per_item: int | None = None,
) -> None:
    """Launch the second stage of a split sum: add the parts, run the epilogue, store."""
    c = contraction.c
    number, size = Number(c.dtype), c.size
    if per_item is None:
        per_item = min(_per_item(size), max(64, size // 64))
    items = -(-size // per_item)
    scalars = Scalars()
    scalars.add(parts=parts, channels=c.shape[-1], per_item=per_item, items=items)
    scalars.add(tail=size - (items - 1) * per_item)
    source = _finish_source(number, steps.operations, index_type(size * parts))
    group = _GROUP if per_item == 1 else 1
    grid = -(-items // group) * group
    draft.launch(source, scalars, (partial, result, *steps.operands), (grid,), (group,))


@functools.lru_cache(maxsize=256)
def _finish_source(number: Number, operations: tuple[Operation, ...], wide: str) -> Source:
    names = ["parts", "channels", "per_item", "items", "tail"]
    after = "\n".join(statements(operations, "place", "place % channels"))
    body = f"""
const int item = get_global_id(0);
if (item >= items) return;
const Index first = (Index)item * per_item;
const int count = item + 1 == items ? tail : per_item;
const Index size = (Index)(items - 1) * per_item + tail;
for (int k = 0; k < count; ++k) {{
  const Index place = first + k;
  {number.computed} value = partial[place];
  for (int part = 1; part < parts; ++part) value += partial[place + part * size];
{indented(after)}
  {number.store("value", "result", "place")}
}}
"""
    buffers = [
        f"__global const {number.computed} *restrict partial",
        f"__global {number.stored} *restrict result",
        *parameters(operations),
    ]
    name = f"sum_parts_{number.dtype.name}" + "".join(f"_{o.name}" for o in operations)
    comment = "The parts of split sums, added in order."
    head = preamble(number) + functions(operations, number) + wide
    return Source(name, head + kernel_text(name, buffers, names, body, comment), names)
