"""`TensorliteClassifier`, `TensorliteRegressor` and their models."""

from __future__ import annotations

import time
import uuid
from typing import Any

from pyspark.ml import Estimator, Model
from pyspark.ml.param import Param, Params, TypeConverters
from pyspark.ml.param.shared import HasProbabilityCol, HasRawPredictionCol
from pyspark.ml.util import MLReadable, MLWritable
from pyspark.sql import DataFrame
from pyspark.sql import functions as sf

from tensorlite import optim, random

from .. import cluster
from ..dataframes import DataFrameError, FrameDataset, Shape, plain, planar_of, quoted
from ..objectives import Application, CrossEntropy, Objective, SquaredError, loss_of
from ..serving import Scorer, predict_udf
from ..trainer import Trainer
from .files import Reader, Writer
from .params import InferenceParams, TrainingParams, check_names, with_setters

_LABEL, _WEIGHT = "__tensorlite_label", "__tensorlite_weight"
_DEFAULTS: dict[str, Any] = {
    "inputCol": "image",
    "predictionCol": "prediction",
    "handleInvalid": "error",
    "predictBatchSize": 128,
    "device": "auto",
}
_TRAINING_DEFAULTS: dict[str, Any] = _DEFAULTS | {
    "labelCol": "label",
    "optimizer": "adam",
    "learningRate": 1e-3,
    "momentum": 0.9,
    "weightDecay": 1e-2,
    "batchSize": 128,
    "epochs": 10,
    "numWorkers": 1,
    "seed": 0,
    "progress": True,
    "mlflow": False,
}


class _Fitted(Model, InferenceParams, MLReadable[Any], MLWritable):
    """A trained network as a Transformer.

    Attributes:
        network: the network, with its trained parameters.
        history: by name, the loss at every step and validation measures after every epoch.
        summary: what `TrainingResult.summary` tells of the training.
    """

    network: Any = None
    _named: tuple[tuple[Any, ...], str] | None = None
    _is_classifier = False

    def __init__(self) -> None:
        super().__init__()
        self.history: dict[str, list[float]] = {}
        self.summary: dict[str, Any] = {}
        self._setDefault(**_DEFAULTS)

    def udf(self) -> Any:
        """The network as a function of a column: array<float>, the logits, of a classifier; float
        of a regressor. For `select`, `withColumn` and `spark.udf.register`; columns of vectors are
        given as `vector_to_array(column)`."""
        return self._udf(_planar(self))

    def _udf(self, planar: Shape | None) -> Any:
        if self.network is None:
            raise ValueError(f"{type(self).__name__} has no network; it comes from fit or load")
        size = self.getOrDefault("imageSize") if self.isDefined("imageSize") else None
        skips = self.getOrDefault("handleInvalid") == "skip"
        device = self.getOrDefault("device")
        preprocess = _optional(self, "preprocess")
        batch_size = self.getOrDefault("predictBatchSize")
        scorer = Scorer(
            model=self.network,
            apply=Application(preprocess, self._is_classifier),
            key=f"{self._key(self.network, preprocess)} {batch_size} {device}",
            is_list=self._is_classifier,
            column=self.getInputCol(),
            image_size=tuple(size) if size else None,
            planar=planar,
            on_invalid=self.getOrDefault("handleInvalid"),
            batch_size=batch_size,
            device=device,
        )
        # What leaves rows out looks at the outputs first, which must not be computed twice.
        return predict_udf(scorer, deterministic=not skips)

    def _key(self, *what: Any) -> str:
        """A name for these objects that stays the same as long as they do, so that calls of
        `transform` share what is compiled."""
        if self._named is None or any(
            a is not b for a, b in zip(self._named[0], what, strict=True)
        ):
            self._named = what, uuid.uuid4().hex
        return self._named[1]

    def predict(self, dataset: DataFrame) -> DataFrame:
        """As `transform`."""
        return self.transform(dataset)

    def _scored(self, dataset: DataFrame, name: str) -> DataFrame:
        """The rows with the network's outputs."""
        column = self.getInputCol()
        if column not in dataset.columns:
            raise DataFrameError(
                f"{type(self).__name__}: the DataFrame has no column {column!r} (inputCol). It has "
                f"{', '.join(dataset.columns)}"
            )
        with cluster.own_python(dataset.sparkSession.sparkContext):
            planar = planar_of(dataset, column, _planar(self))
            outputs = self._udf(planar)(plain(dataset, column))
        scored = dataset.withColumn(name, outputs)
        if self.getOrDefault("handleInvalid") == "skip":
            scored = scored.filter(sf.col(quoted(name)).isNotNull())
        return scored

    def write(self) -> Writer:
        """Saves Params, weights, history and summary."""
        return Writer(self, weights=True)

    @classmethod
    def read(cls) -> Reader:
        """Loads what was saved."""
        return Reader(cls, weights=True)


@with_setters
class TensorliteClassificationModel(_Fitted, HasProbabilityCol, HasRawPredictionCol):
    """A trained classifier: adds rawPrediction (the logits), probability and prediction."""

    _is_classifier = True

    def __init__(self) -> None:
        super().__init__()
        self._setDefault(probabilityCol="probability", rawPredictionCol="rawPrediction")

    def _transform(self, dataset: DataFrame) -> DataFrame:
        from pyspark.ml.functions import array_to_vector

        logits, shifted = "__tensorlite_logits", "__tensorlite_exp"
        scored = self._scored(dataset, logits)
        wanted = {
            name: self.getOrDefault(name)
            for name in ("rawPredictionCol", "probabilityCol", "predictionCol")
        }
        most = sf.array_max(logits)
        columns: dict[str, Any] = {
            wanted["predictionCol"]: (sf.array_position(logits, most) - 1).cast("double")
        }
        if wanted["rawPredictionCol"]:
            columns[wanted["rawPredictionCol"]] = array_to_vector(
                sf.transform(logits, lambda x: x.cast("double"))
            )
        if wanted["probabilityCol"]:
            scored = scored.withColumn(
                shifted, sf.transform(logits, lambda x: sf.exp((x - most).cast("double")))
            )
            total = sf.aggregate(shifted, sf.lit(0.0), lambda a, b: a + b)
            columns[wanted["probabilityCol"]] = array_to_vector(
                sf.transform(shifted, lambda x: x / total)
            )
        return scored.withColumns({n: c for n, c in columns.items() if n}).drop(logits, shifted)


@with_setters
class TensorliteRegressionModel(_Fitted):
    """A trained regressor: adds prediction."""

    def _transform(self, dataset: DataFrame) -> DataFrame:
        name = self.getPredictionCol()
        scored = self._scored(dataset, name)
        return scored.withColumn(name, sf.col(quoted(name)).cast("double"))


class _Trained(Estimator[Any], TrainingParams, MLReadable[Any], MLWritable):
    """What classifier and regressor have in common."""

    _model_class: type[_Fitted]

    def __init__(self, **params: Any) -> None:
        super().__init__()
        self._setDefault(**_TRAINING_DEFAULTS)
        self.setParams(**params)

    def setParams(self, **params: Any) -> Any:
        """Set Params by name."""
        check_names(self, params)
        return self._set(**{name: value for name, value in params.items() if value is not None})

    def write(self) -> Writer:
        """Saves the Params."""
        return Writer(self, weights=False)

    @classmethod
    def read(cls) -> Reader:
        """Loads what was saved."""
        return Reader(cls, weights=False)

    def _fit(self, dataset: DataFrame) -> Any:
        if not self.isDefined("model"):
            raise ValueError(
                f"{type(self).__name__} has no model; set it to the class of your network, or to a "
                "function that makes one from a random key"
            )
        network = self._start()
        weights = _optional(self, "weightCol")
        objective = self._objective(self._mean_weight(dataset, weights))
        augment = _optional(self, "augment")
        trainer = Trainer(
            loss=loss_of(objective, type(network), weights is not None),
            evaluate=objective.evaluate,
            optimizer=self._made_optimizer(),
            batch_size=self.getOrDefault("batchSize"),
            num_workers=self.getOrDefault("numWorkers"),
            device=self.getOrDefault("device"),
            augment=augment,
            patience=_optional(self, "patience"),
            checkpoint=_optional(self, "checkpointDir"),
            checkpoint_every=_optional(self, "checkpointEvery"),
            seed=self.getSeed(),
            progress=self.getOrDefault("progress"),
            report=_of_this_fit(_optional(self, "reportDir")),
            tensorboard=_of_this_fit(_optional(self, "tensorboardDir")),
            mlflow=self.getOrDefault("mlflow"),
            spark=dataset.sparkSession,
        )
        result = trainer.fit(network, self._data(dataset), epochs=self.getOrDefault("epochs"))
        fitted = self._model_class()
        fitted._resetUid(self.uid)
        self._copyValues(fitted)
        fitted.network, fitted.history = result.model, result.history
        fitted.summary = result.summary
        return fitted

    def _start(self) -> Any:
        """The network before training."""
        path = _optional(self, "initialModel")
        if path is not None:
            return self._model_class.load(path).network
        return self.getOrDefault("model")(random.key(self.getSeed()))

    def _made_optimizer(self) -> optim.Optimizer:
        chosen, rate = self.getOrDefault("optimizer"), self.getOrDefault("learningRate")
        if chosen == "sgd":
            return optim.sgd(rate, momentum=self.getOrDefault("momentum"))
        if chosen == "adam":
            return optim.adam(rate)
        if chosen == "adamw":
            return optim.adamw(rate, weight_decay=self.getOrDefault("weightDecay"))
        return chosen

    def _data(self, dataset: DataFrame) -> FrameDataset:
        """The columns that are needed, label and weight by names of their own."""
        columns = [self.getInputCol(), _LABEL]
        weight, mark = _optional(self, "weightCol"), _optional(self, "validationIndicatorCol")
        named = [self.getInputCol(), self.getLabelCol(), weight, mark, _optional(self, "idCol")]
        for name in named:
            if name is not None and name not in dataset.columns:
                raise DataFrameError(
                    f"{type(self).__name__}: the DataFrame has no column {name!r}. It has "
                    f"{', '.join(dataset.columns)}"
                )
        frame = dataset.withColumn(_LABEL, self._label(sf.col(quoted(self.getLabelCol()))))
        if weight is not None:
            frame = frame.withColumn(_WEIGHT, sf.col(quoted(weight)).cast("float"))
            columns.append(_WEIGHT)
        size = _optional(self, "imageSize")
        return FrameDataset(
            frame,
            columns=columns,
            image_size=tuple(size) if size else None,
            on_invalid=self.getOrDefault("handleInvalid"),
            id_column=_optional(self, "idCol"),
            validation_column=mark,
            planar_images=_planar(self),
        )

    def _mean_weight(self, dataset: DataFrame, weight: str | None) -> float:
        """Of all rows, so that weights of any scale leave the learning rate as it is."""
        if weight is None:
            return 1.0
        mean = dataset.agg(sf.avg(quoted(weight)), sf.min(quoted(weight))).first()
        assert mean is not None
        if mean[0] is None or not mean[0] > 0 or mean[1] < 0:
            raise DataFrameError(
                f"{type(self).__name__}: weightCol={weight!r} must have numbers of at least 0, "
                f"some above, got a mean of {mean[0]} and a least of {mean[1]}"
            )
        return float(mean[0])

    def _objective(self, mean_weight: float) -> Objective:
        raise NotImplementedError

    def _label(self, column: Any) -> Any:
        raise NotImplementedError


@with_setters
class TensorliteClassifier(_Trained, HasProbabilityCol, HasRawPredictionCol):
    """Trains a network that gives logits (N, classes), by softmax cross-entropy.

    Labels are whole numbers from 0, as a StringIndexer gives them. The Params are those that
    `explainParams()` prints; each has a getter and a setter.

        TensorliteClassifier(model=Net, inputCol="image", labelCol="label", epochs=10).fit(frame)
    """

    classWeights: Any = Param(
        Params._dummy(),
        "classWeights",
        "factors of the losses by label, a list of one for each class",
        typeConverter=TypeConverters.toListFloat,
    )
    _model_class = TensorliteClassificationModel

    def __init__(self, **params: Any) -> None:
        super().__init__(**params)
        self._setDefault(probabilityCol="probability", rawPredictionCol="rawPrediction")

    def _objective(self, mean_weight: float) -> Objective:
        factors = _optional(self, "classWeights")
        return CrossEntropy(
            preprocess=_optional(self, "preprocess"),
            augmented=self.isDefined("augment"),
            class_weights=tuple(factors) if factors is not None else None,
            mean_weight=mean_weight,
        )

    def _label(self, column: Any) -> Any:
        wrong = sf.concat(
            sf.lit(f"labelCol {self.getLabelCol()!r} has "),
            column.cast("string"),
            sf.lit("; whole numbers from 0 are expected, as a StringIndexer gives them"),
        )
        whole = (column >= 0) & (column == sf.floor(column))
        return (
            sf.when(column.isNull(), None)
            .when(whole, column.cast("long"))
            .otherwise(sf.raise_error(wrong).cast("long"))
        )


@with_setters
class TensorliteRegressor(_Trained):
    """Trains a network that gives one number a row, (N,) or (N, 1), by squared error.

    TensorliteRegressor(model=Net, inputCol="features", labelCol="price").fit(frame)
    """

    _model_class = TensorliteRegressionModel

    def _objective(self, mean_weight: float) -> Objective:
        return SquaredError(
            preprocess=_optional(self, "preprocess"),
            augmented=self.isDefined("augment"),
            mean_weight=mean_weight,
        )

    def _label(self, column: Any) -> Any:
        return column.cast("float")


def _planar(instance: Params) -> Shape | None:
    """The Param planarImages, if it is set."""
    chosen = _optional(instance, "planarImages")
    return tuple(chosen) if chosen else None


def _optional(instance: Params, name: str) -> Any:
    """A Param's value, or None where it has none."""
    return instance.getOrDefault(name) if instance.isDefined(name) else None


def _of_this_fit(folder: str | None) -> str | None:
    """A folder below `folder` for one fit: a search makes many of them."""
    if folder is None:
        return None
    return f"{folder}/{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}"
