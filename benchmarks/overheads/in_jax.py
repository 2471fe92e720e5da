"""The overheads of JAX. Its eager operations are slow enough that fewer rounds tell as much."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax  # type: ignore[import-not-found, unused-ignore]
import jax.numpy as jnp  # type: ignore[import-not-found, unused-ignore]
import numpy as np

from benchmarks.overheads import CHAIN, LEAVES, alternate, over_numpy, per_operation


def build_case(case: str, rounds: int, threads: int = 1) -> Callable[[], float]:
    """A function that measures `case` and returns microseconds. JAX has as many threads as the
    worker has processors."""
    return lambda: _CASES[case](max(1, rounds // 10))


def elementwise(rounds: int) -> float:
    """`x + y` over NumPy's."""
    a = np.arange(10, dtype=np.float32)
    x = jnp.asarray(a)
    return over_numpy(rounds, lambda: x + x, lambda: a + a)


def with_a_scalar(rounds: int) -> float:
    """`x * 2.0` over NumPy's."""
    a = np.arange(10, dtype=np.float32)
    x = jnp.asarray(a)
    return over_numpy(rounds, lambda: x * 2.0, lambda: a * 2.0)


def gradient(rounds: int) -> float:
    """One operation of a chain, forward and backward, over eager."""
    x = jnp.ones(10)

    def chain(x: Any) -> Any:
        y = x
        for _ in range(CHAIN):
            y = y * x
        return y.sum()

    def eager() -> None:
        for _ in range(CHAIN):
            _ = x * x
            _ = x * x
            _ = x * x
            _ = x + x

    differentiate = jax.grad(chain)
    return per_operation(rounds, lambda: differentiate(x), eager)


def jitted_call(rounds: int) -> float:
    """A call of a jitted function of 20 arrays that computes nothing."""
    leaves = {f"layer{i}": jnp.ones(10) for i in range(LEAVES)}
    f = jax.jit(lambda tree: tree)
    return alternate(rounds, lambda: f(leaves))[0]


_CASES = {
    "elementwise": elementwise,
    "with_a_scalar": with_a_scalar,
    "gradient": gradient,
    "jitted_call": jitted_call,
}
