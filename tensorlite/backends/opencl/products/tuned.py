"""Which tile a device uses for a problem."""

from __future__ import annotations

from ..runtime import Traits
from .blocks import Block
from .problem import Problem
from .tiles import Tile


def chosen(traits: Traits, problem: Problem) -> Tile | Block:
    if traits.kind != "cpu":
        return Block()
    return Tile(5, 2, 8)
