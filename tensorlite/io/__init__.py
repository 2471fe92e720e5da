"""Files, and models that other programs made or read."""

from .onnx import from_onnx
from .safetensors import load, read_metadata, save

__all__ = ["from_onnx", "load", "read_metadata", "save"]
