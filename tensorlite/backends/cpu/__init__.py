"""The CPU: NumPy reference lowerings, and the executor of compiled graphs."""

from ...device import register_backend
from .backend import CPU

register_backend(CPU())
