"""What happens at a kept point of a nest, or at some neighbours: folds over the reduced axes, then
outputs."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ....compiler.loops import Operand, row_major
from .analysis import is_along_memory, written_once
from .reduce import Accumulator
from .teams import Team
from .text import Block

if TYPE_CHECKING:
    from .kernel import Body

LANES = 16  # accumulators of a row on a CPU
Bounds = tuple[str, str]  # of the first reduced axis


class Row:
    """What happens at kept points that are computed together: one, or `lane` neighbours.

    Args:
        lane: the kept axis along which there are several, or None.
        width: how many, as text.
        team: the work-items that share the point, on a GPU; None where one has it for itself.
    """

    def __init__(self, kernel: Body, lane: int | None, width: str, team: Team | None = None):
        self.kernel = kernel
        self.text = kernel.text
        self.lane = lane
        self.width = width
        self.team = team

    def fold(
        self,
        block: Block,
        accumulators: Sequence[Accumulator],
        bounds: Bounds | None,
    ) -> None:
        """Compute reductions, whose values `block` has afterwards. `bounds` limit the first reduced
        axis."""
        if not accumulators:
            return
        if self.lane is not None:
            self._fold_lanes(block, accumulators, bounds)
        elif self.team is not None:
            self._fold_team(self.team, block, accumulators, bounds)
        else:
            self._fold_row(block, accumulators, bounds)

    def _fold_lanes(
        self,
        block: Block,
        accumulators: Sequence[Accumulator],
        bounds: Bounds | None,
    ) -> None:
        text, kernel = self.text, self.kernel
        for a in accumulators:
            a.declare_array(text, self.width)
        with text.block("for (int j = 0; j < count; ++j)"):
            for a in accumulators:
                a.reset(text, "[j]")
        with self._reduced_loops(block, bounds, skip_last=False) as inside, self._each_lane() as at:
            point = inside.inner(at, self._lane_values(block))
            for a in accumulators:
                a.add(text, "[j]", a.taken_from(point), kernel, point)
        block.values.update({a.position: f"{a.outcome}[j]" for a in accumulators})

    def _lane_values(self, block: Block) -> dict[int, str]:
        return {p: name for p, name in block.values.items() if name.endswith("[j]")}

    def _fold_row(
        self,
        block: Block,
        accumulators: Sequence[Accumulator],
        bounds: Bounds | None,
    ) -> None:
        text, kernel, nest = self.text, self.kernel, self.kernel.nest
        self._hoist(block, [a.argument for a in accumulators])
        last = len(nest.shape) - 1
        low, high = ("0", str(nest.shape[last]))
        if bounds is not None and last == kernel.kept:
            low, high = bounds
        size = nest.shape[last]
        wide = kernel.on_cpu and size >= 2 * LANES and is_along_memory(nest)
        if not wide:
            for a in accumulators:
                a.declare(text)
                a.reset(text, "")
            with self._reduced_loops(block, bounds, skip_last=False) as point:
                for a in accumulators:
                    a.add(text, "", a.taken_from(point), kernel, point)
            block.values.update({a.position: a.outcome for a in accumulators})
            return
        for a in accumulators:
            a.declare_array(text, str(LANES))
        with text.block(f"for (int j = 0; j < {LANES}; ++j)"):
            for a in accumulators:
                a.reset(text, "[j]")
        with self._reduced_loops(block, bounds, skip_last=True) as inside:
            text.line(f"{kernel.index} i{last} = {low};")
            whole = f"for (; i{last} + {LANES} <= {high}; i{last} += {LANES})"
            lanes = f"for (int j = 0; j < {LANES}; ++j)"
            with text.block(whole), text.vector_loop(lanes):
                point = inside.inner({last: f"i{last} + j"})
                for a in accumulators:
                    a.add(text, "[j]", a.taken_from(point), kernel, point)
            if bounds is not None or size % LANES:
                with text.block(f"for (; i{last} < {high}; ++i{last})"):
                    point = inside.inner({last: f"i{last}"})
                    for a in accumulators:
                        a.add(text, "[0]", a.taken_from(point), kernel, point)
        for half in (8, 4, 2, 1):
            with text.block(f"for (int j = 0; j < {half}; ++j)"):
                for a in accumulators:
                    a.merge(text, "[j]", f"[j + {half}]")
        block.values.update({a.position: f"{a.outcome}[0]" for a in accumulators})

    def _fold_team(
        self,
        team: Team,
        block: Block,
        accumulators: Sequence[Accumulator],
        bounds: Bounds | None,
    ) -> None:
        text, kernel = self.text, self.kernel
        self._hoist(block, [a.argument for a in accumulators])
        for a in accumulators:
            a.declare(text)
            a.reset(text, "")
        with self._member_loop(team, block, bounds) as point:
            for a in accumulators:
                a.add(text, "", a.taken_from(point), kernel, point)
        team.merge(text, accumulators)
        block.values.update({a.position: a.outcome for a in accumulators})

    def _hoist(self, block: Block, positions: Sequence[int]) -> None:
        """Write what is the same in all rounds of a loop in front of it."""
        nest, stays = self.kernel.nest, self.kernel.stays
        seen: set[int] = set()

        def visit(position: int) -> None:
            if position in seen or position in block.values:
                return
            seen.add(position)
            instruction = nest.body[position]
            if stays[position] and instruction.op != "reduce":
                block.value(position)
                return
            for argument in instruction.args:
                visit(argument)

        for position in positions:
            visit(position)

    def outputs(self, block: Block) -> None:
        """Write the outputs of this row."""
        nest = self.kernel.nest
        numbers = range(len(nest.outputs))
        if not nest.reduced:
            for number in numbers:
                block.store(number)
            return
        is_once = written_once(nest)
        once = [n for n in numbers if is_once[n]]
        each = [n for n in numbers if not is_once[n]]
        if once and self.lane is not None:
            with self._each_lane() as at:
                point = block.inner(at, self._lane_values(block))
                for number in once:
                    point.store(number)
        elif once and self.team is not None:
            with self.text.block(self.team.leads):
                point = block.inner({})
                for number in once:
                    point.store(number)
        elif once:
            for number in once:
                block.store(number)
        if not each:
            return
        if self.lane is not None:
            with self._reduced_loops(block, None, skip_last=False) as row, self._each_lane() as at:
                point = row.inner(at, self._lane_values(block))
                for number in each:
                    point.store(number)
            return
        self._hoist(block, [nest.outputs[n].value for n in each])
        if self.team is not None:
            guard = self.text.block("" if self.team.is_whole else "if (exists)")
            with guard, self._member_loop(self.team, block, None) as point:
                for number in each:
                    point.store(number)
            return
        last = len(nest.shape) - 1
        with self._reduced_loops(block, None, skip_last=True) as row:
            index, size = self.kernel.index, nest.shape[last]
            with self.text.vector_loop(f"for ({index} i = 0; i < {size}; ++i)"):
                point = row.inner({last: "i"})
                for number in each:
                    point.store(number)

    def parts(self, block: Block, accumulators: Sequence[Accumulator], start: str) -> None:
        """Write the accumulators to the temporaries, from element `start` on."""
        kernel = self.kernel
        kept = kernel.kept
        strides = (*row_major(kernel.nest.shape[:kept]), *([0] * len(kernel.nest.reduced)))

        def write(point: Block, place: str) -> None:
            number = 0
            for a in accumulators:
                where = point.address(Operand(a.dtype, strides))
                for name in a.names:
                    # What was folded by lanes has been merged into the first one.
                    self.text.line(f"part{number}[{start} + {where}] = {name}{place};")
                    number += 1

        if self.lane is not None:
            with self._each_lane() as at:
                write(block.inner(at), "[j]")
        elif self.team is not None:
            with self.text.block(self.team.leads):
                write(block.inner({}), "")
        else:
            name = block.values[accumulators[0].position]
            write(block, "[0]" if name.endswith("[0]") else "")

    # ---- loops -----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _each_lane(self) -> Iterator[dict[int, str]]:
        """A loop over neighbouring kept points."""
        assert self.lane is not None
        with self.text.vector_loop("for (int j = 0; j < count; ++j)"):
            yield {self.lane: "first + j"}

    @contextlib.contextmanager
    def _reduced_loops(
        self, block: Block, bounds: Bounds | None, *, skip_last: bool
    ) -> Iterator[Block]:
        """Loops over the reduced axes, the last one left out if it is run by hand."""
        kernel = self.kernel
        places: dict[int, str] = {}
        with contextlib.ExitStack() as opened:
            for axis in kernel.nest.reduced[: -1 if skip_last else None]:
                low, high = "0", str(kernel.nest.shape[axis])
                if bounds is not None and axis == kernel.kept:
                    low, high = bounds
                places[axis] = f"i{axis}"
                head = f"for ({kernel.index} i{axis} = {low}; i{axis} < {high}; ++i{axis})"
                opened.enter_context(self.text.block(head))
            if not places:
                opened.enter_context(self.text.block(""))
            yield block.inner(places)

    @contextlib.contextmanager
    def _member_loop(self, team: Team, block: Block, bounds: Bounds | None) -> Iterator[Block]:
        """A loop over the reduced space in steps of a team."""
        kernel, nest = self.kernel, self.kernel.nest
        low, high = bounds or ("0", str(nest.shape[kernel.kept]))
        rest = math.prod(nest.shape[kernel.kept + 1 :])
        first, end = (f"({kernel.index})({bound}) * {rest}" for bound in (low, high))
        start = f"{kernel.index} r = {first} + member"
        with self.text.block(f"for ({start}; r < {end}; r += {team.members})"):
            yield block.inner(kernel.unravelled("r", nest.reduced))
