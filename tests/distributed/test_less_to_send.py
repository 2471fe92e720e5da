"""Gradients as thin factors, and optimizers whose state is divided among the workers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tensorlite as tl
import tensorlite.distributed as dist
from tensorlite import optim, random
from tensorlite.distributed.compression import PowerSGD, orthonormal
from tensorlite.distributed.sharding import ShardedOptimizer
from tensorlite.distributed.training import train as train_job
from tests.distributed.test_training import Classifier, dataset, job, leaves, silent, train

EAGER = PowerSGD(rank=1, min_ratio=1.01)  # compresses all matrices of a small model

# ---- PowerSGD ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(7, 3), (40, 8), (3, 3)])
def test_orthonormal_columns(shape: tuple[int, int]) -> None:
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    q = np.asarray(orthonormal(tl.asarray(x)))
    np.testing.assert_allclose(q.T @ q, np.eye(shape[1]), atol=1e-6)
    np.testing.assert_allclose(q @ (q.T @ x), x, atol=1e-5)  # they span the same space


def test_columns_that_depend_on_others_become_zero() -> None:
    x = np.random.default_rng(1).normal(size=(6, 2)).astype(np.float32)
    x = np.concatenate([x, x[:, :1] * 3, np.zeros((6, 1), np.float32)], axis=1)
    q = np.asarray(orthonormal(tl.asarray(x)))
    np.testing.assert_allclose(q.T @ q, np.diag([1, 1, 0, 0]), atol=1e-6)


def gradients(worker: dist.Worker, step: int) -> dict[str, tl.Tensor]:
    rng = np.random.default_rng(100 * step + worker.rank)
    return {
        "matrix": tl.asarray(rng.normal(size=(3, 3, 6, 8)).astype(np.float32)),
        "bias": tl.asarray(rng.normal(size=8).astype(np.float32)),
    }


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_factors_of_full_rank_lose_nothing(workers: int) -> None:
    power = PowerSGD(rank=8, min_ratio=1.001)
    assert not power.compresses((8,)) and not power.compresses((9, 8))

    def main(worker: dist.Worker) -> tuple[Any, Any, Any]:
        own = gradients(worker, 0)
        power_here = PowerSGD(rank=8, min_ratio=1.001)
        object.__setattr__(power_here, "min_ratio", 0.1)  # although nothing is saved
        state = power_here.start(own, seed=0)
        assert set(state["factors"]) == {"matrix"}
        sums, after = power_here.reduce(own, state)
        exact = {n: dist.all_reduce(g) for n, g in own.items()}
        return sums, exact, dist.all_reduce(after["errors"])

    for sums, exact, errors in dist.run_local(main, num_workers=workers):
        np.testing.assert_array_equal(np.asarray(sums["bias"]), np.asarray(exact["bias"]))
        np.testing.assert_allclose(sums["matrix"].numpy(), exact["matrix"].numpy(), atol=2e-5)
        assert float(tl.max(tl.abs(errors["matrix"]))) < 2e-5


@pytest.mark.parametrize("workers", [2, 3])
def test_what_is_lost_comes_later(workers: int) -> None:
    """All that was ever sent and the errors that are left add up to all gradients."""

    def main(worker: dist.Worker) -> tuple[Any, Any, Any]:
        state = EAGER.start(gradients(worker, 0), seed=3)
        sent, exact = np.zeros((3, 3, 6, 8)), np.zeros((3, 3, 6, 8))
        for step in range(6):
            own = gradients(worker, step)
            sums, state = EAGER.reduce(own, state)
            sent += sums["matrix"].numpy()
            exact += dist.all_reduce(own)["matrix"].numpy()
        return sent, exact, dist.all_reduce(state["errors"])["matrix"].numpy()

    results = dist.run_local(main, num_workers=workers)
    for sent, exact, errors in results:
        np.testing.assert_array_equal(sent, results[0][0])  # the same bits everywhere
        assert np.abs(sent - exact).max() > 0.1
        np.testing.assert_allclose(sent + errors, exact, atol=1e-4)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_training_with_factors(workers: int) -> None:
    plain = job(dataset(), 60, optimizer=optim.sgd(0.1))
    factors = job(dataset(), 60, optimizer=optim.sgd(0.1), compression=EAGER)
    model = Classifier(random.key(0))
    exact, *_ = train(workers, plain, model)
    compressed = train(workers, factors, model)
    assert compressed[0].losses[-1] < 1.3 * exact.losses[-1] + 0.05
    for other in compressed[1:]:
        for a, b in zip(leaves(compressed[0]), leaves(other), strict=True):
            np.testing.assert_array_equal(a, b)


def test_batches_in_parts_and_factors() -> None:
    options = {"optimizer": optim.sgd(0.1), "compression": EAGER}
    model = Classifier(random.key(0))
    at_once, *_ = train(2, job(dataset(), 5, **options), model)
    in_parts, *_ = train(2, job(dataset(), 5, accumulate=3, **options), model)
    np.testing.assert_allclose(in_parts.losses, at_once.losses, rtol=1e-4)


def test_fewer_bytes_are_sent() -> None:
    power = PowerSGD(rank=2)
    assert power.sent((5, 5, 64, 64)) == 2 * (1600 + 64)
    assert power.sent((64,)) == 64
    assert power.sent((3, 3)) == 9  # not worth it


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compression": "int8"}, "compression must be None, one of float16, bfloat16, or a Power"),
        ({"compression": EAGER, "shards": 2}, "rounds what workers send each other, and shards=2"),
        ({"shard_optimizer": 1}, "shard_optimizer is True or False, got 1"),
    ],
)
def test_options_that_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        dist.Trainer(loss=len, optimizer=optim.sgd(0.1), batch_size=4, progress=False, **options)


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"rank": 1.5}, {"min_ratio": 1.0}])
def test_factors_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"PowerSGD: {next(iter(wrong))} must be"):
        PowerSGD(**wrong)


# ---- sharded optimizers --------------------------------------------------------------------------

OPTIMIZERS = {
    "sgd": optim.sgd(0.1, momentum=0.9),
    "adamw": optim.adamw(0.01, mask=lambda name: name.endswith("weight")),
    "clipped": optim.chain(optim.clip_by_global_norm(0.1), optim.adam(0.01)),
}


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_sharded_optimizer_does_the_same(name: str, workers: int) -> None:
    model = Classifier(random.key(0))
    options = {"optimizer": OPTIMIZERS[name], "ema": 0.9}
    whole = train(workers, job(dataset(), 12, **options), model)
    parts = train(workers, job(dataset(), 12, shard_optimizer=True, **options), model)
    np.testing.assert_allclose(parts[0].losses, whole[0].losses, rtol=2e-4)
    for a, b in zip(leaves(parts[0]), leaves(whole[0]), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)
    for other in parts[1:]:
        for a, b in zip(leaves(parts[0]), leaves(other), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("more", [{"compression": "bfloat16"}, {"compression": EAGER}])
def test_a_sharded_optimizer_beside_compression(more: dict[str, Any]) -> None:
    options = {"optimizer": optim.adam(0.01), **more}
    model = Classifier(random.key(0))
    whole, *_ = train(2, job(dataset(), 8, **options), model)
    parts, *_ = train(2, job(dataset(), 8, shard_optimizer=True, **options), model)
    np.testing.assert_allclose(parts.losses, whole.losses, rtol=1e-5)


def test_a_sharded_optimizer_beside_shards() -> None:
    options = {"optimizer": optim.adam(0.01), "shards": 2, "shard_optimizer": True}
    model = Classifier(random.key(0))
    alone, *_ = train(1, job(dataset(), 8, **options), model)
    together, *_ = train(2, job(dataset(), 8, **options), model)
    assert alone.losses == together.losses


@pytest.mark.parametrize("workers", [2, 4])
def test_the_state_falls_with_the_number_of_workers(workers: int) -> None:
    parameters = {"a.weight": tl.zeros((30, 7)), "a.bias": tl.zeros(7), "scale": tl.zeros(())}

    def main(worker: dist.Worker) -> tuple[int, Any]:
        sharded = ShardedOptimizer(optim.adam(0.1), parameters, worker)
        state = sharded.init(parameters)
        size = sum(leaf.size for leaf in tl.tree.leaves(state))
        return size, sharded.whole(state, parameters)

    whole = optim.adam(0.1).init(parameters)
    everything = sum(leaf.size for leaf in tl.tree.leaves(whole))
    for size, gathered in dist.run_local(main, num_workers=workers):
        assert size <= everything / workers + 8
        assert tl.tree.structure(gathered) == tl.tree.structure(whole)
        shapes = [leaf.shape for leaf in tl.tree.leaves(gathered)]
        assert shapes == [leaf.shape for leaf in tl.tree.leaves(whole)]


def test_an_optimizer_that_sees_whole_parameters_is_refused() -> None:
    def step(gradients: Any, state: Any, parameters: Any) -> Any:
        return {n: -0.1 * g / tl.sqrt(tl.sum(g * g) + 1) for n, g in gradients.items()}, state

    normalized = optim.Optimizer(lambda parameters: {}, step)
    the_job = job(dataset(), 3, optimizer=normalized, shard_optimizer=True)
    with pytest.raises(dist.WorkerError, match="update of .* is another one if it sees a piece"):
        train(2, the_job, Classifier(random.key(0)))


# ---- checkpoints ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [
        {"optimizer": optim.sgd(0.1), "compression": EAGER},
        {"optimizer": optim.adam(0.01), "shard_optimizer": True},
    ],
    ids=["factors", "sharded"],
)
@pytest.mark.parametrize("resumed_by", [2, 3, 1])
def test_a_run_goes_on_where_it_was(tmp_path: Any, more: dict[str, Any], resumed_by: int) -> None:
    model = Classifier(random.key(0))
    undisturbed = train(2, job(dataset(), 12, **more), model)[0]
    folder = {"checkpoint": str(tmp_path / "run"), "checkpoint_every": 4}
    train(2, job(dataset(), 8, **folder, **more), model)
    resumed = train(resumed_by, job(dataset(), 12, **folder, **more), model)
    if resumed_by == 2:
        assert resumed[0].losses == undisturbed.losses
        for a, b in zip(leaves(resumed[0]), leaves(undisturbed), strict=True):
            np.testing.assert_array_equal(a, b)
    else:
        np.testing.assert_allclose(resumed[0].losses, undisturbed.losses, rtol=0.05)


def test_a_sharded_run_goes_on_without_sharding(tmp_path: Any) -> None:
    model, folder = Classifier(random.key(0)), {"checkpoint": str(tmp_path / "run")}
    optimizer = {"optimizer": optim.adam(0.01)}
    undisturbed = train(1, job(dataset(), 10, **optimizer), model)[0]
    train(2, job(dataset(), 5, shard_optimizer=True, **folder, **optimizer), model)
    with dist.local_worker() as worker:
        the_job = job(dataset(), 10, **folder, **optimizer)
        resumed = train_job(worker, the_job, model, silent)
    np.testing.assert_allclose(resumed.losses, undisturbed.losses, rtol=1e-4)
