"""The training loop, on workers in threads: the result does not depend on how many there are."""

import inspect

import numpy as np
import pytest

import tensorlite as tl
import tensorlite.distributed as dist
from examples.cifar10 import TutorialCNN
from examples.cifar10 import loss_fn as tutorial_loss
from tensorlite import nn, optim, random
from tensorlite.data import ArrayDataset
from tensorlite.distributed import training
from tensorlite.distributed.balance import Parts
from tensorlite.distributed.batches import batches
from tensorlite.distributed.ring import Ring
from tensorlite.distributed.steps import Job


class Classifier(nn.Module):
    """Small enough to train in a test; has a buffer."""

    def __init__(self, key, dtype=tl.float32, across_workers=False):
        k1, k2 = random.split(key)
        self.conv = nn.Conv(3, 4, 3, key=k1, dtype=dtype)
        self.norm = nn.BatchNorm(4, dtype=dtype, across_workers=across_workers)
        self.head = nn.Linear(4, 3, key=k2, dtype=dtype)

    def __call__(self, x, training=False):
        x = nn.relu(self.norm(self.conv(x), training=training))
        return self.head(tl.mean(x, axis=(1, 2)))


def loss_fn(model, images, labels):
    return tl.mean(nn.softmax_cross_entropy(model(images), labels))


def dataset(rows=50, classes=3, size=6, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    images = rng.normal(size=(rows, size, size, 3)) + labels[:, None, None, None]
    return ArrayDataset(images.astype(dtype), labels)


def job(data, steps, **options):
    fields = {
        "loss": loss_fn,
        "optimizer": optim.sgd(0.1, momentum=0.9),
        "arrays": data.arrays,
        "batch_size": 16,
        "steps": steps,
        "seed": 0,
        "augment": None,
        "ema": None,
        "checkpoint": None,
        "checkpoint_every": None,
        "drop_last": False,
    }
    return Job(**(fields | options))


def silent(record, last=False):
    pass


def train(num_workers, the_job, model, report=silent, **options):
    """What each of `num_workers` workers ends with; `options` are those of `run_local`."""
    return dist.run_local(
        lambda worker: training.train(worker, the_job, model, report),
        num_workers=num_workers,
        **options,
    )


def leaves(progress):
    return [np.asarray(leaf) for leaf in tl.tree.leaves(progress.state)]


@pytest.mark.parametrize("num_workers", [2, 4])
def test_tutorial_cnn_float32_curve_does_not_depend_on_the_number_of_workers(num_workers):
    data = dataset(rows=256, classes=10, size=24)
    optimizer = optim.sgd(0.01)  # stable: rounding stays rounding
    model = TutorialCNN(random.key(0))
    the_job = job(data, 10, loss=tutorial_loss, optimizer=optimizer, batch_size=32)
    alone = train(1, the_job, model)[0].losses
    together = train(num_workers, the_job, model)[0].losses
    np.testing.assert_allclose(together, alone, rtol=1e-5)


@pytest.mark.parametrize("num_workers", [2, 4])
def test_float32_curve_of_100_steps(num_workers):
    the_job = job(dataset(), 100)
    model = Classifier(random.key(0))
    alone = train(1, the_job, model)[0].losses
    together = train(num_workers, the_job, model)[0].losses
    np.testing.assert_allclose(together[:10], alone[:10], rtol=1e-5)
    np.testing.assert_allclose(together, alone, rtol=5e-3)
    assert alone[-1] < 0.5 * alone[0]


@pytest.mark.parametrize("num_workers", [2, 3, 4])
def test_float64_curve(num_workers):
    the_job = job(dataset(dtype=np.float64), 20)
    model = Classifier(random.key(0), dtype=tl.float64)
    alone = train(1, the_job, model)[0].losses
    together = train(num_workers, the_job, model)[0].losses
    np.testing.assert_allclose(together, alone, rtol=1e-10)


@pytest.mark.parametrize("rows", [50, 17])
def test_shards_give_any_number_of_workers_the_same_bits(rows):
    def loss(model, images, labels, key):
        logits = model(nn.dropout(images, 0.3, key), training=True)
        return tl.mean(nn.softmax_cross_entropy(logits, labels)), model

    # A rate at which training is unstable: differences in the last digit would soon be large.
    optimizer = optim.sgd(2.0, momentum=0.9)
    options = {"loss": loss, "optimizer": optimizer, "shards": 4, "ema": 0.9}
    the_job, model = job(dataset(rows), 40, **options), Classifier(random.key(0))
    alone = train(1, the_job, model)[0]
    for num_workers in (2, 4):
        together = train(num_workers, the_job, model)[-1]
        assert together.losses == alone.losses
        for a, b in zip(leaves(together), leaves(alone), strict=True):
            assert a.tobytes() == b.tobytes()


def test_all_ranks_end_with_the_same_bits():
    the_job = job(dataset(), 12, ema=0.99)
    first, *others = map(leaves, train(3, the_job, Classifier(random.key(0))))
    for other in others:
        for a, b in zip(first, other, strict=True):
            assert a.tobytes() == b.tobytes()


def test_dropout_and_augmentation_do_not_depend_on_the_number_of_workers():
    def loss(model, images, labels, key):
        features = nn.dropout(images, 0.5, key)
        return tl.mean(nn.softmax_cross_entropy(model(features), labels))

    def augment(key, images):
        assert images.shape == (1, 6, 6, 3)
        return images + random.normal(key, images.shape, dtype=images.dtype)

    the_job = job(dataset(dtype=np.float64), 9, loss=loss, augment=augment)
    model = Classifier(random.key(0), dtype=tl.float64)
    alone = train(1, the_job, model)[0].losses
    for num_workers in (2, 3):
        together = train(num_workers, the_job, model)[0].losses
        np.testing.assert_allclose(together, alone, rtol=1e-10)


def test_augmentation_differs_between_epochs_and_rows():
    def augment(key, images):
        return images * 0 + random.uniform(key, (1, 1, 1, 1))

    seen = []

    def loss(model, images, labels):
        return tl.mean(images) + 0 * tl.sum(model.head.bias)

    the_job = job(dataset(rows=16), 3, loss=loss, augment=augment)
    seen = train(1, the_job, Classifier(random.key(0)))[0].losses
    assert len(set(seen)) == 3  # one batch an epoch: the same rows, with new keys


def test_buffers_are_averaged_over_the_batch_and_kept():
    def loss(model, images, labels):
        return tl.mean(nn.softmax_cross_entropy(model(images, training=True), labels)), model

    the_job = job(dataset(), 5, loss=loss)
    start = Classifier(random.key(0))
    first, second = train(2, the_job, start)
    moved = first.state["model"].norm
    for name, buffer in moved.buffers().items():
        assert not np.array_equal(np.asarray(buffer), np.asarray(start.norm.buffers()[name])), name
    for a, b in zip(leaves(first), leaves(second), strict=True):
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("rows", [50, 17])  # 17: at most a row in the last batch, for one worker
@pytest.mark.parametrize("num_workers", [2, 3, 4])
def test_batch_norm_over_the_global_batch(num_workers, rows):
    def loss(model, images, labels):
        return tl.mean(nn.softmax_cross_entropy(model(images, training=True), labels)), model

    the_job = job(dataset(rows, dtype=np.float64), 8, loss=loss)
    model = Classifier(random.key(0), dtype=tl.float64, across_workers=True)
    alone, together = train(1, the_job, model)[0], train(num_workers, the_job, model)[0]
    np.testing.assert_allclose(together.losses, alone.losses, rtol=1e-9)
    for a, b in zip(leaves(together), leaves(alone), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)


def test_batch_norm_over_a_share_differs():
    def loss(model, images, labels):
        return tl.mean(nn.softmax_cross_entropy(model(images, training=True), labels)), model

    the_job = job(dataset(dtype=np.float64), 3, loss=loss)
    model = Classifier(random.key(0), dtype=tl.float64)
    alone, together = (train(n, the_job, model)[0].losses for n in (1, 2))
    assert abs(alone[0] - together[0]) > 1e-6


@pytest.mark.parametrize("bucket_bytes", [1, 200, None])
def test_the_size_of_buckets_does_not_change_the_result(bucket_bytes):
    model = Classifier(random.key(0), dtype=tl.float64)
    data = dataset(rows=37, dtype=np.float64)
    expected = train(3, job(data, 7), model)[0].losses
    found = train(3, job(data, 7, bucket_bytes=bucket_bytes), model)[0].losses
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize(("wire", "rtol"), [("float16", 1e-3), ("bfloat16", 8e-3)])
def test_compressed_gradients(wire, rtol):
    def loss(model, inputs, labels):
        return tl.mean(nn.softmax_cross_entropy(tl.tanh(inputs @ model["w"]) @ model["v"], labels))

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 48)
    data = ArrayDataset((rng.normal(size=(48, 40)) + labels[:, None]).astype(np.float32), labels)
    # 80 KiB: large enough not to travel as it is.
    weights = {"w": rng.normal(size=(40, 512)) / 20, "v": rng.normal(size=(512, 3)) / 20}
    model = tl.tree.map(lambda x: tl.asarray(x.astype(np.float32)), weights)

    def ends(steps, compression):
        options = {"loss": loss, "optimizer": optim.sgd(0.1), "compression": compression}
        return train(2, job(data, steps, **options), model, shared_memory=False)

    (exact, _), (first, second) = ends(1, None), ends(1, wire)
    assert first.losses == exact.losses, "the loss travels unrounded"
    before = np.asarray(model["w"])
    moves = [np.asarray(end.state["model"]["w"]) - before for end in (exact, first, second)]
    assert moves[1].tobytes() == moves[2].tobytes()
    assert moves[1].tobytes() != moves[0].tobytes()
    np.testing.assert_allclose(moves[1], moves[0], rtol=3 * rtol, atol=rtol * abs(moves[0]).max())

    first, second = ends(20, wire)
    for a, b in zip(leaves(first), leaves(second), strict=True):
        assert a.tobytes() == b.tobytes()
    assert first.losses[-1] < 0.7 * first.losses[0]
    np.testing.assert_allclose(first.losses, ends(20, None)[0].losses, rtol=10 * rtol)


def test_only_gradients_of_float32_are_compressed(monkeypatch):
    def loss(model, inputs, labels):
        new = model.norm(inputs @ model.single, training=True)
        double = tl.mean(model.double * tl.astype(inputs, tl.float64))
        return tl.mean(new) + tl.astype(double, tl.float32), model

    class Mixed(nn.Module):
        def __init__(self):
            self.single = tl.ones((3, 2))
            self.double = tl.ones(3, dtype=tl.float64)
            self.norm = nn.BatchNorm(2)

    rng = np.random.default_rng(0)
    data = ArrayDataset(rng.normal(size=(16, 3)).astype(np.float32), np.zeros(16, np.int64))
    sent = set()
    reduce_one = Ring.all_reduce_

    def noted(self, array, op="sum", *, wire=None, leaves=()):
        sent.update((wire, dtype, shape) for _, dtype, shape in leaves)
        return reduce_one(self, array, op, wire=wire, leaves=leaves)

    monkeypatch.setattr(Ring, "all_reduce_", noted)
    train(2, job(data, 1, loss=loss, compression="float16"), Mixed())
    assert {x for x in sent if x[0]} == {
        ("float16", "float32", (3, 2)),  # single
        ("float16", "float32", (2,)),  # scale and offset
    }
    assert {x for x in sent if not x[0]} == {
        (None, "float64", (3,)),  # double
        (None, "float32", (2,)),  # running mean and variance
        (None, "float32", ()),  # the loss
    }


@pytest.mark.parametrize("accumulate", [2, 3, 5])
@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_accumulation_does_not_change_the_result(num_workers, accumulate):
    seen = set()

    def loss(model, images, labels, key):
        seen.add(len(images))
        features = nn.dropout(images, 0.3, key)
        return tl.mean(nn.softmax_cross_entropy(model(features), labels))

    def augment(key, images):
        return images + random.normal(key, images.shape, dtype=images.dtype)

    # The last of four batches has two rows: fewer than there are parts.
    options = {"loss": loss, "augment": augment, "ema": 0.9}
    data, model = dataset(dtype=np.float64), Classifier(random.key(0), dtype=tl.float64)
    whole = train(1, job(data, 9, **options), model)[0]
    seen.clear()
    parts = train(num_workers, job(data, 9, accumulate=accumulate, **options), model)
    assert max(seen) == -(-16 // (num_workers * accumulate))
    np.testing.assert_allclose(parts[0].losses, whole.losses, rtol=1e-10)
    for a, b in zip(leaves(parts[0]), leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-11)
    for a, b in zip(leaves(parts[0]), leaves(parts[-1]), strict=True):
        assert a.tobytes() == b.tobytes()


def test_gradients_are_sent_once_however_many_parts_they_come_from(monkeypatch):
    calls = []
    reduce_one = Ring.all_reduce_

    def counted(self, array, op="sum", **options):
        calls.append(array.nbytes)
        return reduce_one(self, array, op, **options)

    monkeypatch.setattr(Ring, "all_reduce_", counted)
    sent = []
    for accumulate in (1, 4):
        calls.clear()
        train(2, job(dataset(), 3, accumulate=accumulate), Classifier(random.key(0)))
        sent.append(sorted(calls))
    assert sent[0] == sent[1] != []


@pytest.mark.parametrize("rows", [50, 17])
def test_parts_have_the_same_batch_norm_on_any_number_of_workers(rows):
    def loss(model, images, labels):
        return tl.mean(nn.softmax_cross_entropy(model(images, training=True), labels)), model

    the_job = job(dataset(rows, dtype=np.float64), 8, loss=loss, accumulate=3)
    model = Classifier(random.key(0), dtype=tl.float64, across_workers=True)
    alone = train(1, the_job, model)[0]
    assert np.isfinite(alone.losses).all()
    for num_workers in (2, 3):
        together = train(num_workers, the_job, model)[0]
        np.testing.assert_allclose(together.losses, alone.losses, rtol=1e-9)
        for a, b in zip(leaves(together), leaves(alone), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)


def test_a_loss_that_communicates():
    def loss(model, images, labels):
        # The mean of the logits over all workers: part of the loss of each.
        centre = dist.all_reduce(tl.mean(model(images), axis=0), "mean")
        return tl.mean(nn.softmax_cross_entropy(model(images) - centre, labels))

    data, model = dataset(rows=48, dtype=np.float64), Classifier(random.key(0), dtype=tl.float64)
    alone = train(1, job(data, 6, loss=loss), model)[0].losses
    np.testing.assert_allclose(train(2, job(data, 6, loss=loss), model)[0].losses, alone, rtol=1e-9)
    with pytest.raises(dist.WorkerError, match="leave shards out"):
        train(2, job(data, 1, loss=loss, shards=4), model)


def test_every_row_once_per_epoch_whatever_the_last_batch():
    rows = np.arange(37)
    data = ArrayDataset(np.eye(37, dtype=np.float64)[rows], rows)

    def loss(model, one_hot, labels):
        # The gradient of "seen" counts, for each row, how often it was there (times 1 / batch).
        return tl.mean(one_hot @ model["seen"])

    optimizer = optim.sgd(1.0)
    model = {"seen": tl.zeros(37, dtype=tl.float64)}
    for num_workers in (1, 2, 5):
        the_job = job(data, 2 * 3, loss=loss, optimizer=optimizer)
        assert the_job.steps_per_epoch == 3
        seen = -np.asarray(train(num_workers, the_job, model)[0].state["model"]["seen"])
        # A row counts 1/16 in a full batch and 1/5 in the last one; in each epoch exactly once.
        counts = {round(x, 9) for x in seen.tolist()}
        assert counts <= {round(a + b, 9) for a in (1 / 16, 1 / 5) for b in (1 / 16, 1 / 5)}
        np.testing.assert_allclose(seen.sum(), 2 * 3)


def test_more_workers_than_rows_in_the_last_batch():
    the_job = job(dataset(rows=17, dtype=np.float64), 4)
    model = Classifier(random.key(0), dtype=tl.float64)
    alone = train(1, the_job, model)[0].losses
    np.testing.assert_allclose(train(3, the_job, model)[0].losses, alone, rtol=1e-10)


def test_drop_last_leaves_out_the_smaller_batch():
    the_job = job(dataset(rows=37), 4, drop_last=True)
    assert the_job.steps_per_epoch == 2
    with dist.local_worker() as worker:
        found = list(batches(the_job, worker, Parts(worker, False), 0))
    assert [batch.epoch for batch in found] == [0, 0, 1, 1]
    assert {batch.size for batch in found} == {16}


def test_resumed_run_has_the_bits_of_an_undisturbed_one(tmp_path):
    model = Classifier(random.key(0))
    whole = train(2, job(dataset(), 9, ema=0.9), model)[0]
    folder = str(tmp_path / "run")
    options = {"ema": 0.9, "checkpoint": folder, "checkpoint_every": 2}
    train(2, job(dataset(), 5, **options), model)
    rest = train(2, job(dataset(), 9, **options), model)[0]
    assert rest.losses == whole.losses
    for a, b in zip(leaves(rest), leaves(whole), strict=True):
        assert a.tobytes() == b.tobytes()
    saved = sorted(path.name for path in (tmp_path / "run").iterdir())
    # The newest three; one that was due while another was written may have been overtaken.
    assert saved[-1] == "step-000000009.safetensors" and len(saved) <= 3


def test_resuming_with_another_model_is_refused_with_the_differences(tmp_path):
    options = {"checkpoint": str(tmp_path)}
    train(1, job(dataset(), 1, **options), Classifier(random.key(0)))
    other = {"weight": tl.zeros((3, 3))}
    with pytest.raises(dist.WorkerError, match="weight"):
        train(1, job(dataset(), 2, **options), other)


@pytest.mark.parametrize("change", [{"batch_size": 8}, {"seed": 5}, {"drop_last": True}])
def test_resuming_with_another_order_of_rows_is_refused(tmp_path, change):
    options = {"checkpoint": str(tmp_path)}
    train(1, job(dataset(), 1, **options), Classifier(random.key(0)))
    ((name, value),) = change.items()
    with pytest.raises(dist.WorkerError, match=rf"holds a run with {name}=.*\(now {value}\)"):
        train(1, job(dataset(), 2, **options, **change), Classifier(random.key(0)))


def test_a_checkpoint_beyond_the_end_is_refused(tmp_path):
    options = {"checkpoint": str(tmp_path)}
    train(1, job(dataset(), 3, **options), Classifier(random.key(0)))
    with pytest.raises(dist.WorkerError, match="holds step 3, but this run ends at step 2"):
        train(1, job(dataset(), 2, **options), Classifier(random.key(0)))


def test_workers_that_start_from_different_parameters_are_refused():
    def main(worker):
        model = Classifier(random.key(worker.rank))
        training.train(worker, job(dataset(), 1), model, silent)

    with pytest.raises(dist.WorkerError, match=r"ranks \[1, 2\] would start from other"):
        dist.run_local(main, num_workers=3)


def test_a_loss_that_returns_something_else_beside_the_scalar():
    def loss(model, images, labels):
        return tl.mean(model(images)), images

    with pytest.raises(dist.WorkerError, match="has the structure"):
        train(1, job(dataset(), 1, loss=loss), Classifier(random.key(0)))


def test_records():
    records = []
    the_job = job(dataset(), 3)

    def main(worker):
        def report(record, last=False):
            records.append((record, last))

        return training.train(worker, the_job, Classifier(random.key(0)), report)

    losses = dist.run_local(main, num_workers=2)[0].losses
    assert [record["step"] for record, _ in records] == [1, 2, 3]  # by rank 0 alone
    assert [record["loss"] for record, _ in records] == losses
    assert [last for _, last in records] == [False, False, True]


def test_job_fields_are_all_used_by_the_trainer():
    names = set(inspect.signature(Job).parameters)
    options = set(inspect.signature(dist.Trainer).parameters)
    given_to_fit = {"arrays", "steps", "epochs", "validation"}
    found_by_the_workers = {"counts", "validation_counts", "skipped_rows"}
    of_launch = {"timeout"}
    assert names - options == given_to_fit | found_by_the_workers | of_launch
