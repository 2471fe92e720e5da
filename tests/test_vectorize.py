"""vmap: where the batch is, where it goes, and what does not fit."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

import tensorlite as tl

Pair = namedtuple("Pair", ["left", "right"])


def arange(*shape: int) -> tl.Tensor:
    return tl.reshape(tl.arange(float(np.prod(shape, dtype=int))), shape)


@given(st.data())
def test_any_axis_in_and_out(data: Any) -> None:
    shape = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    axis_in = data.draw(st.integers(-len(shape), len(shape) - 1))
    axis_out = data.draw(st.integers(-len(shape), len(shape) - 1))
    x = arange(*shape)
    result = tl.vmap(lambda row: row * 2 + 1, axis_in, axis_out)(x)
    expected = np.moveaxis(x.numpy() * 2 + 1, axis_in, axis_out)
    np.testing.assert_array_equal(result.numpy(), expected)


@pytest.mark.parametrize(
    ("in_axes", "shapes"),
    [
        (0, ((4, 2), (4,))),
        (-1, ((2, 4), (4,))),
        ((0, None), ((4, 2), ())),
        ((None, 0), ((2,), (4,))),
        ([1, 0], ((2, 4), (4,))),
    ],
)
def test_forms_of_in_axes(in_axes: Any, shapes: Any) -> None:
    a, b = (arange(*shape) for shape in shapes)
    axes = in_axes if isinstance(in_axes, tuple | list) else (in_axes, in_axes)
    result = tl.vmap(lambda a, b: tl.sum(a) * b, in_axes)(a, b)
    for i in range(4):
        one = [
            x.numpy() if axis is None else np.take(x.numpy(), i, axis)
            for x, axis in zip((a, b), axes, strict=True)
        ]
        assert result[i].item() == np.sum(one[0]) * one[1]


def test_in_axes_and_out_axes_are_prefixes() -> None:
    t = {"w": Pair(arange(3, 2), [arange(2, 3), None]), "b": arange(2)}
    axes = ({"w": Pair(0, 1), "b": None},)

    def f(t: Any) -> Any:
        return {"sum": t["w"].left + t["w"].right[0], "b": (t["b"], 1.0)}

    out = tl.vmap(f, axes, {"sum": 1, "b": None})(t)
    expected = t["w"].left.numpy().T + t["w"].right[0].numpy()
    np.testing.assert_array_equal(out["sum"].numpy(), expected)
    assert out["b"][0].tolist() == [0, 1]
    assert out["b"][1].item() == 1
    assert tl.vmap(f, axes, {"sum": 0, "b": (0, -1)})(t)["b"][1].tolist() == [1, 1, 1]


def test_keyword_arguments_are_mapped_over_their_first_axis() -> None:
    result = tl.vmap(lambda x, *, y: x * y, (None,))(2.0, y=arange(3))
    assert result.tolist() == [0, 2, 4]


def test_what_is_not_mapped_arrives_as_it_is() -> None:
    def f(x: tl.Tensor, mode: str, scale: float, options: Any) -> tl.Tensor:
        assert (mode, options) == ("double", {"flag": True})
        return x * scale

    half = tl.asarray([1, 2], dtype=tl.float16)
    result = tl.vmap(f, (0, None, None, None))(half, "double", 2.0, {"flag": True})
    assert result.dtype == tl.float16


def test_results_that_do_not_depend_on_the_batch_are_repeated() -> None:
    constant = tl.asarray([7.0, 8.0])
    a, b, none = tl.vmap(lambda x: (constant, 3, None))(arange(3))
    assert a.tolist() == [[7, 8]] * 3
    assert b.tolist() == [3, 3, 3]
    assert none is None
    assert tl.vmap(lambda: constant, axis_size=2)().tolist() == [[7, 8]] * 2


def test_batches_of_none_and_of_one() -> None:
    g = tl.vmap(lambda x, i: (tl.sum(x * x), x[i], x.at[i].add(1.0)))
    for size in (0, 1):
        total, picked, added = g(tl.zeros((size, 3)), tl.zeros((size,), dtype=tl.int64))
        assert (total.shape, picked.shape, added.shape) == ((size,), (size,), (size, 3))


@pytest.mark.parametrize("dtype", [tl.int8, tl.uint8, tl.int64], ids=str)
def test_large_batches_of_narrow_indices(dtype: Any) -> None:
    x, index = arange(300, 2), tl.asarray(np.arange(300) % 2, dtype=dtype)
    picked = tl.vmap(lambda row, i: row[i])(x, index)
    np.testing.assert_array_equal(picked.numpy(), np.arange(300) * 2 + np.arange(300) % 2)
    updated = tl.vmap(lambda row, i: row.at[i].set(-1.0))(x, index)
    assert tl.sum(updated == -1.0).item() == 300


def test_nested_vmap_is_an_outer_product() -> None:
    a, b = arange(3), arange(4)
    table = tl.vmap(tl.vmap(tl.multiply, (None, 0)), (0, None))(a, b)
    np.testing.assert_array_equal(table.numpy(), np.outer(np.arange(3), np.arange(4)))
    swapped = tl.vmap(tl.vmap(tl.multiply, (None, 0)), (0, None), out_axes=1)(a, b)
    np.testing.assert_array_equal(swapped.numpy(), table.numpy().T)
    three = tl.vmap(tl.vmap(tl.vmap(tl.matmul, (0, None)), (None, 0)))
    x, y = arange(2, 3, 2), arange(2, 4, 2)
    np.testing.assert_allclose(three(x, y).numpy(), np.einsum("bik,bjk->bji", x.numpy(), y.numpy()))


def test_closures_over_outer_batches() -> None:
    a, b = arange(3), arange(4)
    table = tl.vmap(lambda x: tl.vmap(lambda y: x * 10 + y)(b))(a)
    np.testing.assert_array_equal(table.numpy(), np.add.outer(np.arange(3) * 10, np.arange(4)))
    jitted = tl.vmap(lambda x: tl.jit(lambda y: x * 10 + y)(b))(a)
    np.testing.assert_array_equal(jitted.numpy(), table.numpy())


def test_per_example_gradients() -> None:
    def loss(w: tl.Tensor, x: tl.Tensor) -> tl.Tensor:
        return tl.tanh(tl.sum(w * x))

    w, xs = tl.asarray([0.1, -0.2]), tl.asarray([[1.0, 2.0], [3.0, 4.0], [0.5, 0.0]])
    each = tl.vmap(tl.grad(loss), (None, 0))(w, xs)
    for i in range(3):
        np.testing.assert_allclose(each[i].numpy(), tl.grad(loss)(w, xs[i]).numpy(), rtol=1e-6)
    np.testing.assert_allclose(
        tl.jit(tl.vmap(tl.grad(loss), (None, 0)))(w, xs).numpy(), each.numpy(), rtol=1e-6
    )


def test_a_jitted_function_is_batched_once_for_each_way_to_batch_it() -> None:
    traces: list[Any] = []
    f = tl.jit(lambda x, y: (traces.append(x), x * y)[1])
    for _ in range(2):
        assert tl.vmap(f)(arange(3), arange(3)).tolist() == [0, 1, 4]
        assert tl.vmap(f, (0, None))(arange(3), 2.0).tolist() == [0, 2, 4]
    assert f.cache_info().traces == len(traces) == 2  # the second argument is a scalar once


ones = tl.ones((3, 2))


@pytest.mark.parametrize(
    ("action", "error", "message"),
    [
        (
            lambda: tl.vmap(tl.add)(ones, tl.ones((4, 2))),
            ValueError,
            r"batch sizes disagree: 3 by argument '0' of shape \(3, 2\); 4 by argument '1'",
        ),
        (
            lambda: tl.vmap(lambda t: t["a"], axis_size=5)({"a": ones}),
            ValueError,
            r"disagree: 3 by argument '0.a' of shape \(3, 2\); 5 by axis_size",
        ),
        (
            lambda: tl.vmap(lambda x, *, y: x)(ones, y=tl.zeros(())),
            ValueError,
            r"in_axes is 0, but argument 'y' has shape \(\) and no such axis",
        ),
        (
            lambda: tl.vmap(tl.sum, 2)(ones),
            ValueError,
            r"in_axes is 2, but argument '0' has shape \(3, 2\) and no such axis",
        ),
        (
            lambda: tl.vmap(lambda x: x, 0, 2)(ones),
            ValueError,
            r"out_axes is 2, but a result with its batch has shape \(3, 2\)",
        ),
        (lambda: tl.vmap(tl.sum, None)(ones), ValueError, r"nothing is mapped.*axis_size"),
        (lambda: tl.vmap(lambda: 1)(), ValueError, r"nothing is mapped"),
        (
            lambda: tl.vmap(tl.add, (0, 0, 0))(ones, ones),
            ValueError,
            r"in_axes has 3 entries for 2 positional arguments",
        ),
        (
            lambda: tl.vmap(lambda t: t, ({"b": 0},))({"a": ones}),
            ValueError,
            r"vmap: in_axes does not fit its arguments",
        ),
        (
            lambda: tl.vmap(lambda x: (x, x), 0, (0, 0, 0))(ones),
            ValueError,
            r"vmap: out_axes does not fit",
        ),
        (
            lambda: tl.vmap(lambda x: x, 0, None)(ones),
            ValueError,
            r"out_axes is None for a result of float32\[2\] that depends on the batch",
        ),
        (lambda: tl.vmap(tl.sum, "0")(ones), TypeError, r"in_axes holds ints and None, got '0'"),
        (lambda: tl.vmap(tl.sum, 1.0)(ones), TypeError, r"in_axes holds ints and None, got 1.0"),
        (lambda: tl.vmap(tl.sum, True)(ones), TypeError, r"in_axes holds ints and None, got True"),
        (
            lambda: tl.vmap(lambda x: x if x > 0 else -x)(tl.ones(3)),
            tl.TracerError,
            r"bool\(\) needs one concrete value, but inside tl.vmap this bool\[\].*tl.where",
        ),
    ],
)
def test_bad_input_is_named(
    action: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        action()
