"""A choice of kernels, small enough for a simulator that checks every access."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tensorlite as tl
from tensorlite import nn


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


CASES: dict[str, tuple[Callable[..., Any], tuple[np.ndarray, ...]]] = {
    "elementwise": (lambda x, y: tl.exp(x) * y + 1, (numbers(5, 7), numbers(7))),
    "rows": (nn.softmax, (numbers(3, 37),)),
    "columns": (lambda x: tl.sum(x, axis=0), (numbers(37, 5),)),
    "all": (lambda x: tl.sum(x), (numbers(33, 1031),)),
    "argmax": (lambda x: tl.argmax(x, axis=1), (numbers(4, 33),)),
    "transpose": (lambda x: tl.permute_dims(x, (2, 0, 1)) + 0, (numbers(3, 5, 7),)),
    "gather": (lambda x: tl.take(x, tl.asarray([2, 0, 1], device="opencl:0")), (numbers(9),)),
    "half": (lambda x: (x.astype(tl.float16) * 3).astype(tl.float32), (numbers(19),)),
    "matmul": (lambda x, y: x @ y + 1, (numbers(13, 17), numbers(17, 11))),
    "product": (lambda x, y: x @ y, (numbers(2, 3, 5), numbers(5, 4))),
    "conv": (lambda x, w: nn.relu(nn.conv(x, w)), (numbers(2, 7, 6, 3), numbers(3, 3, 3, 5))),
    "stride": (lambda x, w: nn.conv(x, w, stride=2), (numbers(1, 7, 6, 4), numbers(3, 2, 4, 6))),
    "pool": (lambda x: nn.max_pool(x, 2), (numbers(2, 6, 6, 3),)),
}


def gradients(f: Callable[..., Any]) -> Callable[..., Any]:
    return tl.grad(lambda *xs: tl.sum(f(*xs) ** 2), argnums=0)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("derived", [False, True], ids=["value", "gradient"])
def test_like_the_cpu(name: str, derived: bool) -> None:
    f, arrays = CASES[name]
    if derived:
        if name == "argmax":
            pytest.skip("integers have no gradient")
        f = gradients(f)
    there = [tl.asarray(a, device="opencl:0") for a in arrays]
    got = np.asarray(tl.jit(f)(*there))
    if name == "gather":
        here = tl.take(tl.asarray(arrays[0]), tl.asarray([2, 0, 1]))
        want = np.asarray(here)
        if derived:
            want = np.zeros(9, np.float32)
            np.add.at(want, [2, 0, 1], 2 * np.asarray(here))
    else:
        want = np.asarray(f(*map(tl.asarray, arrays)))
    # Compiled chains of halves are rounded once, at their end.
    tolerance = 2e-3 if name == "half" else 2e-4
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)
