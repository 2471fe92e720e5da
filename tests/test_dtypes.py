"""Dtypes: the promotion table of the array API standard, Python scalars, names and kinds."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import tensorlite as tl
from tensorlite import dtypes

SIGNED = [tl.int8, tl.int16, tl.int32, tl.int64]
UNSIGNED = [tl.uint8, tl.uint16, tl.uint32, tl.uint64]
FLOATS = [tl.float16, tl.bfloat16, tl.float32, tl.float64]
ALL = [tl.bool, *SIGNED, *UNSIGNED, *FLOATS]

# The rows of the standard's table of mixed signedness; uint64 with a signed integer is undefined.
MIXED = {
    ("int8", "uint8"): "int16",
    ("int8", "uint16"): "int32",
    ("int8", "uint32"): "int64",
    ("int16", "uint8"): "int16",
    ("int16", "uint16"): "int32",
    ("int16", "uint32"): "int64",
    ("int32", "uint8"): "int32",
    ("int32", "uint16"): "int32",
    ("int32", "uint32"): "int64",
    ("int64", "uint8"): "int64",
    ("int64", "uint16"): "int64",
    ("int64", "uint32"): "int64",
}


@pytest.mark.parametrize("family", [SIGNED, UNSIGNED, [tl.float16, tl.float32, tl.float64]])
def test_within_a_kind_the_wider_one_wins(family: list[Any]) -> None:
    for (i, a), (j, b) in itertools.product(enumerate(family), repeat=2):
        assert dtypes.promote(a, b) == family[max(i, j)]


@pytest.mark.parametrize(("pair", "expected"), MIXED.items())
def test_mixed_signedness_follows_the_standard(pair: tuple[str, str], expected: str) -> None:
    a, b = map(np.dtype, pair)
    assert dtypes.promote(a, b) == dtypes.promote(b, a) == np.dtype(expected)


def test_beyond_the_standard() -> None:
    for signed in SIGNED:
        assert dtypes.promote(signed, tl.uint64) == tl.float32
    for a in ALL:
        assert dtypes.promote(tl.bool, a) == a
        for b in FLOATS:
            if a not in FLOATS:
                assert dtypes.promote(a, b) == b
    assert dtypes.promote(tl.float16, tl.bfloat16) == tl.float32
    assert dtypes.promote(tl.bfloat16, tl.float32) == tl.float32


def test_promotion_is_commutative_and_idempotent() -> None:
    for a, b in itertools.product(ALL, repeat=2):
        result = dtypes.promote(a, b)
        assert result == dtypes.promote(b, a)
        assert dtypes.promote(a, a) == a
        assert result in ALL


@pytest.mark.parametrize("a", ALL, ids=str)
@pytest.mark.parametrize("b", ALL, ids=str)
def test_operations_promote_by_the_table(a: Any, b: Any) -> None:
    x, y = tl.ones(2, dtype=a), tl.ones(2, dtype=b)
    expected = dtypes.promote(a, b)
    assert (x * y).dtype == expected == tl.result_type(x, y) == tl.result_type(a, b)
    assert tl.concat([x, y]).dtype == expected
    assert tl.where(tl.asarray(True), x, y).dtype == expected
    assert (x == y).dtype == tl.bool
    assert tl.jit(lambda x, y: x * y)(x, y).dtype == expected


@pytest.mark.parametrize("dtype", ALL, ids=str)
def test_a_python_scalar_takes_the_dtype_of_the_tensor(dtype: Any) -> None:
    x = tl.ones(2, dtype=dtype)
    is_float = dtype in FLOATS
    expected: list[tuple[Any, Any]] = [
        (True, dtype),
        (1, tl.int64 if dtype == tl.bool else dtype),
        (1.5, dtype if is_float else tl.float32),
        (np.float64(1.5), dtype if is_float else tl.float32),  # a Python float, by inheritance
    ]
    for scalar, wanted in expected:
        for result in (x * scalar, scalar * x, tl.multiply(x, scalar), tl.maximum(scalar, x)):
            assert result.dtype == wanted
        assert tl.result_type(x, scalar) == wanted
        assert tl.jit(lambda x, s: x * s)(x, scalar).dtype == wanted
    assert (x * np.int8(1)).dtype == dtypes.promote(dtype, tl.int8)
    assert (x * np.float32(1)).dtype == dtypes.promote(dtype, tl.float32)


def test_python_scalars_alone() -> None:
    assert tl.asarray(True).dtype == tl.bool
    assert tl.asarray(1).dtype == tl.int64
    assert tl.asarray(1.0).dtype == tl.float32
    assert tl.add(1, 2.5).dtype == tl.float32
    assert tl.result_type(1, True) == tl.int64


@pytest.mark.parametrize(
    ("operation", "value", "dtype"),
    [
        (lambda x: x + 300, 300, tl.uint8),
        (lambda x: -1 * x, -1, tl.uint8),
        (lambda x: tl.maximum(x, 2**40), 2**40, tl.int32),
        (lambda x: x == 128, 128, tl.int8),
        (lambda x: tl.clip(x, max=999), 999, tl.int8),
    ],
)
def test_python_integers_that_do_not_fit_are_refused(
    operation: Any, value: int, dtype: Any
) -> None:
    for function in (operation, tl.jit(operation), tl.vmap(operation)):
        with pytest.raises(OverflowError, match=rf"{value} does not fit {dtype}"):
            function(tl.ones(2, dtype=dtype))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (float, tl.float32),
        (int, tl.int64),
        (bool, tl.bool),
        ("float16", tl.float16),
        ("bfloat16", tl.bfloat16),
        (np.uint8, tl.uint8),
        (np.dtype("int32"), tl.int32),
    ],
)
def test_names_of_dtypes(name: Any, expected: Any) -> None:
    assert dtypes.canonical(name) == expected
    assert tl.zeros(1, dtype=name).dtype == expected


@pytest.mark.parametrize("name", ["complex64", "float8", object, "U4", "datetime64[s]", 3])
def test_unknown_dtypes_are_refused_with_the_known_ones(name: Any) -> None:
    with pytest.raises(TypeError, match=r"is not supported; use one of bfloat16, bool, float16"):
        tl.zeros(1, dtype=name)


def test_isdtype() -> None:
    assert tl.isdtype(tl.float16, "real floating")
    assert tl.isdtype(tl.bfloat16, ("integral", "real floating"))
    assert tl.isdtype(tl.uint8, "unsigned integer")
    assert not tl.isdtype(tl.bool, "numeric")
    assert not tl.isdtype(tl.float32, "complex floating")
    assert tl.isdtype(tl.int8, tl.int8)
    with pytest.raises(ValueError, match=r"no kind 'float'; there are bool, signed integer"):
        tl.isdtype(tl.int8, "float")
    with pytest.raises(TypeError, match="isdtype: takes a dtype such as .* got 'float32'"):
        tl.isdtype("float32", "real floating")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="dtype 3 is not supported"):
        tl.isdtype(tl.int8, 3)  # type: ignore[arg-type]
    assert tl.isdtype(tl.int8, np.int8)  # type: ignore[arg-type]


def test_result_type_needs_something() -> None:
    with pytest.raises(TypeError, match="at least one"):
        tl.result_type()
