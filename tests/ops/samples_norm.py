"""Samples for activations, normalization, softmax, cross-entropy and attention."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np

from tests.ops.sampling import Sample, distinct, rngs, samples, shapes, strategy_of


def away_from_kinks(draw: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Values that are not near 0, 6 or any other whole number."""
    rng = draw(rngs())
    return rng.integers(-3, 9, shape) + rng.uniform(0.2, 0.8, shape)


@samples("relu", "relu6", "silu")
def activation(draw: Any, name: str) -> Sample:
    return Sample((away_from_kinks(draw, draw(shapes())),))


@samples("relu_gate")
def relu_gate(draw: Any, name: str) -> Sample:
    shape = draw(shapes())
    other = tuple(1 if draw(st.booleans()) else n for n in shape)
    return Sample((draw(rngs()).normal(size=shape), away_from_kinks(draw, other)))


@samples("leaky_relu")
def leaky_relu(draw: Any, name: str) -> Sample:
    return Sample((away_from_kinks(draw, draw(shapes())),), {"slope": 0.1})


@samples("elu")
def elu(draw: Any, name: str) -> Sample:
    return Sample((away_from_kinks(draw, draw(shapes())),), {"alpha": 1.5})


@samples("gelu")
def gelu(draw: Any, name: str) -> Sample:
    params = {"approximate": draw(st.booleans())}
    return Sample((draw(rngs()).normal(size=draw(shapes())),), params)


@samples("batch_norm")
def batch_norm(draw: Any, name: str) -> Sample:
    rng, shape = draw(rngs()), draw(shapes(min_dims=1))
    vectors = [rng.normal(size=shape[-1:]) for _ in range(3)]
    variance = rng.uniform(0.5, 2, shape[-1:])
    return Sample((rng.normal(size=shape), *vectors, variance), {"eps": 0.25})


@samples("standardize")
def standardize(draw: Any, name: str) -> Sample:
    shape = draw(shapes(min_dims=1, min_side=1))
    axes = draw(st.sets(st.integers(0, len(shape) - 1), min_size=1))
    x = distinct(draw(rngs()), shape)
    return Sample((x,), {"axes": tuple(sorted(axes)), "eps": 0.25})


@samples("local_response_norm", "local_response_norm_grad")
def local_response_norm(draw: Any, name: str) -> Sample:
    rng, shape = draw(rngs()), draw(shapes(min_dims=1, max_side=5))
    params = {
        "size": draw(st.integers(1, 6)),
        "alpha": 0.5,
        "beta": draw(st.sampled_from([0.5, 0.75, 1.0])),
        "k": 1.5,
    }
    count = 1 if name == "local_response_norm" else 2
    return Sample(tuple(rng.normal(size=shape) for _ in range(count)), params)


@samples("softmax", "log_softmax")
def softmax(draw: Any, name: str) -> Sample:
    shape = draw(shapes(min_dims=1, min_side=1))
    axis = draw(st.integers(0, len(shape) - 1))
    return Sample((distinct(draw(rngs()), shape, 0.3),), {"axis": axis})


@samples("softmax_cross_entropy")
def softmax_cross_entropy(draw: Any, name: str) -> Sample:
    lead, classes = draw(shapes(max_dims=2)), draw(st.integers(1, 4))
    rng = draw(rngs())
    dtype = draw(st.sampled_from([np.int32, np.int64, np.uint8]))
    labels = rng.integers(0, classes, lead).astype(dtype)
    return Sample((distinct(rng, (*lead, classes), 0.3), labels))


@samples("attention")
def attention(draw: Any, name: str) -> Sample:
    lead = draw(shapes(max_dims=1, min_side=1, max_side=2))
    queries, keys, d, e = (draw(st.integers(1, 3)) for _ in range(4))
    rng = draw(rngs())
    args = [rng.normal(size=(*lead, *s)) for s in ((queries, d), (keys, d), (keys, e))]
    if draw(st.booleans()):
        args.append(rng.integers(0, 2, (queries, keys)).astype(bool))
    return Sample(tuple(args), {"causal": draw(st.booleans())})


@samples("standardize_across")
def standardize_across(draw: Any, name: str) -> Sample:
    sample = draw(strategy_of("standardize"))
    options = {"size": 1, "bucket_bytes": None}
    return Sample((*sample.args, np.array(True)), {**sample.params, **options})
