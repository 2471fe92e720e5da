"""Making tensors: `asarray` and its copies, `full` and its kin, casts."""

from __future__ import annotations

import array
import collections.abc
from typing import Any

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

import tensorlite as tl
from tensorlite import dtypes
from tensorlite.ops.creation import iota

DTYPES = sorted(dtypes.ALL, key=str)


# ---- asarray -------------------------------------------------------------------------------------


@given(
    hnp.arrays(
        st.sampled_from([d for d in DTYPES if d != tl.bfloat16]),
        hnp.array_shapes(min_dims=0, min_side=0),
    )
)
def test_arrays_keep_their_values_shape_and_dtype(a: np.ndarray) -> None:
    x = tl.asarray(a)
    assert (x.shape, x.dtype) == (a.shape, a.dtype)
    np.testing.assert_array_equal(x.numpy(), a)


@pytest.mark.parametrize(
    ("obj", "dtype", "values"),
    [
        (True, tl.bool, True),
        (3, tl.int64, 3),
        (0.5, tl.float32, 0.5),
        (np.float16(2), tl.float16, 2),
        (np.float64(2), tl.float64, 2),
        ([1, 2], tl.int64, [1, 2]),
        ([1, 2.5], tl.float32, [1, 2.5]),
        ([True, False], tl.bool, [True, False]),
        ([], tl.float32, []),
        ((1, (2,)[0]), tl.int64, [1, 2]),
        ([[1.0], [2.0]], tl.float32, [[1], [2]]),
        ([np.float64(1.5)], tl.float64, [1.5]),
        ([np.zeros(1), np.ones(1)], tl.float64, [[0], [1]]),
        (range(3), tl.int64, [0, 1, 2]),
        (array.array("i", [1, 2]), tl.int32, [1, 2]),
        (array.array("d", [0.5]), tl.float64, [0.5]),
        (memoryview(b"ab"), tl.uint8, [97, 98]),
        (np.arange(3, dtype=">i4"), tl.int32, [0, 1, 2]),
        (np.arange(6.0)[::2], tl.float64, [0, 2, 4]),
    ],
)
def test_what_is_understood(obj: Any, dtype: Any, values: Any) -> None:
    x = tl.asarray(obj)
    assert x.dtype == dtype
    assert x.tolist() == values
    assert type(x.data) is np.ndarray


def test_lists_of_tensors_stay_differentiable() -> None:
    def f(x: tl.Tensor) -> tl.Tensor:
        return tl.sum(tl.asarray([[x[0], 2.0], [x[1], x[0]]]) ** 2)

    assert tl.grad(f)(tl.asarray([1.0, 3.0])).tolist() == [4, 6]
    assert tl.asarray([tl.ones(2), tl.zeros(2)], dtype=tl.int8).dtype == tl.int8


def test_a_subclass_of_ndarray_becomes_a_plain_array() -> None:
    masked = np.ma.array([1.0, 2.0], mask=[False, True])
    assert type(tl.asarray(masked).data) is np.ndarray


def writable_sources() -> list[tuple[Any, collections.abc.Callable[[], None]]]:
    """Objects that own memory, and how somebody changes it."""
    plain = np.zeros(3, np.float32)
    below = np.zeros(3, np.float32)
    view = below.view()
    view.flags.writeable = False
    wide = np.zeros((2, 3), np.float32)
    broadcast = np.broadcast_to(wide[0], (2, 3))
    numbers = array.array("i", [0, 0])
    raw = bytearray(8)
    frozen = np.frombuffer(memoryview(raw).toreadonly(), np.float32)

    class Exporter:
        def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
            return plain

    return [
        (plain, lambda: plain.fill(9)),
        (plain[1:], lambda: plain.fill(9)),
        (view, lambda: below.fill(9)),
        (broadcast, lambda: wide.fill(9)),
        (numbers, lambda: numbers.__setitem__(0, 9)),
        (frozen, lambda: raw.__setitem__(3, 9)),
        (Exporter(), lambda: plain.fill(9)),
        (np.ma.array(plain, copy=False), lambda: plain.fill(9)),
    ]


@pytest.mark.parametrize("number", range(len(writable_sources())))
def test_nobody_can_change_a_tensor_through_what_it_was_made_from(number: int) -> None:
    source, change = writable_sources()[number]
    x = tl.asarray(source)
    before = x.tolist()
    change()
    assert x.tolist() == before
    assert np.asarray(source).tolist() != before, "the change went somewhere else"


@pytest.mark.parametrize("dtype", [tl.uint64, tl.float64, tl.float32, tl.bfloat16], ids=str)
def test_lists_of_integers_on_both_sides_of_int64_keep_them(dtype: Any) -> None:
    numbers = [2**64 - 1, 0, 2**63]
    expected = numbers if dtype == tl.uint64 else [2.0**64, 0.0, 2.0**63]
    assert tl.asarray(numbers, dtype=dtype).tolist() == expected
    assert tl.asarray([numbers, numbers], dtype=dtype).tolist() == [expected, expected]


def test_a_complex_scalar_that_is_real() -> None:
    assert tl.asarray(0j).aval == tl.asarray(0.0).aval
    assert tl.asarray(complex(2.5, -0.0), dtype=tl.float64).item() == 2.5


def test_what_nobody_can_change_is_not_copied() -> None:
    owned = np.arange(4.0)
    owned.flags.writeable = False
    assert np.shares_memory(tl.asarray(owned).data, owned)
    assert np.shares_memory(tl.asarray(owned[1:]).data, owned)
    data = np.frombuffer(b"\x00" * 8, np.float32)
    assert np.shares_memory(tl.asarray(data).data, data)


def test_the_copy_option() -> None:
    a = np.arange(4.0)
    shared = tl.asarray(a, copy=False)
    assert np.shares_memory(shared.data, a)
    frozen = np.arange(4.0)
    frozen.flags.writeable = False
    assert not np.shares_memory(tl.asarray(frozen, copy=True).data, frozen)
    x = tl.arange(3)
    assert tl.asarray(x) is x
    assert tl.asarray(x, dtype=tl.int64) is x
    assert tl.asarray(x, copy=False) is x
    assert not np.shares_memory(tl.asarray(x, copy=True).data, x.data)


@pytest.mark.parametrize(
    ("obj", "options", "error", "message"),
    [
        ([1, 2], {"copy": False}, ValueError, r"asarray: copy=False, but list must be copied"),
        (np.zeros(2), {"copy": False, "dtype": tl.int8}, ValueError, r"ndarray must be copied"),
        (1.0, {"copy": False}, ValueError, r"float must be copied"),
        (
            tl.ones(2),
            {"copy": False, "dtype": tl.int8},
            ValueError,
            r"float32 on cpu must be copied",
        ),
        ("abc", {}, TypeError, r"asarray: cannot make a tensor of str with dtype <U3"),
        (["1.5"], {"dtype": tl.float32}, TypeError, r"tensor of list with dtype <U3"),
        (1j, {}, TypeError, r"tensor of complex with dtype complex128"),
        ([0j], {}, TypeError, r"tensor of list with dtype complex128"),
        ([2**63], {}, OverflowError, r"asarray: a number does not fit int64.*use another dtype"),
        ([2**64 - 1, 0], {}, OverflowError, r"asarray: a number does not fit int64"),
        ([2**64, 0], {"dtype": tl.uint64}, OverflowError, r"asarray: a number does not fit uint64"),
        (None, {}, TypeError, r"tensor of NoneType with dtype object"),
        ([1, None], {}, TypeError, r"tensor of list with dtype object"),
        (np.zeros(2, "M8[s]"), {}, TypeError, r"tensor of ndarray with dtype datetime64"),
        (
            [[1], [1, 2]],
            {},
            ValueError,
            r"asarray: cannot make a tensor of this list: its rows differ",
        ),
        (300, {"dtype": tl.uint8}, OverflowError, r"asarray: the number 300 does not fit uint8"),
        (2**63, {}, OverflowError, r"asarray: the number 9223372036854775808 does not fit int64"),
        ([1, -1], {"dtype": tl.uint8}, OverflowError, r"asarray: .*-1 out of bounds for uint8"),
    ],
)
def test_what_is_refused(obj: Any, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        tl.asarray(obj, **options)


# ---- full and its kin ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_filled_tensors(dtype: Any) -> None:
    for x, value in (
        (tl.zeros((2, 0, 3), dtype=dtype), 0),
        (tl.ones(3, dtype=dtype), 1),
        (tl.full((), True, dtype=dtype), 1),
        (tl.empty((2,), dtype=dtype), 0),
        (tl.zeros_like(tl.ones((2, 2), dtype=dtype)), 0),
        (tl.ones_like(tl.zeros(1), dtype=dtype), 1),
        (tl.full_like(tl.zeros(2, dtype=dtype), 1), 1),
        (tl.empty_like(tl.zeros(2, dtype=dtype)), 0),
        (tl.eye(2, 3, k=1, dtype=dtype)[0, 1], 1),
        (iota((2, 3), -1, dtype)[1, 1], 1),
    ):
        assert x.dtype == dtype
        assert bool(tl.all(x == value))


def test_default_dtypes_and_shapes() -> None:
    assert tl.zeros(2).dtype == tl.ones(2).dtype == tl.eye(2).dtype == tl.float32
    assert tl.full((1,), 2).dtype == tl.int64
    assert tl.full((1,), 2.0).dtype == tl.float32
    assert tl.full((1,), False).dtype == tl.bool
    assert tl.full((1,), np.float64(2)).dtype == tl.float64
    assert tl.zeros(np.int64(3)).shape == (3,)
    assert tl.zeros([2, np.int8(3)]).shape == (2, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "arguments", [(5,), (2, 7), (7, 2, -2), (0, 1, 0.25), (3.0,), (np.int64(4),), (1, 1), (0, -3)]
)
def test_arange_is_numpys(arguments: Any) -> None:
    expected = np.arange(*arguments)
    result = tl.arange(*arguments)
    assert result.dtype == (tl.int64 if expected.dtype == np.int64 else tl.float32)
    np.testing.assert_array_equal(result.numpy(), expected)


def test_linspace_and_eye() -> None:
    np.testing.assert_allclose(tl.linspace(0, 1, 5).numpy(), np.linspace(0, 1, 5))
    np.testing.assert_allclose(
        tl.linspace(1, 0, 3, endpoint=False, dtype=tl.float64).numpy(),
        np.linspace(1, 0, 3, endpoint=False),
    )
    assert tl.eye(2, 3, k=-1).tolist() == np.eye(2, 3, k=-1).tolist()


@pytest.mark.parametrize(
    ("action", "error", "message"),
    [
        (lambda: tl.full((2,), 300, dtype=tl.uint8), OverflowError, r"full: .* 300 does not fit"),
        (
            lambda: tl.full((2,), tl.ones(())),
            TypeError,
            r"full: .* got .*; for a tensor use tl.broadcast_to",
        ),
        (lambda: tl.full((2,), "1"), TypeError, r"full: fill_value is a number, got str"),
        (lambda: tl.zeros((2, -1)), ValueError, r"no negative sizes, got \(2, -1\)"),
        (lambda: tl.zeros(2.5), TypeError, r"a shape is an int or a sequence of ints, got 2.5"),
        (lambda: tl.ones((2, 1.0)), TypeError, r"a shape is .*, got \(2, 1.0\)"),
        (lambda: tl.empty(None), TypeError, r"a shape is .*, got None"),
        (lambda: tl.arange(0, 5, 0), ValueError, r"arange: step is 0"),
        (lambda: tl.eye(2.5), TypeError, r"eye: n_rows is an integer .*, got 2.5"),
        (lambda: tl.eye(2, -1), ValueError, r"eye: n_cols is an integer of at least 0, got -1"),
        (lambda: tl.eye(2, k=0.5), TypeError, r"eye: k is an integer, got 0.5"),
        (lambda: tl.linspace(0, 1, -1), ValueError, r"linspace: num .* at least 0, got -1"),
        (
            lambda: tl.jit(lambda n: tl.zeros(n))(3),
            tl.TracerError,
            r"needs a concrete value.*tl.jit of",
        ),
    ],
)
def test_bad_input_is_named(action: Any, error: type[Exception], message: str) -> None:
    for run in (action, lambda: tl.jit(lambda: action())()):
        with pytest.raises(error, match=message):
            run()


# ---- casts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", DTYPES, ids=str)
@pytest.mark.parametrize("target", DTYPES, ids=str)
def test_casts(source: Any, target: Any) -> None:
    x = tl.asarray([0, 1, 1], dtype=source)
    for y in (x.astype(target), tl.astype(x, target), tl.jit(lambda x: x.astype(target))(x)):
        assert y.dtype == target
        assert y.astype(tl.int64).tolist() == [0, 1, 1]
    assert (x.astype(target) is x) == (source == target)


def test_gradients_pass_through_floats_only() -> None:
    x = tl.asarray([1.5, 2.5])
    narrow = tl.grad(lambda x: tl.sum((x.astype(tl.bfloat16) * 2).astype(tl.float64)))(x)
    assert narrow.dtype == tl.float32
    assert narrow.tolist() == [2, 2]
    assert tl.grad(lambda x: tl.sum(x.astype(tl.int32).astype(tl.float32) * x))(x).tolist() == [
        1,
        2,
    ]
