"""The body of a kernel: how the kept points of a nest are given to work-items."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ....compiler.loops import Nest
from ..runtime import Traits
from .analysis import (
    factors_of,
    is_along_memory,
    kept_axes,
    levels_of,
    streamed_outputs,
    used,
)
from .reduce import Accumulator
from .rows import Row
from .scalar import stored_type
from .teams import team_of
from .text import Block, Text

BLOCK = 64  # neighbouring points that a work-item of a CPU takes together
STRIP = 64  # elements that are computed before they are written past the caches
ENOUGH = 1 << 15  # points below which one work-item does it all


class Body:
    """The body of one kernel."""

    def __init__(self, traits: Traits, nest: Nest, numbers: Sequence[int], index: str):
        self.traits, self.on_cpu = traits, traits.kind == "cpu"
        self.nest = nest
        self.numbers = numbers
        self.kept = kept_axes(nest)
        self.stays = nest.kept()
        self.text = Text()
        self.global_size: tuple[int, ...] = (1,)
        self.local_size: tuple[int, ...] | None = None
        self.index = index  # the type of addresses
        self._needed: set[int] = set()

    def reads(self, number: int) -> bool:
        """Whether the kernel reads input `number`."""
        return any(
            (i.op == "load" and i.attribute == number)
            or (i.op == "gather" and i.attribute[0] == number)
            for p, i in enumerate(self.nest.body)
            if p in self._needed
        )

    def compute(self) -> None:
        """Everything: reductions level by level, then the outputs."""
        self._needed = used(self.nest, [o.value for o in self.nest.outputs])
        levels = levels_of(self.nest)
        groups: list[list[Accumulator]] = []
        for number in range(1, max(levels.values(), default=0) + 1):
            chosen = [p for p, n in levels.items() if n == number and p in self._needed]
            groups.append([Accumulator(self.nest, p) for p in chosen])

        def write(block: Block, row: Row) -> None:
            for group in groups:
                row.fold(block, group, None)
            row.outputs(block)

        self._rows(write, shares=1)

    def fold_shares(self, accumulators: Sequence[Accumulator], shares: int) -> None:
        """Fold a share of the reduced space into element `share * points + point` of parts."""
        self._needed = used(self.nest, [a.argument for a in accumulators])
        extent = self.nest.shape[self.kept]
        points = math.prod(self.nest.shape[: self.kept])

        def write(block: Block, row: Row) -> None:
            bounds = (f"share * {extent}L / {shares}", f"(share + 1) * {extent}L / {shares}")
            row.fold(block, accumulators, bounds)
            row.parts(block, accumulators, f"({self.index})share * {points}")

        self._rows(write, shares=shares)

    # ---- how kept points are given to work-items -------------------------------------------------

    def _rows(self, write: Callable[[Block, Row], None], shares: int) -> None:
        nest, kept = self.nest, self.kept
        along = bool(nest.reduced) and is_along_memory(nest)
        lane = kept - 1 if kept and not along else None  # the kept axis along memory
        nowhere = [None] * len(nest.shape)
        block = Block(self.text, nest, nowhere, {}, self.index, factors_of(nest))
        if shares > 1:
            self.text.line("const int share = get_global_id(1);")
        if self.on_cpu:
            self._rows_of_cpu(write, block, lane, shares)
        elif nest.reduced:
            self._teams_of_gpu(write, block, shares)
        else:
            self._points_of_gpu(write, block)

    def _rows_of_cpu(
        self,
        write: Callable[[Block, Row], None],
        block: Block,
        lane: int | None,
        shares: int,
    ) -> None:
        nest, text = self.nest, self.text
        outer = list(range(self.kept if lane is None else lane))
        rows = math.prod(nest.shape[a] for a in outer)
        width = 1 if lane is None else nest.shape[lane]
        has_reductions = bool(nest.reduced)
        step = width if not has_reductions else min(width, BLOCK)
        work = math.prod(nest.shape)
        items = 1 if work * shares < ENOUGH or shares > 1 else 4 * self.traits.units
        chunks = 1
        if rows < items and lane is not None:
            # Few long rows: each is cut into pieces.
            limit = -(-width // 64) if not has_reductions else -(-width // step)
            chunks = min(-(-items // rows), limit)
        teams = min(rows, items)
        self.global_size = (teams * chunks, shares)
        self.local_size = (1, 1)
        start, stop = "0", str(rows)
        if teams > 1 or chunks > 1:
            text.line("const int item = get_global_id(0);")
        team = "item" if chunks == 1 else f"item / {chunks}"
        if teams > 1:
            start, stop = f"({team}) * {rows}L / {teams}", f"(({team}) + 1) * {rows}L / {teams}"
        head = f"for ({self.index} row = {start}; row < {stop}; ++row)" if rows > 1 else ""
        with text.block(head):
            inside = block.inner(self.unravelled("row" if rows > 1 else "0", outer))
            if lane is None:
                write(inside, Row(self, None, ""))
                return
            low, high = "0", str(width)
            if chunks > 1:
                part = f"item % {chunks}"
                pieces = -(-width // 16)
                low = self._least(f"({part}) * {pieces}L / {chunks} * 16", width)
                high = self._least(f"(({part}) + 1) * {pieces}L / {chunks} * 16", width)
            if not has_reductions:
                if chunks > 1:
                    text.line(f"const {self.index} low = {low}, high = {high};")
                    low, high = "low", "high"
                if streamed := streamed_outputs(nest):
                    self._strips(inside, lane, (low, high), streamed)
                    return
                with text.vector_loop(f"for ({self.index} i = {low}; i < {high}; ++i)"):
                    Row(self, None, "").outputs(inside.inner({lane: "i"}))
                return
            with text.block(f"for ({self.index} first = {low}; first < {high}; first += {step})"):
                text.line(f"const int count = {self._least(f'{high} - first', step)};")
                write(inside, Row(self, lane, str(step)))

    def _strips(
        self, block: Block, lane: int, bounds: tuple[str, str], streamed: Sequence[int]
    ) -> None:
        """A loop along `lane` by vectors, whose outputs `streamed` are written past the caches."""
        text, nest, (low, high) = self.text, self.nest, bounds
        text.line(f"{self.index} first = {low};")
        with text.block(f"for (; first + {STRIP} <= {high}; first += {STRIP})"):
            types = {n: stored_type(nest.outputs[n].operand.dtype) for n in streamed}
            for n, of_element in types.items():
                text.line(f"{of_element} strip{n}[{STRIP}] __attribute__((aligned(128)));")
            # A compiler that first unrolls the loop does not find the vectors again.
            hints = "vectorize_width(16) interleave_count(2) unroll(disable)"
            with text.vector_loop(f"for (int j = 0; j < {STRIP}; ++j)", hints):
                point = block.inner({lane: "first + j"})
                for n in range(len(nest.outputs)):
                    point.store(n, f"strip{n}[j]" if n in streamed else None)
            start = block.inner({lane: "first"})
            for n, of_element in types.items():
                place = f"out{n} + {start.address(nest.outputs[n].operand)}"
                for at in range(0, STRIP, 16):
                    value = f"*({of_element}16 *)(strip{n} + {at})"
                    text.line(f"stream({value}, (__global {of_element}16 *)({place} + {at}));")
        with text.block(f"for (; first < {high}; ++first)"):
            Row(self, None, "").outputs(block.inner({lane: "first"}))

    def _points_of_gpu(self, write: Callable[[Block, Row], None], block: Block) -> None:
        points = math.prod(self.nest.shape[: self.kept])
        size = min(self.traits.max_work_group, 256)
        self.global_size = (-(-points // size) * size,)
        self.local_size = (size,)
        self.text.line(f"const {self.index} point = get_global_id(0);")
        self.text.line(f"if (point >= {points}) return;")
        write(block.inner(self.unravelled("point", range(self.kept))), Row(self, None, ""))

    def _teams_of_gpu(self, write: Callable[[Block, Row], None], block: Block, shares: int) -> None:
        team = team_of(self.traits, self.nest)
        self.global_size = (team.groups * team.size, shares)
        self.local_size = (team.size, 1)
        team.begin(self.text, self.index)
        inside = block.inner(self.unravelled("point", range(self.kept)))
        write(inside, Row(self, None, "", team))

    def _least(self, number: str, most: int) -> str:
        """The smaller of both, as an index; an int would not hold numbers of large nests."""
        return f"min(({self.index})({number}), ({self.index}){most})"

    def unravelled(self, linear: str, axes: Sequence[int]) -> dict[int, str]:
        """The indices along `axes` of a point counted in row-major order."""
        result: dict[int, str] = {}
        step = 1
        for axis in reversed(axes):
            n = self.nest.shape[axis]
            part = linear if step == 1 else f"{linear} / {step}"
            result[axis] = part if axis == axes[0] else f"{part} % {n}"
            step *= n
        for axis in axes:
            if result[axis] not in (linear, "0"):
                name = f"k{axis}"
                self.text.line(f"const {self.index} {name} = {result[axis]};")
                result[axis] = name
        return result
