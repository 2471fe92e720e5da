"""Softmax, and the standardizations of batch and layer norm: composites that oneDNN has whole.

Batch norm with given statistics stays out: oneDNN computes it as x * factor + offset, which cancels
where the mean is far from zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .... import dtypes
from ....compiler.launches import Ref
from ....core import Aval
from ....ops.norm import standardize_p
from ....ops.softmax import log_softmax_p, softmax_p
from . import memory
from .memory import Sizes
from .plan import Draft, Epilogue, planner
from .primitives import (
    ARG_DST,
    ARG_MEAN,
    ARG_SRC,
    ARG_VARIANCE,
    FORWARD_TRAINING,
    LOG_SOFTMAX,
    SOFTMAX,
    describe,
)

# Of fewer channels NumPy makes longer rows, whose sums it rounds less.
_FEWEST_CHANNELS = 8
X, Y = Ref("input", 0), Ref("output", 0)


@planner(softmax_p, log_softmax_p, finite_only=True)
def _(
    draft: Draft,
    in_avals: tuple[Aval, ...],
    out_avals: tuple[Aval, ...],
    params: Mapping[str, Any],
    epilogue: Epilogue,
) -> None:
    draft.no_epilogue(epilogue)
    (x,) = in_avals
    if params["axis"] != x.ndim - 1:
        raise draft.unsupported("softmax along another axis than the last")
    rows = memory.of_array(_as_rows(x.shape), x.dtype)
    algorithm = SOFTMAX if draft.op == softmax_p.name else LOG_SOFTMAX
    desc = describe(draft.op, "softmax_forward", FORWARD_TRAINING, algorithm, rows, rows, 1)
    draft.call(desc, (ARG_SRC, rows, X), (ARG_DST, rows, Y))


@planner(standardize_p)
def _(
    draft: Draft,
    in_avals: tuple[Aval, ...],
    out_avals: tuple[Aval, ...],
    params: Mapping[str, Any],
    epilogue: Epilogue,
) -> None:
    draft.no_epilogue(epilogue)
    (x,), axes, eps = in_avals, params["axes"], params["eps"]
    kind: tuple[Any, ...]
    if axes == (x.ndim - 1,):
        rows = _as_rows(x.shape)
        values = memory.of_array(rows, x.dtype)
        stats = memory.of_array(rows[:1], dtypes.float32)
        kind = (FORWARD_TRAINING, values, values, stats, eps, 0)
        desc = describe(draft.op, "layer_normalization_forward", *kind)
    elif axes == tuple(range(x.ndim - 1)) and x.shape[-1] >= _FEWEST_CHANNELS:
        values = memory.images(_as_images(x.shape), x.dtype)
        stats = memory.of_array(x.shape[-1:], dtypes.float32)
        kind = (FORWARD_TRAINING, values, values, eps, 0)
        desc = describe(draft.op, "batch_normalization_forward", *kind)
    else:
        raise draft.unsupported(f"statistics over axes {axes}")
    statistics = ((ARG_MEAN, stats, Ref("output", 1)), (ARG_VARIANCE, stats, Ref("output", 2)))
    draft.call(desc, (ARG_SRC, values, X), (ARG_DST, values, Y), *statistics)


def _as_rows(shape: Sizes) -> Sizes:
    """All axes but the last as one."""
    return math.prod(shape[:-1]), shape[-1]


def _as_images(shape: Sizes) -> Sizes:
    """(N, ..., C) as images of one row of pixels: the only form that oneDNN has fast code for."""
    count = shape[0] if len(shape) > 1 else 1
    return count, 1, math.prod(shape[1:-1]), shape[-1]
