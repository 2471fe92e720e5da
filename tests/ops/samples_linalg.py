"""Samples for factorizations: well-conditioned matrices whose eigenvalues and singular values are
apart, so that the derivatives exist."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np

from tests.ops.sampling import Sample, rngs, samples, shapes


def stacks(draw: Any) -> tuple[int, ...]:
    return draw(shapes(max_dims=2, min_side=1, max_side=2))


def orthogonal(rng: np.random.Generator, stack: tuple[int, ...], n: int) -> np.ndarray:
    return np.linalg.qr(rng.normal(size=(*stack, n, n)))[0]


def spectrum(rng: np.random.Generator, stack: tuple[int, ...], size: int) -> np.ndarray:
    """Positive numbers that are well apart."""
    return np.arange(1, size + 1) + rng.uniform(-0.2, 0.2, (*stack, size))


def with_singular_values(
    rng: np.random.Generator, stack: tuple[int, ...], m: int, n: int
) -> np.ndarray:
    k = min(m, n)
    left, right = orthogonal(rng, stack, m)[..., :k], orthogonal(rng, stack, n)[..., :k]
    return (left * spectrum(rng, stack, k)[..., None, :]) @ np.swapaxes(right, -1, -2)


def square(draw: Any, rng: np.random.Generator) -> np.ndarray:
    n = draw(st.integers(1, 3))
    return with_singular_values(rng, stacks(draw), n, n)


@samples("inv", "det", "cofactor", "slogdet")
def regular(draw: Any, name: str) -> Sample:
    return Sample((square(draw, draw(rngs())),))


@samples("cholesky", "eigh")
def symmetric(draw: Any, name: str) -> Sample:
    rng, stack, n = draw(rngs()), stacks(draw), draw(st.integers(1, 3))
    basis = orthogonal(rng, stack, n)
    values = spectrum(rng, stack, n)
    return Sample(((basis * values[..., None, :]) @ np.swapaxes(basis, -1, -2),))


@samples("solve")
def solve(draw: Any, name: str) -> Sample:
    rng = draw(rngs())
    a = square(draw, rng)
    stack = draw(st.sampled_from([a.shape[:-2], (), (2, *a.shape[:-2])]))
    return Sample((a, rng.normal(size=(*stack, a.shape[-1], draw(st.integers(1, 3))))))


@samples("pinv")
def pinv(draw: Any, name: str) -> Sample:
    rng, stack = draw(rngs()), stacks(draw)
    m, n = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    cutoff = np.full(draw(st.sampled_from([(), stack])), 1e-3)
    return Sample((with_singular_values(rng, stack, m, n), cutoff))


@samples("svd")
def svd(draw: Any, name: str) -> Sample:
    m, n = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    full = draw(st.booleans()) and m == n
    x = with_singular_values(draw(rngs()), stacks(draw), m, n)
    return Sample((x,), {"full_matrices": full})


@samples("qr")
def qr(draw: Any, name: str) -> Sample:
    n = draw(st.integers(1, 3))
    m = n + draw(st.integers(0, 2))
    mode = draw(st.sampled_from(["reduced", "complete"])) if m == n else "reduced"
    return Sample((with_singular_values(draw(rngs()), stacks(draw), m, n),), {"mode": mode})
