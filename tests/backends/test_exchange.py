"""Programs and the communication thread: overlap, failures, signals, several worlds at a time."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from typing import Any

import numpy as np
import pytest

import tensorlite as tl
import tensorlite.distributed as dist
from tensorlite import collective, communication
from tensorlite.backends.cpu.executor import compiles_natively
from tests.compiler.test_schedule import random_program
from tests.worlds import Mirror

pytestmark = pytest.mark.skipif(
    not compiles_natively(), reason="the native compiler is not installed"
)


def threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "tensorlite-communication"]


def chain(layers: int = 4, width: int = 8) -> tuple[Any, list[np.ndarray], np.ndarray]:
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=(width, width)) / width for _ in range(layers)]

    def step(weights: Any, x: Any) -> Any:
        def loss(weights: Any) -> Any:
            y = x
            for w in weights:
                y = tl.tanh(y @ w)
            return tl.sum(y * y)

        value, gradients = tl.value_and_grad(loss)(weights)
        return [collective.all_reduce(g, "mean") for g in gradients], collective.all_reduce(value)

    return step, weights, rng.normal(size=(5, width))


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("bucket_bytes", [1, 1000, None])
@pytest.mark.parametrize("mode", ["llvm", "numpy"])
def test_ranks_in_threads_share_one_jitted_function(
    size: int, bucket_bytes: int | None, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if mode == "numpy":
        monkeypatch.setattr("tensorlite.backends.cpu.executor.compiles_natively", lambda: False)
        monkeypatch.setattr("tensorlite.backends.cpu.backend.compiles_natively", lambda: False)
    step, weights, x = chain()
    compiled = tl.jit(step)

    def main(worker: Any) -> Any:
        mine = x + worker.rank
        with communication.bucketing(bucket_bytes):
            for _ in range(3):
                result = compiled(weights, mine)
            eager = step([tl.asarray(w) for w in weights], tl.asarray(mine))
        for a, b in zip(tl.tree.leaves(result), tl.tree.leaves(eager), strict=True):
            np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-10)
        return [np.asarray(leaf).tobytes() for leaf in tl.tree.leaves(result)]

    first, *others = dist.run_local(main, num_workers=size)
    assert all(other == first for other in others)
    assert not threads()


def random_programs(worker: Any, seeds: range) -> None:
    for seed in seeds:
        rng = np.random.default_rng(10 * seed + worker.rank)
        arguments = [rng.normal(size=(6, 6)) for _ in range(2)]
        f = random_program(seed)
        for bucket_bytes in (1, 600, None):
            with communication.bucketing(bucket_bytes):
                compiled = tl.jit(f)(*arguments)
                eager = f(*map(tl.asarray, arguments))
            for a, b in zip(compiled, eager, strict=True):
                np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_random_programs_on_several_ranks(size: int) -> None:
    dist.run_local(random_programs, (range(8),), num_workers=size)


def test_random_programs_in_processes() -> None:
    dist.run_local(random_programs, (range(8, 12),), num_workers=2, mode="processes")


def in_a_process(worker: Any) -> Any:
    step, weights, x = chain()
    result = tl.jit(step)(weights, x[: worker.rank + 1])  # shares of different sizes
    return [np.asarray(leaf) for leaf in tl.tree.leaves(result)]


def test_ranks_in_processes_with_uneven_shares() -> None:
    first, second = dist.run_local(in_a_process, num_workers=2, mode="processes")
    step, weights, x = chain()
    parts = [tl.tree.leaves(step([tl.asarray(w) for w in weights], x[:n])) for n in (1, 2)]
    *gradients, loss = [[np.asarray(leaf) for leaf in pair] for pair in zip(*parts, strict=True)]
    expected = [np.mean(pair, axis=0) for pair in gradients] + [np.sum(loss)]
    for a, b, c in zip(first, second, expected, strict=True):
        assert a.tobytes() == b.tobytes()
        np.testing.assert_allclose(a, c, rtol=1e-10)


def test_communication_goes_on_behind_computation() -> None:
    # The reduction of what is ready first takes less time than what is computed meanwhile.
    def f(x: Any, y: Any) -> Any:
        total = collective.all_reduce(tl.tanh(x))
        for _ in range(30):
            y = tl.tanh(y @ y)
        return total, y

    x, y = np.ones(4), np.ones((300, 300))
    with communication.entered(Mirror(2, seconds=0.002)):
        compiled = tl.jit(f)
        compiled(x, y)
        before = communication.spent()
        compiled(x, y)
        after = communication.spent()
    hidden, exposed = after.hidden - before.hidden, after.exposed - before.exposed
    assert hidden > 0 and hidden + exposed >= 0.0019  # what is not hidden is waited for


def test_an_error_in_the_thread_is_raised_by_the_call() -> None:
    step, weights, x = chain()
    world = Mirror(2)
    with communication.entered(world), communication.bucketing(1):
        compiled = tl.jit(step)
        expected = compiled(weights, x)
        count = len(world.calls)
        world.fail_at = count + 2
        with pytest.raises(ConnectionError, match="rank 1 is gone") as caught:
            compiled(weights, x)
        assert "all_reduce: in bucket 2 of" in "".join(caught.value.__notes__)
        assert len(world.calls) == count + 2  # nothing is sent after it
        world.fail_at = None
        for a, b in zip(
            tl.tree.leaves(compiled(weights, x)), tl.tree.leaves(expected), strict=True
        ):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    assert not threads()


def test_a_peer_that_fails_during_a_step() -> None:
    step, weights, x = chain()
    compiled = tl.jit(step)

    def main(worker: Any) -> None:
        compiled(weights, x)
        if worker.rank == 1:
            raise ValueError("rank 1 has had enough")
        with pytest.raises(dist.PeerError, match="rank 1 has had enough") as caught:
            compiled(weights, x)
        raise caught.value

    with pytest.raises(dist.WorkerError, match="rank 1 has had enough") as caught:
        dist.run_local(main, num_workers=3)
    assert caught.value.rank == 1
    for thread in threads():
        thread.join(10)
    assert not threads()


def dies(worker: Any) -> None:
    step, weights, x = chain()
    compiled = tl.jit(step)
    compiled(weights, x)
    if worker.rank == 1:
        os._exit(3)
    compiled(weights, x)


def test_a_peer_that_is_killed_during_a_step() -> None:
    with pytest.raises(dist.WorkerError, match="exit code 3") as caught:
        dist.run_local(dies, num_workers=2, mode="processes")
    assert caught.value.rank == 1


def test_a_failure_between_start_and_wait() -> None:
    def f(x: Any) -> Any:
        total = collective.all_reduce(tl.tanh(x))
        return total, tl.linalg.cholesky(x)  # which NumPy computes, and refuses

    with communication.entered(Mirror(2)):
        compiled = tl.jit(f)
        with pytest.raises(Exception, match="ositive"):
            compiled(-np.eye(3))
        np.testing.assert_allclose(np.asarray(compiled(np.eye(3))[1]), np.eye(3))


def test_a_rank_that_fails_between_start_and_wait() -> None:
    @tl.jit
    def f(x: Any) -> Any:
        totals = [collective.all_reduce(tl.tanh(x * k)) for k in range(3)]
        return totals, tl.linalg.cholesky(x), tl.linalg.cholesky(totals[2] * 0 + tl.eye(3))

    def main(worker: Any) -> None:
        with communication.bucketing(1):
            f(np.eye(3))
            # Rank 1 starts its buckets, which nobody takes up, and then fails.
            f(np.eye(3) * (-1 if worker.rank == 1 else 1))

    with pytest.raises(dist.WorkerError, match="ositive") as caught:
        dist.run_local(main, num_workers=2)
    assert caught.value.rank == 1
    for thread in threads():
        thread.join(10)
    assert not threads()


def test_signals_are_handled_while_a_step_waits() -> None:
    step, weights, x = chain()
    seen = []
    before = signal.signal(signal.SIGALRM, lambda *_: seen.append(time.monotonic()))
    try:
        with communication.entered(Mirror(2, seconds=0.2)), communication.bucketing(None):
            compiled = tl.jit(step)
            compiled(weights, x)
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            result = compiled(weights, x)
        assert len(seen) == 1
        np.testing.assert_array_equal(
            np.asarray(result[1]), 2 * np.asarray(tl.jit(step)(weights, x)[1])
        )
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_handler_that_raises_ends_the_wait() -> None:
    class Enough(Exception):
        pass

    def handler(*_: Any) -> None:
        raise Enough

    step, weights, x = chain()
    before = signal.signal(signal.SIGALRM, handler)
    try:
        with communication.entered(Mirror(2, seconds=0.3)), communication.bucketing(None):
            compiled = tl.jit(step)
            compiled(weights, x)
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(Enough):
                compiled(weights, x)
    finally:
        signal.signal(signal.SIGALRM, before)
    for thread in threads():
        thread.join(10)
    assert not threads()


def test_collectives_within_control_flow_keep_the_order() -> None:
    def f(xs: Any) -> Any:
        def body(carry: Any, x: Any) -> Any:
            total = collective.all_reduce(carry + x, "mean")
            return total, collective.all_gather(total)

        outer = collective.all_reduce(tl.sum(xs), "mean")
        carry, stacked = tl.scan(body, xs[0], xs)
        return outer, carry, stacked

    def main(worker: Any) -> Any:
        xs = tl.asarray(np.arange(12.0).reshape(4, 3) * (worker.rank + 1))
        compiled, eager = tl.jit(f)(xs), f(xs)
        for a, b in zip(compiled, eager, strict=True):
            np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-12)

    dist.run_local(main, num_workers=3)


def test_a_profile_shows_buckets(tmp_path: Any) -> None:
    step, weights, x = chain()
    with communication.entered(Mirror(2)), communication.bucketing(1):
        compiled = tl.jit(step)
        expected = compiled(weights, x)
        with tl.profile(tmp_path / "trace.json"):
            watched = compiled(weights, x)
    for a, b in zip(tl.tree.leaves(watched), tl.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    slices = [e for e in events if e["name"].startswith("all_reduce, bucket")]
    assert len(slices) == 5
    assert {e["args"]["workers"] for e in slices} == {2}
    assert sum(e["args"]["bytes"] for e in slices) == 4 * 8 * 8 * 8 + 8
    names = [e["name"] for e in events]
    assert any(name.rpartition("/")[2].startswith("wait for sum of 1 tensors") for name in names)
