"""Synchronous distributed training on Spark's barrier stages: workers, and collectives among them.

    import tensorlite.distributed as dist

`launch` runs a function in the tasks of a barrier stage; inside it `all_reduce` and its kin reduce
and share trees of tensors over a ring of authenticated connections. `run_local` and `local_worker`
do the same without Spark."""

from __future__ import annotations

from .checkpoint import load_checkpoint
from .collectives import all_gather, all_reduce, barrier, broadcast, reduce_scatter
from .compression import PowerSGD
from .dataframes import DataFrameError, FrameDataset
from .errors import (
    DeadlineError,
    DistributedError,
    MismatchError,
    PeerError,
    RendezvousError,
    SlotsError,
    WorkerError,
)
from .launch import launch
from .local import local_worker, run_local
from .records import cifar10_records
from .trainer import Trainer, TrainingResult
from .worker import Worker, current_worker

__all__ = [
    "DataFrameError",
    "DeadlineError",
    "DistributedError",
    "FrameDataset",
    "MismatchError",
    "PeerError",
    "PowerSGD",
    "RendezvousError",
    "SlotsError",
    "Trainer",
    "TrainingResult",
    "Worker",
    "WorkerError",
    "all_gather",
    "all_reduce",
    "barrier",
    "broadcast",
    "cifar10_records",
    "current_worker",
    "launch",
    "load_checkpoint",
    "local_worker",
    "reduce_scatter",
    "run_local",
]
