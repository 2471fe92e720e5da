"""Files, and models that other programs made or read.

What concerns PyTorch and ONNX is imported at its first use: `import tensorlite` stays quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .files import load, read_metadata, save

if TYPE_CHECKING:
    from .onnx import from_onnx, to_onnx
    from .torch import from_torch, to_torch

__all__ = ["from_onnx", "from_torch", "load", "read_metadata", "save", "to_onnx", "to_torch"]

_LATER = {"from_onnx": "onnx", "to_onnx": "onnx", "from_torch": "torch", "to_torch": "torch"}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"tensorlite.io has no {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
