"""The corners of the Python array API standard, against `array_api_strict`: no dimensions, no
elements, every axis and the two that are just out of range; scalars as operands; indexing with
arrays; the options of DLPack."""

from __future__ import annotations

import itertools
import math
import operator
from typing import Any

import numpy as np
import pytest

import tensorlite as tl

xp = pytest.importorskip("array_api_strict")

SHAPES = [(), (0,), (3,), (0, 3), (2, 0), (2, 3), (2, 0, 3), (2, 3, 3)]
DTYPES = [tl.bool, tl.int8, tl.uint16, tl.float32]
EVERY = [tl.bool, tl.int8, tl.int16, tl.int32, tl.int64]
EVERY += [tl.uint8, tl.uint16, tl.uint32, tl.uint64, tl.float32, tl.float64]
rng = np.random.default_rng(3)
# NumPy warns of means of nothing, which are NaN by the standard.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def array(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    values = rng.normal(size=shape) * 4
    return np.asarray(values > 0 if dtype == tl.bool else np.abs(values)).astype(dtype)


def outcome(module: Any, name: str, args: Any, options: Any) -> Any:
    """What the function of `module` gives: dtypes, shapes and values; or that it raises."""

    def given(value: Any) -> Any:
        if isinstance(value, list):
            return [given(v) for v in value]
        return module.asarray(value) if isinstance(value, np.ndarray) else value

    try:
        result = operator.attrgetter(name)(module)(
            *map(given, args), **{k: given(v) for k, v in options.items()}
        )
    except (ValueError, IndexError, TypeError):
        return "refused"
    results = result if isinstance(result, tuple | list) else [result]
    return [(r.dtype.name if module is tl else str(r.dtype), np.asarray(r)) for r in results]


def check(name: str, *args: Any, **options: Any) -> None:
    found, expected = (outcome(module, name, args, options) for module in (tl, xp))
    told = f"{name}({args}, {options})"
    if "refused" in (found, expected):
        assert found == expected, told
        return
    assert len(found) == len(expected), told
    for (dtype, a), (other, b) in zip(found, expected, strict=True):
        assert dtype == other.split(".")[-1] and a.shape == b.shape, told
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6, err_msg=told)


def axes(ndim: int) -> list[int]:
    """Those that exist and the next ones. Without dimensions there is none: NumPy takes 0 and -1
    there, the standard does not."""
    return list(range(-ndim - 1, ndim + 1)) if ndim else []


def kinds(name: str) -> str:
    """The kinds of dtypes that a function takes."""
    if name in {"all", "any", "count_nonzero", "flip", "expand_dims", "unstack"}:
        return "biuf"
    return "f" if name in {"mean", "std", "var"} else "iuf"


REDUCTIONS = ["all", "any", "count_nonzero", "max", "mean", "min", "prod", "std", "sum", "var"]


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_reductions_over_every_axis(name: str, shape: tuple[int, ...]) -> None:
    several: list[Any] = [None, (), *axes(len(shape))]
    several += list(itertools.combinations(range(-len(shape), len(shape)), 2))
    for dtype in DTYPES:
        if dtype.kind in kinds(name):
            x = array(shape, dtype)
            for axis, keepdims in itertools.product(several, (False, True)):
                check(name, x, axis=axis, keepdims=keepdims)


ALONG = ["argmax", "argmin", "argsort", "cumulative_prod", "cumulative_sum", "diff"]
ALONG += ["expand_dims", "flip", "sort", "squeeze", "unstack"]


@pytest.mark.parametrize("name", ALONG)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_functions_along_every_axis(name: str, shape: tuple[int, ...]) -> None:
    for dtype in DTYPES:
        if dtype.kind in kinds(name):
            for axis in axes(len(shape)):
                check(name, array(shape, dtype), axis=axis)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_joining_moving_and_repeating_along_every_axis(shape: tuple[int, ...]) -> None:
    for dtype in DTYPES:
        x = array(shape, dtype)
        for axis in axes(len(shape)):
            check("concat", [x, x], axis=axis)
            check("stack", [x, x], axis=axis)
            check("roll", x, 1, axis=axis)
            check("repeat", x, 2, axis=axis)
            check("take", x, np.asarray([], np.int64), axis=axis)
            if axis in range(-len(shape), len(shape)) and shape[axis]:
                check("take", x, np.asarray([0, -1, 0]), axis=axis)
        for target in [(-1,), (0,), (3, 2), (1, -1), (-1, 0), (-1, -1), ()]:
            check("reshape", x, target)
        for target in [(2, *shape), (2, 3), (2, 2, 3), (3,), ()]:
            check("broadcast_to", x, target)
        for repetitions in [(2,), (), (2, 1, 2, 1), (0,)]:
            check("tile", x, repetitions)
        for order in itertools.product(range(-len(shape), len(shape) + 1), repeat=len(shape)):
            check("permute_dims", x, order)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_linear_algebra_of_nothing_and_of_stacks(shape: tuple[int, ...]) -> None:
    x = array(shape, tl.float64)
    for name in ("det", "inv", "slogdet", "svdvals", "pinv", "trace", "diagonal"):
        check(f"linalg.{name}", x)
    for order in (1, -1, 2, -2, math.inf, -math.inf, "fro", "nuc"):
        check("linalg.matrix_norm", x, ord=order)
    for order, keepdims in itertools.product((0, 1, 2, 3, math.inf), (False, True)):
        for axis in (None, *axes(len(shape))):
            check("linalg.vector_norm", x, ord=order, axis=axis, keepdims=keepdims)
    for n in (0, 1, 2, -1):
        check("linalg.matrix_power", x, n)
    for other in SHAPES:
        y = array(other, tl.float64)
        check("matmul", x, y)
        check("linalg.outer", x, y)
        for count in (0, 1, 2):
            check("tensordot", x, y, axes=count)
        if shape and other:
            check("vecdot", x, y)
            check("linalg.cross", x, y)


@pytest.mark.parametrize("dtype", EVERY, ids=str)
def test_scalars_take_the_dtype_of_the_array(dtype: Any) -> None:
    x = tl.ones((2, 0, 3), dtype=dtype)
    scalar = {"b": True, "f": 1.0}.get(dtype.kind, 1)
    mask = tl.ones((), dtype=tl.bool)
    assert tl.where(mask, x, scalar).dtype == tl.where(mask, scalar, x).dtype == dtype
    assert tl.result_type(x, scalar) == tl.result_type(scalar, dtype) == dtype
    binary = {
        "b": ["logical_and", "logical_or", "logical_xor", "bitwise_and", "equal", "not_equal"],
        "f": ["add", "atan2", "copysign", "hypot", "logaddexp", "maximum", "nextafter", "pow"],
    }.get(dtype.kind, ["add", "bitwise_xor", "floor_divide", "minimum", "multiply", "remainder"])
    for name in binary:
        f = getattr(tl, name)
        wanted = tl.bool if name in {"equal", "not_equal"} else dtype
        assert f(x, scalar).dtype == f(scalar, x).dtype == wanted, name
        assert f(x, scalar).shape == f(scalar, x).shape == x.shape
    if dtype != tl.bool:
        for bounds in ((scalar, scalar), (None, scalar), (scalar, None), (None, None)):
            assert tl.clip(x, *bounds).dtype == dtype and tl.clip(x, *bounds).shape == x.shape


INDICES = np.arange(2), np.asarray([[1], [0]])
KEYS: list[Any] = [
    (0, INDICES[0]),
    INDICES,
    (INDICES[0], 0),
    (INDICES[0], INDICES[0], INDICES[0]),
    (INDICES[1], 0, INDICES[0]),
    (slice(None), INDICES[1]),
    (INDICES[0][:0],),
    (..., INDICES[0]),
    (INDICES[0], ...),
    (np.asarray(1),),
    (np.asarray(1), np.asarray(0)),
    (0, np.asarray(1), ...),
    (INDICES[0], None),
    (-1, INDICES[0] - 2),
    (slice(None, None, -1), INDICES[0], slice(5, 0, -2)),
    (None, ..., slice(-1, -9, -1), None),
    (slice(2, 2),),
    (),
]


@pytest.mark.parametrize("key", KEYS, ids=repr)
def test_indexing_with_arrays_and_negative_steps(key: Any) -> None:
    x = np.arange(24).reshape(2, 3, 4)
    ours = tuple(tl.asarray(k) if isinstance(k, np.ndarray) else k for k in key)
    np.testing.assert_array_equal(np.asarray(tl.asarray(x)[ours]), x[key])


@pytest.mark.parametrize("key", [2, -3, (0, 3), (0, 0, 0, 0), (..., ...), "a", 1.0], ids=repr)
def test_bad_indices_are_refused(key: Any) -> None:
    with pytest.raises(IndexError if key not in ("a", 1.0) else TypeError, match="ind"):
        tl.zeros((2, 3, 4))[key]


@pytest.mark.parametrize("dtype", EVERY, ids=str)
def test_dlpack_takes_all_of_its_options(dtype: Any) -> None:
    options = [
        {"copy": [None, True, False]},
        {"max_version": [None, (0, 0), (1, 0), (2, 0)]},
        {"dl_device": [None, (1, 0)]},
    ]
    for x in (tl.ones((2, 1), dtype=dtype), tl.zeros((0, 2), dtype=dtype), tl.ones(3, dtype=dtype)):
        assert x.__dlpack_device__() == (1, 0)
        for chosen in itertools.product(*[[(k, v) for v in o[k]] for o in options for k in o]):
            x.__dlpack__(**dict(chosen))
        for copy, device in itertools.product((None, True, False), (None, "cpu", x.device)):
            y = tl.from_dlpack(x, device=device, copy=copy)
            assert y.dtype == dtype and y.device == x.device and bool(tl.all(x == y))


@pytest.mark.parametrize(
    ("arguments", "dtype", "expected"),
    [
        ((2**63, 2**63 + 3), tl.uint64, [2**63, 2**63 + 1, 2**63 + 2]),
        ((2**63 + 2, 2**63 - 1, -2), tl.uint64, [2**63 + 2, 2**63]),
        ((5, 0, -2), tl.uint8, [5, 3, 1]),
        ((-128, 128, 255), tl.int8, [-128, 127]),
        ((3, None, 2), None, [0, 2]),
        ((0.5, 2, 0.5), tl.float64, [0.5, 1, 1.5]),
        ((1, 1), None, []),
    ],
)
def test_ranges(arguments: Any, dtype: Any, expected: Any) -> None:
    assert tl.arange(*arguments, dtype=dtype).tolist() == expected


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: tl.arange(0, 400, 100, dtype=tl.uint8), OverflowError, "arange: .* 300 .* uint8"),
        (lambda: tl.arange(-1, 3, dtype=tl.uint16), OverflowError, "arange: .* -1 .* uint16"),
        (lambda: tl.arange("3"), TypeError, "arange: start, stop and step are numbers, got '3'"),
        (lambda: tl.count_nonzero(tl.ones(2), axis=1), IndexError, "count_nonzero: axis 1"),
    ],
)
def test_mistakes_are_named(call: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        call()
