"""ONNX: models as functions of tensors (`from_onnx`), functions as models (`to_onnx`).

The operators of import stand in `elementwise`, `shapes`, `reductions`, `images` and `control`,
which fill the registry when they are imported here.
"""

from . import control, elementwise, images, reductions, shapes
from .importer import OnnxFunction, from_onnx

__all__ = ["OnnxFunction", "from_onnx"]
