"""Neural networks: modules."""

from .module import Buffer, Module, count_parameters

__all__ = ["Buffer", "Module", "count_parameters"]
