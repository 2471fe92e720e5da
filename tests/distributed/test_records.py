"""CIFAR-10's records as a DataFrame: decoded as the reader of files does it, and trained on."""

import numpy as np
import pyarrow as pa
import pytest

import tensorlite as tl
import tensorlite.distributed as dist
from tensorlite import nn, optim, random
from tensorlite.distributed import columns, dataframes
from tensorlite.distributed.dataframes import KEY, DataFrameError, FrameDataset
from tests.distributed.conftest import spark_session
from tests.distributed.networks import DigitNet

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 3, 2, 4), dtype=np.uint8)
SHAPE = (3, 2, 4)  # channels, height, width


def planar(pixels):
    return np.ascontiguousarray(pixels).tobytes()


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_raw_pixels_become_images(kind):
    whole = pa.array([planar(image) for image in PIXELS], kind)
    for array, wanted in ((whole, PIXELS), (whole[1:], PIXELS[1:])):
        found = columns.read("i", array, planar=SHAPE)
        np.testing.assert_array_equal(found.values, wanted.transpose(0, 2, 3, 1))
        assert found.values.flags.c_contiguous and not found.problems


def test_records_that_are_null_or_short_are_told_from_the_others():
    array = pa.array([b"short", planar(PIXELS[0]), None, planar(PIXELS[1]), planar(PIXELS[2])])
    found = columns.read("i", array[:4], planar=SHAPE)
    np.testing.assert_array_equal(found.values, PIXELS[:2].transpose(0, 2, 3, 1))
    assert found.problems == {0: "5 bytes of raw pixels, not 3 x 2 x 4 = 24", 2: "null"}
    none = columns.read("i", array[:1], planar=SHAPE)
    assert none.values.shape == (0, 2, 4, 3) and list(none.problems) == [0]
    assert columns.read("i", array[1:2], (2, 4), planar=SHAPE).values.shape == (1, 2, 4, 3)
    with pytest.raises(DataFrameError, match=r"'i' has raw pixels of 2 x 4, which are not scaled"):
        columns.read("i", array, (8, 8), planar=SHAPE)


@pytest.fixture(scope="module")
def spark():
    with spark_session("local[2]", **{"spark.sql.shuffle.partitions": "3"}) as session:
        yield session


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    tl.data.digits_as_cifar10(folder)
    return folder


def loss(model, images, labels):
    logits = model(images.astype(tl.float32) / 255, training=True)
    return tl.mean(nn.softmax_cross_entropy(logits, labels.astype(tl.int32))), model


def fitted(data, **options):
    trainer = dist.Trainer(
        loss=loss, optimizer=optim.adam(0.01), batch_size=64, progress=False, **options
    )
    return trainer.fit(DigitNet(random.key(0)), data, epochs=1)


@pytest.mark.spark
@pytest.mark.xdist_group("spark")
class TestOnSpark:
    def test_the_frame_has_the_rows_of_the_files(self, spark, files):
        for train in (True, False):
            frame = dist.cifar10_records(spark, str(files), train=train)
            assert [(f.name, f.dataType.simpleString()) for f in frame.schema] == [
                ("label", "int"),
                ("image", "binary"),
            ]
            wanted = tl.data.cifar10(files, train=train)
            found = frame.toArrow()
            assert found.num_rows == len(wanted)
            images = columns.read(
                "image", found["image"].combine_chunks(), planar=(3, 32, 32)
            ).values
            labels = found["label"].to_numpy()
            # Spark begins with the largest file, so the order is another one.
            order, others = (
                np.lexsort([*i.reshape(len(i), -1).T[::97], n])
                for i, n in ((images, labels), (wanted.arrays[0], wanted.arrays[1]))
            )
            np.testing.assert_array_equal(labels[order], wanted.arrays[1][others])
            np.testing.assert_array_equal(images[order], wanted.arrays[0][others])
        pattern = dist.cifar10_records(spark, f"{files}/data_batch_[12].bin")
        assert pattern.count() == len(tl.data.cifar10(f"{files}/data_batch_[12].bin"))

    def test_training_has_the_bits_of_a_frame_of_arrays(self, spark, files, monkeypatch):
        frame = dist.cifar10_records(spark, str(files)).select("image", "label")
        by_records = fitted(frame)
        # The same rows from tl.data.cifar10, in the order in which the hash of records puts them.
        dealt = dataframes.dealt_out(frame, 1).toArrow()
        rows = {
            (image.transpose(2, 0, 1).tobytes(), label): image
            for image, label in zip(*tl.data.cifar10(files).arrays, strict=True)
        }
        pairs = zip(dealt["image"].to_pylist(), dealt["label"].to_pylist(), strict=True)
        images = np.stack([rows[pair] for pair in pairs])
        flat = pa.array(images.reshape(-1))
        for size in images.shape[:0:-1]:
            flat = pa.FixedSizeListArray.from_arrays(flat, size)
            flat = flat.cast(pa.list_(flat.type.value_type))
        batch = pa.RecordBatch.from_arrays(
            [flat, dealt["label"].combine_chunks(), dealt[KEY].combine_chunks()],
            ["image", "label", KEY],
        )
        monkeypatch.setattr(FrameDataset, "batches", lambda self: iter([batch]))
        arrays = fitted(frame.selectExpr("array(array(array(1Y))) as image", "label"))
        assert arrays.history["loss"] == by_records.history["loss"]
        for a, b in zip(*map(tl.tree.leaves, (arrays.model, by_records.model)), strict=True):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))

    def test_workers_and_the_estimator_read_records(self, spark, files):
        from tensorlite.distributed.ml import TensorliteClassifier

        frame = dist.cifar10_records(spark, str(files))
        data = FrameDataset(frame, columns=["image", "label"])
        assert fitted(data, num_workers=2).history["loss"][-1] < 2.3
        model = TensorliteClassifier(
            model=DigitNet, numWorkers=2, batchSize=32, epochs=4, learningRate=0.01, progress=False
        ).fit(frame)
        test = dist.cifar10_records(spark, str(files), train=False)
        scored = model.transform(test).select("label", "prediction").toPandas()
        assert (scored.label == scored.prediction).mean() > 0.5
        # Where the metadata is lost, the option says it.
        bare = test.selectExpr("label", "substring(image, 1) as image")
        with pytest.raises(Exception, match="cannot be applied to: no image"):
            model.transform(bare).select("prediction").collect()
        model.setPlanarImages([3, 32, 32])
        again = model.transform(bare).select("prediction").toPandas()
        np.testing.assert_array_equal(again.prediction, scored.prediction)
        by_udf = bare.select(model.udf()("image").alias("logits")).toPandas()
        np.testing.assert_array_equal([np.argmax(x) for x in by_udf.logits], scored.prediction)
        with pytest.raises(TypeError, match=r"\[channels, height, width\] is expected"):
            model.setPlanarImages([32, 32])

    def test_bad_rows_are_named(self, spark, files):
        frame = dist.cifar10_records(spark, f"{files}/test_batch.bin").limit(20)
        rows = [(f"row {n}", *row) for n, row in enumerate(frame.collect())]
        rows[3], rows[8] = ("third", 1, bytearray(b"short")), ("eighth", 1, None)
        bad = spark.createDataFrame(rows, "id string, label int, image binary")
        options = {"columns": ["image", "label"], "id_column": "id"}
        data = FrameDataset(bad, **options, planar_images=(3, 32, 32))
        with pytest.raises(DataFrameError, match="2 rows of this partition cannot be used") as told:
            fitted(data)
        assert "row third (image: 5 bytes of raw pixels, not 3 x 32 x 32 = 3072)" in str(told.value)
        assert "row eighth (image: null)" in str(told.value)
        skipping = FrameDataset(bad, **options, planar_images=(3, 32, 32), on_invalid="skip")
        with pytest.warns(RuntimeWarning, match="2 rows of the DataFrame were left out"):
            assert fitted(skipping).summary["skipped_rows"] == 2
        with pytest.raises(ValueError, match="planar_images is .channels, height, width."):
            FrameDataset(bad, planar_images=(32, 32))
        with pytest.raises(ValueError, match="leave image_size=.8, 8. out"):
            FrameDataset(bad, planar_images=(3, 32, 32), image_size=(8, 8))

    def test_files_that_are_no_records(self, spark, files, tmp_path):
        with pytest.raises(FileNotFoundError, match="there is no file .*/nothing.bin where Spark"):
            dist.cifar10_records(spark, str(tmp_path / "nothing.bin"))
        with pytest.raises(FileNotFoundError, match="lacks data_batch_1.bin, .*; it holds nothing"):
            dist.cifar10_records(spark, str(tmp_path))
        (tmp_path / "cut.bin").write_bytes(b"1" * 5000)
        with pytest.raises(DataFrameError, match="cut.bin has 5000 bytes, but .* multiple of 3073"):
            dist.cifar10_records(spark, str(tmp_path / "cut.bin"))
        (tmp_path / "other.bin").write_bytes(b"\xc8" * 3073)
        with pytest.raises(Exception, match=r"a record has the label 200, which is not in 0\.\.9"):
            dist.cifar10_records(spark, str(tmp_path / "other.bin")).collect()
