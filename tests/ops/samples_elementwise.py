"""Samples for the elementwise table: each line's arguments where it is defined and smooth."""

from __future__ import annotations

from typing import Any

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np

from tensorlite import dtypes
from tensorlite.core import primitives
from tensorlite.ops.broadcasting import BOOLEAN, INTEGER, Elementwise
from tests.ops.sampling import Sample, rngs, samples

# Where each function is smooth; the default is [-2, 2].
DOMAINS: dict[str, tuple[float, float]] = {
    "sqrt": (0.2, 4),
    "rsqrt": (0.2, 4),
    "pow_half": (0.2, 4),
    "log": (0.2, 4),
    "log2": (0.2, 4),
    "log10": (0.2, 4),
    "log1p": (-0.7, 3),
    "asin": (-0.8, 0.8),
    "acos": (-0.8, 0.8),
    "atanh": (-0.8, 0.8),
    "acosh": (1.3, 4),
    "erfinv": (-0.8, 0.8),
    "tan": (-1.2, 1.2),
    "hypot": (0.3, 3),
    "pow": (0.3, 2),
    "atan2": (0.3, 2),
    "reciprocal": (0.3, 3),
}
AWAY_FROM_ZERO = {"abs", "sign", "copysign", "signbit"}
DENOMINATOR = {"divide", "floor_divide", "remainder"}
STEPS = {"floor", "ceil", "trunc", "round"}
TIES = {"maximum", "minimum"}
TABLE = {n: p for n, p in primitives.items() if isinstance(p, Elementwise) and n != "where"}
OF_BITS = [n for n, p in TABLE.items() if p.kinds <= INTEGER | BOOLEAN]


@samples(*[n for n in TABLE if n not in OF_BITS])
def elementwise(draw: Any, name: str) -> Sample:
    shapes = argument_shapes(draw, name)
    rng = draw(rngs())
    low, high = DOMAINS.get(name, (-2, 2))
    args = [rng.uniform(low, high, s) for s in shapes.input_shapes]
    if name in AWAY_FROM_ZERO:
        args = [np.copysign(np.abs(a) + 0.1, a) for a in args]
    if name in STEPS:
        args = [np.trunc(a) + np.copysign(rng.uniform(0.2, 0.4, a.shape), a) for a in args]
    if name in TIES:  # one argument at odd, one at even multiples: never equal, never close
        args = [(2 * rng.integers(-5, 5, a.shape) + i) * 0.25 for i, a in enumerate(args)]
    if name in DENOMINATOR:
        quotient = rng.integers(-3, 3, shapes.result_shape) + rng.uniform(
            0.2, 0.8, shapes.result_shape
        )
        args[1] = np.copysign(np.abs(args[1]) + 0.5, args[1])
        args[0] = quotient * args[1] if shapes.input_shapes[0] == shapes.result_shape else args[0]
        if name != "divide" and shapes.input_shapes[0] != shapes.result_shape:
            args = [quotient * 0.7, np.full(shapes.result_shape, 0.7)]
    return Sample(tuple(args))


@samples(*OF_BITS, floats=False)
def bits(draw: Any, name: str) -> Sample:
    shapes = argument_shapes(draw, name)
    rng = draw(rngs())
    high = 2 if TABLE[name].kinds <= BOOLEAN else 7 if "shift" in name else 100
    dtype = bool if TABLE[name].kinds <= BOOLEAN else np.int64
    return Sample(tuple(rng.integers(0, high, s).astype(dtype) for s in shapes.input_shapes))


def argument_shapes(draw: Any, name: str) -> Any:
    arity = TABLE[name].scalar.__code__.co_argcount - 1
    return draw(
        hnp.mutually_broadcastable_shapes(num_shapes=arity, max_dims=3, max_side=3, min_side=0)
    )


@samples("where")
def where(draw: Any, name: str) -> Sample:
    shapes = draw(
        hnp.mutually_broadcastable_shapes(num_shapes=3, max_dims=3, max_side=3, min_side=0)
    )
    rng = draw(rngs())
    c, x, y = shapes.input_shapes
    return Sample((rng.integers(0, 2, c).astype(bool), rng.normal(size=x), rng.normal(size=y)))


@samples("cast")
def cast(draw: Any, name: str) -> Sample:
    rng = draw(rngs())
    dtype = draw(st.sampled_from([dtypes.float64, dtypes.int32, dtypes.bool_]))
    return Sample(
        (rng.uniform(0.5, 3, draw(hnp.array_shapes(min_dims=0, max_dims=3, max_side=3))),),
        {"dtype": dtype},
    )
