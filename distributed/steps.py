"""The step that all workers take together: shares of a batch, gradients summed over all workers,
the same update everywhere, as jitted functions.

Gradients, their sum and the update are one jitted step, in which sums travel while other gradients
are computed. The loss is weighted by rows before it is differentiated, so that the gradients add up
to that of the mean over the whole batch, however it was shared out."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

import tensorlite as tl
from tensorlite import collective, communication, optim, random

from .collectives import all_gather, all_reduce
from .compression import PowerSGD
from .sharding import ShardedOptimizer
from .worker import Worker

Told = dict[str, Any]

_LOSS_STREAM, _AUGMENT_STREAM = 1, 2  # independent keys from the one seed


@dataclasses.dataclass(frozen=True)
class Job:
    """What the workers are to do. `Trainer` describes the fields that come from its options.

    Attributes:
        arrays: all rows, or with `counts` this worker's own; then counts has the number of rows of
            each worker, in rank order.
        epochs: where the number of steps follows from rows that only the workers know.
        validation: arrays of rows that all workers have, or with `counts` this worker's own.
        timeout: that of collectives, once a step of the same shapes is done.
        tensorboard: whether there is one, for which rank 0 tells more.
    """

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
    compression: str | PowerSGD | None = None
    accumulate: int = 1
    shard_optimizer: bool = False
    keep_checkpoints: int = 3
    keep_best: bool = False
    on_nonfinite: str = "stop"
    time_limit: float | None = None
    counts: tuple[int, ...] | None = None
    epochs: int | None = None
    evaluate: Callable[..., Any] | None = None
    validation: tuple[np.ndarray, ...] | None = None
    validation_counts: tuple[int, ...] | None = None
    patience: int | None = None
    skipped_rows: int = 0
    timeout: float = 300.0
    first_step_timeout: float = 1800.0
    balance: bool = False
    tensorboard: bool = False
    histograms_every: int | None = None

    @property
    def rows(self) -> int:
        """Of all workers together."""
        return len(self.arrays[0]) if self.counts is None else sum(self.counts)

    @property
    def steps_per_epoch(self) -> int:
        rows = self.rows
        full = rows // self.batch_size if self.drop_last else -(-rows // self.batch_size)
        return full if self.counts is None else max(full, 1)


@dataclasses.dataclass(frozen=True)
class Share:
    """A part of a global batch, whose gradients are computed at once.

    Attributes:
        rows: the numbers of its rows in this worker's arrays.
        first: the place of the first one in the batch.
        weight: the part of the batch that they are.
        base: what makes a number of `rows` one that no other worker's row has.
    """

    rows: np.ndarray
    first: int
    weight: float
    base: int = 0


class Functions:
    """The compiled pieces of a step. The state is a dict: model, optimizer and, if wanted, average
    and compression; a step consumes it. Of a sharded optimizer's state, and of the errors of
    compression, each worker has its own."""

    def __init__(self, job: Job, worker: Worker):
        self._job, self._worker = job, worker
        self._power = job.compression if isinstance(job.compression, PowerSGD) else None
        self._sharded: ShardedOptimizer | None = None
        root = random.key(job.seed)
        self._loss_key = random.fold_in(root, _LOSS_STREAM)
        self._augment_key = random.fold_in(root, _AUGMENT_STREAM)
        self._takes_key = "key" in inspect.signature(job.loss).parameters
        self._average = moving_average(job.ema)
        self._augment = tl.jit(self._augmented)
        self._whole_step = tl.jit(self._stepped, donate_argnums=0, static_argnums=6)
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
        parameters = _named(model)
        if self._job.shard_optimizer and self._worker.size > 1:
            self._sharded = ShardedOptimizer(self._job.optimizer, parameters, self._worker)
            state = {"model": model, "optimizer": self._sharded.init(parameters)}
        else:
            state = {"model": model, "optimizer": self._job.optimizer.init(model)}
        if self._average is not None:
            state["average"] = self._average.init(model)
        if self._power is not None:
            state["compression"] = self._power.start(parameters, self._job.seed)
        return state

    def whole(self, state: dict[str, Any]) -> dict[str, Any]:
        """The state with what single workers have, for all of them; every worker must ask. Errors
        of compression are stacked, (workers, ...)."""
        state = dict(state)
        if self._sharded is not None:
            state["optimizer"] = self._sharded.whole(state["optimizer"], _named(state["model"]))
        if self._power is not None:
            errors = all_gather(state["compression"]["errors"])
            state["compression"] = {**state["compression"], "errors": errors}
        return state

    def own(self, whole: dict[str, Any]) -> dict[str, Any]:
        """This worker's part of a whole state, which another number of workers may have left. The
        sum of their errors is kept."""
        state = dict(whole)
        if self._sharded is not None:
            state["optimizer"] = self._sharded.own(state["optimizer"])
        if self._power is not None:
            rank, size = self._worker.rank, self._worker.size

            def own_error(errors: tl.Tensor) -> tl.Tensor:
                return errors[rank] if len(errors) == size else tl.sum(errors, axis=0) / size

            errors = tl.tree.map(own_error, state["compression"]["errors"])
            state["compression"] = {**state["compression"], "errors": errors}
        return state

    def input(self, epoch: int, share: Share, arrays: list[np.ndarray]) -> list[tl.Tensor]:
        """The rows of a share as tensors, those of the first array augmented."""
        tensors = [tl.asarray(array, copy=False) for array in arrays]
        if self._job.augment is not None:
            numbers = tl.asarray(share.rows + share.base)
            tensors[0] = self._augment(tl.asarray(epoch), numbers, tensors[0])
        return tensors

    def step(
        self,
        state: dict[str, Any],
        step: int,
        shares: list[Share],
        arrays: list[list[tl.Tensor]],
        wish: float = 0.0,
        with_gradients: bool = False,
    ) -> tuple[dict[str, Any], Told]:
        """The state after the next step, and what all workers are told of it: the loss over the
        whole batch before it, the sum of their wishes, and whether the update was made; and,
        of its own share alone, whether the loss is finite ("own"). `with_gradients` tells also
        these, in the order of the parameters, where workers have them whole."""
        wished = tl.asarray(np.float32(wish))
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
                return self._whole_step(state, carried, wished, *last, with_gradients)
        with communication.entered(None):  # a shard is computed without the other workers
            partials = [self._gradients(state["model"], *of_share) for of_share in inputs]
        counters = partials[0][1]
        sums = [partial for partial, _ in partials]
        while len(sums) > 1:  # in pairs of neighbours, as `_pairwise_sum` goes on among workers
            sums = [self._add(a, b) for a, b in zip(sums[0::2], sums[1::2], strict=True)]
        # In an order that is the same for any number of workers, for which each must get all terms.
        total = self._fold(all_gather({**sums[0], "wish": wished}))
        state, told = self._update(state, total, counters, sums[0]["loss"])
        return state, told | ({"gradients": total["gradients"]} if with_gradients else {})

    def _key(self, step: int, share: Share) -> tl.Tensor | None:
        if not self._takes_key:
            return None
        return random.shard(random.fold_in(self._loss_key, step), share.first, len(share.rows))

    def _stepped(
        self,
        state: dict[str, Any],
        carried: dict[str, Any] | None,
        wish: tl.Tensor,
        key: tl.Tensor | None,
        weight: tl.Tensor,
        arrays: list[tl.Tensor],
        with_gradients: bool,
    ) -> tuple[dict[str, Any], Told]:
        partial, counters = self._weighted_gradients(state["model"], key, weight, arrays)
        if carried is not None:
            partial = tl.tree.map(tl.add, carried, partial)
        gradients = _named_like(state["model"], partial["gradients"])
        kept = {}
        if self._power is not None:
            gradients, kept["compression"] = self._power.reduce(gradients, state["compression"])
        elif self._scatters:
            assert self._sharded is not None
            gradients = self._sharded.scatter(gradients)
        else:
            gradients = {name: self._summed(g) for name, g in gradients.items()}
        total = {
            "loss": all_reduce(partial["loss"]),
            "gradients": list(gradients.values()),
            "buffers": all_reduce(partial["buffers"]),
            "wish": all_reduce(wish),
            **kept,
        }
        state, told = self._updated(state, total, counters, partial["loss"])
        if with_gradients and not self._scatters:
            told["gradients"] = total["gradients"]
        return state, told

    @property
    def _scatters(self) -> bool:
        """Whether each worker gets its pieces of the summed gradients only."""
        job = self._job
        return self._sharded is not None and job.compression is None and job.shards is None

    def _summed(self, gradient: tl.Tensor) -> tl.Tensor:
        """The gradient over all workers; only float32 is sent in fewer bits."""
        is_single = gradient.dtype == np.float32
        wire = self._job.compression if isinstance(self._job.compression, str) else None
        return all_reduce(gradient, wire=wire if is_single else None)

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
        self,
        state: dict[str, Any],
        total: dict[str, Any],
        counters: list[tl.Tensor],
        own_loss: tl.Tensor,
    ) -> tuple[dict[str, Any], Told]:
        new = self._applied(state, total, counters)
        told = {"loss": total["loss"], "wish": total["wish"], "made": tl.asarray(True)}
        told["own"] = tl.isfinite(own_loss)
        if self._job.on_nonfinite != "stop":
            bad: Any = tl.asarray(0, dtype=tl.int32)
            for gradient in total["gradients"]:
                bad = bad + tl.sum(~tl.isfinite(gradient), dtype=tl.int32)
            # Where each worker has pieces of the gradients, all must know of all.
            bad = all_reduce(bad) if self._scatters else bad
            made = told["made"] = (bad == 0) & tl.isfinite(total["loss"])
            old = {name: state[name] for name in new}
            new = tl.tree.map(lambda a, b: tl.where(made, a, b), new, old)
        return new, told

    def _applied(
        self, state: dict[str, Any], total: dict[str, Any], counters: list[tl.Tensor]
    ) -> dict[str, Any]:
        job, model = self._job, state["model"]
        parameters, old_buffers = _parted(model)
        floats, integers = iter(total["buffers"]), iter(counters)
        buffers = [next(floats if is_float(b) else integers) for b in old_buffers]
        if self._sharded is not None:
            named = _named_like(model, parameters)
            gradients = _named_like(model, total["gradients"])
            if not self._scatters:
                gradients = self._sharded.pieces(gradients)
            updated, optimizer = self._sharded.update(gradients, state["optimizer"], named)
            new = {"model": _joined(model, list(updated.values()), buffers), "optimizer": optimizer}
        else:
            model = _joined(model, parameters, buffers)
            gradient = _joined(model, total["gradients"], [tl.zeros_like(b) for b in buffers])
            updates, optimizer = job.optimizer.update(gradient, state["optimizer"], model)
            new = {"model": optim.apply_updates(model, updates), "optimizer": optimizer}
        if self._average is not None:
            new["average"] = self._average.update(state["average"], new["model"])
        if "compression" in total:
            new["compression"] = total["compression"]
        return new


def moving_average(decay: float | None) -> optim.MovingAverage | None:
    """The moving average with this decay. Its warm-up forgets the initial parameters soon."""
    return optim.ema(decay, warm_up=True) if decay is not None else None


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


def is_float(x: tl.Tensor) -> bool:
    """Whether a tensor is floating-point."""
    return tl.isdtype(x.dtype, "real floating")


def _split_by_dtype(tensors: list[tl.Tensor]) -> tuple[list[tl.Tensor], list[tl.Tensor]]:
    """Floating-point tensors, and the others."""
    return [x for x in tensors if is_float(x)], [x for x in tensors if not is_float(x)]


def _parted(tree: Any) -> tuple[list[tl.Tensor], list[tl.Tensor]]:
    """The leaves of a model, or of a tree of its structure: parameters, and buffers."""
    pairs = list(zip(tl.tree.leaves(tree), tl.tree.parameter_mask(tree), strict=True))
    return [x for x, is_parameter in pairs if is_parameter], [x for x, p in pairs if not p]


def _named_like(model: Any, parameters: list[tl.Tensor]) -> dict[str, tl.Tensor]:
    """Tensors in the order of a model's parameters, by the dotted names of these."""
    pairs = zip(tl.tree.paths(model), tl.tree.parameter_mask(model), strict=True)
    names = [name for name, is_parameter in pairs if is_parameter]
    return dict(zip(names, parameters, strict=True))


def _named(model: Any) -> dict[str, tl.Tensor]:
    """The parameters of a model by dotted name."""
    return _named_like(model, _parted(model)[0])


def _joined(like: Any, parameters: list[tl.Tensor], buffers: list[tl.Tensor]) -> Any:
    """The tree of the structure of `like` with these parameters and buffers."""
    supply, state = iter(parameters), iter(buffers)
    leaves = [next(supply if p else state) for p in tl.tree.parameter_mask(like)]
    return tl.tree.unflatten(tl.tree.structure(like), leaves)
