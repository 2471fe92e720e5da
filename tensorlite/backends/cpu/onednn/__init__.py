"""oneDNN, by its C API: the heavy kernels of the CPU.

`plan` says how oneDNN runs a primitive at given shapes, `run` does it on NumPy arrays; `eager` has
eager mode do so. Each other module plans one family of primitives.
"""

from . import conv as _conv
from . import matmul as _matmul
from . import norm as _norm
from . import pool as _pool
from .library import DnnlError, Unsupported, load
from .matmul import plan_matmul
from .memory import make_memory
from .plan import Argument, Call, Epilogue, Plan, plan, run
