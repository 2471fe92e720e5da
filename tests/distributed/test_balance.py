"""Parts of a batch in proportion to the workers' speed."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tensorlite as tl
import tensorlite.distributed as dist
from tensorlite import nn, optim, random
from tensorlite.data import ArrayDataset
from tensorlite.distributed import balance, training
from tests.distributed.test_training import Classifier, dataset, job, loss_fn, silent

PER_ROW = (0.0005, 0.0015)  # seconds that the workers need for a row: one is three times as fast


@given(
    st.integers(1, 500),
    st.lists(st.floats(0.01, 1e6), min_size=1, max_size=9),
)
def test_parts_are_in_proportion(rows: int, speeds: list[float]) -> None:
    sizes = np.asarray(balance.cut(rows, speeds))
    exact = rows * np.asarray(speeds) / sum(speeds)
    assert sizes.sum() == rows and (sizes >= 0).all()
    if rows >= len(speeds):
        assert (sizes >= 1).all()
    lifted = (exact < 1).sum()  # workers that get a row which proportion would not give them
    assert (np.abs(sizes - exact) < 1 + lifted).all()


def test_equal_workers_have_parts_that_differ_by_one() -> None:
    assert balance.cut(10, [2.0, 2.0, 2.0, 2.0]) == [2, 3, 2, 3]
    assert balance.cut(2, [1.0, 1.0, 1.0]) == [0, 1, 1]


class Mixed(nn.Module):
    """What might depend on how a batch is cut: statistics of a batch, and random numbers."""

    def __init__(self, key: Any):
        self.inner = Classifier(key)
        self.norm = nn.BatchNorm(3, across_workers=True)

    def __call__(self, x: Any, key: Any) -> Any:
        return self.inner(nn.dropout(self.norm(x, training=True), 0.3, key))


def mixed_loss(model: Any, images: Any, labels: Any, key: Any) -> Any:
    return tl.mean(nn.softmax_cross_entropy(model(images, key), labels)), model


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_faster_worker_gets_more_rows_and_nothing_else_changes(
    monkeypatch: pytest.MonkeyPatch, accumulate: int
) -> None:
    monkeypatch.setattr(balance, "LOOK_STEPS", 16)
    plain = training.Functions.step

    def step(self: Any, state: Any, number: int, shares: Any, *rest: Any) -> Any:
        time.sleep(PER_ROW[self._worker.rank] * sum(len(share.rows) for share in shares))
        return plain(self, state, number, shares, *rest)

    monkeypatch.setattr(training.Functions, "step", step)

    def run(balanced: bool) -> list[Any]:
        the_job = job(
            dataset(rows=128), 40, batch_size=64, loss=mixed_loss, balance=balanced,
            accumulate=accumulate,
        )  # fmt: skip
        model = Mixed(random.key(3))
        return dist.run_local(
            lambda worker: training.train(worker, the_job, model, silent), num_workers=2
        )

    equal, balanced = run(False)[0], run(True)[0]
    rows = [[rank["own_rows"] / rank["steps"] for rank in run.ranks] for run in (equal, balanced)]
    assert rows[0] == [32, 32]
    assert rows[1][0] > 40 > 24 > rows[1][1] and sum(rows[1]) == pytest.approx(64)
    assert balanced.timing.total / balanced.timing.steps < equal.timing.total / equal.timing.steps
    np.testing.assert_allclose(balanced.losses, equal.losses, rtol=2e-4)


def test_workers_alike_keep_equal_parts() -> None:
    def main(worker: dist.Worker) -> Any:
        parts = balance.Parts(worker, True)
        spent = balance.Spent()
        for number in range(balance.LOOK_STEPS):
            spent.rows += 32
            spent.seconds += 0.01 if worker.rank == number % 2 else 0.0101
            parts.after_step(spent)
        return parts.bounds(64)

    assert dist.run_local(main, num_workers=2) == [(0, 32), (32, 64)]


def test_options_that_do_not_go_together() -> None:
    given: dict[str, Any] = {"loss": loss_fn, "optimizer": optim.sgd(0.1), "batch_size": 8}
    with pytest.raises(ValueError, match="balance=True cuts batches by speed, and shards=4"):
        dist.Trainer(**given, balance=True, shards=4)
    with pytest.raises(TypeError, match="balance is True or False, got 'speed'"):
        dist.Trainer(**given, balance="speed")
    result = dist.Trainer(**given, balance=True, progress=False).fit(
        Classifier(random.key(0)), ArrayDataset(*dataset().arrays), steps=2
    )
    assert len(result.history["loss"]) == 2  # alone, there is nothing to balance
