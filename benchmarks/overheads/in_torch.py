"""The overheads of PyTorch. It has no jitted call to compare: a compiled function that computes
nothing is left to Python.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.overheads import CHAIN, over_numpy, per_operation


def build_case(case: str, rounds: int, threads: int = 1) -> Callable[[], float]:
    """A function that measures `case` and returns microseconds."""
    torch.set_num_threads(threads)
    return lambda: _CASES[case](rounds)


def elementwise(rounds: int) -> float:
    """`x + y` over NumPy's."""
    a = np.arange(10, dtype=np.float32)
    x = torch.from_numpy(a.copy())
    return over_numpy(rounds, lambda: x + x, lambda: a + a)


def with_a_scalar(rounds: int) -> float:
    """`x * 2.0` over NumPy's."""
    a = np.arange(10, dtype=np.float32)
    x = torch.from_numpy(a.copy())
    return over_numpy(rounds, lambda: x * 2.0, lambda: a * 2.0)


def gradient(rounds: int) -> float:
    """One operation of a chain, forward and backward, over eager."""
    x = torch.ones(10, requires_grad=True)
    plain = torch.ones(10)

    def differentiate() -> Any:
        y = x
        for _ in range(CHAIN):
            y = y * x
        return torch.autograd.grad(y.sum(), x)

    def eager() -> None:
        for _ in range(CHAIN):
            _ = plain * plain
            _ = plain * plain
            _ = plain * plain
            _ = plain + plain

    return per_operation(rounds, differentiate, eager)


_CASES = {"elementwise": elementwise, "with_a_scalar": with_a_scalar, "gradient": gradient}
