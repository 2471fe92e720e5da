"""Samples for creation, shape, reduction, matrix, indexing and control primitives."""

from __future__ import annotations

from typing import Any

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np

import tensorlite as tl
from tests.ops.sampling import Sample, distinct, rngs, samples, shapes


def normal(draw: Any, shape: tuple[int, ...]) -> np.ndarray:
    return draw(rngs()).normal(size=shape)


def some_axes(draw: Any, ndim: int) -> tuple[int, ...]:
    return tuple(sorted(draw(st.sets(st.integers(0, ndim - 1))))) if ndim else ()


@samples("full", floats=False)
def full(draw: Any, name: str) -> Sample:
    device = tl.devices()[0]
    return Sample(
        (),
        {
            "shape": draw(shapes()),
            "dtype": tl.float32,
            "value": draw(st.integers(-3, 3)),
            "device": device,
        },
    )


@samples("iota", floats=False)
def iota(draw: Any, name: str) -> Sample:
    shape = draw(shapes(min_dims=1))
    axis = draw(st.integers(0, len(shape) - 1))
    return Sample((), {"shape": shape, "dtype": tl.int32, "axis": axis, "device": tl.devices()[0]})


@samples("reshape")
def reshape(draw: Any, name: str) -> Sample:
    shape = draw(shapes(max_side=3))
    target = tuple(draw(st.permutations((*shape, 1))))
    return Sample((normal(draw, shape),), {"shape": target})


@samples("permute")
def permute(draw: Any, name: str) -> Sample:
    shape = draw(shapes())
    return Sample((normal(draw, shape),), {"axes": tuple(draw(st.permutations(range(len(shape)))))})


@samples("broadcast")
def broadcast(draw: Any, name: str) -> Sample:
    result = draw(shapes())
    kept = draw(st.integers(0, len(result)))
    source = tuple(1 if draw(st.booleans()) else n for n in result[len(result) - kept :])
    return Sample((normal(draw, source),), {"shape": result})


@samples("sum", "flip")
def over_axes(draw: Any, name: str) -> Sample:
    shape = draw(shapes())
    return Sample((normal(draw, shape),), {"axes": some_axes(draw, len(shape))})


@samples("reduce_max", "reduce_min")
def extremum(draw: Any, name: str) -> Sample:
    shape = draw(shapes(min_side=1))
    return Sample((distinct(draw(rngs()), shape),), {"axes": some_axes(draw, len(shape))})


@samples("reduce_all", "reduce_any", floats=False)
def logical(draw: Any, name: str) -> Sample:
    shape = draw(shapes())
    values = draw(rngs()).integers(0, 2, shape).astype(bool)
    return Sample((values,), {"axes": some_axes(draw, len(shape))})


@samples("argmax", "argmin", "prod", "cumulative_sum")
def along_axis(draw: Any, name: str) -> Sample:
    shape = draw(shapes(min_dims=1, min_side=1))
    values = distinct(draw(rngs()), shape, 0.3)
    return Sample((values,), {"axis": draw(st.integers(0, len(shape) - 1))})


@samples("pad")
def pad(draw: Any, name: str) -> Sample:
    shape = draw(shapes())
    amount = st.integers(0, 2)
    config = tuple((draw(amount), draw(amount), draw(amount)) for _ in shape)
    return Sample(
        (normal(draw, shape),), {"config": config, "value": draw(st.sampled_from([0, 1.5]))}
    )


@samples("slice")
def slice_(draw: Any, name: str) -> Sample:
    shape = draw(shapes())
    limits = []
    for n in shape:
        start = draw(st.integers(0, n))
        limits.append((start, draw(st.integers(start, n)), draw(st.integers(1, 3))))
    return Sample((normal(draw, shape),), {"limits": tuple(limits)})


@samples("concat")
def concat(draw: Any, name: str) -> Sample:
    shape = draw(shapes(min_dims=1))
    axis = draw(st.integers(0, len(shape) - 1))
    sizes = draw(st.lists(st.integers(0, 3), min_size=1, max_size=3))
    parts = [normal(draw, (*shape[:axis], n, *shape[axis + 1 :])) for n in sizes]
    return Sample(tuple(parts), {"axis": axis})


@samples("matmul")
def matmul(draw: Any, name: str) -> Sample:
    batch = draw(
        hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=2, max_side=3, min_side=0)
    )
    m, k, n = (draw(st.integers(0, 3)) for _ in range(3))
    left, right = batch.input_shapes
    return Sample((normal(draw, (*left, m, k)), normal(draw, (*right, k, n))))


def indices(draw: Any, shape: tuple[int, ...], unique: bool) -> list[np.ndarray]:
    """Index arrays for the first axes of an array of `shape`, from the end of an axis too."""
    count = draw(st.integers(1, len(shape)))
    places = int(np.prod(shape[:count]))
    rng = draw(rngs())
    if unique:
        flat = rng.permutation(places)[: draw(st.integers(0, places))]
    else:
        flat = rng.integers(0, places, draw(shapes(max_dims=2, max_side=3)))
    found = np.unravel_index(flat, shape[:count])
    return [
        np.where(rng.integers(0, 2, i.shape) == 1, i - n, i)
        for i, n in zip(found, shape, strict=False)
    ]


@samples("gather")
def gather(draw: Any, name: str) -> Sample:
    shape = draw(shapes(min_dims=1, min_side=1))
    return Sample((normal(draw, shape), *indices(draw, shape, unique=False)))


@samples("scatter")
def scatter(draw: Any, name: str) -> Sample:
    mode = draw(st.sampled_from(["add", "set", "multiply", "min", "max"]))
    shape = draw(shapes(min_dims=1, min_side=1))
    index = indices(draw, shape, unique=mode in ("multiply", "set"))
    updates = index[0].shape + shape[len(index) :]
    rng = draw(rngs())
    base = distinct(rng, shape, 0.2) + 0.05  # never equal to an update: extrema are smooth
    return Sample((base, distinct(rng, updates, 0.2), *index), {"mode": mode})


@samples("stop_gradient")
def stop_gradient(draw: Any, name: str) -> Sample:
    return Sample((normal(draw, draw(shapes())),))


@samples("optimization_barrier")
def barrier(draw: Any, name: str) -> Sample:
    return Sample(tuple(normal(draw, draw(shapes())) for _ in range(draw(st.integers(1, 3)))))
