"""The CPU: NumPy reference lowerings, and the executor of compiled graphs."""

from ...device import register_backend
from . import control_flow as _control_flow  # registers its lowerings
from .backend import CPU

register_backend(CPU())
