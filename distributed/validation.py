"""Validation: after each epoch, the measures of rows that are not trained on, and when to end
because they no longer get better."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

import tensorlite as tl
from tensorlite import communication, random

from .collectives import all_reduce
from .steps import Job
from .worker import Worker

_STREAM = 3  # of the keys of a loss that draws; see `steps`


class Validation:
    """The measures of the validation rows, epoch by epoch, over all workers.

    Attributes:
        history: by name, such as "validation_loss", a number for each epoch so far.
    """

    def __init__(self, job: Job, worker: Worker, model: Any):
        assert job.validation is not None
        self._job, self._worker, self._arrays = job, worker, job.validation
        measure = job.evaluate or job.loss
        keys = (
            {"key": random.fold_in(random.key(job.seed), _STREAM)}
            if "key" in inspect.signature(measure).parameters
            else {}
        )

        def measured(model: Any, *arrays: Any) -> dict[str, tl.Tensor]:
            found = measure(model, *arrays, **keys)
            if isinstance(found, tuple):
                found = found[0]
            named = found if isinstance(found, dict) else {"loss": found}
            return {f"validation_{name}": tl.asarray(value) for name, value in named.items()}

        self._measure = tl.jit(measured)
        self._names = sorted(self._of_rows(model, slice(0, 1)))
        if job.patience is not None and "validation_loss" not in self._names:
            raise ValueError(
                "Trainer: patience looks at the loss, and evaluate returns "
                f"{', '.join(n.removeprefix('validation_') for n in self._names)} only"
            )
        self.history: dict[str, list[float]] = {name: [] for name in self._names}
        self._best = model if job.patience is not None else None
        if self._best is not None:
            self._best = _copy(model)

    @classmethod
    def of(cls, job: Job, worker: Worker, model: Any) -> Validation | None:
        """None where there is nothing to validate on."""
        return cls(job, worker, model) if job.validation is not None else None

    def after_epoch(self, model: Any) -> dict[str, float]:
        """Measure the model; every worker must. What is found, by name."""
        sums, rows = dict.fromkeys(self._names, 0.0), 0
        for part in self._parts():
            for name, value in self._of_rows(model, part).items():
                sums[name] += value * (part.stop - part.start)
            rows += part.stop - part.start
        own = np.asarray([*sums.values(), rows], np.float64)
        *totals, count = np.asarray(all_reduce(tl.asarray(own))).tolist()
        found = {name: total / count for name, total in zip(sums, totals, strict=True)}
        for name, value in found.items():
            self.history[name].append(value)
        if self._best is not None and self._since == 0:
            self._best = _copy(model)
        return found

    @property
    def is_hopeless(self) -> bool:
        """Whether the loss has been no better than before for as long as is waited for."""
        return self._job.patience is not None and self._since >= self._job.patience

    def best(self, last: Any) -> Any:
        """The model with the least loss; without patience the last one."""
        return last if self._best is None or not self._losses else self._best

    @property
    def _losses(self) -> list[float]:
        return [x if math.isfinite(x) else math.inf for x in self.history["validation_loss"]]

    @property
    def _since(self) -> int:
        """How many epochs ago the loss was least."""
        losses = self._losses
        return len(losses) - 1 - losses.index(min(losses))

    def _parts(self) -> Iterator[slice]:
        """This worker's rows, in parts of the size of its share of a batch."""
        begin, end = 0, len(self._arrays[0])
        rank, size = self._worker.rank, self._worker.size
        if self._job.validation_counts is None:
            begin, end = end * rank // size, end * (rank + 1) // size
        else:
            end = self._job.validation_counts[rank]
        each = -(-self._job.batch_size // size)
        for first in range(begin, end, each):
            yield slice(first, min(first + each, end))

    def _of_rows(self, model: Any, rows: slice) -> dict[str, float]:
        with communication.entered(None):  # the workers have different numbers of parts
            found = self._measure(model, *(tl.asarray(a[rows]) for a in self._arrays))
        return {name: float(value) for name, value in found.items()}

    # ---- checkpoints ---------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What a run goes on from."""
        kept: dict[str, Any] = {
            "history": {n: tl.asarray(np.asarray(h, np.float64)) for n, h in self.history.items()}
        }
        return kept if self._best is None else {**kept, "best": self._best}

    def like(self, epochs: int) -> dict[str, Any]:
        """A state after so many epochs, of any values."""
        kept = self.state()
        kept["history"] = {name: tl.zeros(epochs, dtype=tl.float64) for name in self.history}
        return kept

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.history = {n: np.asarray(h).tolist() for n, h in state["history"].items()}
        self._best = state.get("best")


def _copy(model: Any) -> Any:
    return tl.tree.map(lambda leaf: tl.asarray(leaf, copy=True), model)
