"""Pooling: sums under a window and their adjoint, and the adjoint of max pooling.

oneDNN knows averages; a sum is the average times the number of cells. Its workspace of max pooling
holds the number of the chosen cell in row-major order, just as tensorlite's `cells` do, so that its
backward max pooling is `pool_scatter`. The search for the largest value is another matter: oneDNN's
passes over NaN, and takes what is -inf everywhere for the lowest finite number.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from ....compiler.launches import Ref
from ....core import Aval
from ....ops.pool import max_pool_p, pool_argmax_p, pool_scatter_p, pool_spread_p, pool_sum_p
from ....ops.window import Window
from . import memory
from .memory import Desc, integers
from .plan import Draft, Epilogue, planner
from .primitives import (
    ARG_DIFF_DST,
    ARG_DIFF_SRC,
    ARG_DST,
    ARG_SRC,
    ARG_WORKSPACE,
    ELTWISE_LINEAR,
    FORWARD_INFERENCE,
    FORWARD_TRAINING,
    POOLING_AVERAGE_WITH_PADDING,
    POOLING_MAX,
    WORKSPACE,
    PrimitiveDesc,
    describe,
)

FIRST, SECOND, RESULT = Ref("input", 0), Ref("input", 1), Ref("output", 0)


def _slide(window: Window) -> list[Any]:
    """Strides, sizes, dilation and padding as C arrays; oneDNN's dilation counts from 0."""
    before, after = zip(*window.padding, strict=True)
    dilation = [step - 1 for step in window.dilation]
    return [integers(v) for v in (window.strides, window.sizes, dilation, before, after)]


def _forward(
    draft: Draft,
    algorithm: int,
    x: Desc,
    y: Desc,
    window: Window,
    kind: int = FORWARD_TRAINING,
    **options: Any,
) -> PrimitiveDesc:
    arguments = (kind, algorithm, x, y, *_slide(window))
    return describe(draft.op, "pooling_forward", *arguments, **options)


def _backward(draft: Draft, algorithm: int, x: Desc, y: Desc, window: Window) -> PrimitiveDesc:
    hint = _forward(draft, algorithm, x, y, window, may_be_slow=True)
    return describe(draft.op, "pooling_backward", *(algorithm, x, y), *_slide(window), hint)


@planner(pool_sum_p)
def _(
    draft: Draft,
    in_avals: tuple[Aval, ...],
    out_avals: tuple[Aval, ...],
    params: Mapping[str, Any],
    epilogue: Epilogue,
) -> None:
    draft.no_epilogue(epilogue)
    window: Window = params["window"]
    x, y = (memory.images(aval.shape, aval.dtype) for aval in (in_avals[0], out_avals[0]))
    attributes = draft.attributes()
    attributes.eltwise(ELTWISE_LINEAR, float(prod(window.sizes)))
    desc = _forward(draft, POOLING_AVERAGE_WITH_PADDING, x, y, window, attributes=attributes)
    draft.call(desc, (ARG_SRC, x, FIRST), (ARG_DST, y, RESULT))


@planner(pool_spread_p)
def _(
    draft: Draft,
    in_avals: tuple[Aval, ...],
    out_avals: tuple[Aval, ...],
    params: Mapping[str, Any],
    epilogue: Epilogue,
) -> None:
    draft.no_epilogue(epilogue)
    if in_avals[0].dtype.itemsize < 4:
        raise draft.unsupported("numbers that would be rounded when they are scaled")
    window: Window = params["window"]
    g, x = (memory.images(aval.shape, aval.dtype) for aval in (in_avals[0], out_avals[0]))
    scaled = draft.temporary(g.size)
    scale = describe(
        draft.op,
        "eltwise_forward",
        *(FORWARD_TRAINING, ELTWISE_LINEAR, g, g, float(prod(window.sizes)), 0.0),
    )
    draft.call(scale, (ARG_SRC, g, FIRST), (ARG_DST, g, scaled))
    desc = _backward(draft, POOLING_AVERAGE_WITH_PADDING, x, g, window)
    draft.call(desc, (ARG_DIFF_DST, g, scaled), (ARG_DIFF_SRC, x, RESULT))


@planner(pool_scatter_p)
def _(
    draft: Draft,
    in_avals: tuple[Aval, ...],
    out_avals: tuple[Aval, ...],
    params: Mapping[str, Any],
    epilogue: Epilogue,
) -> None:
    draft.no_epilogue(epilogue)
    window: Window = params["window"]
    g, cells = in_avals
    grad, x = (memory.images(aval.shape, aval.dtype) for aval in (g, out_avals[0]))
    workspace = memory.images(cells.shape, cells.dtype)
    desc = _backward(draft, POOLING_MAX, x, grad, window)
    if desc.layout(WORKSPACE) != workspace:
        raise draft.unsupported(f"cells of {cells.dtype}")
    places = (ARG_DIFF_DST, grad, FIRST), (ARG_WORKSPACE, workspace, SECOND)
    draft.call(desc, *places, (ARG_DIFF_SRC, x, RESULT))


@planner(pool_argmax_p, max_pool_p, finite_only=True)
def _(
    draft: Draft,
    in_avals: tuple[Aval, ...],
    out_avals: tuple[Aval, ...],
    params: Mapping[str, Any],
    epilogue: Epilogue,
) -> None:
    draft.no_epilogue(epilogue)
    x, y = (memory.images(aval.shape, aval.dtype) for aval in (in_avals[0], out_avals[0]))
    kind = FORWARD_TRAINING if out_avals[1:] else FORWARD_INFERENCE
    desc = _forward(draft, POOLING_MAX, x, y, params["window"], kind=kind)
    results = [(ARG_DST, y, RESULT)]
    for cells in out_avals[1:]:
        workspace = memory.images(cells.shape, cells.dtype)
        if desc.layout(WORKSPACE) != workspace:
            raise draft.unsupported(f"cells of {cells.dtype}")
        results.append((ARG_WORKSPACE, workspace, Ref("output", 1)))
    draft.call(desc, (ARG_SRC, x, FIRST), *results)
