"""The loop that every worker runs: its rows of each global batch, the gradients summed over all
workers, the same update everywhere.

All workers start from the same bits and add the same bits, so they stay equal without ever sending
parameters. A batch is a list of row numbers that each worker computes for itself; each takes its
share in rank order. The loss is weighted by rows before it is differentiated, so that the gradients
add up to that of the mean over the whole batch, however it was shared out. Gradients, their sum and
the update are one jitted step, in which sums travel while other gradients are computed."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import math
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import tensorlite as tl
from tensorlite import collective, communication, optim, random
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
    shards: int | None = None
    bucket_bytes: int | None = communication.BUCKET_BYTES
    compression: str | None = None
    accumulate: int = 1

    @property
    def steps_per_epoch(self) -> int:
        rows = len(self.arrays[0])
        return rows // self.batch_size if self.drop_last else -(-rows // self.batch_size)


@dataclasses.dataclass
class Timing:
    """Seconds spent, and the rows seen meanwhile, since the first step of each shape is done:
    before that the time goes into tracing. Communication is what was waited for; what went on
    behind computation is `hidden`, and part of `compute`."""

    input: float = 0.0
    compute: float = 0.0
    communication: float = 0.0
    hidden: float = 0.0
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
    """Run `job` from `model`, or from the newest checkpoint if there is one.

    Args:
        report: called on rank 0 after each step with a record (see `_record`) and `last`.

    Raises:
        DistributedError: the workers do not agree on where to start.
    """
    functions = _Functions(job)
    state = functions.start(model)
    _check_agreement(worker, state)
    folder = CheckpointFolder(job.checkpoint) if job.checkpoint is not None else None
    step, state, losses = _resume(worker, job, folder, state)
    timing = Timing()
    shapes_seen: set[int] = set()
    for epoch, batch in _batches(job, start=step):
        began, before = time.perf_counter(), communication.spent()
        shares = Share.all_of(worker, batch, job)
        arrays = [functions.input(epoch, share.rows) for share in shares]
        fed = time.perf_counter()
        state, loss = functions.step(state, step, shares, arrays)
        losses.append(float(loss))
        _check_finite(losses[-1], step, epoch)
        step += 1
        done, after = time.perf_counter(), communication.spent()
        if len(batch) in shapes_seen:
            exposed = after.exposed - before.exposed
            timing.input += fed - began
            timing.compute += (done - fed) - exposed
            timing.communication += exposed
            timing.hidden += after.hidden - before.hidden
            timing.rows += len(batch)
        shapes_seen.add(len(batch))
        if worker.rank == 0:
            report(_record(step, epoch, losses[-1], timing), last=step == job.steps)
            if folder is not None and _is_due(job, step):
                folder.save(step, _checkpoint_of(state, losses), _order_of(job))
    return Progress(state, losses, timing)


def _check_finite(loss: float, step: int, epoch: int) -> None:
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"the loss is {loss} at step {step + 1} (epoch {epoch}), with the parameters from "
            "before that step's update. The usual causes: a learning rate that is too high, "
            "integer labels outside of the classes, or NaN in the data"
        )


def _batches(job: Job, start: int) -> Iterator[tuple[int, np.ndarray]]:
    """Epoch and row numbers of each global batch from step `start` to the last."""
    count = len(job.arrays[0])
    order, of_epoch = np.empty(0, np.int64), -1
    for step in range(start, job.steps):
        epoch, place = divmod(step, job.steps_per_epoch)
        if epoch != of_epoch:
            order, of_epoch = permutation(count, job.seed, epoch), epoch
        yield epoch, order[place * job.batch_size : (place + 1) * job.batch_size]


@dataclasses.dataclass(frozen=True)
class Share:
    """A part of a global batch, whose gradients are computed at once.

    Attributes:
        rows: the numbers of its rows in the data set.
        first: the place of the first one in the batch.
        weight: the part of the batch that they are.
    """

    rows: np.ndarray
    first: int
    weight: float

    @classmethod
    def all_of(cls, worker: Worker, batch: np.ndarray, job: Job) -> list[Share]:
        """This worker's shards of the batch, in order: one, unless the job has a number of shards
        or accumulates.

        The batch is cut into shards of consecutive rows; their sizes differ by at most one.
        """
        if job.shards is not None:
            count = job.shards
            each = count // worker.size  # both are powers of two
            mine = range(worker.rank * each, (worker.rank + 1) * each)
        else:
            # What the workers compute at a time are neighbours: together they are a part of the
            # batch, with a row at least, that does not depend on the number of workers.
            count = worker.size * min(job.accumulate, len(batch))
            mine = range(worker.rank, count, worker.size)
        return [cls._shard(batch, number, count) for number in mine]

    @classmethod
    def _shard(cls, batch: np.ndarray, number: int, count: int) -> Share:
        first, end = len(batch) * number // count, len(batch) * (number + 1) // count
        if end == first:  # no row is left for it: compute one of weight 0, since a mean needs a row
            return cls(batch[:1], 0, 0.0)
        return cls(batch[first:end], first, (end - first) / len(batch))


class _Functions:
    """The compiled pieces of a step. The state is a dict: model, optimizer and, if wanted, average;
    a step consumes it."""

    def __init__(self, job: Job):
        self._job = job
        root = random.key(job.seed)
        self._loss_key = random.fold_in(root, _LOSS_STREAM)
        self._augment_key = random.fold_in(root, _AUGMENT_STREAM)
        self._takes_key = "key" in inspect.signature(job.loss).parameters
        self._average = moving_average(job)
        self._augment = tl.jit(self._augmented)
        self._whole_step = tl.jit(self._stepped, donate_argnums=0)
        # With shards, what each of them needs is a program of its own, so that its bits are the
        # same however many of them a worker has. To accumulate, the last part alone is in the
        # whole step: a program of all parts would start to send the first gradients once it has
        # them of all parts, and hold what the others need of all parts until then.
        self._gradients = tl.jit(self._weighted_gradients)
        self._add = tl.jit(lambda a, b: tl.tree.map(tl.add, a, b))
        self._fold = tl.jit(lambda stacked: tl.tree.map(_pairwise_sum, stacked))
        self._update = tl.jit(self._updated, donate_argnums=0)

    def start(self, model: Any) -> dict[str, Any]:
        """The state before the first step, which shares no memory with `model`."""
        model = tl.tree.map(lambda leaf: tl.asarray(leaf, copy=True), model)
        state = {"model": model, "optimizer": self._job.optimizer.init(model)}
        if self._average is not None:
            state["average"] = self._average.init(model)
        return state

    def input(self, epoch: int, rows: np.ndarray) -> list[tl.Tensor]:
        """The arrays of a shard as tensors, the first one augmented."""
        tensors = [tl.asarray(array[rows], copy=False) for array in self._job.arrays]
        if self._job.augment is not None:
            tensors[0] = self._augment(tl.asarray(epoch), tl.asarray(rows), tensors[0])
        return tensors

    def step(
        self, state: dict[str, Any], step: int, shares: list[Share], arrays: list[list[tl.Tensor]]
    ) -> tuple[dict[str, Any], tl.Tensor]:
        """The state after the next step, and the loss over the whole batch before it."""
        inputs = [
            (self._key(step, share), tl.asarray(np.asarray(share.weight)), of_share)
            for share, of_share in zip(shares, arrays, strict=True)
        ]
        if self._job.shards is None:
            with communication.bucketing(self._job.bucket_bytes):
                *earlier, last = inputs
                carried = None
                for of_share in earlier:
                    partial, _ = self._gradients(state["model"], *of_share)
                    carried = partial if carried is None else self._add(carried, partial)
                return self._whole_step(state, carried, *last)
        with communication.entered(None):  # a shard is computed without the other workers
            partials = [self._gradients(state["model"], *of_share) for of_share in inputs]
        counters = partials[0][1]
        sums = [partial for partial, _ in partials]
        while len(sums) > 1:  # in pairs of neighbours, as `_pairwise_sum` goes on among workers
            sums = [self._add(a, b) for a, b in zip(sums[0::2], sums[1::2], strict=True)]
        # In an order that is the same for any number of workers, for which each must get all terms.
        total = self._fold(all_gather(sums[0]))
        return self._update(state, total, counters), total["loss"]

    def _key(self, step: int, share: Share) -> tl.Tensor | None:
        if not self._takes_key:
            return None
        return random.shard(random.fold_in(self._loss_key, step), share.first, len(share.rows))

    def _stepped(
        self,
        state: dict[str, Any],
        carried: dict[str, Any] | None,
        key: tl.Tensor | None,
        weight: tl.Tensor,
        arrays: list[tl.Tensor],
    ) -> tuple[dict[str, Any], tl.Tensor]:
        partial, counters = self._weighted_gradients(state["model"], key, weight, arrays)
        if carried is not None:
            partial = tl.tree.map(tl.add, carried, partial)
        total = {
            "loss": all_reduce(partial["loss"]),
            "gradients": [self._summed(gradient) for gradient in partial["gradients"]],
            "buffers": all_reduce(partial["buffers"]),
        }
        return self._updated(state, total, counters), total["loss"]

    def _summed(self, gradient: tl.Tensor) -> tl.Tensor:
        """The gradient over all workers; only float32 is sent in fewer bits."""
        is_single = gradient.dtype == np.float32
        return all_reduce(gradient, wire=self._job.compression if is_single else None)

    def _augmented(self, epoch: tl.Tensor, rows: tl.Tensor, images: tl.Tensor) -> tl.Tensor:
        augment = self._job.augment
        assert augment is not None
        of_epoch = random.fold_in(self._augment_key, epoch)

        def one(row: tl.Tensor, image: tl.Tensor) -> tl.Tensor:
            # A batch of one: every row has a key of its own, whichever worker it is on.
            return augment(random.fold_in(of_epoch, row), tl.expand_dims(image))[0]

        return tl.vmap(one)(rows, images)

    def _weighted_gradients(
        self, model: Any, key: tl.Tensor | None, weight: tl.Tensor, arrays: list[tl.Tensor]
    ) -> tuple[dict[str, Any], list[tl.Tensor]]:
        """This worker's terms of the sums over the global batch, and its integer buffers."""
        options = {} if key is None else {"key": key}

        def weighted(x: tl.Tensor) -> tl.Tensor:
            return x * weight.astype(x.dtype)

        def objective(model: Any) -> tuple[tl.Tensor, Any]:
            with collective.counting(weight > 0):
                out = self._job.loss(model, *arrays, **options)
            loss, kept = out if isinstance(out, tuple) else (out, model)
            return weighted(tl.asarray(loss)), kept

        (loss, kept), gradient = tl.value_and_grad(objective, has_aux=True)(model)
        _check_kept(kept, model)
        floats, counters = _split_by_dtype(_parted(kept)[1])
        partial = {
            "loss": loss,
            "gradients": _parted(gradient)[0],
            "buffers": [weighted(b) for b in floats],
        }
        return partial, counters

    def _updated(
        self, state: dict[str, Any], total: dict[str, Any], counters: list[tl.Tensor]
    ) -> dict[str, Any]:
        job, model = self._job, state["model"]
        parameters, old_buffers = _parted(model)
        floats, integers = iter(total["buffers"]), iter(counters)
        buffers = [next(floats if _is_float(b) else integers) for b in old_buffers]
        model = _joined(model, parameters, buffers)
        gradient = _joined(model, total["gradients"], [tl.zeros_like(b) for b in buffers])
        updates, optimizer = job.optimizer.update(gradient, state["optimizer"], model)
        new = {"model": optim.apply_updates(model, updates), "optimizer": optimizer}
        if self._average is not None:
            new["average"] = self._average.update(state["average"], new["model"])
        return new


def moving_average(job: Job) -> optim.MovingAverage | None:
    """The moving average that the job asks for. Its warm-up forgets the initial parameters soon."""
    return optim.ema(job.ema, warm_up=True) if job.ema is not None else None


def _pairwise_sum(x: tl.Tensor) -> tl.Tensor:
    """The sum over axis 0, whose length is a power of two, as a balanced tree of neighbours."""
    while x.shape[0] > 1:
        x = x[0::2] + x[1::2]
    return x[0]


def _check_kept(kept: Any, model: Any) -> None:
    found, wanted = tl.tree.structure(kept), tl.tree.structure(model)
    if found != wanted:
        raise TypeError(
            "Trainer: the loss returns a scalar, or (scalar, model); what it returned beside the "
            f"scalar has the structure {found}, the model {wanted}"
        )


def _is_float(x: tl.Tensor) -> bool:
    return tl.isdtype(x.dtype, "real floating")


def _split_by_dtype(tensors: list[tl.Tensor]) -> tuple[list[tl.Tensor], list[tl.Tensor]]:
    """Floating-point tensors, and the others."""
    return [x for x in tensors if _is_float(x)], [x for x in tensors if not _is_float(x)]


def _parted(tree: Any) -> tuple[list[tl.Tensor], list[tl.Tensor]]:
    """The leaves of a model, or of a tree of its structure: parameters, and buffers."""
    pairs = list(zip(tl.tree.leaves(tree), tl.tree.parameter_mask(tree), strict=True))
    return [x for x, is_parameter in pairs if is_parameter], [x for x, p in pairs if not p]


def _joined(like: Any, parameters: list[tl.Tensor], buffers: list[tl.Tensor]) -> Any:
    """The tree of the structure of `like` with these parameters and buffers."""
    supply, state = iter(parameters), iter(buffers)
    leaves = [next(supply if p else state) for p in tl.tree.parameter_mask(like)]
    return tl.tree.unflatten(tl.tree.structure(like), leaves)


def _record(step: int, epoch: int, loss: float, timing: Timing) -> dict[str, Any]:
    """What is shown of a step while the run goes on."""
    return {
        "step": step,
        "epoch": epoch,
        "loss": loss,
        "images_per_second": timing.rows / timing.total if timing.rows else 0.0,
        "communication": timing.communication / timing.total if timing.rows else 0.0,
        "hidden_communication": timing.hidden / timing.total if timing.rows else 0.0,
    }


# ---- agreement, checkpoints --------------------------------------------------------------------


def _check_agreement(worker: Worker, state: Any) -> None:
    """Refuse to start from different parameters, or with different libraries."""
    versions = f"tensorlite {tl.__version__}, NumPy {np.__version__}, Python {sys.version_info[:2]}"
    digest = hashlib.sha256(versions.encode())
    for name, leaf in zip(tl.tree.paths(state), tl.tree.leaves(state), strict=True):
        array = np.ascontiguousarray(leaf.numpy())
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    everyone = np.asarray(all_gather(np.frombuffer(digest.digest(), np.uint8)))
    odd = [rank for rank in range(worker.size) if (everyone[rank] != everyone[0]).any()]
    if odd:
        raise DistributedError(
            f"ranks {odd} would start from other parameters or libraries than rank 0; rank "
            f"{worker.rank} has {versions}. Install the same versions on all hosts"
        )


def _checkpoint_of(state: dict[str, Any], losses: list[float]) -> dict[str, Any]:
    return {"state": state, "losses": tl.asarray(np.asarray(losses, np.float64))}


def _order_of(job: Job) -> dict[str, str]:
    """What decides which rows come at which step: a run goes on only with the same."""
    return {
        "rows": str(len(job.arrays[0])),
        "batch_size": str(job.batch_size),
        "drop_last": str(job.drop_last),
        "seed": str(job.seed),
    }


def _is_due(job: Job, step: int) -> bool:
    every = job.checkpoint_every
    return step == job.steps or (every is not None and step % every == 0)


def _resume(
    worker: Worker, job: Job, folder: CheckpointFolder | None, state: dict[str, Any]
) -> tuple[int, dict[str, Any], list[float]]:
    """Where to start: rank 0's newest checkpoint, sent to all, or the beginning."""
    saved = folder.steps() if folder is not None and worker.rank == 0 else []
    step = int(broadcast(tl.asarray(saved[-1] if saved else 0)))
    if step == 0:
        return 0, state, []
    if step > job.steps:
        raise ValueError(
            f"Trainer: the checkpoint folder {job.checkpoint} holds step {step}, but this run ends "
            f"at step {job.steps}; choose another folder, or more steps"
        )
    tree = _checkpoint_of(state, [0.0] * step)
    if worker.rank == 0:
        assert folder is not None
        saved_order, order = folder.metadata(step), _order_of(job)
        changed = [k for k in order if saved_order.get(k) != order[k]]
        if changed:
            differences = ", ".join(f"{k}={saved_order.get(k)} (now {order[k]})" for k in changed)
            raise ValueError(
                f"Trainer: the checkpoint folder {job.checkpoint} holds a run with {differences}; "
                "rows would be repeated or left out. Choose another folder, or the old values"
            )
        tree = folder.load(step, like=tree)
    tree = broadcast(tree)
    return step, tree["state"], np.asarray(tree["losses"]).tolist()
