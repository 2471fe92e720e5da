"""Saving estimators and models beside MLlib's own: Params as JSON, weights as safetensors, classes
and functions by the names under which they can be imported. No code and no pickle is written."""

from __future__ import annotations

import functools
import importlib
import json
import tempfile
from pathlib import Path
from typing import Any

from pyspark.ml.util import DefaultParamsReader, DefaultParamsWriter, MLReader, MLWriter
from pyspark.sql import SparkSession

WEIGHTS = "weights.safetensors"
_REFERENCE = "tensorlite.reference"


class Writer(MLWriter):
    """Writes an instance, and with `weights` what it has learnt."""

    def __init__(self, instance: Any, weights: bool):
        super().__init__()
        self._instance, self._weights = instance, weights

    def saveImpl(self, path: str) -> None:
        instance = self._instance
        params = {p.name: encoded(p.name, v) for p, v in instance._paramMap.items()}
        extra = {"summary": instance.summary, "history": instance.history} if self._weights else {}
        # Params are checked before anything is written.
        DefaultParamsWriter.saveMetadata(
            instance, path, self.sparkSession, extraMetadata=extra, paramMap=params
        )
        if self._weights:
            import tensorlite as tl

            with tempfile.TemporaryDirectory() as folder:
                local = Path(folder, WEIGHTS)
                tl.save(local, instance.network)
                _filesystem(self.sparkSession, path).copyFromLocalFile(
                    _path(self.sparkSession, str(local)),
                    _path(self.sparkSession, f"{path}/{WEIGHTS}"),
                )


class Reader(MLReader):
    """Reads what `Writer` wrote."""

    def __init__(self, cls: type[Any], weights: bool):
        super().__init__()
        self._cls, self._weights = cls, weights

    def load(self, path: str) -> Any:
        spark = self.sparkSession
        metadata = DefaultParamsReader.loadMetadata(path, spark)
        expected = f"{self._cls.__module__}.{self._cls.__name__}"
        if metadata["class"] != expected:
            raise ValueError(f"{path} holds a {metadata['class']}, not a {expected}")
        instance: Any = self._cls()
        instance._resetUid(metadata["uid"])
        for name, value in metadata["paramMap"].items():
            instance._set(**{name: decoded(value)})
        if self._weights:
            import tensorlite as tl
            from tensorlite import random

            like = instance.getOrDefault("model")(random.key(0))
            with tempfile.TemporaryDirectory() as folder:
                local = Path(folder, WEIGHTS)
                _filesystem(spark, path).copyToLocalFile(
                    False,
                    _path(spark, f"{path}/{WEIGHTS}"),
                    _path(spark, str(local)),
                    True,  # without a checksum file beside it
                )
                instance.network = tl.load(local, like=like)
            instance.summary, instance.history = metadata["summary"], metadata["history"]
        return instance


def encoded(name: str, value: Any) -> Any:
    """A Param's value as JSON.

    Raises:
        ValueError: it cannot be written.
    """
    if isinstance(value, functools.partial):
        return _reference(name, value.func) | {
            "arguments": [encoded(name, v) for v in value.args],
            "keywords": {k: encoded(name, v) for k, v in value.keywords.items()},
        }
    if isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")):
        return _reference(name, value)
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        raise ValueError(
            f"{name} is a {type(value).__name__}, which cannot be saved; of optimizers those that "
            "are given by name can be ('adam', with learningRate)"
        ) from None
    return value


def decoded(value: Any) -> Any:
    """The value of a Param that was written by `encoded`.

    Raises:
        ImportError: a class or function cannot be imported.
    """
    if not (isinstance(value, dict) and _REFERENCE in value):
        return value
    module, name = value[_REFERENCE]
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ImportError(
            f"the saved model needs {name} of the module {module}, which cannot be imported here: "
            f"{error}. If it was defined in a script or a notebook, put it into a module"
        ) from error
    if "keywords" in value:
        arguments = [decoded(v) for v in value["arguments"]]
        return functools.partial(
            found, *arguments, **{k: decoded(v) for k, v in value["keywords"].items()}
        )
    return found


def _reference(name: str, value: Any) -> dict[str, Any]:
    module, qualified = value.__module__, value.__qualname__
    if "<" in qualified:  # a lambda, or defined inside a function
        raise ValueError(
            f"{name} is {qualified}, which cannot be imported by another process; define it at the "
            "top of a module to save what uses it"
        )
    return {_REFERENCE: [module, qualified]}


def _path(spark: SparkSession, path: str) -> Any:
    assert spark._jvm is not None
    return spark._jvm.org.apache.hadoop.fs.Path(path)


def _filesystem(spark: SparkSession, path: str) -> Any:
    return _path(spark, path).getFileSystem(spark._jsc.hadoopConfiguration())
