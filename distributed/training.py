"""The loop that every worker runs: its rows of each global batch, the gradients summed over all
workers, the same update everywhere.

All workers start from the same bits and add the same bits, so they stay equal without ever sending
parameters. A batch is a list of row numbers that each worker computes for itself; each takes its
share in rank order. Gradients are weighted by rows, so that their sum is that of the mean over the
whole batch, however it was shared out."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import tensorlite as tl
from tensorlite import optim, random
from tensorlite.data import permutation

from .checkpoint import CheckpointFolder
from .collectives import all_gather, all_reduce, broadcast
from .errors import DistributedError
from .worker import Worker

_LOSS_STREAM, _AUGMENT_STREAM = 1, 2  # independent keys from the one seed


@dataclasses.dataclass(frozen=True)
class Job:
    """What the workers are to do. `Trainer` describes the fields that come from its options."""

    loss: Callable[..., Any]
    optimizer: Any
    arrays: tuple[np.ndarray, ...]
    batch_size: int
    steps: int
    seed: int
    augment: Callable[..., Any] | None
    ema: float | None
    checkpoint: str | None
    checkpoint_every: int | None
    drop_last: bool

    @property
    def steps_per_epoch(self) -> int:
        rows = len(self.arrays[0])
        return rows // self.batch_size if self.drop_last else -(-rows // self.batch_size)


@dataclasses.dataclass
class Timing:
    """Seconds spent, and the rows seen meanwhile, since the first step of each shape is done:
    before that the time goes into tracing."""

    input: float = 0.0
    compute: float = 0.0
    communication: float = 0.0
    rows: int = 0

    @property
    def total(self) -> float:
        return self.input + self.compute + self.communication


@dataclasses.dataclass
class Progress:
    """How a run ended, on one worker."""

    state: Any
    losses: list[float]
    timing: Timing


def train(worker: Worker, job: Job, model: Any, report: Callable[..., None]) -> Progress:
    """Run `job` from `model`, or from the newest checkpoint if there is one."""
    functions = _Functions(job)
    state = functions.start(model)
    _check_agreement(worker, job, state)
    folder = CheckpointFolder(job.checkpoint) if job.checkpoint is not None else None
    step, state, losses = _resume(worker, folder, state)
    batches = _batches(job, start=step)
    timing, seen = Timing(), set()
    while step < job.steps:
        began = time.perf_counter()
        epoch, rows = next(batches)
        mine, first = _share(worker, rows)
        arrays = functions.input(epoch, mine, [array[mine] for array in job.arrays])
        fed = time.perf_counter()
        owned = _share_size(worker, rows)
        weight = owned / len(rows)
        partial = functions.gradients(state["model"], step, first, len(mine), weight, arrays)
        computed = time.perf_counter()
        total = all_reduce(partial, op="sum")
        reduced = time.perf_counter()
        state = functions.update(state, total)
        losses.append(float(total["loss"]))
        step += 1
        done = time.perf_counter()
        if len(rows) in seen:
            timing.input += fed - began
            timing.compute += computed - fed + done - reduced
            timing.communication += reduced - computed
            timing.rows += len(rows)
        seen.add(len(rows))
        if worker.rank == 0:
            report(_record(step, epoch, losses[-1], timing), last=step == job.steps)
            if folder is not None and _is_due(job, step):
                folder.save(step, _saved(state, losses))
    return Progress(state, losses, timing)


class _Functions:
    """The compiled pieces of a step."""

    def __init__(self, job: Job):
        self._job = job
        root = random.key(job.seed)
        self._loss_key = random.fold_in(root, _LOSS_STREAM)
        self._augment_key = random.fold_in(root, _AUGMENT_STREAM)
        self._takes_key = "key" in inspect.signature(job.loss).parameters
        self._average = optim.ema(job.ema) if job.ema is not None else None
        self._gradients = tl.jit(self._weighted_gradients)
        self._update = tl.jit(self._updated)
        self._augment = tl.jit(self._augmented)

    def start(self, model: Any) -> dict[str, Any]:
        state = {"model": model, "optimizer": self._job.optimizer.init(model)}
        if self._average is not None:
            state["average"] = self._average.init(model)
        return state

    def input(self, epoch: int, rows: np.ndarray, arrays: list[np.ndarray]) -> list[tl.Tensor]:
        """The arrays of a batch as tensors, the first one augmented."""
        tensors = [tl.asarray(array, copy=False) for array in arrays]
        if self._job.augment is not None:
            tensors[0] = self._augment(tl.asarray(epoch), tl.asarray(rows), tensors[0])
        return tensors

    def gradients(
        self, model: Any, step: int, first: int, rows: int, weight: float, arrays: list[tl.Tensor]
    ) -> dict[str, Any]:
        """This worker's part of the sums over the global batch."""
        where = tl.asarray([step, first, rows])
        return self._gradients(model, where, weight, arrays)

    def update(self, state: dict[str, Any], total: dict[str, Any]) -> dict[str, Any]:
        """The state after a step whose sums over all workers are `total`."""
        return self._update(state, total)

    def _augmented(self, epoch: tl.Tensor, rows: tl.Tensor, images: tl.Tensor) -> tl.Tensor:
        augment = self._job.augment
        assert augment is not None
        of_epoch = random.fold_in(self._augment_key, epoch)

        def one(row: tl.Tensor, image: tl.Tensor) -> tl.Tensor:
            # A batch of one: every row has a key of its own, whichever worker it is on.
            return augment(random.fold_in(of_epoch, row), tl.expand_dims(image))[0]

        return tl.vmap(one)(rows, images)

    def _weighted_gradients(
        self, model: Any, where: tl.Tensor, weight: tl.Tensor, arrays: list[tl.Tensor]
    ) -> dict[str, Any]:
        structure = tl.tree.structure(model)

        def objective(model: Any) -> tuple[tl.Tensor, Any]:
            step, first, rows = where
            options = {}
            if self._takes_key:
                options["key"] = random.shard(random.fold_in(self._loss_key, step), first, rows)
            out = self._job.loss(model, *arrays, **options)
            loss, kept = out if isinstance(out, tuple) else (out, model)
            if tl.tree.structure(kept) != structure:
                raise TypeError(
                    "Trainer: the loss must return a scalar, or (scalar, model); what it returned "
                    f"beside the loss has not the structure of the model: "
                    f"{tl.tree.structure(kept)} instead of {structure}"
                )
            return loss, kept

        (loss, kept), gradient = tl.value_and_grad(objective, has_aux=True)(model)
        parameters, _ = _parted(gradient)
        _, buffers = _parted(kept)
        return {
            "loss": loss * weight,
            "gradients": [g * weight for g in parameters],
            "buffers": [b * weight for b in buffers if _is_float(b)],
            "counters": [b * 0 + b // tl.asarray(1) for b in buffers if not _is_float(b)],
        }

    def _updated(self, state: dict[str, Any], total: dict[str, Any]) -> dict[str, Any]:
        return state


def _parted(tree: Any) -> tuple[list[tl.Tensor], list[tl.Tensor]]:
    """The leaves of a model, or of a tree like one: parameters and buffers."""
    leaves, mask = tl.tree.leaves(tree), tl.tree.parameter_mask(tree)
    pairs = list(zip(leaves, mask, strict=True))
    return [x for x, is_parameter in pairs if is_parameter], [x for x, p in pairs if not p]
