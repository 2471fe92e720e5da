"""ONNX: models as functions of tensors (`from_onnx`), functions as models (`to_onnx`).

The operators of import stand in `elementwise`, `shapes`, `reductions`, `images` and `control`, the
primitives of export in `export_elementwise` and `export_structure`; they fill their registries when
they are imported here.
"""

from . import control, elementwise, export_elementwise, export_structure, images, reductions, shapes
from .exporter import to_onnx
from .importer import OnnxFunction, from_onnx

__all__ = ["OnnxFunction", "from_onnx", "to_onnx"]
