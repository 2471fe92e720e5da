"""`Trainer`: synchronous data-parallel training of one model, on Spark or in this process."""

from __future__ import annotations

import dataclasses
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

import tensorlite as tl
from tensorlite import communication, optim
from tensorlite.data import ArrayDataset

from . import recovery, sparkpages
from .attempts import Attempts
from .checkpoint import CheckpointFolder
from .compression import PowerSGD
from .dataframes import FrameDataset
from .local import local_worker
from .monitor import Record
from .options import (
    check_accumulate,
    check_balance,
    check_compression,
    check_count,
    check_mlflow,
    check_seconds,
    check_shards,
    checked_options,
)
from .result import TrainingResult, result_of
from .steps import Job
from .training import Progress, moved, train, with_rows
from .watching import Watch, Watcher, watching


class Trainer:
    """Trains a model on `num_workers` tasks of a Spark barrier stage, or in this process.

    All workers see the same global batches: `batch_size` rows in an order that depends on `seed`
    and the epoch alone, of which each takes its share. Gradients are averaged over the rows of the
    batch, so the result does not depend on the number of workers, up to rounding; batch norm needs
    `across_workers=True` for that, or `shards`.

    Args:
        loss: `loss(model, *arrays)` returns a scalar, the mean over the batch, or `(scalar, model)`
            where the model's buffers have changed: floating-point ones (running statistics) are
            averaged over the batch, integer ones (counters) must change alike on all workers. If it
            has a parameter `key`, it gets a fresh key at each step; draws over the rows of the
            batch (dropout) are the same for any number of workers.
        optimizer: from `tensorlite.optim`.
        batch_size: rows of a global batch, over all workers.
        num_workers: tasks of the barrier stage; 0 trains in this process, without Spark.
        device: where the workers compute, which the driver must have, too; or "auto", the
            accelerators that Spark's scheduler gives the tasks (see `dist.launch`), else the CPU.
            What comes back is on the CPU.
        augment: `augment(key, images)` is applied to the first array of each batch, with a key
            for each row and epoch, so that it does not depend on the number of workers. It is
            mapped over the rows and sees a batch of one: images of shape (1, ...), and must be
            traceable.
        evaluate: `evaluate(model, *arrays)` measures validation rows: a scalar, the mean over the
            rows, or a dict of such, such as loss and accuracy. None takes the loss.
        patience: end after so many epochs without a smaller validation loss, and return the model
            that had the least.
        ema: decay of a moving average of the parameters, such as 0.9999 (`optim.ema` with warm-up).
        checkpoint: a folder: a local path, or a URI such as hdfs:// or s3://. The state is saved
            there at the end and every `checkpoint_every` steps, by rank 0, while training goes on;
            and a run whose folder holds a checkpoint goes on from there, with any number of workers
            but the same data, batch_size, drop_last and seed. On several hosts it should be a
            place that all of them reach.
        keep_checkpoints: how many of the newest are kept.
        keep_best: also keep the one with the least loss, the mean since the one before.
        drop_last: leave out the smaller batch at the end of an epoch.
        shards: a power of two, such as 4. Gradients are then computed in so many parts of each
            batch, which are summed in a fixed order: 1, 2 and 4 workers end with identical bits.
            Sums of floats depend on their order, and where training is unstable, differences in
            the last digit grow. It costs smaller matrix products, and more communication for more
            than two workers: each gets the sums of all others. Batch norm then takes its statistics
            over a part, also with across_workers. With shards nothing is sent before all
            gradients are there. None computes one part per worker and sends behind the backward
            pass.
        bucket_bytes: gradients are sent in buckets, each as soon as it is complete, while the
            others are still computed. A bucket is complete with a sixteenth of all bytes (but at
            least 256 KiB), the first one with 1 MiB, and any with `bucket_bytes`. Smaller ones hide
            more but pay the latency of the network more often. None sends all at once, when the
            last gradient is ready. Without effect with `shards`.
        compression: "float16" or "bfloat16": float32 gradients travel between hosts in 16 bits,
            which halves what is sent. They are added in float32, and all workers still get the same
            bits; the loss, buffers and gradients of other dtypes are not rounded, nor is what
            workers of one host exchange. float16 keeps 11 significant bits, but makes what exceeds
            65,504 infinite and loses what is below 6e-8; bfloat16 keeps 8 bits and the range of
            float32. Or a `PowerSGD`: matrices are sent as thin factors, and what these lose is
            added to the next gradient. The result then depends a little on the number of workers.
            Not with `shards`.
        shard_optimizer: each worker has a part of the optimizer's state and updates a part of each
            parameter (ZeRO, stage 1), which takes as many bytes to send and less memory. The
            optimizer must compute each element by itself; `clip_by_global_norm` works, too. The
            result is the same up to rounding, and `fit` returns the whole state.
        accumulate: in how many parts each batch is computed, one after the other, which takes less
            memory. The parts are as equal as can be; their gradients are added before they are
            sent and the parameters updated, so that the result does not change, up to rounding,
            but that batch norm takes its statistics over a part. Not with `shards`, which are
            computed one after the other anyway.
        balance: give faster workers larger parts of each batch, in proportion to the speed that is
            measured while they train, so that accelerators and processors can train together. The
            result is the same up to rounding, which then differs from run to run. Not with
            `shards`, and not on a DataFrame, of which each worker has its own rows.
        seed: of the order of rows, the augmentation and the loss's keys.
        max_restarts: a training that loses a worker (its process, its host or the network to it) is
            started again by itself, from the newest checkpoint, and without a checkpoint from the
            beginning. It gives up when that has failed so many times without getting further. An
            exception in your code is raised at once, since it would come again.
        on_nonfinite: "stop" raises a FloatingPointError where the loss is infinite or NaN, which
            names the step and the rows of the batch; "skip" goes on without the updates of steps
            whose loss or gradients are not finite, warns at the first, and counts them;
            "rollback" goes back to the newest checkpoint (or the beginning) and leaves out the
            batch when it comes again, five times at most.
        time_limit: seconds after which the training ends, all workers after the same step, with a
            checkpoint if there is a folder for it. `stop` and a SIGTERM to a worker do the same.
        first_step_timeout: seconds that a worker waits for another one while rows are read and
            programs compiled, until the first step of each shape is done. From then on
            `launch_options={"timeout": ...}` counts (300 seconds). Workers that are dead or cut off
            are found within seconds in either case.
        progress: show a progress bar; or a function that is called with records, dicts with step,
            steps, epoch, loss, images_per_second, communication and hidden_communication, and
            after an epoch the validation's measures.
        report: a local folder in which the run is recorded, with a page `report.html` to open in a
            browser, also while the run goes on.
        tensorboard: a folder for TensorBoard: scalars, the graph of the loss, and in the end
            histograms of all parameters.
        histograms_every: with tensorboard, also histograms of parameters and gradients after so
            many steps, again and again. With shard_optimizer of parameters alone.
        mlflow: True logs the training as a run of MLflow, of the active experiment at the active
            tracking URI and below the active run, if there is one: the options as parameters, the
            numbers of records and of validation as metrics, the report and the model as
            artifacts. A text is the run's name. A server that fails is warned of once.
        spark: the SparkSession; None uses the active one, as `dist.launch` does.
        launch_options: a dict of more options of `dist.launch`: timeout, connect_timeout,
            heartbeat_timeout, slots_timeout, port_range, bind, encrypt, description, pool,
            resources.
    """

    def __init__(
        self,
        *,
        loss: Callable[..., Any],
        optimizer: optim.Optimizer,
        batch_size: int,
        num_workers: int = 0,
        device: str = "auto",
        augment: Callable[..., Any] | None = None,
        evaluate: Callable[..., Any] | None = None,
        patience: int | None = None,
        ema: float | None = None,
        checkpoint: str | None = None,
        checkpoint_every: int | None = None,
        keep_checkpoints: int = 3,
        keep_best: bool = False,
        drop_last: bool = False,
        shards: int | None = None,
        bucket_bytes: int | None = communication.BUCKET_BYTES,
        compression: str | PowerSGD | None = None,
        shard_optimizer: bool = False,
        accumulate: int = 1,
        balance: bool = False,
        seed: int = 0,
        max_restarts: int = 3,
        on_nonfinite: str = "stop",
        time_limit: float | None = None,
        first_step_timeout: float = 1800.0,
        progress: bool | Watcher = True,
        report: str | None = None,
        tensorboard: str | None = None,
        histograms_every: int | None = None,
        mlflow: bool | str = False,
        spark: Any = None,
        launch_options: dict[str, Any] | None = None,
    ):
        if not callable(loss):
            raise TypeError(f"Trainer: loss is a function, got {type(loss).__name__}")
        for name, function in (("augment", augment), ("evaluate", evaluate)):
            if function is not None and not callable(function):
                raise TypeError(f"Trainer: {name} is a function, got {type(function).__name__}")
        if patience is not None:
            check_count("patience", patience, 1)
        for name in ("init", "update"):
            if not callable(getattr(optimizer, name, None)):
                raise TypeError(
                    f"Trainer: optimizer has no {name} method; use one of tensorlite.optim, such "
                    f"as optim.sgd(0.1), got {type(optimizer).__name__}"
                )
        check_count("batch_size", batch_size, 1)
        check_count("num_workers", num_workers, 0)
        if checkpoint_every is not None:
            check_count("checkpoint_every", checkpoint_every, 1)
            if checkpoint is None:
                raise ValueError("Trainer: checkpoint_every needs a checkpoint folder")
        if checkpoint is not None:
            CheckpointFolder(str(checkpoint))  # says now what is wrong with the path
        if ema is not None and not (isinstance(ema, int | float) and 0 <= ema < 1):
            raise ValueError(f"Trainer: ema is a decay between 0 and 1, got {ema!r}")
        check_count("seed", seed, 0)
        check_count("keep_checkpoints", keep_checkpoints, 1)
        check_count("max_restarts", max_restarts, 0)
        if on_nonfinite not in ("stop", "skip", "rollback"):
            raise ValueError(
                f"Trainer: on_nonfinite must be 'stop', 'skip' or 'rollback', got {on_nonfinite!r}"
            )
        if time_limit is not None:
            check_seconds("time_limit", time_limit)
        check_seconds("first_step_timeout", first_step_timeout)
        if histograms_every is not None:
            check_count("histograms_every", histograms_every, 1)
            if tensorboard is None:
                raise ValueError("Trainer: histograms_every needs a folder for tensorboard")
        check_mlflow(mlflow)
        if bucket_bytes is not None:
            check_count("bucket_bytes", bucket_bytes, 1)
        if shards is not None:
            check_shards(shards, max(num_workers, 1))
        if compression is not None:
            check_compression(compression, shards)
        if not isinstance(shard_optimizer, bool):
            raise TypeError(f"Trainer: shard_optimizer is True or False, got {shard_optimizer!r}")
        check_count("accumulate", accumulate, 1)
        check_balance(balance, shards)
        if accumulate > 1:
            check_accumulate(accumulate, shards, batch_size, max(num_workers, 1))
        if num_workers > batch_size:
            raise ValueError(
                f"Trainer: batch_size={batch_size} rows cannot be shared by {num_workers} workers"
            )
        self.loss = loss
        self.optimizer = optimizer
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.device = device if device == "auto" else str(tl.device.get_device(device))
        self.augment, self.evaluate, self.patience = augment, evaluate, patience
        self.ema = ema
        self.checkpoint = str(checkpoint) if checkpoint is not None else None
        self.checkpoint_every = checkpoint_every
        self.keep_checkpoints, self.keep_best = keep_checkpoints, keep_best
        self.drop_last = drop_last
        self.shards = shards
        self.bucket_bytes = bucket_bytes
        self.compression = compression
        self.shard_optimizer = shard_optimizer
        self.accumulate = accumulate
        self.balance = balance
        self.seed = seed
        self.on_nonfinite, self.time_limit = on_nonfinite, time_limit
        self.first_step_timeout = first_step_timeout
        self._stopping = threading.Event()
        self.progress = progress
        self.report = str(report) if report is not None else None
        self.tensorboard = str(tensorboard) if tensorboard is not None else None
        self.histograms_every = histograms_every
        self.mlflow = mlflow
        self.launch_options = checked_options(launch_options)
        self._attempts = Attempts(
            num_workers=num_workers,
            spark=spark,
            device=self.device,
            launch_options=self.launch_options,
            first_step_timeout=first_step_timeout,
            max_restarts=max_restarts,
            stopping=self._stopping,
        )

    def fit(
        self,
        model: Any,
        data: Any,
        *,
        steps: int | None = None,
        epochs: int | None = None,
        validation: ArrayDataset | None = None,
    ) -> TrainingResult:
        """Train `model` on `data` for `steps` steps or `epochs` epochs in all.

        Args:
            model: any pytree of parameters, such as an `nn.Module`; it is not changed.
            data: an `ArrayDataset`, whose arrays are passed to the loss, batch by batch; every
                worker gets all of it. Or a Spark DataFrame, or a `FrameDataset` with more to say of
                one: then each worker reads its own share of the rows, and all workers go through
                theirs exactly once in an epoch. Batches have about `batch_size` rows, nearly the
                same number each, so that drop_last drops none; which rows come together depends
                on the number of workers.
            validation: rows that are measured after every epoch; of a DataFrame, the rows that
                its `validation_column` marks are.

        Raises:
            WorkerError: the loss (or anything else) raised in a worker; has its traceback. Without
                workers the exception itself is raised.
            FloatingPointError: the loss is infinite or NaN (within a WorkerError, with workers).
            DataFrameError: a DataFrame that cannot be trained on (likewise).
        """
        if isinstance(model, type):
            raise TypeError(f"Trainer.fit: model is the class {model.__name__}; pass an instance")
        model = tl.tree.map(tl.asarray, model)
        if (steps is None) == (epochs is None):
            raise ValueError("Trainer.fit: pass either steps or epochs")
        check_count("steps" if epochs is None else "epochs", steps if epochs is None else epochs, 1)
        frame = self._frame(data, validation)
        job = self._job(data if frame is None else None, steps, epochs, validation)
        began = time.perf_counter()
        self._stopping.clear()
        with watching(
            self.progress,
            self.report,
            self.tensorboard,
            self.mlflow,
            sparkpages.planned(job, self.num_workers, restarts=0),
            self._options(job),
            self.loss,
            model,
        ) as watch:
            progress, restarts = self._run(job, model, watch, frame)
            seconds = time.perf_counter() - began
            result = result_of(progress, max(self.num_workers, 1), self.ema, restarts, seconds)
            if progress.skipped_rows:
                left_out = f"{progress.skipped_rows} rows of the DataFrame were left out"
                warnings.warn(f"{left_out} (on_invalid='skip')", RuntimeWarning, stacklevel=2)
                watch.warn(left_out)
            watch.ended(result)
        return result

    def stop(self) -> None:
        """End a `fit` that goes on in another thread: all workers after the same step, with a
        checkpoint if there is a folder for it. `fit` then returns what there is."""
        self._attempts.stop()

    def _frame(self, data: Any, validation: Any) -> FrameDataset | None:
        """The data as columns of a DataFrame, if they are."""
        frame = FrameDataset(data) if hasattr(data, "mapInArrow") else data
        if not isinstance(frame, FrameDataset):
            return None
        if self.shards is not None:
            raise ValueError(
                f"Trainer.fit: shards={self.shards} needs data that all workers have, and of a "
                "DataFrame each has its own rows; leave shards out, or pass an ArrayDataset"
            )
        if self.balance:
            raise ValueError(
                "Trainer.fit: balance=True cuts batches of rows that all workers have, and of a "
                "DataFrame each has its own; leave balance out, or pass an ArrayDataset"
            )
        if validation is not None:
            raise ValueError(
                "Trainer.fit: of a DataFrame, the rows to validate on are marked by a column: "
                "FrameDataset(..., validation_column=...)"
            )
        return frame

    def _job(
        self,
        data: Any,
        steps: int | None,
        epochs: int | None,
        validation: ArrayDataset | None = None,
    ) -> Job:
        arrays: tuple[np.ndarray, ...] = ()
        if data is not None:
            if not isinstance(data, ArrayDataset):
                raise TypeError(
                    "Trainer.fit: data is an ArrayDataset or a Spark DataFrame, got "
                    f"{type(data).__name__}; wrap NumPy arrays with "
                    "tl.data.ArrayDataset(images, labels)"
                )
            if len(data) == 0 or (self.drop_last and len(data) < self.batch_size):
                raise ValueError(f"Trainer.fit: {data} has no batch of {self.batch_size} rows")
            arrays = tuple(np.ascontiguousarray(array) for array in data.arrays)
        if validation is not None and not (isinstance(validation, ArrayDataset) and validation):
            raise TypeError(
                f"Trainer.fit: validation is an ArrayDataset with rows, got {validation!r}"
            )
        job = Job(
            loss=self.loss,
            optimizer=self.optimizer,
            arrays=arrays,
            batch_size=self.batch_size,
            steps=steps or 0,
            seed=self.seed,
            augment=self.augment,
            ema=self.ema,
            checkpoint=self.checkpoint,
            checkpoint_every=self.checkpoint_every,
            keep_checkpoints=self.keep_checkpoints,
            keep_best=self.keep_best,
            drop_last=self.drop_last,
            shards=self.shards,
            bucket_bytes=self.bucket_bytes,
            compression=self.compression,
            accumulate=self.accumulate,
            balance=self.balance,
            shard_optimizer=self.shard_optimizer,
            on_nonfinite=self.on_nonfinite,
            time_limit=self.time_limit,
            timeout=self.launch_options.get("timeout", Job.timeout),
            first_step_timeout=self.first_step_timeout,
            epochs=epochs,
            evaluate=self.evaluate,
            validation=validation.arrays if validation is not None else None,
            patience=self.patience,
            tensorboard=self.tensorboard is not None,
            histograms_every=self.histograms_every,
        )
        if self.patience is not None and data is not None and validation is None:
            raise ValueError("Trainer.fit: patience needs validation rows")
        if epochs is not None and data is not None:
            job = dataclasses.replace(job, steps=epochs * job.steps_per_epoch)
        return job

    def _run(
        self, job: Job, model: Any, watch: Watch, frame: FrameDataset | None
    ) -> tuple[Progress, int]:
        """How the run ended, and how many times it was started again."""
        if self.num_workers == 0:
            device = "cpu" if self.device == "auto" else self.device
            with local_worker(device) as worker, tl.default_device(device):
                here = moved(model, device)
                if frame is not None:
                    job = with_rows(worker, job, frame.batches(), frame.reading())
                progress = train(worker, job, here, _Direct(watch, self._stopping))
            return dataclasses.replace(progress, state=moved(progress.state, "cpu")), 0
        return self._attempts.train(job, model, watch, frame)

    def _options(self, job: Job) -> dict[str, Any]:
        """The configuration, for people to read."""
        hidden = (
            "arrays",
            "validation",
            "counts",
            "validation_counts",
            "skipped_rows",
            "tensorboard",
            "optimizer",
        )
        chosen = {n: v for n, v in vars(job).items() if n not in hidden and v is not None}
        return {"num_workers": self.num_workers, "device": self.device, **chosen}


class _Direct:
    """Reports of a training in this process."""

    def __init__(self, watch: Watch, stopping: threading.Event):
        self._heard = recovery.Heard(watch)
        self.asked_to_stop = stopping.is_set

    def __call__(self, record: Record, last: bool = False) -> None:
        self._heard(record)
