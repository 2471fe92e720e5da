"""Convolutions: forward, backward by data, backward by weights.

Activations stay channels-last, in oneDNN's order of axes (N, C, *spatial) with the strides of ours.
Kernels are left to the primitive, which nearly always wants blocks of channels, and are copied:
they are small beside the activations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .... import dtypes
from ....compiler.launches import Ref
from ....core import Aval
from ....ops.conv import conv_input_grad_p, conv_p, conv_weight_grad_p
from ....ops.window import Window
from . import memory, small_images
from .epilogue import attach
from .memory import Desc, Sizes, integers
from .plan import Draft, Epilogue, planner
from .primitives import (
    ARG_BIAS,
    ARG_DIFF_BIAS,
    ARG_DIFF_DST,
    ARG_DIFF_SRC,
    ARG_DIFF_WEIGHTS,
    ARG_DST,
    ARG_SRC,
    ARG_WEIGHTS,
    CONVOLUTION_DIRECT,
    DIFF_WEIGHTS,
    FORWARD_TRAINING,
    WEIGHTS,
    PrimitiveDesc,
    describe,
)

FIRST, SECOND, RESULT = Ref("input", 0), Ref("input", 1), Ref("output", 0)


class _Images:
    """The descriptors of one convolution from x to y with the kernel w."""

    def __init__(self, x: Sizes, w: Sizes, y: Sizes, dtype: np.dtype[Any], window: Window):
        self.x, self.y = memory.images(x, dtype), memory.images(y, dtype)
        dims, strides = _kernel(w, window.groups)
        self.w, self.free_w = memory.strided(dims, strides, dtype), memory.free(dims, dtype)
        before, after = zip(*window.padding, strict=True)
        dilation = [step - 1 for step in window.dilation]
        self.slide = [integers(v) for v in (window.strides, dilation, before, after)]


def _kernel(shape: Sizes, groups: int) -> tuple[Sizes, Sizes]:
    """Sizes and strides of a kernel (*window, C_in / groups, C_out) as oneDNN's ([groups,] C_out /
    groups, C_in / groups, *window)."""
    *window, channels_in, channels_out = shape
    *along, _, _ = memory.plain_strides(shape)
    dims, strides = (channels_in, *window), (channels_out, *along)
    if groups == 1:
        return (channels_out, *dims), (1, *strides)
    each = channels_out // groups
    return (groups, each, *dims), (each, 1, *strides)


def _check_windows(draft: Draft, window: Window, spatial: Sizes, dtype: np.dtype[Any]) -> None:
    """Leave to NumPy what oneDNN 3.2 crashes on where a processor has AMX: 16-bit images, and
    windows that lie beside them, with no cell inside."""
    if dtype == dtypes.float32:
        return
    for size, step, stride, (before, _), pixels, count in zip(
        window.sizes,
        window.dilation,
        window.strides,
        window.padding,
        spatial,
        window.positions(spatial),
        strict=True,
    ):
        cells = np.arange(count)[:, None] * stride - before + np.arange(size) * step
        if not ((cells >= 0) & (cells < pixels)).any(axis=1).all():
            raise draft.unsupported("windows that lie in the padding")


def _work(*, images: Aval, kernel: Aval) -> int:
    """The multiplications of a convolution that gives, or is given, `images` after the kernel."""
    return images.size * (kernel.size // kernel.shape[-1])


@planner(conv_p, work=lambda ins, outs, params: _work(images=outs[0], kernel=ins[1]))
def _(
    draft: Draft,
    in_avals: tuple[Aval, ...],
    out_avals: tuple[Aval, ...],
    params: Mapping[str, Any],
    epilogue: Epilogue,
) -> None:
    x, w, y = in_avals[0], in_avals[1], out_avals[0]
    _check_windows(draft, params["window"], x.shape[1:-1], x.dtype)
    if small_images.suits(x, y, params["window"]):
        small_images.plan_conv(draft, x, w, y, params["window"], epilogue)
        return
    each = _Images(x.shape, w.shape, y.shape, x.dtype, params["window"])
    bias, epilogue = _split_bias(draft, epilogue, in_avals, y)
    order = (0, y.ndim - 1, *range(1, y.ndim - 1))
    attributes, extra = attach(draft, epilogue, in_avals, y, order)
    desc = describe(
        draft.op,
        "convolution_forward",
        *(FORWARD_TRAINING, CONVOLUTION_DIRECT),
        *(each.x, each.free_w, bias[0][1] if bias else None, each.y),
        *each.slide,
        attributes=attributes,
    )
    wanted = desc.layout(WEIGHTS)
    kernel = draft.brought(each.w, SECOND, wanted)
    arguments = [(ARG_SRC, each.x, FIRST), (ARG_WEIGHTS, wanted, kernel), *bias]
    draft.call(desc, *arguments, (ARG_DST, each.y, RESULT), *extra)


def _split_bias(
    draft: Draft, epilogue: Epilogue, in_avals: tuple[Aval, ...], y: Aval
) -> tuple[list[tuple[int, Desc, Ref]], Epilogue]:
    """The bias that an epilogue starts with, which a convolution takes as an argument, and the
    rest."""
    if not epilogue or epilogue[0][0] != "bias":
        return [], epilogue
    index = epilogue[0][1]
    if in_avals[index].shape != y.shape[-1:] or in_avals[index].dtype not in memory.FLOATS:
        raise draft.unsupported(f"a bias of {in_avals[index]}")
    vector = memory.of_array(in_avals[index].shape, in_avals[index].dtype)
    return [(ARG_BIAS, vector, Ref("input", index))], epilogue[1:]


@planner(conv_input_grad_p, work=lambda ins, outs, params: _work(images=ins[0], kernel=ins[1]))
def _(
    draft: Draft,
    in_avals: tuple[Aval, ...],
    out_avals: tuple[Aval, ...],
    params: Mapping[str, Any],
    epilogue: Epilogue,
) -> None:
    draft.no_epilogue(epilogue)
    g, w, x = in_avals[0], in_avals[1], out_avals[0]
    if small_images.suits(x, g, params["window"]):
        small_images.plan_input_grad(draft, g, w, x, params["window"])
        return
    each = _Images(x.shape, w.shape, g.shape, g.dtype, params["window"])
    desc = describe(
        draft.op,
        "convolution_backward_data",
        CONVOLUTION_DIRECT,
        *(each.x, each.free_w, each.y),
        *each.slide,
        _hint(draft, each),
    )
    wanted = desc.layout(WEIGHTS)
    kernel = draft.brought(each.w, SECOND, wanted)
    arguments = ((ARG_DIFF_DST, each.y, FIRST), (ARG_WEIGHTS, wanted, kernel))
    draft.call(desc, *arguments, (ARG_DIFF_SRC, each.x, RESULT))


@planner(conv_weight_grad_p, work=lambda ins, outs, params: _work(images=ins[1], kernel=outs[0]))
def _(
    draft: Draft,
    in_avals: tuple[Aval, ...],
    out_avals: tuple[Aval, ...],
    params: Mapping[str, Any],
    epilogue: Epilogue,
) -> None:
    if epilogue != (("bias_grad",),):
        draft.no_epilogue(epilogue)
    x, g, w = in_avals[0], in_avals[1], out_avals[0]
    if x.dtype != dtypes.float32 and x.shape[-2] < params["window"].strides[-1]:
        # oneDNN 3.2 gives wrong sums in bfloat16 where an image is narrower than the stride.
        raise draft.unsupported("images narrower than the stride")
    if not epilogue and small_images.suits(x, g, params["window"], weights=True):
        small_images.plan_weight_grad(draft, x, g, w, params["window"])
        return
    each = _Images(x.shape, w.shape, g.shape, x.dtype, params["window"])
    bias = [
        (ARG_DIFF_BIAS, memory.of_array(aval.shape, aval.dtype), Ref("output", 1))
        for aval in out_avals[1:]
    ]
    desc = describe(
        draft.op,
        "convolution_backward_weights",
        CONVOLUTION_DIRECT,
        *(each.x, each.free_w, bias[0][1] if bias else None, each.y),
        *each.slide,
        _hint(draft, each),
    )
    given = desc.layout(DIFF_WEIGHTS)
    place = draft.place_for(each.w, RESULT, given)
    arguments = ((ARG_SRC, each.x, FIRST), (ARG_DIFF_DST, each.y, SECOND))
    draft.call(desc, *arguments, (ARG_DIFF_WEIGHTS, given, place), *bias)
    draft.deliver(each.w, RESULT, given, place)


def _hint(draft: Draft, each: _Images) -> PrimitiveDesc:
    """The forward convolution, which the making of a backward one asks for."""
    return describe(
        draft.op,
        "convolution_forward",
        *(FORWARD_TRAINING, CONVOLUTION_DIRECT),
        *(each.x, each.free_w, None, each.y),
        *each.slide,
        may_be_slow=True,
    )
