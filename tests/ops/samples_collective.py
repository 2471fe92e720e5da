"""Samples for collectives, in a world of one: tests of the rules in larger worlds are in
`test_collective.py`."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st

from tests.ops.sampling import Sample, rngs, samples, shapes


@samples("all_reduce")
def all_reduce(draw: Any, name: str) -> Sample:
    op = draw(st.sampled_from(["sum", "mean", "max", "min"]))
    x = draw(rngs()).normal(size=draw(shapes()))
    return Sample((x,), {"op": op, "size": 1, "bucket_bytes": None, "wire": None})


@samples("all_gather")
def all_gather(draw: Any, name: str) -> Sample:
    return Sample((draw(rngs()).normal(size=draw(shapes())),), {"size": 1})


@samples("reduce_scatter")
def reduce_scatter(draw: Any, name: str) -> Sample:
    op = draw(st.sampled_from(["sum", "mean", "max", "min"]))
    x = draw(rngs()).normal(size=draw(shapes(min_dims=1)))
    return Sample((x,), {"op": op, "size": 1})
