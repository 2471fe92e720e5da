"""The OpenCL backend: whole programs compiled for CPUs, GPUs and accelerators."""

from ...device import register_backend
from . import control_flow as _control_flow
from .backend import OpenCL
from .export import export_kernels, tune_kernels

register_backend(OpenCL())

__all__ = ["OpenCL", "export_kernels", "tune_kernels"]
