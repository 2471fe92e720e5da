"""Samples for sorting and running products."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np

from tests.ops.sampling import Sample, distinct, rngs, samples, shapes


@samples("sort", "argsort")
def order(draw: Any, name: str) -> Sample:
    shape = draw(shapes(min_dims=1))
    params = {"axis": draw(st.integers(0, len(shape) - 1)), "descending": draw(st.booleans())}
    return Sample((distinct(draw(rngs()), shape),), params)


@samples("searchsorted")
def searchsorted(draw: Any, name: str) -> Sample:
    stack = draw(shapes(max_dims=1, min_side=1))
    rng = draw(rngs())
    size = draw(st.integers(0, 5))
    ordered = np.sort(rng.choice(np.arange(-8.0, 8.0), (*stack, size)), axis=-1)
    values = rng.choice(np.arange(-8.0, 8.0), (*stack, *draw(shapes(max_dims=2)))) + 0.5
    side = draw(st.sampled_from(["left", "right"]))
    return Sample((ordered, values), {"side": side, "stacked": len(stack)}, (False, True))


@samples("cumulative_product")
def cumulative_product(draw: Any, name: str) -> Sample:
    shape = draw(shapes(min_dims=1))
    values = draw(rngs()).integers(-2, 3, shape) * 0.5  # zeros too
    return Sample((values,), {"axis": draw(st.integers(0, len(shape) - 1))})
