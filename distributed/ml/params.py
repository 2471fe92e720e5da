"""The Params of the estimators, in MLlib's manner: documented, checked when they are set, with a
getter and a setter each."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from pyspark.ml.param import Param, Params, TypeConverters
from pyspark.ml.param.shared import (
    HasInputCol,
    HasLabelCol,
    HasPredictionCol,
    HasSeed,
    HasValidationIndicatorCol,
    HasWeightCol,
)

from tensorlite import nn, optim

T = TypeVar("T", bound=Params)


def _param(name: str, doc: str, convert: Callable[[Any], Any]) -> Any:
    return Param(Params._dummy(), name, doc, typeConverter=convert)


def _function(value: Any) -> Any:
    if not callable(value):
        raise TypeError(f"a function, or a class, is expected, got {type(value).__name__}")
    return value


def _at_least(least: int) -> Callable[[Any], int]:
    def convert(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise TypeError(f"a whole number of at least {least} is expected, got {value!r}")
        return value

    return convert


def _positive(value: Any) -> float:
    number = TypeConverters.toFloat(value)
    if not number > 0:
        raise TypeError(f"a number above 0 is expected, got {value!r}")
    return number


def _of_choice(*choices: str) -> Callable[[Any], str]:
    def convert(value: Any) -> str:
        if value not in choices:
            close = difflib.get_close_matches(str(value), choices, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise TypeError(f"one of {', '.join(choices)} is expected, got {value!r}{hint}")
        return str(value)

    return convert


def _shape(value: Any) -> list[int]:
    sizes = [_at_least(1)(n) for n in TypeConverters.toListInt(value)]
    if len(sizes) != 3:
        raise TypeError(f"[channels, height, width] is expected, got {value!r}")
    return sizes


def _optimizer(value: Any) -> Any:
    if isinstance(value, str):
        return _of_choice("sgd", "adam", "adamw")(value)
    if not isinstance(value, optim.Optimizer):
        raise TypeError(
            "'sgd', 'adam', 'adamw' or one of tensorlite.optim is expected, got "
            f"{type(value).__name__}"
        )
    return value


def _model(value: Any) -> Any:
    if not callable(value) or not _takes_a_key(value):
        raise TypeError(
            "a class, or a function, of one argument is expected, the random key from which the "
            f"parameters are drawn, got {value!r}. Pass Net rather than Net(key); other arguments "
            "are bound by functools.partial(Net, classes=7)"
        )
    return value


def _takes_a_key(value: Any) -> bool:
    try:
        inspect.signature(value).bind(None)
    except TypeError:
        return False
    return not isinstance(value, nn.Module)


class InferenceParams(HasInputCol, HasPredictionCol):
    """What a model needs to be applied; estimators have it, too."""

    model = _param(
        "model",
        "a class or function of a random key that makes the network; to be saved it must be one "
        "that can be imported, or a functools.partial of one",
        _model,
    )
    preprocess = _param(
        "preprocess",
        "function of a batch of rows that makes what the network sees; by default images (uint8) "
        "become float32 in [0, 1], and numbers float32",
        _function,
    )
    imageSize = _param(
        "imageSize",
        "[height, width] to which images are scaled; by default they must be of one size",
        lambda value: [_at_least(1)(n) for n in TypeConverters.toListInt(value)],
    )
    planarImages = _param(
        "planarImages",
        "[channels, height, width] of the raw pixels in a column of bytes, one channel's plane "
        "after the other; by default what the column's metadata says (see dist.cifar10_records)",
        _shape,
    )
    handleInvalid = _param(
        "handleInvalid",
        "rows with nulls or images that cannot be read: 'error' or 'skip'",
        _of_choice("error", "skip"),
    )
    predictBatchSize = _param(
        "predictBatchSize", "rows that are computed at a time by transform", _at_least(1)
    )
    device = _param(
        "device",
        "where the tensors are, such as 'cpu' or 'opencl:0'; 'auto' is what Spark gives a task",
        str,
    )


class TrainingParams(
    InferenceParams, HasLabelCol, HasWeightCol, HasValidationIndicatorCol, HasSeed
):
    """What training needs besides."""

    augment = _param(
        "augment",
        "function of (key, batch of rows) that makes what the network sees in training, instead of "
        "preprocess",
        _function,
    )
    optimizer = _param(
        "optimizer",
        "'sgd', 'adam' or 'adamw', which take learningRate, and momentum (sgd) and weightDecay "
        "(adamw); or one of tensorlite.optim",
        _optimizer,
    )
    learningRate = _param("learningRate", "of the optimizer", _positive)
    momentum = _param("momentum", "of 'sgd'", TypeConverters.toFloat)
    weightDecay = _param("weightDecay", "of 'adamw'", TypeConverters.toFloat)
    batchSize = _param("batchSize", "rows of a global batch, over all workers", _at_least(1))
    epochs = _param("epochs", "how many times all rows are used", _at_least(1))
    numWorkers = _param(
        "numWorkers", "barrier tasks that train together; 0 trains on the driver", _at_least(0)
    )
    patience = _param(
        "patience",
        "end after so many epochs without a smaller validation loss, and keep the best model; "
        "needs validationIndicatorCol",
        _at_least(1),
    )
    idCol = _param("idCol", "a column that names rows in messages", TypeConverters.toString)
    initialModel = _param(
        "initialModel", "path of a saved model whose weights to begin with", TypeConverters.toString
    )
    checkpointDir = _param(
        "checkpointDir",
        "folder of checkpoints: a training that was interrupted goes on from the newest there",
        TypeConverters.toString,
    )
    checkpointEvery = _param("checkpointEvery", "steps from checkpoint to checkpoint", _at_least(1))
    progress = _param("progress", "show a progress bar", TypeConverters.toBoolean)
    reportDir = _param(
        "reportDir",
        "local folder below which each fit keeps a page about itself, in a folder of its own",
        TypeConverters.toString,
    )
    tensorboardDir = _param(
        "tensorboardDir",
        "local folder below which each fit writes for TensorBoard, in a folder of its own",
        TypeConverters.toString,
    )
    mlflow = _param(
        "mlflow", "log each fit as a run of MLflow, below the active one", TypeConverters.toBoolean
    )


def check_names(instance: Params, given: dict[str, Any]) -> None:
    """Refuse Params that there are not."""
    known = [param.name for param in instance.params]
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1, 0.5)
            hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(known)}"
            raise TypeError(f"{type(instance).__name__} has no Param {name!r}; {hint}")


def with_setters(cls: type[T]) -> type[T]:
    """Give a class `setX` and `getX` for each of its Params, and a signature that shows them."""

    def setter(name: str) -> Callable[[T, Any], T]:
        def set_(self: T, value: Any) -> T:
            return self._set(**{name: value})

        set_.__doc__ = f"Set {name}: {getattr(cls, name).doc}."
        return set_

    def getter(name: str) -> Callable[[T], Any]:
        def get(self: T) -> Any:
            return self.getOrDefault(name)

        get.__doc__ = f"{name}: {getattr(cls, name).doc}."
        return get

    names = sorted(n for n in dir(cls) if isinstance(getattr(cls, n, None), Param))
    for name in names:
        capital = name[0].upper() + name[1:]
        for method in (setter(name), getter(name)):
            kind = "set" if method.__code__.co_argcount == 2 else "get"
            method.__name__, method.__qualname__ = kind + capital, f"{cls.__name__}.{kind}{capital}"
            if not hasattr(cls, kind + capital):
                setattr(cls, kind + capital, method)
    keywords = [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=...) for n in names]
    cls.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]
    return cls
