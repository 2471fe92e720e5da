"""DataFrames as training data: what columns become, who gets which rows, and the training."""

import io

import numpy as np
import pyarrow as pa
import pytest

import tensorlite as tl
import tensorlite.distributed as dist
from tensorlite import optim
from tensorlite.distributed import columns, spool
from tensorlite.distributed.balance import Parts
from tensorlite.distributed.batches import batches
from tensorlite.distributed.dataframes import DataFrameError, FrameDataset, Reading
from tensorlite.distributed.steps import Job
from tests.distributed.conftest import spark_session


def png(pixels):
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


# ---- columns -------------------------------------------------------------------------------------


def test_numbers_and_nested_arrays():
    found = columns.read("x", pa.array([1.5, None, 2.5]))
    np.testing.assert_array_equal(found.values, [1.5, 2.5])
    assert found.problems == {1: "null"}
    found = columns.read("x", pa.array([[[1, 2], [3, 4]], [[5, 6], [7, 8]]]))
    np.testing.assert_array_equal(found.values, np.arange(1, 9).reshape(2, 2, 2))
    with pytest.raises(DataFrameError, match="'x' has arrays of lengths 1, 2"):
        columns.read("x", pa.array([[1], [1, 2]]))
    with pytest.raises(DataFrameError, match="null among"):
        columns.read("x", pa.array([[1, None]]))
    with pytest.raises(DataFrameError, match="'x' has the type string.*StringIndexer"):
        columns.read("x", pa.array(["a"]))


def test_a_sliced_list_is_read_from_where_it_begins():
    whole = pa.array([[1, 2], [3, 4], [5, 6]])
    np.testing.assert_array_equal(columns.read("x", whole[1:]).values, [[3, 4], [5, 6]])


def test_encoded_images():
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (2, 5, 4, 3), dtype=np.uint8)
    found = columns.read("i", pa.array([png(colour[0]), None, b"no image", png(colour[1])]))
    np.testing.assert_array_equal(found.values, colour)
    assert found.problems[1] == "null" and "no image" in found.problems[2]
    grey = columns.read("i", pa.array([png(colour[0, ..., 0])]))
    np.testing.assert_array_equal(grey.values[..., 0], colour[:1, ..., 0])
    scaled = columns.read("i", pa.array([png(colour[0]), png(colour[0, :3])]), image_size=(2, 2))
    assert scaled.values.shape == (2, 2, 2, 3)
    with pytest.raises(DataFrameError, match=r"several shapes.*\(3, 4, 3\), \(5, 4, 3\)"):
        columns.read("i", pa.array([png(colour[0]), png(colour[0, :3])]))


def test_images_of_sparks_own_source_are_turned_to_rgb():
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    row = {"origin": "", "height": 2, "width": 4, "nChannels": 3, "mode": 16}
    sound = row | {"data": pixels[..., ::-1].tobytes()}
    found = columns.read("i", pa.array([sound, row | {"data": b"123"}]))
    np.testing.assert_array_equal(found.values, pixels[None])
    assert "3 bytes" in found.problems[1]
    assert columns.read("i", pa.array([sound]), (1, 2)).values.shape == (1, 1, 2, 3)
    others = sound | {"data": pixels[::-1, :, ::-1].tobytes()}
    alike = columns.read("i", pa.array([sound, sound, others])[1:])
    np.testing.assert_array_equal(alike.values, [pixels, pixels[::-1]])


# ---- spool ---------------------------------------------------------------------------------------


def rows_of(batch, reading):
    with dist.local_worker() as worker:
        return spool.read_rows(worker, [batch], reading)


def batch_of(**named):
    return pa.RecordBatch.from_arrays([pa.array(v) for v in named.values()], list(named))


def test_invalid_rows_are_named_or_skipped_and_counted():
    batch = batch_of(x=[1.0, None, 3.0, 4.0], y=[0, 1, None, 3], who=["a", "b", "c", "d"])
    with pytest.raises(DataFrameError, match=r"2 rows .* row b \(x: null\); row c \(y: null\)"):
        rows_of(batch, Reading(("x", "y")))
    rows = rows_of(batch, Reading(("x", "y"), on_invalid="skip"))
    assert rows.skipped == 2 and rows.counts == (2,)
    np.testing.assert_array_equal(rows.training[0], [1.0, 4.0])
    np.testing.assert_array_equal(rows.training[1], [0, 3])


def test_marked_rows_are_for_validation():
    batch = batch_of(x=[1.0, 2.0, None, 4.0], mark=[True, False, True, None], key=[1, 2, 3, 4])
    rows = rows_of(batch, Reading(("x",), on_invalid="skip", has_mark=True))
    np.testing.assert_array_equal(rows.training[0], [2.0, 4.0])
    np.testing.assert_array_equal(rows.validation[0], [1.0])
    assert rows.validation_counts == (1,)


def test_too_many_rows_and_none():
    batch = batch_of(x=[1.0, 2.0], key=[1, 2])
    with pytest.raises(DataFrameError, match="more than spool_bytes=15"):
        rows_of(batch, Reading(("x",), spool_bytes=15))
    with pytest.raises(DataFrameError, match="no rows to train on"):
        rows_of(batch[:0], Reading(("x",)))


# ---- batches -------------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [(7,), (10, 9), (0, 13, 1), (1, 0, 0, 0)])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_each_row_once_in_an_epoch_and_weights_of_one(counts, accumulate):
    seen, weights, sizes = [], {}, {}
    for rank, count in enumerate(counts):
        job = Job(
            loss=lambda: None,
            optimizer=None,
            arrays=(np.zeros(max(count, 1)),),
            batch_size=4,
            steps=0,
            seed=3,
            augment=None,
            ema=None,
            checkpoint=None,
            checkpoint_every=None,
            drop_last=False,
            counts=counts,
            accumulate=accumulate,
        )
        epochs = 2
        job = type(job)(**{**vars(job), "steps": epochs * job.steps_per_epoch})
        worker = dist.Worker(rank, len(counts), "cpu", "", ("",) * len(counts), None)
        for step, batch in enumerate(batches(job, worker, Parts(worker, False), 0)):
            for share in batch.shares:
                weights[step] = weights.get(step, 0.0) + share.weight
                if share.weight:
                    seen += [(batch.epoch, rank, row) for row in share.rows.tolist()]
            sizes[step] = batch.size
    assert sorted(seen) == [
        (e, r, row) for e in range(epochs) for r, count in enumerate(counts) for row in range(count)
    ]
    assert all(weight == pytest.approx(1.0) for weight in weights.values())
    assert max(sizes.values()) <= 4 + len(counts)


# ---- on Spark ------------------------------------------------------------------------------------


def loss(model, x, y):
    return tl.mean((x @ model["w"] + model["b"] - y) ** 2)


def table(rows, width=3):
    rng = np.random.default_rng(5)
    x = rng.normal(size=(rows, width)).astype(np.float32)
    return x, (x @ np.arange(1, width + 1) + 0.5).astype(np.float32)


def start(width=3):
    return {"w": tl.zeros(width), "b": tl.zeros(())}


@pytest.fixture(scope="module")
def spark():
    with spark_session("local[2]", **{"spark.sql.shuffle.partitions": "3"}) as session:
        yield session


@pytest.mark.spark
@pytest.mark.xdist_group("spark")
class TestOnSpark:
    def frame(self, spark, rows=101, partitions=5):
        x, y = table(rows)
        pairs = [(a.tolist(), float(b)) for a, b in zip(x, y, strict=True)]
        frame = spark.createDataFrame(pairs, "x array<float>, y float").coalesce(1)
        # One partition has nearly all rows, and others have none.
        return frame.repartitionByRange(partitions, "y").repartition(partitions, (frame.y > 9))

    def test_rows_reach_main_once(self, spark):
        def main(worker, batches, scale):
            return sorted(y * scale for batch in batches for y in batch.column("y").to_pylist())

        found = dist.launch(main, (2.0,), num_workers=2, data=self.frame(spark))
        assert len(found) == 2 and all(found)
        _, y = table(101)
        np.testing.assert_allclose(sorted(found[0] + found[1]), sorted(2.0 * y), rtol=1e-6)

    def test_training_on_a_dataframe(self, spark):
        results = {}
        for workers in (0, 1, 2):
            trainer = dist.Trainer(
                loss=loss,
                optimizer=optim.sgd(0.1),
                batch_size=10,
                num_workers=workers,
                progress=False,
            )
            results[workers] = trainer.fit(start(), self.frame(spark), epochs=20)
            assert results[workers].summary["epochs"] == 20
            np.testing.assert_allclose(results[workers].model["w"], [1, 2, 3], atol=0.01)
        # Without Spark's tasks the rows come in the same order.
        assert results[0].history["loss"] == results[1].history["loss"]
        again = dist.Trainer(
            loss=loss, optimizer=optim.sgd(0.1), batch_size=10, num_workers=2, progress=False
        ).fit(start(), self.frame(spark, partitions=3), epochs=20)
        assert again.history["loss"] == results[2].history["loss"]

    def test_validation_ends_a_training_that_gets_no_better(self, spark):
        from pyspark.sql import functions as sf

        frame = self.frame(spark).withColumn("held", sf.rand(1) < 0.2)
        data = FrameDataset(frame, columns=["x", "y"], validation_column="held")
        trainer = dist.Trainer(
            loss=loss,
            optimizer=optim.sgd(0.1),
            batch_size=10,
            num_workers=2,
            patience=2,
            progress=False,
        )
        result = trainer.fit(start(), data, epochs=500)
        losses = result.history["validation_loss"]
        assert result.summary["stopped"] == "no improvement"
        assert len(losses) < 500 and np.argmin(losses) == len(losses) - 3
        held = data.selected().filter("__tensorlite_validation").collect()
        x, y = (np.asarray([row[n] for row in held], np.float32) for n in ("x", "y"))
        best = float(loss(result.model, tl.asarray(x), tl.asarray(y)))
        assert best == pytest.approx(min(losses), rel=1e-4, abs=1e-12)

    def test_what_is_wrong_with_a_dataframe_is_said(self, spark):
        frame = self.frame(spark)
        with pytest.raises(DataFrameError, match="no column 'xx'; did you mean 'x'"):
            FrameDataset(frame, columns=["xx"])
        trainer = dist.Trainer(
            loss=loss, optimizer=optim.sgd(0.1), batch_size=10, num_workers=2, progress=False
        )
        nulls = frame.unionByName(spark.createDataFrame([(None, 1.0)], frame.schema))
        with pytest.raises(dist.WorkerError, match=r"1 rows of this partition.*x: null"):
            trainer.fit(start(), nulls, epochs=1)
        skipping = FrameDataset(nulls, on_invalid="skip")
        with pytest.warns(RuntimeWarning, match="1 rows of the DataFrame were left out"):
            assert trainer.fit(start(), skipping, epochs=1).summary["skipped_rows"] == 1


def test_validation_on_arrays_and_resume(tmp_path):
    x, y = table(64)
    train, held = tl.data.ArrayDataset(x, y).split(48)
    options = {
        "loss": loss,
        "evaluate": lambda model, x, y: {"loss": loss(model, x, y), "bias": model["b"]},
        "optimizer": optim.sgd(0.1),
        "batch_size": 16,
        "patience": 50,
        "progress": False,
    }
    whole = dist.Trainer(**options).fit(start(), train, epochs=6, validation=held)
    assert len(whole.history["validation_loss"]) == len(whole.history["validation_bias"]) == 6
    first = dist.Trainer(**options, checkpoint=str(tmp_path))
    first.fit(start(), train, epochs=3, validation=held)
    resumed = dist.Trainer(**options, checkpoint=str(tmp_path)).fit(
        start(), train, epochs=6, validation=held
    )
    assert resumed.history == whole.history
    np.testing.assert_array_equal(np.asarray(resumed.model["w"]), np.asarray(whole.model["w"]))
    with pytest.raises(ValueError, match="patience needs validation rows"):
        dist.Trainer(**options).fit(start(), train, epochs=1)
