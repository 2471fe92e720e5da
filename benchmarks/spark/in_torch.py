"""Training by PyTorch's DistributedDataParallel, which `TorchDistributor` starts in the tasks of a
Spark barrier stage."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed
from pyspark.ml.torch.distributor import TorchDistributor
from pyspark.sql import SparkSession
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from benchmarks.models.definitions import MODELS, WEIGHT_DECAY, load
from benchmarks.models.in_torch import Operations, turned
from benchmarks.spark import MODEL, master
from benchmarks.workers import ROOT

WARM = 5  # steps that are not counted; Trainer leaves out one


def build_training(
    arrays: str,
    order: str,
    batch: int,
    steps: int,
    tasks: int,
    threads: int = 1,
    compiled: bool = False,
    channels_last: bool = False,
) -> Callable[[], dict[str, Any]]:
    """A function that trains once; see `in_tensorlite`.

    Args:
        compiled: forward and backward pass through `torch.compile`.
        channels_last: images and kernels with strides in the order (N, H, W, C).
    """
    os.environ["SPARK_LOCAL_IP"] = "127.0.0.1"
    os.environ["PYSPARK_PYTHON"] = sys.executable
    os.environ["PYTHONPATH"] = str(ROOT)  # of the processes in which the tasks start the training
    os.environ["OMP_NUM_THREADS"] = "1"
    SparkSession.builder.config(map=master(tasks)).getOrCreate()  # which the distributor takes
    distributor = TorchDistributor(num_processes=tasks, local_mode=False, use_gpu=False)

    def training() -> dict[str, Any]:
        found: Any = distributor.run(train, arrays, order, batch, steps, compiled, channels_last)
        return dict(found)

    return training


class Training(torch.nn.Module):
    """The model with its loss, since that is what DistributedDataParallel wants to call."""

    def __init__(self, weights: dict[str, Any]):
        super().__init__()
        self._names = {name: name.replace(".", "_") for name in weights}
        for name, weight in weights.items():
            self.register_parameter(self._names[name], torch.nn.Parameter(weight))

    def forward(self, images: Any, labels: Any) -> Any:
        """The mean loss over the rows of this process."""
        weights = {name: getattr(self, attribute) for name, attribute in self._names.items()}
        definition = MODELS[MODEL]
        loss = functional.cross_entropy(definition.forward(Operations(weights, {}), images), labels)
        for name in definition.decayed:
            loss = loss + WEIGHT_DECAY * weights[name].square().sum() / 2
        return loss


def train(
    arrays: str, order: str, batch: int, steps: int, compiled: bool, channels_last: bool
) -> dict[str, Any]:
    """What each process does."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    definition = MODELS[MODEL]
    parameters, _, image_array, label_array = load(arrays)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def stored(array: Any) -> Any:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        return tensor.to(memory_format=memory_format) if tensor.ndim == 4 else tensor

    weights = {n: stored(turned(n, a, definition.flattened)) for n, a in parameters.items()}
    images = stored(image_array.transpose(0, 3, 1, 2))
    labels = torch.from_numpy(label_array).long()
    module: Any = Training(weights)
    if compiled:
        module = torch.compile(module)
    model = DistributedDataParallel(module)
    optimizer = torch.optim.SGD(model.parameters(), lr=definition.learning_rate, fused=True)
    shares = np.load(order)[:, rank * batch // size : (rank + 1) * batch // size]
    losses, began = [], 0.0
    for step in range(steps):
        if step == WARM:
            began = time.perf_counter()
        rows = torch.from_numpy(shares[step])
        optimizer.zero_grad()
        loss = model(images[rows], labels[rows])
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    seconds = time.perf_counter() - began
    everyone = torch.tensor(losses, dtype=torch.float64)
    torch.distributed.all_reduce(everyone)
    torch.distributed.destroy_process_group()
    rate = (steps - WARM) * batch / seconds
    return {"images_per_second": rate, "losses": (everyone / size).tolist()}
