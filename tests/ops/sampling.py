"""Samples of valid arguments for every primitive, from which `test_rules.py` tests all their rules.

A family of primitives registers its samples in `samples_<family>.py` with `@samples("name", ...)`
on a hypothesis composite. Floating-point arguments are float64 and lie where the primitive is
smooth, so that finite differences are right there.
"""

from __future__ import annotations

import importlib
import pathlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import hypothesis.strategies as st
import numpy as np


@dataclass
class Sample:
    """Arguments (NumPy arrays) and parameters of one call of a primitive."""

    args: tuple[np.ndarray, ...]
    params: dict[str, Any] = field(default_factory=dict)
    batchable: tuple[bool, ...] | None = None  # which arguments vmap may map; default all


_strategies: dict[str, st.SearchStrategy[Sample]] = {}
_without_floats: set[str] = set()


def samples(*names: str, floats: bool = True) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function (draw, name) -> Sample for the primitives called `names`.

    `floats=False` says that none of their arguments is ever floating-point, so that there is
    nothing to round or differentiate.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            _strategies[name] = st.composite(function)(name)
        if not floats:
            _without_floats.update(names)
        return function

    return register


def strategy_of(name: str) -> st.SearchStrategy[Sample]:
    """The samples of a primitive; KeyError if nobody registered any."""
    return all_strategies()[name]


def all_strategies() -> dict[str, st.SearchStrategy[Sample]]:
    """Samples by the name of the primitive."""
    for path in sorted(pathlib.Path(__file__).parent.glob("samples_*.py")):
        importlib.import_module(f"tests.ops.{path.stem}")
    return _strategies


def has_floats(name: str) -> bool:
    """Whether the primitive's samples have floating-point arguments."""
    return name not in _without_floats


def rngs() -> st.SearchStrategy[np.random.Generator]:
    """A random generator whose seed hypothesis draws."""
    return st.integers(0, 2**32 - 1).map(np.random.default_rng)


def shapes(
    min_dims: int = 0, max_dims: int = 3, min_side: int = 0, max_side: int = 4
) -> st.SearchStrategy[tuple[int, ...]]:
    """Shapes of small arrays, empty ones included unless `min_side` is 1."""
    return st.lists(st.integers(min_side, max_side), min_size=min_dims, max_size=max_dims).map(
        tuple
    )


def distinct(rng: np.random.Generator, shape: tuple[int, ...], gap: float = 0.1) -> np.ndarray:
    """Values in random order that differ by at least `gap`: for functions with a kink where two are
    equal."""
    size = int(np.prod(shape, dtype=int))
    return (rng.permutation(size).reshape(shape) - size / 2 + 0.5) * gap
