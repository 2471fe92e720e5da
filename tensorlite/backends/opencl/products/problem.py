"""What a product is asked for: an operation at given shapes."""

from __future__ import annotations

from typing import NamedTuple

from ....core import Aval
from ....ops.window import Window
from .epilogue import Epilogue


class Problem(NamedTuple):
    """One equation.

    `op` is "matmul", "conv", "conv_input_grad" or "conv_weight_grad"; `inputs` are the two operands
    and what the epilogue names; `options` are the window of a convolution, or which of the two
    matrices lie transposed.
    """

    op: str
    inputs: tuple[Aval, ...]
    out: Aval
    options: Window | tuple[bool, bool]
    epilogue: Epilogue = ()
