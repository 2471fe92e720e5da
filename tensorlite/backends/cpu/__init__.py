"""The CPU: NumPy reference lowerings, oneDNN's, and the executor of compiled graphs."""

from ...device import register_backend
from . import control_flow as _control_flow  # these register their lowerings
from .backend import CPU
from .onednn import eager as _eager

register_backend(CPU())
