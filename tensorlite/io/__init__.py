"""Files: pytrees of tensors in the safetensors format."""

from .safetensors import load, read_metadata, save

__all__ = ["load", "read_metadata", "save"]
