"""Epilogues: the operations that are fused behind a convolution or a product."""

from __future__ import annotations

from typing import Any, NamedTuple

from ....compiler.launches import Ref
from ....core import Aval
from . import memory
from .memory import Desc
from .plan import Draft, Epilogue
from .primitives import BINARY_ADD, BINARY_MUL, Attributes


class _Function(NamedTuple):
    """A function of one number: dnnl_alg_kind_t and its two constants."""

    algorithm: int
    alpha: float = 0.0
    beta: float = 0.0


# By the names of tensorlite's own operations, as chains of oneDNN's. Its relu makes 0 of NaN and so
# would hide that a model has broken; its elu with a slope of 0 does not, but gives -0. Its exp and
# its exact gelu are left out since they make other values of NaN or infinity than ours.
FUNCTIONS: dict[str, tuple[_Function, ...]] = {
    "relu": (_Function(0x22, 0.0), _Function(0x24)),
    "tanh": (_Function(0x21),),
    "square": (_Function(0x23),),
    "abs": (_Function(0x24),),
    "sqrt": (_Function(0x25),),
    "sigmoid": (_Function(0x29),),
    "gelu_tanh": (_Function(0x2B),),
    "silu": (_Function(0x2C, 1.0),),
}
_BINARY = {"bias": BINARY_ADD, "add": BINARY_ADD, "mul": BINARY_MUL}

Extra = tuple[int, Desc, Ref]  # an argument of the primitive that the epilogue brings along


def attach(
    draft: Draft, epilogue: Epilogue, in_avals: tuple[Aval, ...], result: Aval, order: Any
) -> tuple[Attributes, list[Extra]]:
    """The attributes of a primitive with this epilogue, and the arguments to pass along.

    Args:
        result: the array that the primitive gives.
        order: its axes in oneDNN's order.

    Raises:
        Unsupported: oneDNN has no such post-operation.
    """
    attributes = draft.attributes()
    extra: list[Extra] = []
    for name, *operands in epilogue:
        if name in FUNCTIONS and not operands:
            for function in FUNCTIONS[name]:
                attributes.eltwise(*function)
        elif name in _BINARY and len(operands) == 1:
            index = operands[0]
            desc = _broadcast(draft, in_avals[index], result, order)
            number = attributes.binary(_BINARY[name], desc)
            extra.append((number, desc, Ref("input", index)))
        else:
            raise draft.unsupported(f"no post-operation {name!r}")
    return attributes, extra


def _broadcast(draft: Draft, operand: Aval, result: Aval, order: Any) -> Desc:
    """The second operand of a post-operation: sizes are 1 where it is broadcast."""
    missing = result.ndim - operand.ndim
    shape = (1,) * missing + operand.shape
    fits = missing >= 0 and all(n in (1, m) for n, m in zip(shape, result.shape, strict=True))
    if not fits or operand.dtype not in memory.FLOATS:
        raise draft.unsupported(f"an operand of {operand} beside a result of {result}")
    return memory.of_array(shape, operand.dtype, order)
