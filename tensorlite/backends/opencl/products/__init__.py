"""Matrix products and convolutions as OpenCL kernels, with their epilogues."""

from .plans import (
    plan,
    plan_conv,
    plan_conv_input_grad,
    plan_conv_weight_grad,
    plan_matmul,
    plan_with,
)
from .problem import Problem

__all__ = [
    "Problem",
    "plan",
    "plan_conv",
    "plan_conv_input_grad",
    "plan_conv_weight_grad",
    "plan_matmul",
    "plan_with",
]
