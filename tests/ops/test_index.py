"""Indexing and `.at` against NumPy, their gradients, and indices that do not fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import example, given

import tensorlite as tl
from tensorlite.ops.index import one_hot

shapes = hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=4)


def arange(shape: Any) -> np.ndarray:
    return np.arange(np.prod(shape, dtype=int), dtype=np.float64).reshape(shape)


@st.composite
def basic(draw: Any) -> tuple[np.ndarray, Any]:
    """An array and an index of ints, slices, ... and None."""
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    index = hnp.basic_indices(shape, allow_newaxis=True, allow_ellipsis=True)
    return arange(shape), draw(index)


@st.composite
def advanced(draw: Any) -> tuple[np.ndarray, Any]:
    """An array and an index with integer arrays and boolean masks, among slices, ints, None and
    ..."""
    shape = draw(shapes)
    common = draw(st.sampled_from([(), (1,), (2,), (3, 1), (0,)]))
    entries = [draw(one_axis(n, common)) for n in shape]
    start = draw(st.integers(0, len(entries)))
    if draw(st.booleans()):
        entries[start : draw(st.integers(start, len(entries)))] = [Ellipsis]
    else:
        del entries[start:]
    if draw(st.booleans()):
        entries.insert(draw(st.integers(0, len(entries))), None)
    return arange(shape), tuple(entries)


def one_axis(n: int, common: tuple[int, ...]) -> st.SearchStrategy[Any]:
    """What may index an axis of `n` elements; arrays have the shape `common` or one element."""
    places = st.integers(-n, n - 1)
    masks = hnp.arrays(bool, (n,)).filter(lambda m: m.sum() == 1 or (m.sum(),) == common)
    return st.one_of(
        places,
        st.slices(n),
        hnp.arrays(st.sampled_from([np.int64, np.int8]), common, elements=places),
        st.lists(places, min_size=1, max_size=1),
        masks,
    )


NO_AXIS = (arange((1, 1, 2)), (None, 0, ..., 0, np.array([0, 1, 0])))  # `...` still separates


@example(NO_AXIS)
@given(basic() | advanced())
def test_indexing_is_numpys(case: Any) -> None:
    a, index = case
    expected = a[index]
    x = tl.asarray(a)
    for result in (x[index], x.at[index].get(), tl.jit(lambda x: x[index])(x)):
        assert result.shape == np.shape(expected)
        np.testing.assert_array_equal(result.numpy(), expected)


@example(NO_AXIS)
@given(basic() | advanced())
def test_the_gradient_of_indexing_counts_what_was_taken(case: Any) -> None:
    a, index = case
    weights = np.random.default_rng(0).normal(size=np.shape(a[index]))
    expected = np.zeros_like(a)
    np.add.at(expected, index, weights)
    f = lambda x: tl.sum(x[index] * tl.asarray(weights))  # noqa: E731
    for gradient in (tl.grad(f), tl.jit(tl.grad(f))):
        np.testing.assert_allclose(gradient(tl.asarray(a)).numpy(), expected, atol=1e-12)


UFUNCS = {"add": np.add, "multiply": np.multiply, "min": np.minimum, "max": np.maximum}


@pytest.mark.parametrize("mode", [*UFUNCS, "set"])
@given(case=basic() | advanced(), data=st.data())
def test_updates_are_numpys(mode: str, case: Any, data: Any) -> None:
    a, index = case
    shape = np.shape(a[index])
    if data.draw(st.booleans()):
        values: Any = data.draw(st.sampled_from([2, -1.5, True]))
    else:
        kept = data.draw(st.integers(0, len(shape)))
        values = np.random.default_rng(1).integers(-3, 9, shape[kept:]) + 0.5
    if mode == "set" and np.ndim(values):
        values = np.full(np.shape(values), 7.5)  # which of several values wins is left open
    expected = a.copy()
    if mode == "set":
        expected[index] = values
    else:
        UFUNCS[mode].at(expected, index, values)
    x = tl.asarray(a)
    for result in (
        getattr(x.at[index], mode)(values),
        tl.jit(lambda x, v: getattr(x.at[index], mode)(v))(x, values),
    ):
        np.testing.assert_allclose(result.numpy(), expected, rtol=1e-12)
    np.testing.assert_array_equal(x.numpy(), a)


@pytest.mark.parametrize("mode", [*UFUNCS, "set"])
@example(case=NO_AXIS)
@example(case=(NO_AXIS[0], (0, ..., 0, np.array([0, 1]))))
@given(case=basic() | advanced())
def test_gradients_of_updates_against_finite_differences(mode: str, case: Any) -> None:
    a, index = case
    rng = np.random.default_rng(2)
    a = a + rng.uniform(0.1, 0.4, a.shape)  # never equal to an update, so that extrema are smooth
    values = rng.permutation(a[index].size).reshape(np.shape(a[index])) + 0.5
    if mode in ("set", "multiply") and _repeats(a.shape, index):
        return
    weights = tl.asarray(rng.normal(size=a.shape))

    def f(x: tl.Tensor, v: tl.Tensor) -> tl.Tensor:
        return tl.sum(getattr(x.at[index], mode)(v) * weights)

    points = [tl.asarray(a), tl.asarray(values)]
    moves = [tl.asarray(rng.normal(size=p.shape)) for p in points]
    gradients = tl.grad(f, (0, 1))(*points)
    slope = sum(float(np.sum(g.numpy() * m.numpy())) for g, m in zip(gradients, moves, strict=True))
    h = 1e-6
    above = f(*[p + h * m for p, m in zip(points, moves, strict=True)])
    below = f(*[p - h * m for p, m in zip(points, moves, strict=True)])
    assert slope == pytest.approx((above - below).item() / (2 * h), rel=1e-5, abs=1e-6)


def _repeats(shape: Any, index: Any) -> bool:
    taken = np.arange(np.prod(shape, dtype=int)).reshape(shape)[index]
    return len(np.unique(taken)) < taken.size


def test_masks() -> None:
    a = arange((3, 4))
    x = tl.asarray(a)
    for index in (
        a > 5,
        a[:, 0] > 3,
        (slice(None), a[0] > 1),
        (..., a[0] > 1),
        (a[:, 0] > 3, 1),
        (None, a > 5),
        [True, False, True],
    ):
        np.testing.assert_array_equal(x[index].numpy(), a[index])
        assert tl.sum(x.at[index].set(0.0)).item() == np.sum(a) - np.sum(a[index])
    np.testing.assert_array_equal(x[x > 5].numpy(), a[a > 5])
    gradient = tl.grad(lambda x: tl.sum(x[x > 5] ** 2))(x)
    np.testing.assert_array_equal(gradient.numpy(), np.where(a > 5, 2 * a, 0))


def test_tensors_and_numpy_scalars_as_indices() -> None:
    x = tl.asarray(arange((3, 4)))
    assert x[tl.asarray(1), tl.asarray(-1)].item() == 7
    assert x[np.int8(1), np.uint8(2)].item() == 6
    assert x[tl.asarray([2, 0], dtype=tl.uint8)][:, 0].tolist() == [8, 0]
    assert x[[]].shape == (0, 4)
    assert tl.jit(lambda x, i: x[i, 1])(x, tl.asarray(2)).item() == 9
    assert [row.shape for row in x] == [(4,)] * 3


def test_take_and_take_along_axis() -> None:
    a = arange((3, 4))
    x, i = tl.asarray(a), np.array([2, 0, -1])
    np.testing.assert_array_equal(tl.take(x, tl.asarray(i), axis=1).numpy(), np.take(a, i, 1))
    np.testing.assert_array_equal(tl.take(x[0], tl.asarray(i)).numpy(), np.take(a[0], i))
    order = np.argsort(-a, axis=1)
    np.testing.assert_array_equal(
        tl.take_along_axis(x, tl.asarray(order), axis=1).numpy(), np.take_along_axis(a, order, 1)
    )
    one = tl.take_along_axis(x, tl.asarray([[1], [2], [3]]), axis=-1)
    assert one.tolist() == [[1], [6], [11]]


@pytest.mark.parametrize("dtype", [tl.uint8, tl.int8, tl.int64], ids=str)
def test_one_hot(dtype: Any) -> None:
    labels = tl.asarray([0, 2, 100], dtype=dtype)
    hot = one_hot(labels, 300)
    np.testing.assert_array_equal(hot.numpy(), np.eye(300)[[0, 2, 100]])
    assert one_hot(labels, 3, axis=0).tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]
    assert one_hot(tl.asarray(1), 2, dtype=tl.int8).tolist() == [0, 1]
    with pytest.raises(TypeError, match=r"one_hot: num_classes is an integer .* got 2.5"):
        tl.nn.one_hot(tl.arange(2), 2.5)
    with pytest.raises(ValueError, match=r"one_hot: num_classes is an integer .* got -1"):
        tl.nn.one_hot(tl.arange(2), -1)
    with pytest.raises(TypeError, match=r"one_hot: takes integer class numbers, got float32\[3\]"):
        one_hot(labels.astype(tl.float32), 3)


def test_several_updates_at_one_place_all_count() -> None:
    x, i = tl.ones(2), tl.asarray([0, 0, 1])
    values = tl.asarray([2.0, 3.0, -1.0])
    assert x.at[i].add(values).tolist() == [6, 0]
    assert x.at[i].multiply(values).tolist() == [6, -1]
    assert x.at[i].max(values).tolist() == [3, 1]
    assert x.at[i].min(values).tolist() == [1, -1]
    assert x.at[0].add(1).at[1].set(5).tolist() == [2, 5]


def test_updates_keep_the_dtype() -> None:
    for dtype in (tl.int8, tl.float16, tl.bool):
        x = tl.zeros(3, dtype=dtype)
        assert x.at[0].set(True).dtype == dtype
        assert x.at[:2].set(tl.ones(2, dtype=dtype)).dtype == dtype
        assert x.at[tl.asarray([0])].set(True).dtype == dtype
    assert tl.zeros(2, dtype=tl.int8).at[0].set(1).dtype == tl.int8
    assert tl.zeros(2, dtype=tl.float16).at[0].set(0.1).dtype == tl.float16
    assert tl.zeros(2).at[0].set(tl.asarray(2.0, dtype=tl.float64)).dtype == tl.float32
    assert tl.zeros(2).at[:].set(tl.arange(2)).tolist() == [0, 1]


def test_places_of_no_elements() -> None:
    x = tl.zeros((0, 3))
    assert x[:, 1].shape == (0,)
    assert x.at[:, 1].set(1.0).shape == (0, 3)
    assert tl.ones(3).at[tl.zeros((0,), dtype=tl.int64)].add(tl.zeros(0)).tolist() == [1, 1, 1]
    assert tl.ones(3).at[1:1].set(9.0).tolist() == [1, 1, 1]


x = tl.zeros((2, 3))


@pytest.mark.parametrize(
    ("action", "error", "message"),
    [
        (lambda: x[2], IndexError, r"index 2 is out of range for axis 0 of shape \(2, 3\)"),
        (lambda: x[0, -4], IndexError, r"index -4 is out of range for axis 1 of shape \(2, 3\)"),
        (lambda: x[0, 0, 0], IndexError, r"too many indices: 3 for shape \(2, 3\)"),
        (lambda: x[..., ...], IndexError, r"at most one \.\.\."),
        (lambda: x[1.0], TypeError, r"cannot index a tensor with 1.0 \(float\)"),
        (lambda: x["a"], TypeError, r"cannot index a tensor with 'a' \(str\); use integers"),
        (lambda: x[tl.ones(2)], IndexError, r"holds integers or booleans, got float32"),
        (lambda: x[[0.5]], IndexError, r"holds integers or booleans, got float32"),
        (lambda: x[True, 0], IndexError, r"boolean index without dimensions.*tl.where"),
        (
            lambda: x[[True, False, True]],
            IndexError,
            r"boolean index of shape \(3,\) does not match",
        ),
        (lambda: x[..., [True, False]], IndexError, r"shape \(2,\) does not match .* at axis 1"),
        (lambda: x[:, tl.ones((3, 1)) > 0], IndexError, r"too many indices: 3"),
        (lambda: x[tl.asarray([0, 5])], IndexError, r"gather: index 5 is out of bounds for axis 0"),
        (lambda: x[tl.asarray([0, 1]), tl.asarray([0, 1, 2])], ValueError, r"broadcast_arrays"),
        (
            lambda: x.at[tl.asarray([-3])].add(1.0),
            IndexError,
            r"scatter: index -3 is out of bounds for axis 0 with size 2",
        ),
        (
            lambda: x.at[tl.asarray([2])].set(1.0),
            IndexError,
            r"scatter: index 2 is out of bounds",
        ),
        (
            lambda: x.at[0].set(tl.ones(2)),
            ValueError,
            r"at\[\.\.\.\]\.set: shapes \(2,\) and \(3,\) do not broadcast",
        ),
        (
            lambda: x.at[0, 0].add(tl.ones(2)),
            ValueError,
            r"add: values of shape \(2,\) do not fit a place of shape \(\)",
        ),
        (
            lambda: x.at[0].set(tl.ones(3, dtype=tl.float64)),
            TypeError,
            r"set: updates of dtype float64 do not fit into float32; use astype",
        ),
        (
            lambda: x.astype(tl.int8).at[0].multiply(0.5),
            TypeError,
            r"multiply: updates of float do not fit into int8",
        ),
        (
            lambda: x.astype(tl.int8).at[0].set(tl.asarray(0.5)),
            TypeError,
            r"updates of dtype float32 do not fit into int8",
        ),
        (lambda: (x == 0).at[0].set(2), TypeError, r"updates of int do not fit into bool"),
        (lambda: x.astype(tl.int8).at[0].add(300), OverflowError, r"300 does not fit int8"),
        (lambda: tl.take(x, tl.asarray([0])), ValueError, r"take: needs an axis for shape"),
        (
            lambda: tl.take_along_axis(x, tl.asarray([0])),
            ValueError,
            r"take_along_axis: indices int64\[1\] and float32\[2,3\] differ in dimensions",
        ),
    ],
)
def test_bad_input_is_named(
    action: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        action()
    assert tl.sum(x).item() == 0
