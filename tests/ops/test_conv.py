"""Convolution against a loop over pixels in float64, the adjoint identities, padding, errors."""

from __future__ import annotations

import itertools
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import assume, given, settings

import tensorlite as tl
from tensorlite.core import Aval, bind
from tensorlite.nn import functional as nn
from tensorlite.ops import conv_numpy
from tensorlite.ops.conv import conv_input_grad_p, conv_p, conv_weight_grad_p
from tensorlite.ops.window import Window
from tests.ops.samples_conv import conv_windows
from tests.ops.sampling import rngs


def loop_conv(x: np.ndarray, w: np.ndarray, window: Window) -> np.ndarray:
    """The definition: one sum of products for each example, position and channel."""
    padded = np.pad(x.astype(np.float64), ((0, 0), *window.padding, (0, 0)))
    y = np.zeros((len(x), *window.positions(x.shape[1:-1]), w.shape[-1]))
    channels_in, channels_out = w.shape[-2], w.shape[-1] // window.groups
    for n, out in itertools.product(range(len(x)), range(w.shape[-1])):
        group = out // channels_out
        for position in np.ndindex(*y.shape[1:-1]):
            for cell in np.ndindex(*window.sizes):
                at = tuple(
                    p * s + c * d
                    for p, s, c, d in zip(
                        position, window.strides, cell, window.dilation, strict=True
                    )
                )
                pixel = padded[(n, *at)][group * channels_in : (group + 1) * channels_in]
                y[(n, *position, out)] += pixel @ w[cell][:, out]
    return y


@st.composite
def problems(draw: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, Window]:
    """Images, kernels, a cotangent of the result, and a window."""
    window, spatial = conv_windows(draw)
    rng, count = draw(rngs()), draw(st.integers(0, 3))
    channels_in, channels_out = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    x = rng.normal(size=(count, *spatial, channels_in * window.groups))
    w = rng.normal(size=(*window.sizes, channels_in, channels_out * window.groups))
    return x, w, rng.normal(size=(count, *window.positions(spatial), w.shape[-1])), window


def options(window: Window) -> dict[str, Any]:
    return {
        "stride": window.strides,
        "padding": list(window.padding),
        "dilation": window.dilation,
        "groups": window.groups,
    }


@settings(max_examples=60)
@given(problems())
def test_conv_against_a_loop(problem: Any) -> None:
    x, w, _, window = problem
    y = nn.conv(tl.asarray(x), tl.asarray(w), **options(window))
    np.testing.assert_allclose(y.numpy(), loop_conv(x, w, window), atol=1e-10)


@settings(max_examples=60)
@given(problems(), st.integers(1, 200))
def test_the_triple_is_adjoint_whatever_the_size_of_chunks(problem: Any, chunk: int) -> None:
    x, w, g, window = problem
    tx, tw, tg = map(tl.asarray, problem[:3])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conv_numpy, "CHUNK_BYTES", chunk * 8)
        y = bind(conv_p, tx, tw, window=window).numpy()
        x_grad = bind(conv_input_grad_p, tg, tw, window=window, spatial=x.shape[1:-1]).numpy()
        w_grad = bind(conv_weight_grad_p, tx, tg, window=window).numpy()
    expected = np.sum(y * g)
    np.testing.assert_allclose(np.sum(x * x_grad), expected, atol=1e-9)
    np.testing.assert_allclose(np.sum(w * w_grad), expected, atol=1e-9)


@settings(max_examples=40)
@given(problems())
def test_conv_transpose_is_the_adjoint_of_conv(problem: Any) -> None:
    x, w, g, window = problem
    axes = zip(g.shape[1:-1], window.strides, window.extents, window.padding, strict=True)
    assume(all((n - 1) * stride + span - lo - hi > 0 for n, stride, span, (lo, hi) in axes))
    enlarged = nn.conv_transpose(tl.asarray(g), tl.asarray(w), **options(window)).numpy()
    # Of the images that give a result of this size, conv_transpose makes the smallest.
    common = tuple(
        slice(0, min(m, n)) for m, n in zip(x.shape[1:-1], enlarged.shape[1:-1], strict=True)
    )
    inside = np.zeros_like(enlarged)
    inside[(slice(None), *common)] = x[(slice(None), *common)]
    y = nn.conv(tl.asarray(inside), tl.asarray(w), **options(window)).numpy()
    assert y.shape == g.shape
    np.testing.assert_allclose(np.sum(inside * enlarged), np.sum(y * g), atol=1e-9)


def test_same_padding_is_that_of_tensorflow() -> None:
    x = tl.asarray(np.arange(1.0, 7.0).reshape(1, 6, 1))
    ones = tl.ones((3, 1, 1), dtype=tl.float64)
    # Six pixels, stride 2: one pixel of padding, and it stands at the end.
    assert nn.conv(x, ones, stride=2, padding="same").numpy().ravel().tolist() == [6, 12, 11]
    # Stride 1: one on each side. Window 2: one at the end.
    assert nn.conv(x, ones).numpy().ravel().tolist() == [3, 6, 9, 12, 15, 11]
    assert nn.conv(x, ones[:2]).numpy().ravel().tolist() == [3, 5, 7, 9, 11, 6]
    # Stride 3 over six pixels: no padding is missing.
    assert nn.conv(x, ones, stride=3).numpy().ravel().tolist() == [6, 15]


@pytest.mark.parametrize(
    ("padding", "expected"),
    [
        ("valid", [3, 5]),
        ("full", [1, 3, 5, 3]),
        (1, [1, 3, 5, 3]),
        ([2], [0, 1, 3, 5, 3, 0]),
        ([(0, 1)], [3, 5, 3]),
        (((1, 0),), [1, 3, 5]),
    ],
)
def test_paddings(padding: Any, expected: list[float]) -> None:
    x = tl.asarray([[[1.0], [2.0], [3.0]]])
    y = nn.conv(x, tl.ones((2, 1, 1)), padding=padding)
    assert y.numpy().ravel().tolist() == expected


@given(
    n=st.integers(1, 9),
    size=st.integers(1, 4),
    stride=st.integers(1, 4),
    dilation=st.integers(1, 2),
)
def test_same_gives_as_many_positions_as_strides_begin(
    n: int, size: int, stride: int, dilation: int
) -> None:
    y = nn.conv(tl.ones((1, n, 1)), tl.ones((size, 1, 1)), stride=stride, dilation=dilation)
    assert y.shape == (1, -(-n // stride), 1)


@pytest.mark.parametrize(
    ("padding", "expected"), [("same", 12), ("valid", 13), ("full", 9), (1, 11), ([(0, 1)], 12)]
)
def test_sizes_of_conv_transpose(padding: Any, expected: int) -> None:
    y = nn.conv_transpose(tl.ones((2, 6, 3)), tl.ones((3, 4, 3)), stride=2, padding=padding)
    assert y.shape == (2, expected, 4)


def test_conv_transpose_spreads_the_kernel() -> None:
    x = tl.asarray([[[1.0], [10.0]]])
    w = tl.asarray([[[1.0]], [[2.0]], [[3.0]]])
    y = nn.conv_transpose(x, w, stride=2, padding="valid")
    assert y.numpy().ravel().tolist() == [1, 2, 13, 20, 30]


def test_groups_do_not_mix() -> None:
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(2, 5, 5, 4)), rng.normal(size=(3, 3, 2, 6))
    y = nn.conv(tl.asarray(x), tl.asarray(w), groups=2).numpy()
    for part, ins, outs in ((0, slice(0, 2), slice(0, 3)), (1, slice(2, 4), slice(3, 6))):
        alone = nn.conv(tl.asarray(x[..., ins]), tl.asarray(w[..., outs]))
        np.testing.assert_allclose(y[..., outs], alone.numpy(), atol=1e-12, err_msg=str(part))


@pytest.mark.parametrize("dtype", [tl.float16, tl.bfloat16], ids=str)
def test_half_precision_is_summed_in_float32(dtype: np.dtype) -> None:
    # 2048 ones and more: a running sum in half precision would stick (at 2048 and at 256).
    x, w = tl.ones((1, 1, 3000), dtype=dtype), tl.ones((1, 3000, 1), dtype=dtype)
    y = nn.conv(x, w)
    assert y.dtype == dtype
    assert float(y.numpy().astype(np.float64).item()) == np.array(3000).astype(dtype)


def test_empty_batch_has_zero_weight_gradient() -> None:
    x, w = tl.ones((0, 4, 4, 2)), tl.ones((3, 3, 2, 5))
    assert nn.conv(x, w).shape == (0, 4, 4, 5)
    gradient = tl.grad(lambda w: tl.sum(nn.conv(x, w)))(w)
    assert gradient.shape == w.shape
    assert not gradient.numpy().any()


def test_input_gradient_is_not_computed_for_constant_images() -> None:
    x, w = tl.ones((1, 4, 1)), tl.ones((3, 1, 1))
    graph = str(tl.make_graph(tl.grad(lambda w: tl.sum(nn.conv(x, w))))(w))
    assert "conv_weight_grad" in graph
    assert "conv_input_grad" not in graph


X, W = (2, 6, 6, 3), (3, 3, 3, 8)


@pytest.mark.parametrize(
    ("x", "w", "settings", "message"),
    [
        ((6, 6), W, {}, r"conv: x is \(N, \*spatial, C\).*float32\[6,6\].*x\[None\]"),
        ((1, 2, 2, 2, 2, 1), W, {}, r"conv: x is .* 1 to 3 spatial axes"),
        (X, (3, 3, 8), {}, r"conv: x has 2 spatial axes, so w has 4 dimensions"),
        (X, (3, 3, 64, 8), {}, r"conv: x has 3 channels but w expects 64 \(w.shape"),
        (X, (3, 3, 1, 8), {"groups": 3}, r"conv: 3 groups do not divide w.shape\[-1\]"),
        (X, (0, 3, 3, 8), {}, r"conv: the window of w is empty"),
        (X, W, {"groups": 0}, r"conv: groups is a positive integer, got 0"),
        (X, (7, 3, 3, 8), {"padding": "valid"}, r"conv: the window spans 7 pixels .* image has 6"),
        (
            X,
            W,
            {"dilation": (1, 4), "padding": 1},
            r"spans 9 pixels along spatial axis 1.* 8 with its",
        ),
        (X[1:], W, {}, r"2 spatial axes, but it is .*; for a single image .* x\[None\]"),
        (X, W, {"padding": "sane"}, r"conv: there is no padding 'sane'; did you mean 'same'\?"),
        (X, W, {"padding": "zzz"}, r"conv: there is no padding 'zzz'; use 'full', 'same', 'valid'"),
        (X, W, {"padding": -1}, r"conv: padding is not negative, got -1; slice"),
        (X, W, {"padding": [(0, -1), 0]}, r"conv: padding is not negative"),
        (X, W, {"padding": [1, 1, 1]}, r"conv: padding has 3 entries, but there are 2"),
        (X, W, {"stride": 0}, r"conv: stride must be at least 1 along every axis, got 0"),
        (X, W, {"stride": (1, 2, 3)}, r"conv: stride has 3 entries, but there are 2 spatial axes"),
        (X, W, {"dilation": -1}, r"conv: dilation must be at least 1"),
    ],
)
@pytest.mark.parametrize("wrap", [lambda f: f, tl.jit], ids=["eager", "jit"])
def test_values_that_do_not_fit(x: Any, w: Any, settings: Any, message: str, wrap: Any) -> None:
    with pytest.raises(ValueError, match=message):
        wrap(lambda a, b: nn.conv(a, b, **settings))(tl.ones(x), tl.ones(w))


@pytest.mark.parametrize(
    ("x", "w", "settings", "message"),
    [
        (
            tl.float32,
            tl.float64,
            {},
            r"conv: the image is float32\[2,6,6,3\] and w float64.*astype",
        ),
        (tl.int32, tl.int32, {}, r"conv: takes floating-point images and kernels, got int32"),
        (tl.float32, tl.float32, {"padding": 1.5}, r"conv: padding is one of 'full'.*got 1.5"),
        (tl.float32, tl.float32, {"padding": [(1, 2, 3), 1]}, r"conv: padding is one of"),
        (tl.float32, tl.float32, {"stride": 1.0}, r"conv: stride is an integer or one for each"),
        (
            tl.float32,
            tl.float32,
            {"dilation": "2"},
            r"conv: dilation is an integer or one for each",
        ),
    ],
)
def test_types_that_do_not_fit(x: Any, w: Any, settings: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        nn.conv(tl.ones(X, dtype=x), tl.ones(W, dtype=w), **settings)


@pytest.mark.parametrize(
    ("w", "settings", "message"),
    [
        ((3, 3, 3, 8), {}, r"conv_transpose: x has 3 channels but w expects 8 \(w.shape\[-1\]\)"),
        ((3, 3, 3), {}, r"conv_transpose: x has 2 spatial axes"),
        ((3, 3, 8, 3), {"padding": 9}, r"conv_transpose: padding 9 leaves nothing of float32"),
        ((3, 3, 8, 3), {"groups": 2}, r"conv_transpose: 2 groups do not divide w.shape\[-1\]"),
    ],
)
def test_conv_transpose_says_what_does_not_fit(w: Any, settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nn.conv_transpose(tl.ones(X), tl.ones(w), **settings)


def test_the_adjoints_check_their_arguments() -> None:
    window = Window((3,), (1,), ((0, 0),), (1,))

    def aval(*shape: int) -> Aval:
        return Aval(shape, tl.float32)

    with pytest.raises(ValueError, match=r"conv_input_grad: g is .*\[1,5,1\].*gives \(N, 4, 1\)"):
        conv_input_grad_p.abstract(aval(1, 5, 1), aval(3, 1, 1), window=window, spatial=(6,))
    with pytest.raises(ValueError, match=r"conv_weight_grad: g is .* has \(4,\) positions"):
        conv_weight_grad_p.abstract(aval(1, 6, 1), aval(1, 5, 1), window=window)


@pytest.mark.parametrize("dtype", [tl.float64, tl.float32, tl.float16, tl.bfloat16], ids=str)
def test_views_that_are_not_contiguous(dtype):
    rng = np.random.default_rng(0)
    x = rng.integers(-3, 4, (2, 5, 7)).astype(
        dtype
    )  # small integers, which every dtype adds exactly
    w = rng.integers(-2, 3, (6, 5, 3)).astype(dtype)
    views = [tl.permute_dims(tl.asarray(a), axes) for a, axes in ((x, (0, 2, 1)), (w, (2, 1, 0)))]
    copies = [tl.asarray(np.ascontiguousarray(np.asarray(view))) for view in views]
    for f in (
        lambda x, w: nn.conv(x, w, padding="valid"),
        lambda x, w: tl.grad(lambda x: tl.sum(nn.conv(x, w, padding="valid")))(x),
        lambda x, w: tl.grad(lambda w: tl.sum(nn.conv(x, w, padding="valid")))(w),
    ):
        np.testing.assert_array_equal(
            np.asarray(f(*views)).astype(np.float64), np.asarray(f(*copies)).astype(np.float64)
        )
