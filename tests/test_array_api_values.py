"""Every function of the namespace against `array_api_strict`: from the same calls the same dtypes,
shapes and values."""

from __future__ import annotations

import functools
import inspect
import math
import operator
from typing import Any

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis.extra.array_api import make_strategies_namespace

import tensorlite as tl

xp = pytest.importorskip("array_api_strict")

INTEGERS = [tl.int8, tl.int16, tl.int32, tl.int64, tl.uint8, tl.uint16, tl.uint32, tl.uint64]
FLOATS = [tl.float32, tl.float64]
NUMERIC = INTEGERS + FLOATS
EVERY = [tl.bool, *NUMERIC]
few = settings(max_examples=25)


# ---- the same call twice -------------------------------------------------------------------------


def call(namespace: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
    """The call, with NumPy arrays and dtypes as those of the namespace."""

    def convert(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return namespace.asarray(value)
        if isinstance(value, np.dtype):
            return getattr(namespace, value.name)
        return [convert(v) for v in value] if isinstance(value, list) else value

    function = operator.attrgetter(name)(namespace)
    return function(*map(convert, args), **{k: convert(v) for k, v in kwargs.items()})


# The standard leaves open which of two equal zeros these give.
OPEN_ZEROS = {"clip", "max", "maximum", "min", "minimum", "sort"}
OPEN_ZEROS |= {"unique_all", "unique_counts", "unique_inverse", "unique_values"}


def same(ours: Any, theirs: Any, rtol: float, signed: bool = True) -> None:
    if isinstance(theirs, tuple | list):
        assert len(ours) == len(theirs)
        assert getattr(ours, "_fields", None) == getattr(theirs, "_fields", None)
        for a, b in zip(ours, theirs, strict=True):
            same(a, b, rtol, signed)
        return
    a, b = ours.numpy(), np.asarray(theirs)
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    if a.dtype.kind != "f":
        np.testing.assert_array_equal(a, b)
        return
    tolerance = rtol * (2**29 if a.dtype == np.float32 else 1)
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
    zeros = (a == 0) & (b == 0) & signed
    np.testing.assert_array_equal(np.signbit(a[zeros]), np.signbit(b[zeros]))


def check(name: str, *args: Any, rtol: float = 0, **kwargs: Any) -> None:
    """Both namespaces agree on a call, which the standard may leave undefined."""
    try:
        with np.errstate(all="ignore"):
            theirs = call(xp, name, args, kwargs)
    except (TypeError, ValueError, IndexError, OverflowError):
        return
    same(call(tl, name, args, kwargs), theirs, rtol, name not in OPEN_ZEROS)


SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, -2.5, 3.0, 1e-30, -7.25, math.inf, -math.inf, math.nan]


def values(dtype: Any) -> st.SearchStrategy[Any]:
    if dtype == tl.bool:
        return st.booleans()
    if dtype in FLOATS:
        return st.sampled_from(SPECIAL) | st.floats(-100, 100, width=32)
    limits = tl.iinfo(dtype)
    return st.integers(max(limits.min, -9), 9) | st.sampled_from([limits.min, limits.max])


def arrays(
    dtype: Any, shape: Any = None, elements: Any = None, **kwargs: Any
) -> st.SearchStrategy[np.ndarray]:
    if shape is None:
        shape = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
    return hnp.arrays(dtype, shape, elements=values(dtype) if elements is None else elements)


def any_axis(draw: Any, ndim: int, several: bool = True) -> Any:
    one = st.integers(-ndim, ndim - 1) if ndim else st.none()
    choices = st.none() | one
    if several:
        choices |= hnp.valid_tuple_axes(ndim) if ndim else st.none()
    return draw(choices)


ELEMENTWISE = [
    name
    for name, function in inspect.getmembers(xp, inspect.isfunction)
    if function.__module__.endswith("_elementwise_functions")
    if name not in {"clip", "conj", "imag", "real"}
]
UNARY = [n for n in ELEMENTWISE if len(inspect.signature(getattr(xp, n)).parameters) == 1]
BINARY = sorted(set(ELEMENTWISE) - set(UNARY))


@functools.cache
def accepted(name: str) -> list[Any]:
    """The dtypes for which the standard defines a function of one array or of two."""
    count = 2 if name in BINARY else 1
    found = []
    for dtype in EVERY:
        try:
            getattr(xp, name)(*[xp.ones((1, 1), dtype=getattr(xp, dtype.name))] * count)
        except TypeError:
            continue
        found.append(dtype)
    return found


@pytest.mark.parametrize("name", UNARY)
@settings(max_examples=60)
@given(data=st.data())
def test_unary_functions(name: str, data: Any) -> None:
    check(name, data.draw(arrays(data.draw(st.sampled_from(accepted(name))))), rtol=1e-15)


@st.composite
def operands(draw: Any, name: str) -> list[Any]:
    """Two arrays that broadcast, of dtypes that meet, or an array and a Python scalar."""
    shapes = draw(hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=3, max_side=3))
    kinds = [[d for d in kind if d in accepted(name)] for kind in ([tl.bool], INTEGERS, FLOATS)]
    kinds = draw(st.sampled_from([kind for kind in kinds if kind]))
    given_ = [draw(st.sampled_from(kinds)) for _ in range(2)]
    elements = None
    if name == "bitwise_left_shift" or name == "bitwise_right_shift":
        elements = st.integers(0, 7)
    if name == "pow" and kinds == INTEGERS:
        elements = st.integers(0, 3)
    if name in {"floor_divide", "remainder"} and kinds == INTEGERS:
        elements = st.integers(1, 100)
    if name == "floor_divide" and kinds == FLOATS:
        elements = st.floats(-100, 100, width=32)  # NumPy has NaN where the standard says infinite
    pair: list[Any] = [
        draw(arrays(d, s, elements if kinds != [tl.bool] else None))
        for d, s in zip(given_, shapes.input_shapes, strict=True)
    ]
    if draw(st.booleans()):
        place = draw(st.integers(0, 1))
        pair[place] = draw(values(given_[1 - place]) if elements is None else elements)
    return pair


@pytest.mark.parametrize("name", BINARY)
@settings(max_examples=80)
@given(data=st.data())
def test_binary_functions(name: str, data: Any) -> None:
    pair = data.draw(operands(name))
    # NumPy takes the root for a scalar exponent of 0.5, which is another one of -0 and -inf.
    assume(name != "pow" or not np.any(np.asarray(pair[1]) == 0.5))
    check(name, *pair, rtol=1e-14)


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (math.inf, 2.0, math.inf),
        (-math.inf, 2.0, -math.inf),
        (math.inf, -2.0, -math.inf),
        (1.0, 0.0, math.inf),
        (1.0, -0.0, -math.inf),
        (5.0, math.inf, 0.0),
        (5.0, -math.inf, -1.0),
        (-0.0, 3.0, -0.0),
        (math.inf, math.inf, math.nan),
        (0.0, 0.0, math.nan),
    ],
)
def test_floor_divide_of_infinities_and_zeros(x: float, y: float, expected: float) -> None:
    result = tl.floor_divide(tl.asarray(x, dtype=tl.float64), y).item()
    assert math.copysign(1, result) == math.copysign(1, expected) or math.isnan(expected)
    assert result == expected or (math.isnan(result) and math.isnan(expected))


@pytest.mark.parametrize("symbol", ["+", "-", "*", "/", "//", "%", "**", "&", "|", "^", "<<", ">>"])
def test_in_place_operators_bind_the_name_anew(symbol: str) -> None:
    x = tl.asarray([7, 2]) if symbol != "/" else tl.asarray([7.0, 2.0])
    scope = {"x": x, "expected": eval(f"x {symbol} 2", {"x": x})}
    exec(f"x {symbol}= 2", scope)
    assert scope["x"] is not x and x.tolist()[0] == 7
    np.testing.assert_array_equal(np.asarray(scope["x"]), np.asarray(scope["expected"]))


@few
@given(data=st.data())
def test_where_and_clip(data: Any) -> None:
    pair = data.draw(operands("add"))
    shape = np.broadcast_shapes(*map(np.shape, pair))
    check("where", data.draw(arrays(tl.bool, shape)), *pair)
    x, low = pair if isinstance(pair[0], np.ndarray) else pair[::-1]
    assume(x.dtype != np.bool_)
    high = data.draw(arrays(x.dtype, x.shape))
    if np.ndim(low) <= x.ndim and np.broadcast_shapes(np.shape(low), x.shape) == x.shape:
        assume(np.result_type(x, low) == x.dtype)
        check("clip", x, low)
        check("clip", x, max=high)


# ---- reductions, sorting, searching --------------------------------------------------------------

REDUCTIONS = ["all", "any", "count_nonzero", "max", "mean", "min", "prod", "std", "sum", "var"]


@pytest.mark.parametrize("name", REDUCTIONS)
@settings(max_examples=50)
@given(data=st.data())
def test_reductions(name: str, data: Any) -> None:
    dtype = data.draw(st.sampled_from(accepted(name)))
    elements = st.floats(-100, 100, width=32) if dtype in FLOATS else None
    x = data.draw(arrays(dtype, elements=elements))
    kwargs = {"axis": any_axis(data.draw, x.ndim), "keepdims": data.draw(st.booleans())}
    if name in {"std", "var"}:
        kwargs["correction"] = data.draw(st.sampled_from([0.0, 0.5]))
    if name in {"sum", "prod"} and x.dtype != np.bool_ and data.draw(st.booleans()):
        kwargs["dtype"] = data.draw(st.sampled_from([tl.float32, tl.float64]))
    if name == "prod" and ("dtype" in kwargs or dtype in FLOATS):
        # What overflows before it meets a zero is NaN, and the order is open.
        x = np.minimum(x, x.dtype.type(2))
        x = x if x.dtype.kind == "u" else np.maximum(x, x.dtype.type(-2))
    check(name, x, rtol=1e-13, **kwargs)


@pytest.mark.parametrize("name", ["argmax", "argmin"])
@few
@given(data=st.data())
def test_positions(name: str, data: Any) -> None:
    x = data.draw(arrays(data.draw(st.sampled_from(NUMERIC))))
    axis = any_axis(data.draw, x.ndim, several=False)
    check(name, x, axis=axis, keepdims=data.draw(st.booleans()))


@pytest.mark.parametrize("name", ["cumulative_sum", "cumulative_prod"])
@few
@given(data=st.data())
def test_running_sums_and_products(name: str, data: Any) -> None:
    dtype = data.draw(st.sampled_from(NUMERIC))
    shape = hnp.array_shapes(max_dims=3, min_side=0, max_side=4)
    elements = st.floats(-100, 100, width=32) if dtype in FLOATS else None
    x = data.draw(arrays(dtype, shape, elements))
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1)) if x.ndim > 1 else None
    check(name, x, axis=axis, include_initial=data.draw(st.booleans()), rtol=1e-13)


@pytest.mark.parametrize("name", ["sort", "argsort"])
@few
@given(data=st.data())
def test_sorting(name: str, data: Any) -> None:
    shape = hnp.array_shapes(max_dims=3, min_side=0, max_side=4)
    x = data.draw(arrays(data.draw(st.sampled_from(NUMERIC)), shape))
    axis, descending = data.draw(st.integers(-x.ndim, x.ndim - 1)), data.draw(st.booleans())
    assume(not (descending and x.dtype.kind == "f" and np.isnan(x).any()))  # NaN's place is open
    check(name, x, axis=axis, descending=descending)


@few
@given(data=st.data())
def test_searching(data: Any) -> None:
    dtype = data.draw(st.sampled_from(INTEGERS))
    x = data.draw(arrays(dtype, st.integers(0, 6)))
    v = data.draw(arrays(dtype))
    side = data.draw(st.sampled_from(["left", "right"]))
    check("searchsorted", np.sort(x), v, side=side)
    check("searchsorted", x, v, side=side, sorter=np.argsort(x))
    check("nonzero", data.draw(arrays(data.draw(st.sampled_from(EVERY)))))


@pytest.mark.parametrize("name", ["unique_all", "unique_counts", "unique_inverse", "unique_values"])
@few
@given(data=st.data())
def test_sets(name: str, data: Any) -> None:
    shape = hnp.array_shapes(max_dims=3, min_side=0, max_side=4)  # 0-d: the next test
    check(name, data.draw(arrays(data.draw(st.sampled_from(EVERY)), shape)))


def test_the_set_of_a_scalar() -> None:
    found = tl.unique_all(tl.asarray(3))
    assert found.values.tolist() == [3] and found.indices.tolist() == [0]
    assert found.inverse_indices.tolist() == 0 and found.counts.tolist() == [1]


# ---- shapes --------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(data=st.data())
def test_manipulation(data: Any) -> None:
    draw = data.draw
    x = draw(arrays(draw(st.sampled_from(EVERY))))
    axes = any_axis(draw, x.ndim)
    check("flip", x, axis=axes)
    check("expand_dims", x, axis=draw(st.integers(-x.ndim - 1, x.ndim)))
    check("permute_dims", x, tuple(draw(st.permutations(range(x.ndim)))))
    check("tile", x, tuple(draw(st.lists(st.integers(0, 3), max_size=3))))
    check("repeat", x, draw(st.integers(0, 3)))
    check("reshape", x, (-1,) if x.size else (0,))
    check("reshape", x, tuple(reversed(x.shape)))
    check("roll", x, draw(st.integers(-9, 9)))
    check("broadcast_to", x, (2, *x.shape))
    check("squeeze", x[..., None], -1)
    check("stack", [x, x], axis=draw(st.integers(-x.ndim - 1, x.ndim)))
    check("concat", [x, x], axis=None)
    if x.ndim:
        axis = draw(st.integers(-x.ndim, x.ndim - 1))
        other = draw(st.integers(-x.ndim, x.ndim - 1))
        check("moveaxis", x, axis, other)
        check("unstack", x, axis=axis)
        check("concat", [x, x], axis=axis)
        counts = draw(arrays(tl.int64, (x.shape[axis],), st.integers(0, 3)))
        check("repeat", x, counts, axis=axis)
        shifts = draw(st.lists(st.integers(-5, 5), min_size=x.ndim, max_size=x.ndim))
        check("roll", x, tuple(shifts), axis=tuple(range(x.ndim)))
        check("diff", x, axis=axis, n=draw(st.integers(0, 3)))
        check("diff", x, axis=axis, prepend=x, append=x)
    if x.ndim >= 2:
        k = draw(st.integers(-6, 6))
        check("tril", x, k=k)
        check("triu", x, k=k)
        check("matrix_transpose", x)


@few
@given(data=st.data())
def test_take(data: Any) -> None:
    x = data.draw(arrays(data.draw(st.sampled_from(EVERY)), hnp.array_shapes(max_dims=3)))
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    places = st.integers(-x.shape[axis], x.shape[axis] - 1)
    check("take", x, data.draw(arrays(tl.int64, (3,), places)), axis=axis)
    shape = tuple(2 if i == axis % x.ndim else n for i, n in enumerate(x.shape))
    check("take_along_axis", x, data.draw(arrays(tl.int64, shape, places)), axis=axis)


@few
@given(data=st.data())
def test_grids(data: Any) -> None:
    dtype = data.draw(st.sampled_from(NUMERIC))
    count = data.draw(st.integers(1, 3))
    vectors = [data.draw(arrays(dtype, st.integers(0, 3))) for _ in range(count)]
    check("meshgrid", *vectors, indexing=data.draw(st.sampled_from(["xy", "ij"])))
    check("broadcast_arrays", *[v[:1] for v in vectors], data.draw(arrays(dtype, (2, 1))))


@few
@given(data=st.data())
def test_indexing(data: Any) -> None:
    x = data.draw(arrays(data.draw(st.sampled_from(EVERY)), hnp.array_shapes(max_dims=3)))
    key = data.draw(hnp.basic_indices(x.shape, allow_ellipsis=True, allow_newaxis=True))
    same(tl.asarray(x)[key], x[key], 0)
    mask = data.draw(arrays(tl.bool, data.draw(st.sampled_from([(), x.shape[:1], x.shape]))))
    same(tl.asarray(x)[tl.asarray(mask)], x[mask], 0)
    rows = data.draw(arrays(tl.int64, (2,), st.integers(-x.shape[0], x.shape[0] - 1)))
    same(tl.asarray(x)[tl.asarray(rows), ...], x[rows, ...], 0)


# ---- creation ------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(data=st.data())
def test_creation(data: Any) -> None:
    draw, whole = data.draw, st.integers(-20, 20)
    dtype = draw(st.sampled_from(NUMERIC))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0))
    check("zeros", shape, dtype=dtype)
    check("ones", shape, dtype=dtype)
    check("full", shape, draw(st.integers(0, 9)), dtype=dtype)
    x = draw(arrays(dtype, shape))
    check("zeros_like", x)
    check("ones_like", x, dtype=dtype)
    check("full_like", x, 3)
    rows, columns = draw(st.integers(0, 4)), draw(st.none() | st.integers(0, 4))
    check("eye", rows, columns, k=draw(st.integers(-5, 5)), dtype=dtype)
    start, stop = draw(st.integers(0, 20)), draw(st.integers(0, 20))
    step = draw(whole.filter(bool))
    check("arange", start, stop, step, dtype=dtype)
    check("arange", start)
    floating = draw(st.sampled_from(FLOATS))
    number = draw(st.integers(0, 7))
    ends = draw(st.booleans())
    check("linspace", start, stop, number, dtype=floating, endpoint=ends, rtol=1e-14)
    check("asarray", x.tolist(), dtype=dtype)
    check("astype", x, draw(st.sampled_from([dtype, tl.float64])))


@given(st.data())
def test_hypothesis_takes_the_namespace_for_its_own(data: Any) -> None:
    xps = make_strategies_namespace(tl)
    dtype = data.draw(xps.boolean_dtypes() | xps.real_dtypes())
    x = data.draw(xps.arrays(dtype, xps.array_shapes()))
    assert isinstance(x, tl.Tensor) and x.dtype == dtype
    assert x[data.draw(xps.indices(x.shape))].dtype == dtype


# ---- linear algebra ------------------------------------------------------------------------------


def matrices(draw: Any, square: bool = False, dtype: Any = None) -> np.ndarray:
    m = draw(st.integers(1, 4))
    n = m if square else draw(st.integers(1, 4))
    stack = draw(st.sampled_from([(), (2,), (2, 3)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = rng.normal(size=(*stack, m, n)) + (3 * np.eye(m) if square else 0)
    return x.astype(dtype or draw(st.sampled_from(FLOATS)))


@settings(max_examples=40)
@given(data=st.data())
def test_linalg_of_square_matrices(data: Any) -> None:
    x = matrices(data.draw, square=True)
    symmetric = x @ np.swapaxes(x, -1, -2)
    upper = data.draw(st.booleans())
    check("linalg.cholesky", symmetric, upper=upper, rtol=1e-11)
    check("linalg.det", x, rtol=1e-11)
    check("linalg.slogdet", x, rtol=1e-11)
    check("linalg.inv", x, rtol=1e-10)
    check("linalg.solve", x, np.swapaxes(x, -1, -2), rtol=1e-10)
    check("linalg.solve", x, x[..., 0].reshape(-1, x.shape[-1])[0], rtol=1e-10)
    check("linalg.eigvalsh", symmetric, rtol=1e-10)
    check("linalg.matrix_power", x, data.draw(st.integers(-3, 5)), rtol=1e-8)
    check("linalg.trace", x, offset=data.draw(st.integers(-5, 5)), rtol=1e-13)
    found = tl.linalg.eigh(tl.asarray(symmetric))
    vectors = found.eigenvectors.numpy()
    np.testing.assert_allclose(
        symmetric @ vectors,
        vectors * found.eigenvalues.numpy()[..., None, :],
        atol=1e-10 if x.dtype == np.float64 else 1e-2,
    )


@settings(max_examples=40)
@given(data=st.data())
def test_linalg_of_any_matrices(data: Any) -> None:
    x = matrices(data.draw)
    offset = data.draw(st.integers(-5, 5))
    check("linalg.diagonal", x, offset=offset)
    check("linalg.matrix_rank", x)
    check("linalg.svdvals", x, rtol=1e-10)
    for order in ("fro", "nuc", 1, 2, -1, -2, math.inf, -math.inf):
        keepdims = data.draw(st.booleans())
        check("linalg.matrix_norm", x, ord=order, keepdims=keepdims, rtol=1e-10)
    tolerance = 1e-10 if x.dtype == np.float64 else 1e-3
    full = data.draw(st.booleans())
    u, s, vh = (t.numpy() for t in tl.linalg.svd(tl.asarray(x), full_matrices=full))
    k = s.shape[-1]
    rebuilt = (u[..., :k] * s[..., None, :]) @ vh[..., :k, :]
    np.testing.assert_allclose(rebuilt, x, atol=tolerance)
    q, r = tl.linalg.qr(tl.asarray(x), mode=data.draw(st.sampled_from(["reduced", "complete"])))
    np.testing.assert_allclose((q @ r).numpy(), x, atol=tolerance)
    inverse = tl.linalg.pinv(tl.asarray(x)).numpy()
    np.testing.assert_allclose(x @ inverse @ x, x, atol=tolerance * 10)


@settings(max_examples=40)
@given(data=st.data())
def test_products_and_norms(data: Any) -> None:
    draw = data.draw
    dtype = draw(st.sampled_from(NUMERIC))
    small = st.integers(0, 5)
    x, y = draw(arrays(dtype, (2, 3, 4), small)), draw(arrays(dtype, (4, 3), small))
    for module in ("", "linalg."):
        check(f"{module}matmul", x, y)
        check(f"{module}tensordot", x, y, axes=1)
        check(f"{module}tensordot", x, y, axes=((1, 2), (1, 0)))
        check(f"{module}vecdot", x, y.T, axis=-1)
        check(f"{module}matrix_transpose", x)
    check("linalg.outer", x[0, 0], y[0])
    check("linalg.cross", y, y[::-1], axis=-1)
    v = draw(arrays(draw(st.sampled_from(FLOATS)), (2, 3), st.floats(-9, 9, width=32)))
    for order in (0, 1, 2, 3, 0.5, math.inf, -math.inf):
        axis = draw(st.sampled_from([None, 0, -1, (0, 1)]))
        check("linalg.vector_norm", v, axis=axis, ord=order, keepdims=True, rtol=1e-12)
