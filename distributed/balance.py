"""How large each worker's part of a global batch is: all alike, or in proportion to speed.

Where some workers have an accelerator and others a processor, equal parts would let the fast ones
wait. So all workers measure how many rows a second they compute, tell each other now and then, and
from the same numbers draw the same conclusion. A batch has the same rows in the same order however
it is cut, and every row counts alike, so that the training is the same up to rounding."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

import tensorlite as tl

from .collectives import all_gather
from .worker import Worker

FIRST_LOOK, LOOK_STEPS = 8, 50  # steps after which speeds are compared, and how often from then on
WORTH = 1.1  # new parts are compiled anew; they shall make a step faster by this factor


@dataclasses.dataclass
class Spent:
    """What one worker has done: rows, and the seconds without those it waited for others."""

    rows: float = 0.0
    seconds: float = 0.0


class Parts:
    """The parts of a batch, by rank. All workers change them after the same step.

    Args:
        balanced: in proportion to speed; else they are alike for ever.
    """

    def __init__(self, worker: Worker, balanced: bool):
        self._worker = worker
        self._balanced = balanced and worker.size > 1
        self._speeds = np.ones(worker.size)
        self._steps = 0
        self._since = Spent()

    def bounds(self, rows: int) -> tuple[int, int]:
        """Which of `rows` rows this worker has: the first, and the one after the last."""
        ends = np.cumsum(cut(rows, self._speeds))
        rank = self._worker.rank
        return int(ends[rank - 1]) if rank else 0, int(ends[rank])

    def after_step(self, spent: Spent) -> None:
        """Look at the speeds where that is due; every worker must call it after every step.

        Args:
            spent: by this worker, since the beginning.
        """
        if not self._balanced:
            return
        self._steps += 1
        if self._steps != FIRST_LOOK and self._steps % LOOK_STEPS:
            return
        own = [spent.rows - self._since.rows, spent.seconds - self._since.seconds]
        everyone = np.asarray(all_gather(tl.asarray(np.asarray(own, np.float64))))
        self._since = dataclasses.replace(spent)
        rows, seconds = everyone.T
        if (rows > 0).all() and (seconds > 0).all():
            speeds = rows / seconds
            if seconds.max() > WORTH * rows.sum() / speeds.sum():
                self._speeds = speeds


def cut(rows: int, speeds: Sequence[float] | np.ndarray) -> list[int]:
    """`rows` rows in proportion to `speeds`: each part is rounded down or up, and has a row at
    least if there are enough of them."""
    speeds = np.asarray(speeds, np.float64)
    if (speeds == speeds[0]).all():
        return np.diff(rows * np.arange(len(speeds) + 1) // len(speeds)).tolist()
    exact = rows * speeds / speeds.sum()
    sizes = np.floor(exact).astype(int)
    # Those that lose most by it get what rounding down has left over, the first ones of equals.
    for rank in np.argsort(sizes - exact, kind="stable")[: rows - sizes.sum()]:
        sizes[rank] += 1
    if rows >= len(sizes):
        for rank in np.flatnonzero(sizes == 0):
            sizes[np.argmax(sizes)] -= 1
            sizes[rank] = 1
    return sizes.tolist()
