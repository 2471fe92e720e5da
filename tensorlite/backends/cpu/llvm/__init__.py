"""Loop nests as machine code, through LLVM: `compile_nests` gives addresses of functions
`void f(void **buffers)`, which run a nest on all threads of the OpenMP pool that oneDNN uses."""

from .compile import (
    compile_ir,
    compile_nests,
    compile_random_bits,
    compile_scatter,
    may_share,
    run_nest,
)
from .engine import available
from .scatter import Scatter
