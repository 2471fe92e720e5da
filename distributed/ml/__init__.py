"""Networks as estimators of `pyspark.ml`: in a Pipeline, under a CrossValidator, saved and loaded.

    from tensorlite.distributed.ml import TensorliteClassifier

    classifier = TensorliteClassifier(model=Net, inputCol="image", numWorkers=4, epochs=10)
    model = classifier.fit(frame)
    model.transform(frame).select("prediction", "probability")

`fit` trains on the rows of the DataFrame by barrier tasks, `transform` applies the network by a
function of a column, which `model.udf()` gives, too."""

from __future__ import annotations

from .estimators import (
    TensorliteClassificationModel,
    TensorliteClassifier,
    TensorliteRegressionModel,
    TensorliteRegressor,
)

__all__ = [
    "TensorliteClassificationModel",
    "TensorliteClassifier",
    "TensorliteRegressionModel",
    "TensorliteRegressor",
]
