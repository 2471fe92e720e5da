"""Matrix products and convolutions as OpenCL kernels, with their epilogues."""

from .plans import (
    contractions,
    plan,
    plan_conv,
    plan_conv_input_grad,
    plan_conv_weight_grad,
    plan_matmul,
    plan_with,
)
from .problem import Problem
from .tune import Operands, Trial, tune

__all__ = [
    "Operands",
    "Problem",
    "Trial",
    "contractions",
    "plan",
    "plan_conv",
    "plan_conv_input_grad",
    "plan_conv_weight_grad",
    "plan_matmul",
    "plan_with",
    "tune",
]
