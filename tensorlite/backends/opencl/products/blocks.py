"""Products on GPUs: blocks of the result are summed by work-groups from tiles in local memory.

A work-group has a block of rows by columns. For `depth` steps of the sum at a time it loads a tile
of `a` and one of `b`, each element once and neighbours together, into local memory; each work-item
then reads short runs of both and adds their products to sums of its own in registers. While it
does, the next tiles are on their way into registers.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from ..runtime import Traits
from . import arrange, gather
from .contraction import Contraction, start
from .draft import FIRST, RESULT, SECOND, Draft, Scalars, Source, indented, index_type, kernel_text
from .draft import total as summed
from .epilogue import Steps, functions, parameters, statements
from .types import Number, preamble

RUN = 4  # elements of a vector: what a work-item loads and reads at once


class Block(NamedTuple):
    """What a GPU kernel may be tuned by."""

    rows: int = 128  # of a work-group
    columns: int = 128
    depth: int = 16  # steps of the sum in local memory
    item_rows: int = 8  # of a work-item
    item_columns: int = 8

    @property
    def items(self) -> int:
        """The work-items of a group."""
        return self.rows // self.item_rows * (self.columns // self.item_columns)


def fitted(block: Block, traits: Traits, rows: int, columns: int, number: Number) -> Block:
    """A block that the device can hold and that wastes little on so few rows or columns."""
    while block.columns > 16 and block.columns // 2 >= columns:
        block = block._replace(
            columns=block.columns // 2, item_columns=max(1, block.item_columns // 2)
        )
    while block.rows > 16 and block.rows // 2 >= rows:
        block = block._replace(rows=block.rows // 2, item_rows=max(1, block.item_rows // 2))
    while block.items > traits.max_work_group or (
        _local_bytes(block, number) > traits.local_memory
    ):
        block = block._replace(rows=block.rows // 2, columns=block.columns // 2)
    return block


def _local_bytes(block: Block, number: Number) -> int:
    return block.depth * (block.rows + block.columns + 2 * RUN) * number.accumulator.itemsize


def plan_blocks(
    draft: Draft,
    traits: Traits,
    contraction: Contraction,
    steps: Steps,
    block: Block,
    is_whole: bool,
) -> None:
    """Write the launches of a product, which gives all of the result or a part of it."""
    number = Number(contraction.c.dtype)
    rows, columns = contraction.count("row"), contraction.count("column")
    batches, depth = contraction.count("batch"), contraction.count("sum")
    block = fitted(block, traits, rows, columns, number)
    row_blocks, column_blocks = -(-rows // block.rows), -(-columns // block.columns)
    groups = row_blocks * column_blocks * batches
    wanted = 2 * traits.units if is_whole else 1  # the parts of a split sum are whole results
    splits = max(1, min(wanted // groups, depth // (4 * block.depth), 64))
    per_split = -(-depth // (splits * block.depth)) * block.depth
    splits = -(-depth // per_split) if depth else 1
    is_split = splits > 1
    operations = () if is_split else steps.operations
    target, operands = RESULT, steps.operands
    if is_split:
        size = splits * contraction.c.size * number.accumulator.itemsize
        target, operands = draft.temporary(size), ()
    name = draft.named(contraction, operations)
    source = Source(
        name,
        _Text(
            contraction, block, steps if not is_split else Steps(), splits, per_split, name
        ).whole(),
        (),
    )
    grid = (column_blocks * block.items, row_blocks, batches * splits)
    buffers = (FIRST, SECOND, target, *operands)
    draft.launch(source, Scalars(), buffers, grid, (block.items, 1, 1))
    if is_split:
        arrange.finish(draft, contraction, splits, target, steps, RESULT, per_item=1)


class _Side(NamedTuple):
    """How a work-group loads its tiles of an operand: rows of `a`, columns of `b`."""

    name: str  # "a" or "b"
    along: str  # the name of the digits that are not summed over
    extent: int  # of the tile along these
    total: int  # how many there are in all
    by_sum: bool  # neighbours in memory are neighbours in the sum
    run: int  # elements of a load


class _Text:
    """The program of one product."""

    def __init__(
        self,
        contraction: Contraction,
        block: Block,
        steps: Steps,
        splits: int,
        per_split: int,
        name: str,
    ):
        self._contraction, self._block, self._steps = contraction, block, steps
        self._splits, self._per_split, self._name = splits, per_split, name
        self._number = Number(contraction.c.dtype)
        checked = self._checked = gather.bounds(contraction)
        self._rows, self._columns, self._batches, self._sums = (
            gather.counters(contraction, contraction.of_role(role), checked)
            for role in ("row", "column", "batch", "sum")
        )
        self._depth = contraction.count("sum")
        self._a = self._side("a", "row", self._rows, block.rows)
        self._b = self._side("b", "column", self._columns, block.columns)

    def _side(self, name: str, along: str, own: tuple[gather.Digit, ...], extent: int) -> _Side:
        """Loads follow the digit that is contiguous; they take runs if no run is torn."""
        count = math.prod(d.size for d in own)
        by_sum = bool(self._sums) and getattr(self._sums[-1], name) == 1
        last = (self._sums if by_sum else own)[-1:]
        others = [d for d in (*own, *self._sums, *self._batches) if d not in last]
        whole = self._number.is_plain and bool(last) and not any(last[0].steps)
        whole = whole and getattr(last[0], name) == 1 and last[0].size % RUN == 0
        whole = whole and all(getattr(d, name) % RUN == 0 for d in others)
        whole = whole and start(getattr(self._contraction, name)) % RUN == 0
        items = extent * self._block.depth // RUN
        whole = whole and items % self._block.items == 0
        return _Side(name, along, extent, count, by_sum, RUN if whole else 1)

    def whole(self) -> str:
        """The text."""
        number, block, operations = self._number, self._block, self._steps.operations
        c, computed = self._contraction.c, self._number.computed
        stored = computed if self._splits > 1 else number.stored
        buffers = [
            f"__global const {number.stored} *restrict a",
            f"__global const {number.stored} *restrict b",
            f"__global {stored} *restrict c",
            *parameters(operations),
        ]
        comment = (
            f"{self._a.total} rows, {self._b.total} columns, {self._depth} steps. A work-group of "
            f"{block.items} has {block.rows} x {block.columns} of them, a work-item "
            f"{block.item_rows} x {block.item_columns}."
        )
        sizes = [self._contraction.a.size, self._contraction.b.size, c.size * self._splits]
        head = preamble(number) + functions(operations, number) + index_type(max(sizes))
        head += f"typedef {number.vector(RUN)} Run;\n"
        text = kernel_text(self._name, buffers, (), self._body(), comment)
        attribute = f"__attribute__((reqd_work_group_size({block.items}, 1, 1)))\n"
        return head + text.replace("__kernel void", f"__kernel {attribute}void", 1)

    def _body(self) -> str:
        block, computed = self._block, self._number.computed
        across = block.columns // block.item_columns
        return f"""
__local {computed} tile_a[{block.depth}][{block.rows + RUN}] __attribute__((aligned(16)));
__local {computed} tile_b[{block.depth}][{block.columns + RUN}] __attribute__((aligned(16)));
const int item = get_local_id(0);
const int item_row = item / {across}, item_column = item % {across};
const int first_row = get_group_id(1) * {block.rows};
const int first_column = get_group_id(0) * {block.columns};
const int batch = get_group_id(2) % {math.prod(d.size for d in self._batches)};
const int split = get_group_id(2) / {math.prod(d.size for d in self._batches)};
{_lines(gather.split_up("z", "batch", [d.size for d in self._batches]))}
const int sum_first = split * {self._per_split};
const int sum_rest = {self._depth} - sum_first;
const int sum_end = sum_first + (sum_rest < {self._per_split} ? sum_rest : {self._per_split});
{self._prepare(self._a, self._rows)}
{self._prepare(self._b, self._columns)}
{computed} sums[{block.item_rows}][{block.item_columns}];
#pragma unroll
for (int i = 0; i < {block.item_rows}; ++i)
  #pragma unroll
  for (int j = 0; j < {block.item_columns}; ++j) sums[i][j] = 0;
{self._load(self._a, "sum_first")}
{self._load(self._b, "sum_first")}
for (int step = sum_first; step < sum_end; step += {block.depth}) {{
{indented(self._keep(self._a))}
{indented(self._keep(self._b))}
  barrier(CLK_LOCAL_MEM_FENCE);
  if (step + {block.depth} < sum_end) {{
{indented(self._load(self._a, f"step + {block.depth}"), 4)}
{indented(self._load(self._b, f"step + {block.depth}"), 4)}
  }}
  #pragma unroll 4
  for (int k = 0; k < {block.depth}; ++k) {{
{indented(self._multiply(), 4)}
  }}
  barrier(CLK_LOCAL_MEM_FENCE);
}}
{self._store()}
"""

    def _loads(self, side: _Side) -> int:
        """How many loads a work-item makes of a tile."""
        return -(-side.extent * self._block.depth // (side.run * self._block.items))

    def _where(self, side: _Side, load: str) -> list[str]:
        """Statements that tell which element of the tile a load of this work-item is."""
        along, step = f"{side.along}_of_{side.name}", f"step_of_{side.name}"
        number = f"(item + {load} * {self._block.items})"
        if side.by_sum:
            per = self._block.depth // side.run
            first, second = along, step
        else:
            per = side.extent // side.run
            first, second = step, along
        scale = f" * {side.run}" if side.run > 1 else ""
        return [
            f"const int {first} = {number} / {per};",
            f"const int {second} = {number} % {per}{scale};",
        ]

    def _prepare(self, side: _Side, own: tuple[gather.Digit, ...]) -> str:
        """What of the place of each load does not change while the sum runs."""
        loads, name, along = self._loads(side), side.name, f"{side.along}_of_{side.name}"
        operand = getattr(self._contraction, name)
        from_ = summed(
            str(start(operand)),
            gather.place("z", self._batches, name),
            gather.place("o", own, name),
        )
        lines = [f"Index from_{name}[{loads}];", f"int has_{name}[{loads}];"]
        held = [f"{self._number.vector(side.run)} next_{name}[{loads}];"]
        inner = [
            *self._where(side, "i"),
            f"const int own = first_{side.along} + {along};",
            f"has_{name}[i] = own < {side.total} && {along} < {side.extent}"
            f" && step_of_{name} < {self._block.depth};",
            *gather.split_up("o", "own", [d.size for d in own]),
            f"from_{name}[i] = {from_};",
        ]
        if name == "a":
            for n, origin in enumerate(self._checked.origins):
                lines.append(f"int at{n}[{loads}];")
                moved = [gather.coordinate("z", self._batches, n), gather.coordinate("o", own, n)]
                inner.append(f"at{n}[i] = {summed(str(origin), *moved)};")
        return _lines([*lines, *held, _unrolled("i", loads, inner)])

    def _load(self, side: _Side, step: str) -> str:
        """The loads of the tiles that start at `step` of the sum."""
        name, loads = side.name, self._loads(side)
        index = summed(f"from_{name}[i]", gather.place("s", self._sums, name))
        conditions = [f"has_{name}[i]", "at_step < sum_end"]
        if name == "a":
            for n, size in enumerate(self._checked.sizes):
                at = summed(f"at{n}[i]", gather.coordinate("s", self._sums, n))
                conditions.append(f"(uint)({at}) < {size}u")
        value = self._number.load(name, index)
        if side.run > 1:
            value = f"*(const __global Run *)({name} + {index})"
        zero = f"({self._number.vector(side.run)})0"
        inner = [
            *self._where(side, "i"),
            f"const int at_step = {step} + step_of_{name};",
            *gather.split_up("s", "at_step", [d.size for d in self._sums]),
            f"next_{name}[i] = {zero};",
            f"if ({' && '.join(conditions)}) next_{name}[i] = {value};",
        ]
        return _unrolled("i", loads, inner)

    def _keep(self, side: _Side) -> str:
        """The way of loaded elements into local memory."""
        name, along, step = side.name, f"{side.along}_of_{side.name}", f"step_of_{side.name}"
        inner = self._where(side, "i")
        if side.run == 1:
            tile = f"tile_{name}[{step}][{along}] = next_{name}[i];"
            whole = side.extent * self._block.depth % self._block.items == 0
            inner.append(
                tile
                if whole
                else f"if ({step} < {self._block.depth} && {along} < {side.extent}) {tile}"
            )
        elif side.by_sum:
            inner += [
                f"tile_{name}[{step} + {n}][{along}] = next_{name}[i].s{n};" for n in range(RUN)
            ]
        else:
            inner.append(f"*(__local Run *)&tile_{name}[{step}][{along}] = next_{name}[i];")
        return _unrolled("i", self._loads(side), inner)

    def _multiply(self) -> str:
        """A step of the sum, from local memory."""
        block, computed = self._block, self._number.computed
        lines = [f"{computed} x[{block.item_rows}], y[{block.item_columns}];"]
        for own, count, extent, tile, item in (
            ("x", block.item_rows, block.rows, "a", "item_row"),
            ("y", block.item_columns, block.columns, "b", "item_column"),
        ):
            place = _spread("n", count, extent, item)
            lines.append(_unrolled("n", count, [f"{own}[n] = tile_{tile}[k][{place}];"]))
        product = ["sums[i][j] = x[i] * y[j] + sums[i][j];"]
        inner = _unrolled("j", block.item_columns, product)
        lines.append(_unrolled("i", block.item_rows, [inner]))
        return _lines(lines)

    def _store(self) -> str:
        """The results of a work-item, through the epilogue."""
        block, number, c = self._block, self._number, self._contraction.c
        after = statements(self._steps.operations, "place", f"place % {c.shape[-1]}")
        split = f"(Index)split * {c.size}" if self._splits > 1 else "0"
        base = summed(str(start(c)), split, gather.place("z", self._batches, "c"))
        of_row, of_column = (
            gather.place(name, own, "c") for name, own in (("r", self._rows), ("q", self._columns))
        )
        value = "c[place] = value;"
        if self._splits == 1:
            value = number.store("value", "c", "place")
        inner = [
            f"const int column = first_column"
            f" + {_spread('j', block.item_columns, block.columns, 'item_column')};",
            f"if (column < {self._b.total}) {{",
            *_indent(gather.split_up("q", "column", [d.size for d in self._columns])),
            f"  const Index place = {summed('from_c', of_column)};",
            f"  {number.computed} value = sums[i][j];",
            *_indent(after),
            f"  {value}",
            "}",
        ]
        outer = [
            f"const int row = first_row + {_spread('i', block.item_rows, block.rows, 'item_row')};",
            f"if (row < {self._a.total}) {{",
            *_indent(gather.split_up("r", "row", [d.size for d in self._rows])),
            f"  const Index from_c = {summed(base, of_row)};",
            indented(_unrolled("j", block.item_columns, inner)),
            "}",
        ]
        return _unrolled("i", block.item_rows, outer)


def _spread(number: str, count: int, extent: int, item: str) -> str:
    """Which of the rows (or columns) of a block is row `number` of a work-item: runs of neighbours,
    so that a run is one read of local memory, and next to those of the next work-item, so that
    reads do not meet in a bank."""
    run = min(RUN, count)
    if run == 1:
        return item
    within = f"{item} * {run} + {number} % {run}"
    return within if run == count else f"{number} / {run} * {extent // count * run} + {within}"


def _unrolled(counter: str, count: int, lines: list[str]) -> str:
    body = indented(_lines(lines))
    return (
        f"#pragma unroll\nfor (int {counter} = 0; {counter} < {count}; ++{counter}) {{\n{body}\n}}"
    )


def _indent(lines: list[str]) -> list[str]:
    return [indented(line) for line in lines]


def _lines(parts: list[str]) -> str:
    return "\n".join(parts)
