"""Every primitive x every rule, on samples drawn by hypothesis.

The walk covers the whole registry: a primitive without samples, or without a rule that it should
have, fails.
"""

from __future__ import annotations

import itertools
from typing import Any

import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings

import tensorlite as tl
import tensorlite.distributed  # registers the primitives of the whole project
from tensorlite import dtypes
from tensorlite.composite import Composite
from tensorlite.core import Aval, bind, primitives
from tensorlite.ops.broadcasting import Elementwise
from tests.ops.sampling import Sample, all_strategies, has_floats, strategy_of

# Primitives that take graphs, devices or functions as parameters: their rules are tested where they
# live.
ELSEWHERE = {"call", "checkpoint", "transfer", "cond", "while_loop", "scan"}
NAMES = sorted(set(primitives) - ELSEWHERE)
SAMPLED = all_strategies()
FLOATING = [n for n in NAMES if has_floats(n)]
SMOOTH = [n for n in FLOATING if primitives[n].differentiable]
rules = settings(
    max_examples=12, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


def tensors(arrays: Any) -> list[tl.Tensor]:
    return [tl.asarray(a) for a in arrays]


def as_tuple(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


def run(name: str, args: Any, params: dict[str, Any]) -> tuple[tl.Tensor, ...]:
    return as_tuple(bind(primitives[name], *args, **params))


def close(a: Any, b: Any, rtol: float = 1e-9, atol: float = 1e-9) -> None:
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape
    np.testing.assert_allclose(a.astype(np.float64), b.astype(np.float64), rtol=rtol, atol=atol)


def draw_sample(data: Any, name: str) -> Sample:
    return data.draw(strategy_of(name), label=name)


@pytest.mark.parametrize("name", NAMES)
def test_every_primitive_has_its_rules(name: str) -> None:
    prim = primitives[name]
    composite = isinstance(prim, Composite)
    assert name in SAMPLED, f"no samples for {name}: add them to tests/ops/samples_*.py"
    assert composite or isinstance(prim, Elementwise) or prim.shape_rule, "no shape rule"
    assert composite or prim.numpy_rule, "no NumPy rule"
    assert composite or not prim.differentiable or prim.vjp_rule or prim.fwd_rule, "no derivative"
    creation = name in {"full", "iota"}  # no arguments, so nothing to batch
    assert composite or creation or prim.batch_rule, "no batching rule"


@pytest.mark.parametrize("name", NAMES)
@rules
@given(data=st.data())
def test_shape_rule_agrees_with_the_result(name: str, data: Any) -> None:
    sample = draw_sample(data, name)
    args = tensors(sample.args)
    expected = primitives[name].abstract(*[a.aval for a in args], **sample.params)
    assert [o.aval for o in run(name, args, sample.params)] == _avals(expected)
    for arg, given_ in zip(args, sample.args, strict=True):
        np.testing.assert_array_equal(arg.numpy(), given_, err_msg="an argument was written to")


@pytest.mark.parametrize("name", [n for n in NAMES if isinstance(primitives[n], Composite)])
@rules
@given(data=st.data())
def test_what_a_composite_overrides_agrees_with_its_body(name: str, data: Any) -> None:
    sample = draw_sample(data, name)
    args, body = tensors(sample.args), primitives[name].body
    assert body is not None
    expected = as_tuple(body(*args, **sample.params))
    for result, reference in zip(run(name, args, sample.params), expected, strict=True):
        assert result.aval == reference.aval
        close(result.numpy(), reference.numpy())


def _avals(result: Any) -> list[Aval]:
    return [result] if isinstance(result, Aval) else list(result)


@pytest.mark.parametrize("name", FLOATING)
@pytest.mark.parametrize("dtype", [tl.float32, tl.float16, tl.bfloat16], ids=str)
@settings(rules, max_examples=5)
@given(data=st.data())
def test_narrow_floats_stay_close_to_float64(name: str, dtype: np.dtype, data: Any) -> None:
    sample = draw_sample(data, name)
    # A value that the narrow dtype holds exactly, so that only the operation itself may round.
    narrow = [a.astype(dtype) if a.dtype == np.float64 else a for a in sample.args]
    wide = [a.astype(np.float64) if a.dtype == dtype else a for a in narrow]
    results = run(name, tensors(narrow), sample.params)
    references = run(name, tensors(wide), sample.params)
    steps = 64 if dtype == tl.float32 else 16
    eps = float(ml_dtypes.finfo(dtype).eps)
    avals = primitives[name].abstract(*[Aval(a.shape, a.dtype) for a in narrow], **sample.params)
    for result, reference, aval in zip(results, references, _avals(avals), strict=True):
        assert result.aval == aval
        if not dtypes.is_float(reference.dtype):
            continue
        exact = reference.numpy()
        scale = max(
            1.0, *(np.abs(a).max(initial=0) for a in (*wide, exact) if a.dtype == np.float64)
        )
        close(result.numpy().astype(np.float64), exact, rtol=steps * eps, atol=steps * eps * scale)


def float_arguments(sample: Sample) -> list[int]:
    return [i for i, a in enumerate(sample.args) if a.dtype == np.float64]


def function_of_floats(name: str, sample: Sample) -> tuple[Any, list[tl.Tensor]]:
    """The primitive as a function of its floating-point arguments, returning its floating-point
    results."""
    positions = float_arguments(sample)
    fixed = tensors(sample.args)

    def f(*floats: tl.Tensor) -> tuple[tl.Tensor, ...]:
        args = list(fixed)
        for position, value in zip(positions, floats, strict=True):
            args[position] = value
        return tuple(o for o in run(name, args, sample.params) if dtypes.is_float(o.dtype))

    return f, [fixed[i] for i in positions]


def directions(data: Any, like: Any) -> list[tl.Tensor]:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    return [tl.asarray(rng.normal(size=x.shape)) for x in like]


def inner(xs: Any, ys: Any) -> float:
    return float(sum(np.sum(x.numpy() * y.numpy()) for x, y in zip(xs, ys, strict=True)))


def check_derivatives(f: Any, points: list[tl.Tensor], data: Any) -> None:
    """jvp against central differences, and jvp against vjp by the dot-product test."""
    moves = directions(data, points)
    value, pushed = tl.jvp(f, points, moves)
    h = 1e-6
    above = f(*[x + h * v for x, v in zip(points, moves, strict=True)])
    below = f(*[x - h * v for x, v in zip(points, moves, strict=True)])
    for derivative, hi, lo in zip(pushed, above, below, strict=True):
        numeric = (hi.numpy() - lo.numpy()) / (2 * h)
        scale = max(1.0, np.abs(numeric).max(initial=0), np.abs(hi.numpy()).max(initial=0))
        close(derivative.numpy(), numeric, rtol=1e-5, atol=2e-8 * scale / 1e-2)
    cotangents = directions(data, value)
    _, pullback = tl.vjp(f, *points)
    pulled = pullback(tuple(cotangents))
    left, right = inner(cotangents, pushed), inner(pulled, moves)
    assert np.isclose(left, right, rtol=1e-8, atol=1e-8 * max(1.0, abs(left)))


@pytest.mark.parametrize("name", SMOOTH)
@rules
@given(data=st.data())
def test_derivative_against_finite_differences(name: str, data: Any) -> None:
    sample = draw_sample(data, name)
    f, points = function_of_floats(name, sample)
    check_derivatives(f, points, data)


@pytest.mark.parametrize("name", SMOOTH)
@settings(rules, max_examples=6)
@given(data=st.data())
def test_second_derivative_against_finite_differences(name: str, data: Any) -> None:
    sample = draw_sample(data, name)
    f, points = function_of_floats(name, sample)
    cotangents = directions(data, f(*points))

    def gradient(*xs: tl.Tensor) -> tuple[tl.Tensor, ...]:
        return tl.vjp(f, *xs)[1](tuple(cotangents))

    check_derivatives(gradient, points, data)


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"full", "iota"}))
@rules
@given(data=st.data())
def test_vmap_against_a_loop(name: str, data: Any) -> None:
    sample = draw_sample(data, name)
    allowed = sample.batchable or (True,) * len(sample.args)
    choices = [c for c in itertools.product([False, True], repeat=len(allowed)) if any(c)]
    choices = [c for c in choices if all(a or not b for a, b in zip(allowed, c, strict=True))]
    assume(choices)
    batched = data.draw(st.sampled_from(choices), label="batched")
    stacked = [_examples(a) if b else a for a, b in zip(sample.args, batched, strict=True)]
    axes = tuple(0 if b else None for b in batched)

    def f(*args: tl.Tensor) -> tuple[tl.Tensor, ...]:
        return run(name, args, sample.params)

    together = tl.vmap(f, in_axes=axes)(*tensors(stacked))
    for i in range(2):
        one = f(*tensors([a[i] if b else a for a, b in zip(stacked, batched, strict=True)]))
        for whole, part in zip(together, one, strict=True):
            close(whole.numpy()[i], part.numpy())


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"full", "iota"}))
@settings(rules, max_examples=6)
@given(data=st.data())
def test_vmap_of_vmap_against_loops(name: str, data: Any) -> None:
    sample = draw_sample(data, name)
    allowed = sample.batchable or (True,) * len(sample.args)
    assume(any(allowed))
    ways = st.lists(st.booleans(), min_size=len(allowed), max_size=len(allowed))
    outer, inner = (
        [b and a for b, a in zip(data.draw(ways, label=label), allowed, strict=True)]
        for label in ("outer", "inner")
    )
    assume(any(outer) and any(inner))
    stacked = []
    for a, is_inner, is_outer in zip(sample.args, inner, outer, strict=True):
        a = _examples(a) if is_inner else a
        stacked.append(_examples(a) if is_outer else a)

    def f(*args: tl.Tensor) -> tuple[tl.Tensor, ...]:
        return run(name, args, sample.params)

    axes = [tuple(0 if b else None for b in way) for way in (outer, inner)]
    together = tl.vmap(tl.vmap(f, axes[1]), axes[0])(*tensors(stacked))
    for i, j in itertools.product(range(2), repeat=2):
        rows = [a[i] if b else a for a, b in zip(stacked, outer, strict=True)]
        one = f(*tensors([a[j] if b else a for a, b in zip(rows, inner, strict=True)]))
        for whole, part in zip(together, one, strict=True):
            close(whole.numpy()[i, j], part.numpy())


def _examples(a: np.ndarray) -> np.ndarray:
    """A batch of two whose second example holds the same elements in another order, so that it is
    valid as well."""
    return np.stack([a, np.flip(a)])


@pytest.mark.parametrize("name", NAMES)
@rules
@given(data=st.data())
def test_jit_against_eager(name: str, data: Any) -> None:
    sample = draw_sample(data, name)
    args = tensors(sample.args)

    def f(*args: tl.Tensor) -> tuple[tl.Tensor, ...]:
        return run(name, args, sample.params)

    for compiled, eager in zip(tl.jit(f)(*args), f(*args), strict=True):
        assert compiled.aval == eager.aval
        close(compiled.numpy(), eager.numpy())


@pytest.mark.parametrize("name", SMOOTH)
@settings(rules, max_examples=6)
@given(data=st.data())
def test_gradient_of_jit_and_of_vmap(name: str, data: Any) -> None:
    sample = draw_sample(data, name)
    f, points = function_of_floats(name, sample)
    weights = directions(data, f(*points))

    def loss(*xs: tl.Tensor) -> tl.Tensor:
        terms = [tl.sum(o * w) for o, w in zip(f(*xs), weights, strict=True)]
        return sum(terms, tl.zeros((), dtype=tl.float64))

    argnums = tuple(range(len(points)))
    expected = tl.grad(loss, argnums)(*points)
    for result in (
        tl.jit(tl.grad(loss, argnums))(*points),
        tl.grad(tl.jit(loss), argnums)(*points),
        [g[1] for g in tl.vmap(tl.grad(loss, argnums))(*[tl.stack([x, x]) for x in points])],
        [
            g[0]
            for g in tl.grad(lambda *xs: tl.sum(tl.vmap(loss)(*xs)), argnums)(
                *[tl.stack([x, x]) for x in points]
            )
        ],
    ):
        for a, b in zip(result, expected, strict=True):
            close(a.numpy(), b.numpy())
