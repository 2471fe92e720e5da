"""What comes of a training."""

from __future__ import annotations

import dataclasses
from typing import Any

from .steps import moving_average
from .training import Progress


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """What `Trainer.fit` returns.

    Attributes:
        model: the trained model.
        averaged_model: the model with the moving averages of its parameters; None without `ema`.
        optimizer_state: the optimizer's state after the last step.
        history: `{"loss": [...]}`, the loss over the global batch at every step; with validation
            rows also "validation_loss", or what `evaluate` names, after every epoch.
        summary: steps, epochs, workers, seconds (all of `fit`), images_per_second (of all workers
            together), and on rank 0 the parts of a step's time spent on input, compute and
            communication, which add up to 1. Communication is what was waited for;
            hidden_communication is the part of a step in which it went on behind computation.
            restarts: how many times the training was started again after a failure.
            stopped: why it ended before its last step, "stop()", "time limit", "SIGTERM" or "no
            improvement"; else "". skipped: updates that were not made, with on_nonfinite="skip".
            skipped_rows: rows of a DataFrame that were left out, with on_invalid="skip".
            ranks: for each worker rank, host, and of its timed steps the seconds spent on input,
            compute and communication, their number, and its own_rows.
            Rates leave out the first step of each batch size, which is traced and compiled.
    """

    model: Any
    averaged_model: Any
    optimizer_state: Any
    history: dict[str, list[float]]
    summary: dict[str, Any]


def result_of(
    progress: Progress, workers: int, ema: float | None, restarts: int, seconds: float
) -> TrainingResult:
    """The result of a training that took so many seconds and restarts."""
    state, timing = progress.state, progress.timing
    average = moving_average(ema)
    averaged = average.average(state["average"], state["model"]) if average else None
    total = timing.total or 1.0
    summary = {
        "steps": len(progress.losses),
        "epochs": len(progress.losses) / progress.steps_per_epoch,
        "workers": workers,
        "seconds": seconds,
        "images_per_second": timing.rows / total,
        "input": timing.input / total,
        "compute": timing.compute / total,
        "communication": timing.communication / total,
        "hidden_communication": timing.hidden / total,
        "restarts": restarts,
        "stopped": progress.stopped,
        "skipped": progress.skipped,
        "skipped_rows": progress.skipped_rows,
        "ranks": progress.ranks,
    }
    history = {"loss": progress.losses, **progress.validation}
    return TrainingResult(state["model"], averaged, state["optimizer"], history, summary)
