"""Files, and models that other programs made or read."""

from .files import load, read_metadata, save
from .onnx import from_onnx, to_onnx
from .torch import from_torch, to_torch

__all__ = ["from_onnx", "from_torch", "load", "read_metadata", "save", "to_onnx", "to_torch"]
