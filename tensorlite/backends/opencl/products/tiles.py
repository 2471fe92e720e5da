"""Products on CPUs: tiles of the result are held in vector registers while the sum runs.

A work-item has a block of rows and a block of panels of columns, one range of the sum, and no
company: its work-group is itself. It takes the sum in chunks, so that the part of a panel in use
stays in the first-level cache and the rows of a block in the second. Within a chunk, a tile of
`rows` x `vectors * lanes` sums lies in named registers; at each step of the sum, one element of
each row (or, if lanes are groups, one vector) meets the vectors of the panel.

Everything of one structure shares one source: shapes are arguments, and only the numbers of digits,
dtypes, the epilogue and the tile are in the text.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

from ....compiler.launches import Ref
from ..runtime import Traits
from . import arrange
from .arrange import Panels
from .contraction import (
    Contraction,
    Digit,
    Index,
    digits,
    merged,
    overhang,
    start,
)
from .draft import (
    FIRST,
    RESULT,
    SECOND,
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


class Tile(NamedTuple):
    """What a CPU kernel may be tuned by."""

    rows: int = 5  # of a tile
    vectors: int = 2  # of a row of a tile
    lanes: int = 8  # of a vector of float32; half as many of what is twice as wide
    depth: int = 256  # steps of the sum in a chunk
    packed: bool = True  # whether a matrix of contiguous rows is copied to panels nevertheless
    block: int = 256  # rows of a work-item
    columns: int = 256  # columns of a work-item

    @property
    def width(self) -> int:
        return self.vectors * self.lanes


# ---- planning --------------------------------------------------------------------------------


def plan_tiles(
    draft: Draft,
    traits: Traits,
    contraction: Contraction,
    steps: Steps,
    tile: Tile,
    is_whole: bool,
) -> None:
    """Write the launches of a product, which gives all of the result or a part of it."""
    contraction, (a_place, b_place) = _turned(contraction)
    lane = _lane(contraction)
    column = Digit(1, c=1) if lane is None else digits(contraction, [lane])[0]
    number, size_c = Number(contraction.c.dtype), contraction.c.size
    tile = fitted(tile, column.size, contraction.count("row"), number)
    contraction, a_place = _ready(draft, contraction, a_place, lane, tile)
    rows = merged(digits(contraction, contraction.of_role("row")), "ac")
    sums = digits(contraction, contraction.of_role("sum"))
    batches = digits(contraction, [i for i in contraction.of_role("batch") if i is not lane])
    if contraction.count("sum") == 0:
        sums, panels = (Digit(0),), Panels(b_place, 0, 0, 0)
    else:
        panels, batches = _panels(draft, contraction, b_place, column, sums, batches, tile)
    in_panels = panels.place != b_place
    batches = merged(batches, "abc")
    # Sums that wait elsewhere than in the result wait in a copy of all of it.
    depth = tile.depth if is_whole or number.is_plain else max(_size(sums), 1)
    chunks = _chunks(merged(sums, "a" if in_panels else "ab"), depth)
    items = Counts(_size(rows), column.size, _size(batches))
    work = divide(traits, tile, items, chunks.total if is_whole else 1)
    if not is_whole:
        work = work._replace(splits=1, chunks_per_split=chunks.total)
    is_split = work.splits > 1 or (chunks.total > 1 and not number.is_plain)
    sums_in = "partial" if is_split else "result" if chunks.total > 1 else "registers"
    target, operands = RESULT, steps.operands
    if is_split:
        target = draft.temporary(work.splits * size_c * number.accumulator.itemsize)
        operands = ()
    structure = Structure(
        name=f"{draft.op}_{number.dtype.name}",
        number=number,
        operations=() if is_split else steps.operations,
        rows=len(rows),
        batches=len(batches),
        outer=len(chunks.outer),
        inner=len(chunks.inner),
        is_unit=(chunks.inner or (chunks.middle,))[-1].a == 1,
        in_panels=in_panels,
        lanes_move=lane is not None and lane.a is not None,
        sums_in=sums_in,
        tile=(tile.rows, tile.vectors, tile.lanes),
        index_type=index_type(max(contraction.a.size, panels.size, size_c * work.splits)),
    )
    scalars = Scalars()
    scalars.add(rows=items.rows, columns=items.columns, batches=items.batches)
    scalars.add(row_block=work.row_block, panel_block=work.panel_block)
    scalars.add(start_a=start(contraction.a), start_c=start(contraction.c))
    scalars.add(start_b=0 if in_panels else start(contraction.b))
    scalars.add(step_b=panels.step, panel_b=panels.panel)
    scalars.add(chunks=chunks.total, chunks_per_split=work.chunks_per_split)
    scalars.add(parts=chunks.parts, part=chunks.part)
    scalars.add(middle=chunks.middle.size, middle_a=chunks.middle.a, depth=_size(chunks.inner))
    scalars.add(size_c=size_c if is_split else 0, channels=contraction.c.shape[-1])
    scalars.add_digits("row", rows, "ac")
    scalars.add_digits("batch", batches, "abc")
    scalars.add_digits("outer", chunks.outer, "a")
    scalars.add_digits("inner", chunks.inner, "a")
    grid = (work.column_blocks, work.row_blocks, work.splits * items.batches)
    buffers = (a_place, panels.place, target, *operands)
    draft.launch(source(structure), scalars, buffers, grid, (1, 1, 1))
    if is_split:
        arrange.finish(draft, contraction, work.splits, target, steps, RESULT)


def _size(found: tuple[Digit, ...]) -> int:
    return math.prod(digit.size for digit in found)


def _turned(contraction: Contraction) -> tuple[Contraction, tuple[Ref, Ref]]:
    """The product with its operands exchanged if it has one row and a matrix whose columns are
    contiguous: then these are rows, and nothing has to be copied."""
    columns = digits(contraction, contraction.of_role("column"))
    is_tall = contraction.count("row") == 1 and columns and columns[0].b != 1
    if not is_tall or any(map(any, overhang(contraction))):
        return contraction, (FIRST, SECOND)
    indices = tuple(i._replace(a=i.b, b=i.a) for i in contraction.indices)
    turned = contraction._replace(a=contraction.b, b=contraction.a, indices=indices)
    return turned, (SECOND, FIRST)


def _lane(contraction: Contraction) -> Index | None:
    """The index along which vectors lie: columns, or groups of one channel each."""
    columns = contraction.of_role("column")
    if columns:
        return columns[0]
    for index in contraction.of_role("batch"):
        digit = digits(contraction, [index])[0]
        if digit.a == digit.c == 1:
            return index
    return None


def fitted(tile: Tile, columns: int, rows: int, number: Number) -> Tile:
    """A tile that wastes little on so few columns or rows."""
    lanes, vectors, high = tile.lanes, tile.vectors, tile.rows
    lanes = max(1, lanes * 4 // number.accumulator.itemsize)
    while lanes > 1 and lanes // 2 >= columns:
        lanes //= 2
    vectors = min(vectors, -(-columns // lanes))
    if vectors < tile.vectors:
        high = min(8, high * tile.vectors // vectors)
    return tile._replace(rows=min(high, max(rows, 1)), vectors=vectors, lanes=lanes)


def _ready(
    draft: Draft, contraction: Contraction, place: Ref, lane: Index | None, tile: Tile
) -> tuple[Contraction, Ref]:
    """The product of an `a` that can be read at every step, in the type of sums; a copy if need
    be."""
    if contraction.count("sum") == 0:
        return contraction, place
    pads = list(overhang(contraction))
    if lane is not None and lane.a is not None:
        low, high = pads[lane.a.axis]
        pads[lane.a.axis] = low, high + -lane.size % tile.width
    if not any(map(any, pads)) and Number(contraction.a.dtype).is_plain:
        return contraction, place
    return arrange.pad(draft, contraction, place, tuple(pads))


def _panels(
    draft: Draft,
    contraction: Contraction,
    place: Ref,
    column: Digit,
    sums: tuple[Digit, ...],
    batches: tuple[Digit, ...],
    tile: Tile,
) -> tuple[Panels, tuple[Digit, ...]]:
    """`b` as panels, and the batches as they are found there. A matrix whose rows are contiguous
    may serve as it is."""
    flat = merged(sums, "b")
    can_stay = len(flat) <= 1 and column.size % tile.width == 0
    can_stay &= column.b == 1 or column.size == 1
    if can_stay and Number(contraction.b.dtype).is_plain:
        few_reads = contraction.count("row") <= tile.rows * 16
        if not tile.packed or few_reads or column.size == tile.width:
            step, size = flat[0].b if flat else 0, contraction.b.size
            return Panels(place, step, tile.width, size), batches
    moving = tuple(digit for digit in batches if digit.b)
    panels = arrange.pack(draft, contraction, place, column, sums, moving, tile.width)
    stride = panels.panel * -(-column.size // tile.width) * _size(moving)
    found = []
    for digit in batches:
        if digit.b:
            stride //= digit.size
            digit = digit._replace(b=stride)
        found.append(digit)
    return panels, tuple(found)


class Chunks(NamedTuple):
    """A sum in chunks: `outer` digits, then parts of `part` steps of the middle one; within a
    chunk run these steps and the inner digits."""

    outer: tuple[Digit, ...]
    middle: Digit
    inner: tuple[Digit, ...]
    part: int
    parts: int
    total: int


def _chunks(sums: tuple[Digit, ...], depth: int) -> Chunks:
    """Chunks of about `depth` steps."""
    if not sums:
        sums = (Digit(1),)
    place, inner = len(sums) - 1, 1
    while place > 0 and inner * sums[place].size <= depth:
        inner *= sums[place].size
        place -= 1
    middle = sums[place]
    parts = max(1, round(middle.size * inner / depth))
    part = max(1, -(-middle.size // parts))
    parts = max(1, -(-middle.size // part))
    count = _size(sums[:place]) * parts
    return Chunks(sums[:place], middle, sums[place + 1 :], part, parts, count)


class Counts(NamedTuple):
    """How many rows, columns and matrices a product has."""

    rows: int
    columns: int
    batches: int


class Work(NamedTuple):
    """How a product is divided among work-items."""

    row_block: int  # rows
    panel_block: int  # panels
    row_blocks: int
    column_blocks: int
    splits: int
    chunks_per_split: int


_PER_UNIT = 4  # work-items, so that units finish at about the same time
_PARTIAL = 1 << 24  # elements of partial sums


def divide(traits: Traits, tile: Tile, items: Counts, chunks: int) -> Work:
    """Blocks that are large enough to use what they have read more than once, and enough of them
    to keep all units busy; if there are too few, the sum is split."""
    tiles, panels = -(-items.rows // tile.rows), -(-items.columns // tile.width)
    high = min(tiles, max(1, tile.block // tile.rows))
    wide = min(panels, max(1, tile.columns // tile.width))
    wanted = _PER_UNIT * traits.units

    def blocks() -> int:
        return -(-tiles // high) * -(-panels // wide) * items.batches

    while blocks() < wanted and high > 4:
        high = -(-high // 2)
    while blocks() < wanted and wide > 1:
        wide = -(-wide // 2)
    row_blocks, column_blocks = -(-tiles // high), -(-panels // wide)
    high, wide = -(-tiles // row_blocks), -(-panels // column_blocks)
    splits = 1
    if 2 * blocks() < wanted:
        most = _PARTIAL // (items.rows * items.columns * items.batches)
        splits = max(1, min(chunks, most, -(-wanted // blocks())))
    per_split = -(-chunks // splits)
    return Work(
        high * tile.rows, wide, row_blocks, column_blocks, -(-chunks // per_split), per_split
    )


# ---- text ------------------------------------------------------------------------------------


class Structure(NamedTuple):
    """All that the text of a kernel depends on."""

    name: str
    number: Number  # as the result is stored; operands are in the type of sums
    operations: tuple[Operation, ...]
    rows: int  # how many digits they have
    batches: int
    outer: int  # of the sum, around its chunks and within them
    inner: int
    is_unit: bool  # the last digit of the sum is contiguous in a
    in_panels: bool  # b is packed
    lanes_move: bool  # lanes are groups, which move in a as well
    sums_in: str  # where sums wait between chunks: "registers", "result", "partial"
    tile: tuple[int, int, int]  # rows, vectors, lanes
    index_type: str


_NAMES = (
    "rows", "columns", "batches", "row_block", "panel_block", "start_a", "start_c", "start_b",
    "step_b", "panel_b", "chunks", "chunks_per_split", "parts", "part", "middle", "middle_a",
    "depth", "size_c", "channels",
)  # fmt: skip


@functools.lru_cache(maxsize=512)
def source(this: Structure) -> Source:
    """The kernel of a structure."""
    number, (high, vectors, lanes) = this.number, this.tile
    names = [
        *_NAMES,
        *digit_names("row", this.rows, "ac"),
        *digit_names("batch", this.batches, "abc"),
        *digit_names("outer", this.outer, "a"),
        *digit_names("inner", this.inner, "a"),
    ]
    is_partial = this.sums_in == "partial"
    name = this.name + "".join(f"_{o.name}" for o in this.operations) + "_part" * is_partial
    result = number.computed if is_partial else number.stored
    buffers = [
        f"__global const {number.computed} *restrict a",
        f"__global const {number.computed} *restrict b",
        f"__global {result} *restrict c",
        *parameters(this.operations),
    ]
    vector = (
        f"typedef {number.vector(lanes)} Vector"
        f" __attribute__((aligned({number.accumulator.itemsize})));\n"
    )
    head = preamble(number) + functions(this.operations, number) + this.index_type + vector
    comment = (
        f"Tiles of {high} rows by {vectors * lanes} columns. A work-item has a block of rows, "
        "a block of panels of columns, one matrix of the batch and one range of the sum."
    )
    return Source(name, head + kernel_text(name, buffers, names, _body(this), comment), names)


def _body(this: Structure) -> str:
    high, vectors, lanes = this.tile
    width = vectors * lanes
    row, batch = Counter("r", "row", this.rows), Counter("z", "batch", this.batches)
    outer = Counter("o", "outer", this.outer)
    moved = ["column"] if this.lanes_move else []
    from_a = total("from_a", row.place("a"), *moved)
    pointers = "\n".join(
        f"const __global {this.number.computed} *a{i} = a + {from_a};\n"
        f"to[{i}] = {total('from_c', 'column', row.place('c'))};\n"
        f"if (row + {i + 1} < row_end) {{ {row.step()} }}"
        for i in range(high)
    )
    sums = "\n".join(
        f"Vector {', '.join(f'c{i}_{v} = 0' for v in range(vectors))};" for i in range(high)
    )
    kept = "\n".join(
        f"*(Vector *)(tile + {i * width + v * lanes}) = c{i}_{v};"
        for i in range(high)
        for v in range(vectors)
    )
    split = "get_global_id(2) / batches"
    return f"""
const int row_first = get_global_id(1) * row_block;
const int row_end = row_first + row_block < rows ? row_first + row_block : rows;
const int panel_first = get_global_id(0) * panel_block;
{batch.begin("get_global_id(2) % batches")}
const int split = {split};
const int chunk_first = split * chunks_per_split;
const int chunk_rest = chunks - chunk_first;
const int chunk_end = chunk_first + (chunk_rest < chunks_per_split ? chunk_rest : chunks_per_split);
const Index from_c = {total("start_c", "split * (Index)size_c", batch.place("c"))};
for (int chunk = chunk_first; chunk < chunk_end; ++chunk) {{
  // The steps of the sum in this chunk: count of the middle digit, all of the inner ones.
  const int middle_first = chunk % parts * part;
  const int count = middle_first + part < middle ? part : middle - middle_first;
  {indented(outer.begin("chunk / parts"), 2).strip()}
  const Index from_a = {total("start_a", batch.place("a"), outer.place("a"))}
      + (Index)middle_first * middle_a;
  const Index done = ((Index)(chunk / parts) * middle + middle_first) * depth;
  const Index from_b = {total("start_b", batch.place("b"), "done * step_b")};
  for (int panel = panel_first; panel < panel_first + panel_block; ++panel) {{
    const int column = panel * {width};
    if (column >= columns) break;
    const int used = columns - column < {width} ? columns - column : {width};
{indented(row.begin("row_first"), 4)}
    for (int row = row_first; row < row_end; row += {high}) {{
      Index to[{high}];
{indented(pointers, 6)}
      const __global {this.number.computed} *bk = b + from_b + (Index)panel * panel_b;
{indented(sums, 6)}
{indented(_loops(this), 6)}
      {this.number.computed} tile[{high * width}];
{indented(kept, 6)}
      for (int i = 0; i < {high} && row + i < row_end; ++i) {{
        {this.number.computed} *sums = tile + i * {width};
        const Index start = to[i];
{indented(_store(this), 8)}
      }}
    }}
  }}
}}
"""


def _loops(this: Structure) -> str:
    """The loops over the steps of a chunk, around the step itself."""
    sizes = ["count", *[f"inner{d}" for d in range(this.inner)]]
    strides = ["middle_a", *[f"inner{d}_a" for d in range(this.inner)]]
    last = len(sizes) - 1
    text, closing, place = "", "", "0"
    for d, (size, stride) in enumerate(zip(sizes[:-1], strides[:-1], strict=True)):
        text += f"Index at{d} = {place};\n"
        text += f"for (int i{d} = 0; i{d} < {size}; ++i{d}, at{d} += {stride}) {{\n"
        closing, place = closing + "}\n", f"at{d}"
    text += f"Index k = {place};\n"
    step = "++k" if this.is_unit else f"k += {strides[last]}"
    text += f"for (int i = 0; i < {sizes[last]}; ++i, {step}) {{\n{indented(_step(this))}\n}}\n"
    return text + closing


def _step(this: Structure) -> str:
    """One step of the sum: every row of the tile times every vector of the panel."""
    high, vectors, lanes = this.tile
    lines = [
        f"const Vector b{v} = *(const __global Vector *)(bk + {v * lanes});" for v in range(vectors)
    ]
    for i in range(high):
        if not this.lanes_move:
            lines.append(f"const {this.number.computed} x{i} = a{i}[k];")
        for v in range(vectors):
            x = f"x{i}"
            if this.lanes_move:
                x = f"*(const __global Vector *)(a{i} + k + {v * lanes})"
            lines.append(f"c{i}_{v} = {x} * b{v} + c{i}_{v};")
    lines.append(f"bk += {vectors * lanes if this.in_panels else 'step_b'};")
    return "\n".join(lines)


def _store(this: Structure) -> str:
    """Takes a row of a tile from `sums` to where it belongs."""
    number = this.number
    each = "for (int n = 0; n < used; ++n)"
    if this.sums_in == "partial":
        return (
            f"if (chunk > chunk_first) {each} sums[n] += c[start + n];\n"
            f"{each} c[start + n] = sums[n];"
        )
    after = statements(this.operations, "start + n", "channel + n")
    lines = [f"{number.computed} value = sums[n];", *after, number.store("value", "c", "start + n")]
    final = f"{each} {{\n" + "\n".join(f"  {line}" for line in lines) + "\n}"
    if any(operation.along == "channel" for operation in this.operations):
        final = f"const int channel = (int)(start % channels);\n{final}"
    if this.sums_in == "registers":
        return final
    return (
        f"if (chunk > chunk_first) {each} sums[n] += {number.load('c', 'start + n')};\n"
        f"if (chunk + 1 < chunk_end) {{\n  {each} {number.store('sums[n]', 'c', 'start + n')}\n"
        f"}} else {{\n{indented(final)}\n}}"
    )
