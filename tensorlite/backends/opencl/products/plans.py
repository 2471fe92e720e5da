"""From an operation at given shapes to a plan: which kernels run it, and on what grids."""

from __future__ import annotations

import functools

from .... import dtypes
from ....compiler.launches import Plan
from ....core import Aval
from ....ops.window import Window
from ..runtime import Traits
from . import conv, matmul
from .contraction import Contraction
from .draft import Draft, Unsupported
from .epilogue import Epilogue, resolve
from .tiles import Tile, plan_tiles
from .types import SUPPORTED


def plan_matmul(
    traits: Traits,
    x: Aval,
    y: Aval,
    out: Aval,
    *others: Aval,
    transpose_a: bool = False,
    transpose_b: bool = False,
    epilogue: Epilogue = (),
) -> Plan | None:
    """How a device computes a matrix product.

    Args:
        x, y: the operands as they lie in memory: (..., m, k) or, with `transpose_a`, (..., k, m),
            and (..., k, n) or (..., n, k); leading axes broadcast. Any dtype but bool.
        out: (..., m, n), what the equation gives.
        others: the inputs that the epilogue names, from index 2 on.
        epilogue: what is done to the result; see `epilogue`.

    Returns:
        None if there is no kernel for it: arrays without elements, float64 on a device that has
        none, an operand of the epilogue that broadcasts otherwise than along the last axis.
    """
    return _planned(
        traits, "matmul", (x, y, *others), out, epilogue, (bool(transpose_a), bool(transpose_b))
    )


def plan_conv(
    traits: Traits,
    x: Aval,
    w: Aval,
    out: Aval,
    *others: Aval,
    window: Window,
    epilogue: Epilogue = (),
) -> Plan | None:
    """How a device computes `conv`; the arguments are those of the primitive, then as in
    `plan_matmul`."""
    return _planned(traits, "conv", (x, w, *others), out, epilogue, window)


def plan_conv_input_grad(
    traits: Traits,
    g: Aval,
    w: Aval,
    out: Aval,
    *others: Aval,
    window: Window,
    spatial: tuple[int, ...],
    epilogue: Epilogue = (),
) -> Plan | None:
    """How a device computes `conv_input_grad`; as `plan_conv`."""
    if out.shape[1:-1] != tuple(spatial):
        raise ValueError(f"conv_input_grad: the result is {out}, but spatial is {spatial}")
    return _planned(traits, "conv_input_grad", (g, w, *others), out, epilogue, window)


def plan_conv_weight_grad(
    traits: Traits,
    x: Aval,
    g: Aval,
    out: Aval,
    *others: Aval,
    window: Window,
    epilogue: Epilogue = (),
) -> Plan | None:
    """How a device computes `conv_weight_grad`; as `plan_conv`."""
    return _planned(traits, "conv_weight_grad", (x, g, *others), out, epilogue, window)


def contractions(
    op: str, inputs: tuple[Aval, ...], out: Aval, options: Window | tuple[bool, bool]
) -> list[Contraction]:
    """The products that an operation consists of."""
    first, second = inputs[:2]
    if not isinstance(options, Window):
        return [matmul.matmul(first, second, out, *options)]
    if op == "conv_input_grad":
        return conv.conv_input_grad(first, second, out, options)
    make = conv.conv if op == "conv" else conv.conv_weight_grad
    return [make(first, second, out, options)]


@functools.lru_cache(maxsize=4096)
def _planned(
    traits: Traits,
    op: str,
    inputs: tuple[Aval, ...],
    out: Aval,
    epilogue: Epilogue,
    options: Window | tuple[bool, bool],
) -> Plan | None:
    avals = (*inputs, out)
    if any(aval.size == 0 or aval.dtype not in SUPPORTED for aval in avals):
        return None
    if any(aval.dtype == dtypes.float64 for aval in avals) and not traits.float64:
        return None
    steps = resolve(epilogue, inputs, out)
    if steps is None:
        return None
    draft = Draft(op)
    try:
        for contraction in contractions(op, inputs, out, options):
            plan_tiles(draft, traits, contraction, steps, Tile(5, 2, 8))
    except Unsupported:
        return None
    return draft.plan()
