"""Outputs so large that a CPU writes them past its caches."""

from __future__ import annotations

import numpy as np

import tensorlite as tl
from tensorlite.backends.opencl.render.analysis import STREAMED

COUNT = STREAMED // 4 + 37  # no whole number of strips


def test_large_outputs_of_several_dtypes() -> None:
    x = np.random.default_rng(0).normal(size=COUNT).astype(np.float32)

    @tl.jit
    def compute(x: tl.Tensor) -> tuple[tl.Tensor, ...]:
        return x * 2 + 1, x > 0, (x * 100).astype(tl.int32), tl.sum(x > 0)

    doubled, positive, whole, count = compute(tl.asarray(x, device="opencl:0"))
    np.testing.assert_array_equal(np.asarray(positive), x > 0)
    np.testing.assert_allclose(np.asarray(doubled), x * 2 + 1, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(whole), (x * np.float32(100)).astype(np.int32))
    assert int(count) == np.sum(x > 0)


def test_what_was_streamed_is_there_for_the_next_kernel() -> None:
    x = np.arange(COUNT, dtype=np.float32)
    y = tl.asarray(x, device="opencl:0")
    for _ in range(5):
        y = tl.jit(lambda y: y + 1)(y)
    np.testing.assert_array_equal(np.asarray(y[-99:]), x[-99:] + 5)
    assert float(tl.max(y)) == float(x[-1] + 5)


def test_an_argument_is_written_over() -> None:
    step = tl.jit(lambda x: x * 0.5, donate_argnums=0)
    y = tl.asarray(np.full(COUNT, 8.0, np.float32), device="opencl:0")
    for _ in range(3):
        y = step(y)
    np.testing.assert_array_equal(np.asarray(y), np.ones(COUNT, np.float32))
