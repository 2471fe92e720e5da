"""Matrix products on OpenCL devices against NumPy, by the kernels for CPUs and those for GPUs."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import example, given, settings

from tensorlite import dtypes
from tensorlite.compiler.simplify import transposed_matmul_p
from tensorlite.core import Aval
from tensorlite.ops.linalg import matmul_p
from tests.backends.opencl.product_cases import (
    CPU,
    GPU,
    close,
    computed,
    numbers,
    planned,
    reference,
)

SIZES = st.sampled_from([1, 2, 3, 4, 5, 7, 8, 13, 16, 17, 32, 33, 64, 67])
DEPTHS = st.sampled_from([1, 2, 3, 7, 16, 31, 257, 600])
BATCHES = st.sampled_from(
    [((), ()), ((3,), (3,)), ((3,), ()), ((), (2,)), ((2, 1), (3,)), ((1,), (4,))]
)
NUMERIC = sorted(dtypes.ALL - {dtypes.bool_}, key=str)


def check(
    traits: Any,
    x: tuple[int, ...],
    y: tuple[int, ...],
    *,
    turned: tuple[bool, bool] = (False, False),
    dtype: Any = np.float32,
    epilogue: Any = (),
    others: tuple[tuple[int, ...], ...] = (),
) -> None:
    rng = np.random.default_rng(sum(x) + 7 * sum(y))
    arrays = tuple(numbers(rng, shape, dtype) for shape in (x, y, *others))
    params = {"transpose_a": turned[0], "transpose_b": turned[1]}
    got = computed(traits, transposed_matmul_p, arrays, params, epilogue)
    terms = x[-2 if turned[0] else -1]
    close(got, reference(transposed_matmul_p, arrays, params, epilogue), terms)


def shapes(m: int, k: int, n: int, batches: Any, turned: tuple[bool, bool]) -> Any:
    x, y = (k, m) if turned[0] else (m, k), (n, k) if turned[1] else (k, n)
    return (*batches[0], *x), (*batches[1], *y)


@given(SIZES, DEPTHS, SIZES, BATCHES, st.tuples(st.booleans(), st.booleans()))
@settings(max_examples=15)
@example(67, 600, 64, ((), ()), (False, False))
@example(1, 257, 67, ((), ()), (False, True))
@example(67, 257, 1, ((), ()), (False, False))
@example(1, 600, 1, ((3,), (3,)), (True, False))
def test_products_equal_numpy(m: int, k: int, n: int, batches: Any, turned: Any) -> None:
    check(CPU, *shapes(m, k, n, batches, turned), turned=turned)


@given(SIZES, DEPTHS, SIZES, BATCHES, st.tuples(st.booleans(), st.booleans()))
@settings(max_examples=4)
@example(200, 64, 136, ((), ()), (False, False))
@example(8, 600, 8, ((), ()), (True, True))
def test_products_by_work_groups_equal_numpy(
    m: int, k: int, n: int, batches: Any, turned: Any
) -> None:
    check(GPU, *shapes(m, k, n, batches, turned), turned=turned)


@pytest.mark.parametrize("dtype", NUMERIC, ids=str)
def test_every_dtype_is_summed_exactly_or_widely(dtype: Any) -> None:
    check(CPU, (9, 600), (600, 17), dtype=dtype)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "int8", "uint64"])
def test_dtypes_by_work_groups(dtype: str) -> None:
    check(GPU, (9, 600), (600, 17), dtype=getattr(dtypes, dtype))


@pytest.mark.parametrize(
    ("epilogue", "others"),
    [
        ((("bias", 2),), [(33,)]),
        ((("relu",),), []),
        ((("bias", 2), ("add", 3), ("relu",)), [(33,), (3, 7, 33)]),
        ((("mul", 2), ("sigmoid",)), [(1,)]),
        ((("add", 2), ("tanh",), ("mul", 3)), [(3, 7, 33), (1, 33)]),
    ],
    ids=["bias", "relu", "bias-add-relu", "mul-sigmoid", "add-tanh-mul"],
)
@pytest.mark.parametrize(
    ("traits", "depth"),
    [(CPU, 20), (CPU, 700), (GPU, 20)],
    ids=["cpu", "cpu-long", "gpu"],
)
def test_epilogues(traits: Any, epilogue: Any, others: Any, depth: int) -> None:
    """A sum of 700 steps is computed in chunks."""
    check(traits, (3, 7, depth), (depth, 33), epilogue=epilogue, others=tuple(others))


@pytest.mark.parametrize("traits", [CPU, GPU], ids=lambda t: t.kind)
@pytest.mark.parametrize("dtype", [dtypes.float16, dtypes.float64, dtypes.bfloat16], ids=str)
def test_epilogues_of_other_floats(dtype: Any, traits: Any) -> None:
    epilogue = (("bias", 2), ("tanh",), ("add", 3), ("sigmoid",))
    check(traits, (7, 20), (20, 5), dtype=dtype, epilogue=epilogue, others=((5,), (7, 5)))


@pytest.mark.parametrize("traits", [CPU, GPU], ids=lambda t: t.kind)
@pytest.mark.parametrize("dtype", [dtypes.int8, dtypes.uint16, dtypes.int64], ids=str)
def test_relu_sees_integers_of_their_own_width(dtype: Any, traits: Any) -> None:
    rng = np.random.default_rng(0)
    x, y = numbers(rng, (9, 20), dtype), numbers(rng, (20, 17), dtype)
    params = {"transpose_a": False, "transpose_b": False}
    got = computed(traits, transposed_matmul_p, (x, y), params, (("relu",),))
    np.testing.assert_array_equal(got, np.maximum(x @ y, 0))


@pytest.mark.parametrize("traits", [CPU, GPU], ids=lambda t: t.kind)
@pytest.mark.parametrize("name", ["relu", "sigmoid", "tanh"])
def test_functions_at_the_ends_of_their_range(name: str, traits: Any) -> None:
    values = [-np.inf, -200, -88, -20, -9, -0.7, -0.6, -1e-6, 0, 1e-30, 0.62, 0.63, 1, 9, 87, 200]
    x = np.array([*values, np.inf, np.nan], np.float32)[:, None]
    got = computed(
        traits,
        transposed_matmul_p,
        (x, np.ones((1, 1), np.float32)),
        {"transpose_a": False, "transpose_b": False},
        ((name,),),
    )
    with np.errstate(over="ignore"):
        wide = x.astype(np.float64)
        exact = {
            "relu": np.maximum(wide, 0),
            "sigmoid": 1 / (1 + np.exp(-wide)),
            "tanh": np.tanh(wide),
        }
    assert got is not None
    np.testing.assert_allclose(got, exact[name], rtol=4e-7, atol=1e-37)


def plan(traits: Any, x: Aval, y: Aval, z: Aval, *others: Aval, epilogue: Any = ()) -> Any:
    return planned(traits, matmul_p, (x, y, *others), z, {}, epilogue)


def matrix(*shape: int, dtype: Any = dtypes.float32) -> Aval:
    return Aval(shape, dtype)


def test_what_has_no_kernel() -> None:
    assert plan(CPU, matrix(0, 3), matrix(3, 4), matrix(0, 4)) is None
    assert plan(CPU, matrix(2, 0), matrix(0, 4), matrix(2, 4)) is None
    double = [matrix(2, 2, dtype=dtypes.float64)] * 3
    assert plan(CPU._replace(float64=False), *double) is None
    assert plan(CPU, *double) is not None
    square = [matrix(4, 4)] * 3
    assert plan(CPU, *square, epilogue=(("gelu_unheard_of",),)) is None
    assert plan(CPU, *square, matrix(4, 1), epilogue=(("add", 2),)) is None
    assert plan(CPU, *square, matrix(4, dtype=dtypes.float16), epilogue=(("bias", 2),)) is None


def test_shapes_share_sources_on_cpus() -> None:
    """Compilers take longer than most products: sizes are arguments, not text."""
    plans = [
        plan(CPU, matrix(m, k), matrix(k, n), matrix(m, n))
        for m, k, n in [(100, 200, 300), (400, 77, 60), (1000, 256, 1000)]
    ]
    sources = [{call.code.source for call in plan.calls} for plan in plans]
    assert sources[0] == sources[1] == sources[2]


def test_long_sums_are_as_precise_as_those_of_blocks() -> None:
    """A plain loop over these terms is off by 4e-4 of the sum."""
    x = np.full((1, 40_000), 0.1, np.float32)
    params = {"transpose_a": False, "transpose_b": True}
    for traits, tolerance in ((CPU, 1e-5), (GPU, 1e-4)):
        got = computed(traits, transposed_matmul_p, (x, np.ones_like(x)), params)
        assert got is not None
        np.testing.assert_allclose(got, [[4000.0]], rtol=tolerance)


def test_results_do_not_change_from_run_to_run() -> None:
    rng = np.random.default_rng(0)
    arrays = numbers(rng, (5, 5000), np.float32), numbers(rng, (5000, 20), np.float32)
    params = {"transpose_a": False, "transpose_b": False}
    for traits in (CPU, GPU):
        first, *others = [computed(traits, transposed_matmul_p, arrays, params) for _ in range(3)]
        for other in others:
            np.testing.assert_array_equal(first, other)


def test_places_beyond_31_bits_are_counted_in_long() -> None:
    large = matrix(70_000, 40_000)
    for traits in (CPU, GPU):
        found = plan(traits, large, matrix(40_000, 16), matrix(70_000, 16))
        assert found is not None
        assert "typedef long Index;" in found.calls[-1].code.source
