"""The commands of `tensorlite` that train and report."""

from __future__ import annotations

import argparse
import pathlib
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

import tensorlite as tl
from tensorlite import nn, optim, random
from tensorlite.data import ArrayDataset

from .errors import DistributedError
from .objectives import CrossEntropy, loss_of
from .report import PAGE, page
from .trainer import Trainer

_TRAIN = """\
MODEL is module:Net, a class or function of a random key that makes a network: images (N, height,
width, channels) of float32 in [0, 1] to logits (N, classes). Modules of the working directory are
found. DATA is `digits` (scikit-learn's, 32x32x3), a folder or file of CIFAR-10 binary records
(local, hdfs:// or s3://), or an .npz file with the arrays images and labels.

examples:
  tensorlite train mymodels:Net --data digits --epochs 5
  tensorlite train mymodels:Net --data cifar-10-batches-bin --workers 4 \\
      --report runs/net --out net.safetensors

With --workers the training runs in barrier tasks of Spark, on `local[WORKERS]` or on what
spark-submit names; the result is the same.
"""
_REPORT = """\
FOLDER is what Trainer(report=...) or `tensorlite train --report` was given. Works while the run
goes on, and for one that was killed.

example:
  tensorlite report runs/net --out net.html
"""

Added = Callable[..., argparse.ArgumentParser]
Named = Callable[[str], Callable[..., Any]]


def add_commands(commands: Any, added: Added, named: Named) -> None:
    """Add `train` and `report` to the parser of `tensorlite`.

    Args:
        added: makes the parser of a command.
        named: finds what module:name refers to.
    """
    train = added(commands, "train", "train a classifier on images", _train, _TRAIN)
    train.set_defaults(named=named)
    train.add_argument("model", metavar="MODEL")
    train.add_argument("--data", required=True, metavar="DATA")
    train.add_argument("--epochs", type=int, default=10, help="default: %(default)s")
    train.add_argument("--batch-size", type=int, default=128, help="default: %(default)s")
    train.add_argument("--learning-rate", type=float, default=1e-3, help="default: %(default)s")
    train.add_argument("--workers", type=int, default=0, help="0, the default, is without Spark")
    train.add_argument("--device", default="auto", help="default: %(default)s, the CPU")
    train.add_argument("--checkpoint", metavar="FOLDER", help="goes on from the newest there")
    train.add_argument("--report", metavar="FOLDER", help="where to keep a page about the run")
    train.add_argument("--tensorboard", metavar="FOLDER", help="where to write for TensorBoard")
    train.add_argument("--mlflow", metavar="NAME", help="log a run of MLflow of this name")
    train.add_argument("--out", metavar="FILE", help=".safetensors or .npz of the trained network")
    train.add_argument("--seed", type=int, default=0)
    report = added(commands, "report", "write the page of a run", _report, _REPORT)
    report.add_argument("folder", metavar="FOLDER")
    report.add_argument("--out", metavar="FILE", help=f"default: {PAGE} in the folder")


def _train(arguments: argparse.Namespace) -> int:
    if arguments.out is not None and pathlib.Path(arguments.out).suffix not in _WEIGHTS:
        raise ValueError(f"--out ends in {' or '.join(_WEIGHTS)}, got {arguments.out}")
    network = network_of(arguments.named, arguments.model, arguments.seed)
    training, held = _data(arguments.data)
    print(f"{len(training)} images to train on, {len(held)} held out", file=sys.stderr)
    objective = CrossEntropy(preprocess=None)
    trainer = Trainer(
        loss=loss_of(objective, type(network), has_weights=False),
        evaluate=objective.evaluate,
        optimizer=optim.adam(arguments.learning_rate),
        batch_size=arguments.batch_size,
        num_workers=arguments.workers,
        device=arguments.device,
        checkpoint=arguments.checkpoint,
        report=arguments.report,
        tensorboard=arguments.tensorboard,
        mlflow=arguments.mlflow or False,
        seed=arguments.seed,
    )
    try:
        result = trainer.fit(network, training, epochs=arguments.epochs, validation=held)
    except DistributedError as error:  # with the worker's own traceback, where one failed
        print(f"tensorlite train: {error}", file=sys.stderr)
        return 1
    summary, history = result.summary, result.history
    print(
        f"{summary['steps']} steps in {summary['seconds']:.1f} s, "
        f"{summary['images_per_second']:.0f} images/s; loss {history['loss'][-1]:.4f}, held out "
        f"{history['validation_loss'][-1]:.4f}, accuracy {history['validation_accuracy'][-1]:.2%}"
    )
    if arguments.out is not None:
        tl.save(arguments.out, result.model)
        print(f"the network is in {arguments.out}")
    return 0


_WEIGHTS = (".safetensors", ".npz")


def network_of(named: Named, reference: str, seed: int) -> nn.Module:
    """The network that `reference`, module:Net, makes.

    Raises:
        ValueError: it makes none.
    """
    make = named(reference)
    try:
        network = make(random.key(seed))
    except TypeError as error:
        raise ValueError(
            f"{reference} is to be a class or function of a random key: {error}"
        ) from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"{reference} makes a {type(network).__name__}, not an nn.Module")
    return network


def _data(place: str) -> tuple[ArrayDataset, ArrayDataset]:
    """Rows to train on, and others: those of the data set's own test files, or a tenth."""
    if place == "digits":
        with tempfile.TemporaryDirectory() as folder:
            tl.data.digits_as_cifar10(folder)
            return tl.data.cifar10(folder), tl.data.cifar10(folder, train=False)
    if place.endswith(".npz"):
        with np.load(place) as found:
            missing = {"images", "labels"} - set(found)
            if missing:
                raise ValueError(
                    f"{place} has {', '.join(found) or 'nothing'}; images and labels are expected"
                )
            return ArrayDataset(found["images"], found["labels"]).split(0.9, seed=0)
    training = tl.data.cifar10(place)
    try:
        return training, tl.data.cifar10(place, train=False)
    except FileNotFoundError:
        return training.split(0.9, seed=0)


def _report(arguments: argparse.Namespace) -> int:
    out = pathlib.Path(arguments.out or pathlib.Path(arguments.folder, PAGE))
    text = page(arguments.folder)
    out.write_text(text)
    print(out)
    return 0
