"""Collectives of what lies on a device: the host runs them, in the order of the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tensorlite as tl
from tensorlite import collective, communication
from tests.worlds import Mirror


def step(weights: Any, x: Any) -> Any:
    def loss(weights: Any) -> Any:
        y = x
        for w in weights:
            y = tl.tanh(y @ w)
        return tl.sum(y * y)

    gradients = tl.grad(loss)(weights)
    totals = [collective.all_reduce(g, "mean") for g in gradients]
    return totals, collective.all_gather(totals[0]), collective.reduce_scatter(x)


def test_collectives_within_control_flow() -> None:
    def f(xs: Any) -> Any:
        def body(carry: Any, x: Any) -> Any:
            total = collective.all_reduce(carry + x)
            return total, tl.sum(collective.all_gather(total))

        return collective.all_reduce(tl.sum(xs)), tl.scan(body, xs[0], xs)

    results = []
    for device in ("cpu", "opencl:0"):
        with communication.entered(Mirror(2)):
            results.append(tl.jit(f)(tl.asarray(np.arange(6.0).reshape(3, 2), device=device)))
    for a, b in zip(*map(tl.tree.leaves, results), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-12)


@pytest.mark.parametrize("bucket_bytes", [1, None])
def test_a_step_on_a_device_sends_what_the_cpu_sends(bucket_bytes: int | None) -> None:
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=(6, 6)).astype(np.float32) for _ in range(3)]
    x = rng.normal(size=(4, 6)).astype(np.float32)
    results, sent = [], []
    for device in ("cpu", "opencl:0"):
        for wrap in (tl.jit, lambda f: f):
            world = Mirror(2)
            with communication.entered(world), communication.bucketing(bucket_bytes):
                moved = [tl.asarray(w, device=device) for w in weights]
                out = wrap(step)(moved, tl.asarray(x, device=device))
            assert {leaf.device for leaf in tl.tree.leaves(out)} == {tl.device.get_device(device)}
            results.append([np.asarray(leaf) for leaf in tl.tree.leaves(out)])
            sent.append(world.calls)
    for result in results[1:]:
        for a, b in zip(result, results[0], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert sent[0] == sent[2]  # both jitted: the same buckets in the same order
