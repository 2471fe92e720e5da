"""Which tile a device uses for a problem."""

from __future__ import annotations

from ..runtime import Traits
from .blocks import Block
from .problem import Problem
from .tiles import Tile


def chosen(traits: Traits, problem: Problem) -> Tile | Block:
    """The blocks of a GPU, or a tile of five rows and two vectors of eight on a CPU."""
    if traits.kind != "cpu":
        return Block()
    return Tile(5, 2, 8)
