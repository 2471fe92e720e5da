"""The estimators: in a Pipeline under a CrossValidator, saved and loaded elsewhere, and their
Params."""

import functools
import io
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import tensorlite as tl
import tensorlite.distributed as dist
from tensorlite import random
from tests.distributed.conftest import spark_session
from tests.distributed.networks import DigitNet, line

pytestmark = [pytest.mark.spark, pytest.mark.xdist_group("spark")]


@pytest.fixture(scope="module")
def spark():
    with spark_session("local[2]", **{"spark.sql.shuffle.partitions": "3"}) as session:
        yield session


def digits():
    """Real digits: uint8 (N, 8, 8), labels."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return (found.images * 15).astype(np.uint8), found.target


def png(pixels):
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def images(spark):
    """PNG bytes and names of digits, in four partitions: a large one, two small ones, one empty."""
    pixels, labels = digits()
    rows = [
        (n, png(image), f"digit {label}", float(label))
        for n, (image, label) in enumerate(zip(pixels, labels, strict=True))
    ]
    frame = spark.createDataFrame(rows, "row int, image binary, name string, label double")
    place = "case when row < 1500 then 0 when row < 1700 then 1 else 2 end"
    pairs = frame.selectExpr(f"{place} as place", "*").rdd.map(lambda row: (row[0], row[1:]))
    dealt = pairs.partitionBy(4, lambda place: place).values()
    cached = spark.createDataFrame(dealt, frame.schema).cache()
    assert sorted(cached.rdd.glom().map(len).collect()) == [0, 97, 200, 1500]
    return cached


def classifier(**params):
    from tensorlite.distributed.ml import TensorliteClassifier

    usual = {
        "model": functools.partial(DigitNet, channels=1),
        "learningRate": 0.01,
        "batchSize": 64,
        "epochs": 3,
        "progress": False,
    }
    return TensorliteClassifier(**(usual | params))


def accuracy(frame):
    from pyspark.ml.evaluation import MulticlassClassificationEvaluator

    return MulticlassClassificationEvaluator(metricName="accuracy").evaluate(frame)


def test_a_pipeline_under_a_cross_validator_saved_and_applied_elsewhere(images, tmp_path):
    from pyspark.ml import Pipeline
    from pyspark.ml.evaluation import MulticlassClassificationEvaluator
    from pyspark.ml.feature import StringIndexer
    from pyspark.ml.tuning import CrossValidator, ParamGridBuilder

    net = classifier(labelCol="index", numWorkers=2)
    indexer = StringIndexer(inputCol="name", outputCol="index", stringOrderType="alphabetAsc")
    judge = MulticlassClassificationEvaluator(labelCol="index", metricName="accuracy")
    grid = ParamGridBuilder().addGrid(net.learningRate, [1e-5, 0.01]).build()
    validator = CrossValidator(
        estimator=Pipeline(stages=[indexer, net]),
        estimatorParamMaps=grid,
        evaluator=judge,
        numFolds=2,
    )
    fitted = validator.fit(images)
    low, high = fitted.avgMetrics
    assert low < 0.5 < 0.8 < high
    fitted.bestModel.write().overwrite().save(str(tmp_path / "model"))
    images.write.parquet(str(tmp_path / "images"))
    here = judge.evaluate(fitted.transform(images))
    script = """
        import sys
        from pyspark.ml import PipelineModel
        from pyspark.ml.evaluation import MulticlassClassificationEvaluator
        from pyspark.sql import SparkSession
        spark = (
            SparkSession.builder.master("local[2]").config("spark.driver.host", "127.0.0.1")
            .config("spark.ui.enabled", "false").getOrCreate()
        )
        model = PipelineModel.load(sys.argv[1] + "/model")
        frame = model.transform(spark.read.parquet(sys.argv[1] + "/images"))
        judge = MulticlassClassificationEvaluator(labelCol="index", metricName="accuracy")
        print("accuracy", repr(judge.evaluate(frame)))
    """
    there = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert there.returncode == 0, there.stderr
    assert f"accuracy {here!r}" in there.stdout


def test_as_good_as_the_same_network_trained_locally(images):
    model = classifier(numWorkers=2, epochs=8).fit(images)
    pixels, labels = digits()
    rows = pixels[..., None].astype(np.float32) / 255

    def loss(network, rows, labels):
        outputs = network(rows, training=True)
        return tl.mean(tl.nn.softmax_cross_entropy(outputs, labels)), network

    trainer = dist.Trainer(loss=loss, optimizer=tl.optim.adam(0.01), batch_size=64, progress=False)
    local = trainer.fit(
        DigitNet(random.key(0), channels=1), tl.data.ArrayDataset(rows, labels), epochs=8
    )
    hits = np.argmax(np.asarray(local.model(tl.asarray(rows))), axis=-1) == labels
    assert accuracy(model.transform(images)) >= hits.mean() - 0.005


def test_outputs_are_mllibs(images):
    model = classifier(numWorkers=0, epochs=1).fit(images)
    found = model.transform(images.limit(50)).toPandas()
    logits = np.stack([v.toArray() for v in found.rawPrediction])
    shares = np.stack([v.toArray() for v in found.probability])
    rows = np.stack([np.asarray(_decoded(content)) for content in found.image])
    wanted = np.asarray(model.network(tl.asarray(rows[..., None] / 255, dtype=tl.float32)))
    np.testing.assert_allclose(logits, wanted, rtol=1e-4, atol=1e-4)
    exp = np.exp(wanted - wanted.max(axis=1, keepdims=True))
    np.testing.assert_allclose(shares, exp / exp.sum(axis=1, keepdims=True), rtol=1e-3)
    np.testing.assert_array_equal(found.prediction, wanted.argmax(axis=1))
    assert set(model.history) == {"loss"} and model.summary["epochs"] == 1
    renamed = model.copy().setPredictionCol("p").setProbabilityCol("")
    assert set(renamed.transform(images).columns) == {*images.columns, "p", "rawPrediction"}


def _decoded(content):
    from PIL import Image

    return Image.open(io.BytesIO(content))


def test_validation_weights_and_warm_start(images, spark, tmp_path):
    from pyspark.sql import functions as sf

    frame = images.withColumn("held", sf.col("row") % 5 == 0).withColumn("w", sf.lit(7.0))
    plain = classifier(numWorkers=0, validationIndicatorCol="held", epochs=4).fit(frame)
    assert len(plain.history["validation_accuracy"]) == 4
    assert plain.history["validation_accuracy"][-1] > 0.8
    weighted = classifier(
        numWorkers=0,
        validationIndicatorCol="held",
        epochs=4,
        weightCol="w",
        classWeights=[1.0] * 10,
    ).fit(frame)
    assert weighted.history["validation_accuracy"][-1] > 0.8
    assert weighted.history["loss"][0] < 2 * plain.history["loss"][0]  # by 7 without the mean
    plain.write().save(str(tmp_path / "saved"))
    watched = {"reportDir": str(tmp_path / "page"), "tensorboardDir": str(tmp_path / "board")}
    starting = classifier(numWorkers=0, initialModel=str(tmp_path / "saved"), epochs=1, **watched)
    warm = starting.fit(images)
    assert len(list(tmp_path.glob("page/*/report.html"))) == 1
    assert len(list(tmp_path.glob("board/*/events.*"))) == 1
    assert warm.history["loss"][0] < 0.6 < plain.history["loss"][0]


def test_weights_are_factors_of_the_losses():
    from tensorlite.distributed.objectives import CrossEntropy

    logits, labels = tl.asarray([[2.0, 0.0], [0.0, 1.0]]), tl.asarray([0.0, 1.0])
    plain = np.asarray(CrossEntropy(None).losses(logits, labels))
    objective = CrossEntropy(None, class_weights=(1.0, 3.0), mean_weight=2.0)
    found = objective.train(lambda rows: rows, logits, labels, tl.asarray([4.0, 2.0]), None)[0]
    assert float(found) == pytest.approx((2 * plain[0] + 3 * plain[1]) / 2, rel=1e-5)


def test_rows_that_cannot_be_used(images, spark):
    torn = spark.createDataFrame([(9999, b"no png", "digit 1", 1.0)], images.schema)
    frame = images.limit(300).unionByName(torn)
    with pytest.raises(dist.WorkerError, match=r"row 9999 \(image: no image"):
        classifier(idCol="row").fit(frame)
    with pytest.warns(RuntimeWarning, match="1 rows of the DataFrame were left out"):
        model = classifier(handleInvalid="skip", epochs=1).fit(frame)
    assert model.summary["skipped_rows"] == 1
    assert model.transform(frame).count() == 300
    with pytest.raises(Exception, match="cannot be applied to: no image"):
        model.setHandleInvalid("error").transform(frame).select("prediction").collect()


def test_regression_on_vectors_and_its_udf(spark):
    from pyspark.ml.functions import vector_to_array
    from pyspark.ml.linalg import Vectors

    from tensorlite.distributed.ml import TensorliteRegressor

    x = np.random.default_rng(0).normal(size=(200, 3))
    y = x @ [1.0, 2.0, 3.0] + 0.5
    rows = [(Vectors.dense(a), float(b)) for a, b in zip(x, y, strict=True)]
    frame = spark.createDataFrame(rows, ["features", "y"])
    regressor = TensorliteRegressor(
        model=line, inputCol="features", labelCol="y", optimizer="sgd", learningRate=0.02,
        batchSize=20, epochs=20, progress=False,
    )  # fmt: skip
    model = regressor.fit(frame)
    found = model.transform(frame).toPandas()
    np.testing.assert_allclose(found.prediction, y, atol=0.01)
    by_udf = frame.select(model.udf()(vector_to_array("features", "float32")).alias("p")).toPandas()
    np.testing.assert_allclose(by_udf.p, found.prediction, rtol=1e-6)


def test_params_are_checked_and_documented(spark, tmp_path):
    from tensorlite.distributed.ml import TensorliteClassifier, TensorliteRegressor

    with pytest.raises(TypeError, match="no Param 'batchsize'; did you mean batchSize?"):
        TensorliteClassifier(batchsize=3)
    with pytest.raises(TypeError, match="did you mean 'adam'"):
        classifier(optimizer="adan")
    with pytest.raises(TypeError, match="Pass Net rather than Net"):
        classifier(model=DigitNet(random.key(0)))
    with pytest.raises(TypeError, match="at least 1"):
        classifier(epochs=0)
    with pytest.raises(ValueError, match="has no model"):
        TensorliteRegressor().fit(spark.range(3))
    assert "over all workers" in classifier().explainParams()
    assert classifier().setBatchSize(3).getBatchSize() == 3
    frame = spark.createDataFrame([(1.5, [1.0])], ["label", "image"])
    with pytest.raises(Exception, match="whole numbers from 0 are expected"):
        classifier().fit(frame)
    with pytest.raises(dist.DataFrameError, match="no column 'label'"):
        classifier().fit(spark.range(3).withColumnRenamed("id", "image"))
    saved = classifier(epochs=7)
    saved.save(str(tmp_path / "estimator"))
    loaded = TensorliteClassifier.load(str(tmp_path / "estimator"))
    assert loaded.getEpochs() == 7 and loaded.getModel().keywords == {"channels": 1}
    assert loaded.uid == saved.uid
    with pytest.raises(ValueError, match="model is .*<lambda>, which cannot be imported"):
        classifier(model=lambda key: None).save(str(tmp_path / "other"))
