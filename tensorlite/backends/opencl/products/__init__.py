"""Matrix products and convolutions as OpenCL kernels, with their epilogues."""

from .plans import plan_conv, plan_conv_input_grad, plan_conv_weight_grad, plan_matmul

__all__ = ["plan_conv", "plan_conv_input_grad", "plan_conv_weight_grad", "plan_matmul"]
