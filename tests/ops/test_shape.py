"""Shapes: reshape, permute, broadcast, pad, concatenate, flip, against NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

import tensorlite as tl

shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3)


def arange(shape: Any) -> np.ndarray:
    return np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)


def same(result: tl.Tensor, expected: np.ndarray) -> None:
    assert result.shape == expected.shape
    np.testing.assert_array_equal(result.numpy(), expected)


@given(st.data())
def test_reshape(data: Any) -> None:
    shape = data.draw(shapes)
    target = list(data.draw(st.permutations((*shape, 1))))
    if target and np.prod(target) and data.draw(st.booleans()):
        target[data.draw(st.integers(0, len(target) - 1))] = -1
    a = arange(shape)
    same(tl.reshape(tl.asarray(a), tuple(target)), a.reshape(target))
    same(tl.asarray(a).reshape(*target), a.reshape(target))


@given(st.data())
def test_axes_move(data: Any) -> None:
    shape = data.draw(shapes.filter(bool))
    a, x = arange(shape), tl.asarray(arange(shape))
    n = len(shape)
    axis = st.integers(-n, n - 1)
    order = tuple(data.draw(st.permutations(range(n))))
    same(tl.permute_dims(x, order), np.transpose(a, order))
    same(tl.permute_dims(x, tuple(o - n for o in order)), np.transpose(a, order))
    i, j = data.draw(axis), data.draw(axis)
    same(tl.swapaxes(x, i, j), np.swapaxes(a, i, j))
    same(tl.moveaxis(x, i, j), np.moveaxis(a, i, j))
    k = data.draw(st.integers(0, n))
    sources, targets = order[:k], tuple(data.draw(st.permutations(range(n))))[:k]
    same(tl.moveaxis(x, sources, targets), np.moveaxis(a, sources, targets))
    flipped = data.draw(st.none() | axis | st.just(order[:k]))
    same(tl.flip(x, axis=flipped), np.flip(a, flipped))


@given(st.data())
def test_axes_of_size_one_come_and_go(data: Any) -> None:
    shape = data.draw(shapes)
    a, x = arange(shape), tl.asarray(arange(shape))
    n = len(shape)
    axis = data.draw(st.integers(-n - 1, n))
    same(tl.expand_dims(x, axis=axis), np.expand_dims(a, axis))
    same(tl.squeeze(tl.expand_dims(x, axis=axis), axis), a)
    same(tl.squeeze(x), np.squeeze(a))
    same(tl.expand_dims(x, axis=(0, -1)), np.expand_dims(a, (0, -1)))
    same(x.squeeze(), np.squeeze(a))


def test_transposes() -> None:
    a = arange((2, 3, 4))
    same(tl.asarray(a).mT, np.matrix_transpose(a))
    same(tl.asarray(a[0]).T, a[0].T)
    same(tl.matrix_transpose(tl.asarray(a)), np.matrix_transpose(a))


@given(hnp.mutually_broadcastable_shapes(num_shapes=3, min_side=0, max_dims=3, max_side=3))
def test_broadcasting(drawn: Any) -> None:
    arrays = [arange(s) for s in drawn.input_shapes]
    for result, expected in zip(
        tl.broadcast_arrays(*map(tl.asarray, arrays)), np.broadcast_arrays(*arrays), strict=True
    ):
        same(result, expected)
    same(
        tl.broadcast_to(tl.asarray(arrays[0]), drawn.result_shape),
        np.broadcast_to(arrays[0], drawn.result_shape),
    )


@given(st.data())
def test_pad(data: Any) -> None:
    shape = data.draw(hnp.array_shapes(max_dims=3, max_side=3, min_side=0))
    amount = st.integers(0, 2)
    width = data.draw(
        amount | st.tuples(amount, amount) | st.just([(data.draw(amount), 1) for _ in shape])
    )
    a = arange(shape)
    same(tl.pad(tl.asarray(a), width), np.pad(a, width))
    same(tl.pad(tl.asarray(a), width, constant_values=-1.5), np.pad(a, width, constant_values=-1.5))


@given(st.data())
def test_concat_and_stack(data: Any) -> None:
    shape = data.draw(hnp.array_shapes(max_dims=3, max_side=3))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    sizes = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=4))
    at = axis % len(shape)
    parts = [arange((*shape[:at], n, *shape[at + 1 :])) for n in sizes]
    same(tl.concat(list(map(tl.asarray, parts)), axis=axis), np.concatenate(parts, axis))
    same(tl.concat(list(map(tl.asarray, parts)), axis=None), np.concatenate(parts, None))
    place = data.draw(st.integers(-len(shape) - 1, len(shape)))
    copies = [arange(shape) + i for i in range(len(sizes))]
    same(tl.stack(list(map(tl.asarray, copies)), axis=place), np.stack(copies, place))


def test_concat_promotes_and_differentiates() -> None:
    ints, floats = tl.arange(2), tl.asarray([0.5])
    assert tl.concat([ints, floats]).dtype == tl.float32
    gradients = tl.grad(lambda a, b: tl.sum(tl.concat([a, b, a]) * tl.arange(5.0)), (0, 1))(
        tl.ones(2), tl.ones(1)
    )
    assert [g.tolist() for g in gradients] == [[3, 5], [2]]


x = tl.zeros((2, 3))


@pytest.mark.parametrize(
    ("action", "error", "message"),
    [
        (lambda: tl.reshape(x, (4,)), ValueError, r"reshape: float32\[2,3\] has 6 elements"),
        (lambda: tl.reshape(x, (-1, 4)), ValueError, r"6 elements of shape \(2, 3\) do not fit"),
        (lambda: tl.reshape(x, (-1, -1)), ValueError, r"only one size may be -1"),
        (lambda: tl.reshape(x, (0, -1)), ValueError, r"do not fit shape \(0, -1\)"),
        (lambda: tl.squeeze(x, 0), ValueError, r"squeeze: axis 0 of shape \(2, 3\) has size 2"),
        (lambda: tl.squeeze(x, 5), ValueError, r"squeeze: axis 5 is out of range for 2 dim"),
        (lambda: tl.expand_dims(x, axis=4), ValueError, r"expand_dims: axis 4 is out of range"),
        (lambda: tl.expand_dims(x, axis=(0, 0)), ValueError, r"expand_dims: .*names an axis twice"),
        (lambda: tl.permute_dims(x, (0,)), ValueError, r"permute_dims: axes \(0,\) do not name"),
        (lambda: tl.permute_dims(x, (0, 0)), ValueError, r"permute_dims: .* twice"),
        (lambda: tl.matrix_transpose(tl.zeros(2)), ValueError, r"at least two dimensions, got"),
        (lambda: tl.moveaxis(x, (0, 1), 0), ValueError, r"2 source axes for 1 destinations"),
        (lambda: tl.swapaxes(x, 0, 2), ValueError, r"swapaxes: axis 2 is out of range"),
        (lambda: x.reshape(-1, -1), ValueError, r"reshape: only one size may be -1, .*\(-1, -1\)"),
        (lambda: x.reshape(2.0, 3), TypeError, r"reshape: the shape is an int or .*\(2.0, 3\)"),
        (lambda: tl.flip(x, axis=2), ValueError, r"flip: axis 2 is out of range"),
        (lambda: tl.broadcast_to(x, (2, 2)), ValueError, r"broadcast_to: shapes \(2, 3\) and"),
        (lambda: tl.broadcast_to(x, (3,)), ValueError, r"\(2, 3\) does not broadcast to \(3,\)"),
        (lambda: tl.broadcast_arrays(x, tl.zeros(2)), ValueError, r"broadcast_arrays: shapes"),
        (lambda: tl.pad(x, "same"), ValueError, r"pad: pad_width is an int.*; got 'same'"),
        (lambda: tl.pad(x, 1.5), ValueError, r"pad: pad_width is an int.*; got 1.5"),
        (lambda: tl.pad(x, -1), ValueError, r"pad: .*none negative; got -1"),
        (lambda: tl.pad(x, [(1, 1)] * 3), ValueError, r"pad: .*the 2 axes of float32\[2,3\]"),
        (lambda: tl.concat([]), ValueError, r"concat: needs at least one"),
        (lambda: tl.stack([]), ValueError, r"stack: needs at least one"),
        (
            lambda: tl.concat([x, tl.zeros(3)]),
            ValueError,
            r"concat: float32\[2,3\] and float32\[3\]",
        ),
        (lambda: tl.concat([x, x[:1]], axis=1), ValueError, r"differ along another axis"),
        (lambda: tl.concat([tl.zeros(())]), ValueError, r"concat: axis 0 is out of range for 0"),
        (lambda: tl.stack([x, x[0]]), ValueError, r"stack: shapes differ: \[\(2, 3\), \(3,\)\]"),
    ],
)
def test_bad_input_is_named(
    action: Callable[[], Any], error: type[Exception], message: str
) -> None:
    for run in (action, lambda: tl.jit(lambda: action())()):
        with pytest.raises(error, match=message):
            run()
