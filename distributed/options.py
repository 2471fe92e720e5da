"""What the options of `Trainer` may be: each is looked at when the trainer is made, so that a wrong
one is told at once and not by the workers."""

from __future__ import annotations

from typing import Any

from .compression import check as check_compression_method


def checked_options(options: Any) -> dict[str, Any]:
    """More options of `dist.launch`, as keyword arguments."""
    allowed = (
        "timeout",
        "connect_timeout",
        "heartbeat_timeout",
        "slots_timeout",
        "port_range",
        "bind",
        "encrypt",
        "description",
        "pool",
        "resources",
    )
    if options is None:
        return {}
    if not isinstance(options, dict) or not set(options) <= set(allowed):
        raise TypeError(
            f"Trainer: launch_options is a dict with some of {', '.join(allowed)}, got {options!r}"
        )
    return options


def check_shards(shards: Any, workers: int) -> None:
    """Shards and workers are powers of two."""
    check_count("shards", shards, 1)
    if shards & (shards - 1) or workers & (workers - 1) or workers > shards:
        raise ValueError(
            f"Trainer: shards={shards} and {workers} workers must be powers of two, and there must "
            "be at least one shard for each worker"
        )


def check_compression(compression: Any, shards: int | None) -> None:
    """A method that there is, and no shards."""
    check_compression_method(compression)
    if shards is not None:
        raise ValueError(
            f"Trainer: compression={compression!r} rounds what workers send each other, and "
            f"shards={shards} is for bits that do not depend on their number; leave one of them out"
        )


def check_balance(balance: Any, shards: int | None) -> None:
    """A yes or no, and no shards."""
    if not isinstance(balance, bool):
        raise TypeError(f"Trainer: balance is True or False, got {balance!r}")
    if balance and shards is not None:
        raise ValueError(
            f"Trainer: balance=True cuts batches by speed, and shards={shards} cuts them always "
            "alike; leave one of them out"
        )


def check_accumulate(accumulate: int, shards: int | None, batch_size: int, workers: int) -> None:
    """So many parts, with a row for each worker in each."""
    if shards is not None:
        raise ValueError(
            f"Trainer: shards={shards} are computed one after the other already; leave "
            f"accumulate={accumulate} out, or choose more shards"
        )
    if batch_size < accumulate * workers:
        raise ValueError(
            f"Trainer: batch_size={batch_size} rows cannot be cut into accumulate={accumulate} "
            f"parts with a row for each of {workers} workers"
        )


def check_seconds(name: str, value: Any) -> None:
    """A positive number of seconds."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ValueError(f"Trainer: {name} is a positive number of seconds, got {value!r}")


def check_count(name: str, value: Any, least: int) -> None:
    """A whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(
            f"Trainer: {name} must be a whole number of at least {least}, got {value!r}"
        )


def check_mlflow(mlflow: Any) -> None:
    """Whether to log, or a name."""
    if not (isinstance(mlflow, bool) or (isinstance(mlflow, str) and mlflow)):
        raise TypeError(
            f"Trainer: mlflow is True, False or the name of a run, got {mlflow!r}; the tracking "
            "URI and the experiment are set by mlflow.set_tracking_uri and mlflow.set_experiment"
        )
