"""Matrix products and convolutions as OpenCL kernels, with their epilogues."""

from .plans import contractions, plan, plan_with
from .problem import MATMULS, Problem, problem_for, problem_of
from .tune import Operands, Trial, Tuned, tune

__all__ = [
    "MATMULS",
    "Operands",
    "Problem",
    "Trial",
    "Tuned",
    "contractions",
    "plan",
    "plan_with",
    "problem_for",
    "problem_of",
    "tune",
]
