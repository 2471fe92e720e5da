"""What a product is asked for: an operation at given shapes."""

from __future__ import annotations

from typing import Any, NamedTuple

from ....compiler.absorb import absorbed_p
from ....compiler.simplify import transposed_matmul_p
from ....core import Aval, Primitive
from ....graph import Equation
from ....ops.conv import conv_input_grad_p, conv_p, conv_weight_grad_p
from ....ops.linalg import matmul_p
from ....ops.window import Window
from .epilogue import Epilogue

MATMULS = (matmul_p, transposed_matmul_p)
CONVOLUTIONS = (conv_p, conv_input_grad_p, conv_weight_grad_p)


class Problem(NamedTuple):
    """One equation.

    `op` is "matmul", "conv", "conv_input_grad" or "conv_weight_grad"; `inputs` are the two operands
    as they lie in memory and what the epilogue names, from index 2 on; `options` are the window of
    a convolution, or which of the two matrices lie transposed.
    """

    op: str
    inputs: tuple[Aval, ...]
    out: Aval
    options: Window | tuple[bool, bool]
    epilogue: Epilogue = ()


def problem_for(
    prim: Primitive,
    inputs: tuple[Aval, ...],
    out: Aval,
    params: dict[str, Any],
    epilogue: Epilogue = (),
) -> Problem | None:
    """The problem that a primitive with an epilogue poses; None if it is neither a product nor a
    convolution."""
    if prim in MATMULS:
        turned = (bool(params.get("transpose_a")), bool(params.get("transpose_b")))
        return Problem("matmul", inputs, out, turned, epilogue)
    if prim in CONVOLUTIONS:
        return Problem(prim.name, inputs, out, params["window"], epilogue)
    return None


def problem_of(eqn: Equation) -> Problem | None:
    """The problem that an equation poses; None if it is neither a product nor a convolution."""
    inner: Equation = eqn.params["eqn"] if eqn.prim is absorbed_p else eqn
    epilogue = eqn.params["epilogue"] if eqn.prim is absorbed_p else ()
    inputs = tuple(atom.aval for atom in eqn.inputs)
    return problem_for(inner.prim, inputs, eqn.outputs[0].aval, inner.params, epilogue)
