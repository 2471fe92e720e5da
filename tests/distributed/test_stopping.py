"""Trainings that end early, and in order."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import numpy as np
import pytest

import tensorlite as tl
import tensorlite.distributed as dist
from tensorlite import optim, random
from tensorlite.data import ArrayDataset
from tensorlite.distributed.checkpoint import CheckpointFolder
from tensorlite.distributed.stopping import REASONS, reason_of
from tests.distributed.conftest import spark_session
from tests.distributed.test_training import Classifier, dataset, job, leaves, loss_fn, train

FOREVER = 10**6


def trainer(**options: Any) -> dist.Trainer:
    fields = {"loss": loss_fn, "optimizer": optim.sgd(0.1), "batch_size": 16, "progress": False}
    return dist.Trainer(**(fields | options))


def test_reasons() -> None:
    for why, number in REASONS.items():
        assert reason_of(number) == reason_of(number + 3) == reason_of(8 * number) == why
    assert reason_of(0.0) == ""


def test_a_time_limit_ends_with_a_checkpoint(tmp_path: Any) -> None:
    model = Classifier(random.key(0))
    folder = {"checkpoint": str(tmp_path / "run")}
    stopped = trainer(time_limit=1.0, **folder).fit(model, dataset(), steps=FOREVER)
    done = int(stopped.summary["steps"])
    assert stopped.summary["stopped"] == "time limit" and 0 < done < FOREVER
    assert CheckpointFolder(folder["checkpoint"]).steps() == [done]
    resumed = trainer(**folder).fit(model, dataset(), steps=done + 5)
    whole = trainer().fit(model, dataset(), steps=done + 5)
    assert resumed.history["loss"] == whole.history["loss"]
    assert whole.summary["stopped"] == ""


def test_stop_from_another_thread() -> None:
    steps: list[int] = []

    def watch(record: dict[str, Any]) -> None:
        steps.append(record["step"])
        if record["step"] == 20:
            threading.Thread(target=running.stop).start()

    running = trainer(progress=watch)
    result = running.fit(Classifier(random.key(0)), dataset(), steps=FOREVER)
    assert result.summary["stopped"] == "stop()" and len(result.history["loss"]) == steps[-1]
    again = running.fit(Classifier(random.key(0)), dataset(), steps=3)  # it is no longer wanted
    assert again.summary["stopped"] == ""


def test_sigterm() -> None:
    def watch(record: dict[str, Any]) -> None:
        if record["step"] == 10:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    result = trainer(progress=watch).fit(Classifier(random.key(0)), dataset(), steps=FOREVER)
    assert result.summary["stopped"] == "SIGTERM"
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("more", [{}, {"shards": 2}])
def test_all_workers_end_after_the_same_step(more: dict[str, Any]) -> None:
    from tensorlite.distributed import training

    the_job = job(dataset(), FOREVER, time_limit=0.5, **more)

    def main(worker: dist.Worker) -> Any:
        def report(record: dict[str, Any], last: bool = False) -> None:
            pass

        model = Classifier(random.key(0))
        return training.train(worker, the_job, model, report)

    first, second = dist.run_local(main, num_workers=2)
    assert first.stopped == second.stopped == "time limit"
    assert first.losses == second.losses
    for a, b in zip(leaves(first), leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.spark
def test_on_spark(tmp_path: Any) -> None:
    """The driver asks, rank 0 hears it, both end; and Spark's records say what ran."""
    with spark_session("local[2]") as session:
        running = trainer(num_workers=2, checkpoint=str(tmp_path), progress=lambda record: None)
        threading.Timer(8.0, running.stop).start()
        result = running.fit(Classifier(random.key(0)), dataset(), steps=FOREVER)
        assert result.summary["stopped"] == "stop()"
        assert CheckpointFolder(str(tmp_path)).steps() == [len(result.history["loss"])]

        context = session.sparkContext
        context.setJobGroup("mine", "my own")
        threading.Timer(20.0, lambda: context.cancelJobGroup("mine")).start()
        with pytest.raises(dist.WorkerError):
            trainer(num_workers=2, max_restarts=0).fit(
                Classifier(random.key(0)), dataset(), steps=FOREVER
            )
        assert context.getLocalProperty("spark.job.description") == "my own"
        status = context.statusTracker()
        assert len(status.getJobIdsForGroup("mine")) == 1


# ---- parameters that drift apart -----------------------------------------------------------------


def test_ranks_that_drift_apart_are_caught(tmp_path: Any) -> None:
    from tensorlite.distributed import training

    the_job = job(dataset(), 4, checkpoint=str(tmp_path), checkpoint_every=2)

    def main(worker: dist.Worker) -> Any:
        def report(record: dict[str, Any], last: bool = False) -> None:
            pass

        plain = training.Functions.step

        def step(self: Any, state: Any, number: int, *rest: Any) -> Any:
            if worker.rank == 1 and self._worker.rank == 1 and number == 3:
                bias = state["model"].head.bias
                state["model"].head.bias = bias + 1e-6  # as if a bit had flipped
            return plain(self, state, number, *rest)

        if worker.rank == 1:
            monkey.setattr(training.Functions, "step", step)
        return training.train(worker, the_job, Classifier(random.key(0)), report)

    with pytest.MonkeyPatch.context() as monkey, pytest.raises(dist.WorkerError) as error:
        dist.run_local(main, num_workers=2)
    assert "after step 4 ranks [1] have other parameters than rank 0, 'head." in str(error.value)
    assert CheckpointFolder(str(tmp_path)).steps() == [2]


def test_drift_is_looked_for_where_nothing_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorlite.distributed import training

    looked: list[int] = []
    monkeypatch.setattr(training, "DRIFT_STEPS", 3)
    monkeypatch.setattr(training, "check_drift", lambda worker, model, step: looked.append(step))
    train(1, job(dataset(), 8), Classifier(random.key(0)))
    assert looked == [3, 6, 8]


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "int8", "bool"])
def test_a_fingerprint_changes_with_each_bit(dtype: str) -> None:
    from tensorlite.distributed.checks import _fingerprint

    array = np.asarray(tl.asarray(np.arange(23) % 2, dtype=dtype))
    own = _fingerprint(array)
    for byte in range(array.nbytes):
        other = array.copy()
        other.view(np.uint8)[byte] ^= 64
        assert (_fingerprint(other) != own).any()
    assert (_fingerprint(np.asarray(array[0])) == _fingerprint(array[:1])).all()
    assert (_fingerprint(array[:0]) == 0).all()


# ---- numbers that are none -----------------------------------------------------------------------


def poisoned(where: Any) -> Any:
    images, labels = dataset(rows=48).arrays
    images = images.copy()
    images[where] = np.nan
    return ArrayDataset(images, labels)


def test_the_rows_of_a_bad_batch_are_named() -> None:
    with pytest.raises(FloatingPointError, match=r"the loss is nan at step [123] \(epoch 0, rows"):
        trainer().fit(Classifier(random.key(0)), poisoned(5), steps=6)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    "more", [{}, {"shard_optimizer": True}, {"compression": dist.PowerSGD(1, 1.01)}]
)
def test_updates_of_bad_batches_are_skipped(workers: int, more: dict[str, Any]) -> None:
    the_job = job(poisoned(5), 6, on_nonfinite="skip", ema=0.9, **more)
    for progress in train(workers, the_job, Classifier(random.key(0))):
        assert progress.skipped == 2  # once in each epoch of three batches
        assert sum(np.isnan(progress.losses)) == 2
        assert all(np.isfinite(leaf).all() for leaf in leaves(progress))


@pytest.mark.parametrize("every", [None, 2])
def test_going_back_leaves_out_what_skipping_does(tmp_path: Any, every: int | None) -> None:
    model = Classifier(random.key(0))
    skipped = train(2, job(poisoned(5), 6, on_nonfinite="skip"), model)[0]
    folder = {"checkpoint": str(tmp_path), "checkpoint_every": every} if every else {}
    told: list[str] = []

    def main(worker: dist.Worker) -> Any:
        from tensorlite.distributed import training

        def report(record: dict[str, Any], last: bool = False) -> None:
            told.extend([record["warning"]] if "warning" in record else [])

        the_job = job(poisoned(5), 6, on_nonfinite="rollback", **folder)
        return training.train(worker, the_job, model, report)

    progress = dist.run_local(main, num_workers=2)[0]
    np.testing.assert_array_equal(progress.losses, skipped.losses)
    for a, b in zip(leaves(progress), leaves(skipped), strict=True):
        assert a.tobytes() == b.tobytes()
    assert len(told) == 2 and all("in the share of rank" in text for text in told)
    assert all("going back to step" in text for text in told)


def test_going_back_has_a_limit() -> None:
    with (
        pytest.warns(RuntimeWarning, match="going back to step 0"),
        pytest.raises(FloatingPointError, match="5 times the training went back already"),
    ):
        trainer(on_nonfinite="rollback").fit(
            Classifier(random.key(0)), poisoned(slice(None)), steps=12
        )


def test_parameters_that_are_not_finite_are_not_saved(tmp_path: Any) -> None:
    """The loss is 0, its gradient is NaN."""

    def loss(model: Any, images: Any, labels: Any) -> Any:
        return (model["w"] * 0.0) ** 0.5 + 0.0 * images.sum()

    options = {"checkpoint": str(tmp_path), "checkpoint_every": 1}
    with pytest.raises(FloatingPointError, match=r"after step 1 \(epoch 0\) 'w' is not finite"):
        trainer(loss=loss, **options).fit({"w": np.float32(1.0)}, dataset(), steps=1)
    assert CheckpointFolder(str(tmp_path)).steps() == []


def test_skipping_is_told(tmp_path: Any) -> None:
    running = trainer(on_nonfinite="skip")
    with pytest.warns(RuntimeWarning, match="rows .* such updates are skipped"):
        result = running.fit(Classifier(random.key(0)), poisoned(0), steps=6)
    assert result.summary["skipped"] == 2


def test_what_was_skipped_is_still_counted_when_a_run_goes_on(tmp_path: Any) -> None:
    model, options = (
        Classifier(random.key(0)),
        {"on_nonfinite": "skip", "checkpoint": str(tmp_path)},
    )
    train(2, job(poisoned(5), 3, **options), model)
    assert train(2, job(poisoned(5), 6, **options), model)[0].skipped == 2


# ---- exceptions of the user's own ----------------------------------------------------------------


def test_an_exception_names_step_and_rows() -> None:
    def loss(model: Any, images: Any, labels: Any) -> Any:
        raise KeyError("colour")

    with pytest.raises(dist.WorkerError, match="KeyError: 'colour'") as caught:
        train(2, job(dataset(), 3, loss=loss), Classifier(random.key(0)))
    assert "This was at step 1 (epoch 0, rows " in str(caught.value)


# ---- deadlines -----------------------------------------------------------------------------------


def test_a_first_step_may_take_longer_than_others() -> None:
    """Rank 1 is late at its first step, and too late at its third."""
    from tensorlite.distributed import training

    plain = training.Functions.step

    def step(self: Any, state: Any, number: int, *rest: Any) -> Any:
        if self._worker.rank == 1 and number == late:
            time.sleep(1.5)
        return plain(self, state, number, *rest)

    # Two batches of 32 rows make an epoch: all steps have the same shapes.
    the_job = job(dataset(rows=64), 4, batch_size=32, timeout=0.4, first_step_timeout=20.0)
    with pytest.MonkeyPatch.context() as monkey:
        monkey.setattr(training.Functions, "step", step)
        late = 0
        assert len(train(2, the_job, Classifier(random.key(0)))[0].losses) == 4
        late = 2
        with pytest.raises(dist.WorkerError, match=r"nothing arrived from it for 0\.4 s"):
            train(2, the_job, Classifier(random.key(0)))


def test_skipping_changes_nothing_where_all_is_well() -> None:
    model = Classifier(random.key(0))
    stopping = train(2, job(dataset(), 6), model)[0]
    skipping = train(2, job(dataset(), 6, on_nonfinite="skip"), model)[0]
    np.testing.assert_allclose(skipping.losses, stopping.losses, rtol=1e-6)
    assert skipping.skipped == 0


@pytest.mark.parametrize(
    "wrong", [{"on_nonfinite": "ignore"}, {"time_limit": 0}, {"max_restarts": -1}]
)
def test_options_that_are_refused(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=f"Trainer: {name} "):
        trainer(**wrong)
