"""Optimizers.

    opt = optim.chain(optim.clip_by_global_norm(1.0), optim.sgd(0.1, momentum=0.9))
    state = opt.init(model)
    updates, state = opt.update(grads, state, model)
    model = optim.apply_updates(model, updates)

An optimizer is a pair of pure functions, so a training step can be compiled whole with `tl.jit`.
States are pytrees whose per-parameter parts are dicts by dotted parameter name.
"""

from .average import MovingAverage, ema
from .base import Optimizer, apply_updates, chain, global_norm, sharded
from .rules import (
    adam,
    adamw,
    add_l2,
    clip_by_global_norm,
    clip_by_value,
    rmsprop,
    sgd,
    weight_decay,
)
from .schedules import (
    constant,
    cosine_decay,
    exponential_decay,
    linear_warmup,
    piecewise_constant,
    polynomial,
    warmup_cosine,
)

__all__ = [
    "MovingAverage",
    "Optimizer",
    "adam",
    "adamw",
    "add_l2",
    "apply_updates",
    "chain",
    "clip_by_global_norm",
    "clip_by_value",
    "constant",
    "cosine_decay",
    "ema",
    "exponential_decay",
    "global_norm",
    "linear_warmup",
    "piecewise_constant",
    "polynomial",
    "rmsprop",
    "sgd",
    "sharded",
    "warmup_cosine",
    "weight_decay",
]
