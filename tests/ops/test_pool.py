"""Pooling against a loop over positions, NaN and infinities, ties, counts, and errors."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

import tensorlite as tl
from tensorlite.core import bind
from tensorlite.nn import functional as nn
from tensorlite.ops import pool
from tensorlite.ops.window import Window
from tests.ops.samples_conv import pool_windows
from tests.ops.sampling import rngs

SPECIAL = np.array([np.nan, -np.inf, np.inf, 0.0, 1.0, 1.0, 2.0, -3.0])


def pixels_under(x: np.ndarray, position: tuple[int, ...], window: Window) -> tuple[slice, ...]:
    """The part of an image that the window covers at a position."""
    corners = [
        p * s - lo for p, s, (lo, _) in zip(position, window.strides, window.padding, strict=True)
    ]
    ends = zip(corners, window.sizes, x.shape, strict=False)
    return tuple(slice(max(at, 0), min(at + size, n)) for at, size, n in ends)


def loop_pool(x: np.ndarray, window: Window, reduce: Any) -> np.ndarray:
    """`reduce` of the pixels of one channel under each position."""
    y = np.empty((len(x), *window.positions(x.shape[1:-1]), x.shape[-1]))
    for n, *position, c in np.ndindex(*y.shape):
        image = x[n, ..., c]
        y[(n, *position, c)] = reduce(image[pixels_under(image, tuple(position), window)])
    return y


@st.composite
def problems(draw: Any, special: bool) -> tuple[np.ndarray, Window]:
    window, spatial = pool_windows(draw)
    shape = (draw(st.integers(0, 3)), *spatial, draw(st.integers(1, 3)))
    rng = draw(rngs())
    return (rng.choice(SPECIAL, shape) if special else rng.normal(size=shape)), window


def options(window: Window) -> dict[str, Any]:
    return {"stride": window.strides, "padding": list(window.padding)}


@settings(max_examples=60)
@given(problems(special=True), st.integers(1, 100))
def test_max_pool_against_a_loop(problem: Any, chunk: int) -> None:
    x, window = problem
    expected = loop_pool(x, window, np.max)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "CHUNK_BYTES", chunk * 8)
        y = nn.max_pool(tl.asarray(x), window.sizes, **options(window))
        values, cells = bind(pool.pool_argmax_p, tl.asarray(x), window=window)
        read = bind(pool.pool_gather_p, tl.asarray(x), cells, window=window)
    for result in (y, values, read):
        np.testing.assert_array_equal(result.numpy(), expected)


@settings(max_examples=60)
@given(problems(special=False), st.integers(1, 100))
def test_avg_pool_against_a_loop(problem: Any, chunk: int) -> None:
    x, window = problem
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "CHUNK_BYTES", chunk * 8)
        inside = nn.avg_pool(tl.asarray(x), window.sizes, **options(window))
        everywhere = nn.avg_pool(
            tl.asarray(x), window.sizes, **options(window), count_include_pad=True
        )
    np.testing.assert_allclose(inside.numpy(), loop_pool(x, window, np.mean), atol=1e-12)
    total = loop_pool(x, window, np.sum) / np.prod(window.sizes)
    np.testing.assert_allclose(everywhere.numpy(), total, atol=1e-12)


def gradient(x: np.ndarray, cotangent: np.ndarray, **settings: Any) -> np.ndarray:
    _, pull = tl.vjp(lambda x: nn.max_pool(x, **settings), tl.asarray(x))
    return pull(tl.asarray(cotangent))[0].numpy()


def test_the_first_of_equal_values_takes_the_gradient() -> None:
    x = np.array([1.0, 5, 5, 5, 2, 2]).reshape(1, 6, 1)
    g = np.array([10.0, 20, 30]).reshape(1, 3, 1)
    assert gradient(x, g, window=2).ravel().tolist() == [0, 10, 20, 0, 30, 0]


def test_overlapping_windows_add_up() -> None:
    x = np.array([1.0, 9, 1, 1]).reshape(1, 4, 1)
    g = np.array([10.0, 20, 30]).reshape(1, 3, 1)
    assert gradient(x, g, window=2, stride=1).ravel().tolist() == [0, 30, 30, 0]


def test_an_infinite_gradient_stays_where_it_belongs() -> None:
    x = np.array([1.0, 2, 4, 3]).reshape(1, 4, 1)
    g = np.array([np.inf, np.nan]).reshape(1, 2, 1)
    np.testing.assert_array_equal(gradient(x, g, window=2).ravel(), [0, np.inf, np.nan, 0])


def test_nan_wins_and_the_first_one_takes_the_gradient() -> None:
    x = np.array([np.inf, np.nan, np.nan]).reshape(1, 3, 1)
    _, cells = bind(pool.pool_argmax_p, tl.asarray(x), window=Window((3,), (1,), ((0, 0),), (1,)))
    assert cells.numpy().ravel().tolist() == [1]
    assert gradient(x, np.ones((1, 1, 1)), window=3).ravel().tolist() == [0, 1, 0]


def test_padding_never_wins() -> None:
    x = tl.asarray(np.full((1, 3, 1), -np.inf))
    assert nn.max_pool(x, 3, stride=1, padding="same").numpy().ravel().tolist() == [-np.inf] * 3
    x = tl.asarray(np.full((1, 3, 1), -7.0))
    assert nn.max_pool(x, 3, stride=1, padding="same").numpy().ravel().tolist() == [-7.0] * 3


def test_same_padding_is_that_of_tensorflow() -> None:
    x = tl.asarray(np.arange(1.0, 7.0).reshape(1, 6, 1))
    assert nn.max_pool(x, 3, stride=2, padding="same").numpy().ravel().tolist() == [3, 5, 6]
    assert nn.avg_pool(x, 3, stride=2, padding="same").numpy().ravel().tolist() == [2, 4, 5.5]


def test_a_large_window_has_cells_beyond_a_byte() -> None:
    x = np.zeros((1, 20, 20, 1))
    x[0, 19, 18] = 1.0
    window = Window((20, 20), (1, 1), ((0, 0), (0, 0)), (1, 1))
    _, cells = bind(pool.pool_argmax_p, tl.asarray(x), window=window)
    assert cells.dtype == tl.int32
    assert cells.item() == 19 * 20 + 18
    assert gradient(x, np.ones((1, 1, 1, 1)), window=20)[0, 19, 18, 0] == 1


@pytest.mark.parametrize("dtype", [tl.float16, tl.bfloat16], ids=str)
def test_average_of_half_precision_is_summed_in_float32(dtype: np.dtype) -> None:
    x = tl.ones((1, 60, 60, 1), dtype=dtype)
    y = nn.avg_pool(x, 60, padding=1, stride=1)
    assert y.dtype == dtype
    assert set(y.numpy().astype(np.float64).ravel()) == {1.0}


def test_a_window_is_read_once_without_a_gradient() -> None:
    graph = str(tl.make_graph(lambda x: nn.max_pool(x, 2))(tl.ones((1, 4, 1))))
    assert "max_pool" in graph
    assert "pool_argmax" not in graph


X = (2, 6, 6, 3)


@pytest.mark.parametrize("name", ["max_pool", "avg_pool"])
@pytest.mark.parametrize(
    ("x", "window", "settings", "message"),
    [
        ((6, 6), 2, {}, r"x is \(N, \*spatial, C\) with 1 to 3 spatial axes.*x\[None\]"),
        (X, 7, {}, r"the window spans 7 pixels along spatial axis 0, but the image has 6"),
        (X, (2, 2, 2), {}, r"window has 3 entries, but there are 2 spatial axes"),
        (X, 0, {}, r"window must be at least 1"),
        (X, 2, {"stride": 0}, r"stride must be at least 1"),
        (X, 2, {"padding": 2}, r"padding \(2, 2\) is not less than the window, 2"),
        (X, 2, {"padding": "Same"}, r"no padding 'Same'; did you mean 'same'\?"),
        (X, 2, {"padding": -1}, r"padding is not negative"),
    ],
)
def test_values_that_do_not_fit(
    name: str, x: Any, window: Any, settings: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=f"{name}: .*{message}"):
        getattr(nn, name)(tl.ones(x), window, **settings)


@pytest.mark.parametrize("name", ["max_pool", "avg_pool"])
def test_types_that_do_not_fit(name: str) -> None:
    with pytest.raises(
        TypeError, match=rf"{name}: takes floating-point images, got int32\[2,6,6,3\]"
    ):
        getattr(nn, name)(tl.ones(X, dtype=tl.int32), 2)
    with pytest.raises(TypeError, match=rf"{name}: window is an integer or one for each"):
        getattr(nn, name)(tl.ones(X), 2.0)


def test_the_adjoints_check_their_arguments() -> None:
    window = Window((2,), (2,), ((0, 0),), (1,))
    g, cells = tl.ones((1, 3, 1)).aval, tl.ones((1, 3, 1), dtype=tl.uint8).aval
    with pytest.raises(ValueError, match=r"pool_scatter: .*\[1,3,1\] is not what a window over"):
        pool.pool_scatter_p.abstract(g, cells, window=window, spatial=(4,))
    with pytest.raises(ValueError, match=r"pool_spread: .*\[1,3,1\] is not what a window over"):
        pool.pool_spread_p.abstract(g, window=window, spatial=(4,))
    with pytest.raises(ValueError, match=r"pool_scatter: cells are integers of shape \(1, 3, 1\)"):
        pool.pool_scatter_p.abstract(g, g, window=window, spatial=(6,))
