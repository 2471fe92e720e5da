"""Rendered nests against the reference: shapes, strides, reduced axes, dtypes, mixes of
instructions."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorlite.compiler.loops import Nest, Operand, Output, Recorder, Scalar, Scalars
from tests.backends.nests.runners import Run, each
from tests.compiler import nests as reference

FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)
FLOAT16, BFLOAT16 = np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)
GUARD = 256  # elements
BOOL, INT32, INT64 = np.dtype(np.bool_), np.dtype(np.int32), np.dtype(np.int64)


def buffer(rng: np.random.Generator, size: int, dtype: np.dtype[Any]) -> np.ndarray:
    if dtype == BOOL:
        return rng.random(size) < 0.5
    if dtype.kind in "iu":
        return rng.integers(-5 if dtype.kind == "i" else 0, 6, size).astype(dtype)
    return rng.standard_normal(size).astype(dtype)


def extent(operand: Operand, shape: tuple[int, ...]) -> int:
    moves = [s * (n - 1) for s, n in zip(operand.strides, shape, strict=True) if s > 0]
    return operand.offset + sum(moves) + 1 if 0 not in shape else 1


def check(run_nest: Run, nest: Nest, seed: int = 0, inputs: list[np.ndarray] | None = None) -> None:
    rng = np.random.default_rng(seed)
    if inputs is None:
        inputs = [buffer(rng, extent(o, nest.shape), o.dtype) for o in nest.inputs]
    # What lies around a buffer must not be touched.
    sizes = [extent(o.operand, nest.shape) for o in nest.outputs]
    padded = [
        np.full(n + 2 * GUARD, 1, o.operand.dtype) for n, o in zip(sizes, nest.outputs, strict=True)
    ]
    made = [p[GUARD:-GUARD] for p in padded]
    wanted = [m.copy() for m in made]
    run_nest(nest, inputs, made)
    reference.run(nest, inputs, wanted)
    for buffer_ in padded:
        around = np.concatenate([buffer_[:GUARD], buffer_[-GUARD:]])
        assert (around == np.ones((), around.dtype)).all(), f"wrote out of bounds: {nest}"
    for i, (got, want) in enumerate(zip(made, wanted, strict=True)):
        if want.dtype in (FLOAT16, BFLOAT16):
            tolerance = 2e-3 if want.dtype == FLOAT16 else 1.6e-2
            got, want = got.astype(np.float32), want.astype(np.float32)
            np.testing.assert_allclose(got, want, rtol=tolerance, atol=1e-3, err_msg=str(nest))
        elif want.dtype.kind == "f":
            tolerance = 2e-5 if want.dtype == FLOAT32 else 1e-12
            np.testing.assert_allclose(
                got, want, rtol=tolerance, atol=tolerance, err_msg=f"output {i} of {nest}"
            )
        else:
            np.testing.assert_array_equal(got, want, err_msg=f"output {i} of {nest}")


def strided(shape: tuple[int, ...], axes: list[int], kept: set[int]) -> tuple[int, ...]:
    """Strides of a buffer over the axes `kept`, laid out in the order `axes`."""
    strides, step = [0] * len(shape), 1
    for axis in reversed(axes):
        if axis in kept and shape[axis] > 1:
            strides[axis] = step
            step *= shape[axis]
    return tuple(strides)


UNARY = ("negative", "abs", "exp", "tanh", "sqrt", "floor", "sign")
BINARY = ("add", "subtract", "multiply", "max", "min", "divide")


@st.composite
def nests(draw: st.DrawFn) -> Nest:
    rank = draw(st.integers(0, 4))
    sizes = st.sampled_from([1, 2, 3, 5, 8, 16, 17, 33, 40, 64, 70])
    shape = tuple(draw(st.lists(sizes, min_size=rank, max_size=rank)))
    while math.prod(shape) > 40000:
        shape = (*shape[:-1], 2) if shape[-1] > 2 else (2, *shape[1:-1], 1)
    axes = list(range(rank))
    reduced = tuple(a for a in axes if draw(st.booleans())) if draw(st.booleans()) else ()
    dtype = draw(st.sampled_from([FLOAT32, FLOAT32, FLOAT64, FLOAT16, BFLOAT16]))
    recorder = Recorder()
    inputs = []
    for i in range(draw(st.integers(1, 3))):
        kept = set(axes) if i == 0 else {a for a in axes if draw(st.booleans())}
        order = draw(st.permutations(axes)) if draw(st.booleans()) else axes
        inputs.append(Operand(dtype, strided(shape, list(order), kept), draw(st.integers(0, 3))))
    values: list[Scalar] = [recorder.emit("load", (), dtype, i) for i in range(len(inputs))]
    k: Any = Scalars(recorder)
    for _ in range(draw(st.integers(1, 5))):
        kind = draw(st.sampled_from(["unary", "binary", "reduce", "where", "index"]))
        x, y = draw(st.sampled_from(values)), draw(st.sampled_from(values))
        if kind == "unary":
            op = draw(st.sampled_from(UNARY))
            values.append(getattr(k, op)(k.min(k.abs(x), 4.0) if op in ("sqrt", "exp") else x))
        elif kind == "binary":
            op = draw(st.sampled_from(BINARY))
            y = k.abs(y) + 1.0 if op == "divide" else y
            values.append(recorder.emit(op, (x, y), dtype))
        elif kind == "reduce" and reduced:
            op = draw(st.sampled_from(["sum", "max", "min"]))
            x = k.min(k.max(x, -2.0), 2.0)
            wide = FLOAT32 if dtype in (FLOAT16, BFLOAT16) and op == "sum" else dtype
            scaled = recorder.emit("reduce", (x,), dtype, op)
            del wide
            values.append(scaled * (1.0 / math.prod(shape[a] for a in reduced)))
        elif kind == "where":
            values.append(k.where(x < y, x, y * 0.5))
        elif kind == "index" and rank:
            index = recorder.emit("index", (), INT64, draw(st.integers(0, rank - 1)))
            values.append(x + recorder.cast(index, dtype) * 0.125)
    body = tuple(recorder.body)
    still = Nest(shape, reduced, tuple(inputs), body, ()).kept()
    outputs = []
    for value in values[-draw(st.integers(1, 2)) :]:
        kept = {a for a in axes if not (still[value.position] and a in reduced)}
        order = draw(st.permutations(axes)) if draw(st.booleans()) else axes
        outputs.append(Output(value.position, Operand(dtype, strided(shape, list(order), kept))))
    return Nest(shape, reduced, tuple(inputs), body, tuple(outputs))


@each
def test_one_value_for_all_reduced_points(run_nest: Run) -> None:
    """It looks as if it moved along an axis, but that has one point; its output has two."""
    recorder = Recorder()
    x = recorder.emit("load", (), FLOAT32, 0)
    index = recorder.cast(recorder.emit("index", (), INT64, 0), FLOAT32)
    total = recorder.emit("reduce", (x,), FLOAT32, "sum")
    nest = Nest(
        (1, 2),
        (0, 1),
        (Operand(FLOAT32, (0, 0)),),
        tuple(recorder.body),
        (
            Output((index + x).position, Operand(FLOAT32, (0, 1))),
            Output(total.position, Operand(FLOAT32, (0, 0))),
        ),
    )
    check(run_nest, nest._replace(body=tuple(recorder.body)))


@each
@settings(max_examples=60, deadline=None)
@given(nest=nests())
def test_like_the_reference(run_nest: Run, nest: Nest) -> None:
    check(run_nest, nest)
