"""tensorlite: a small autodiff tensor engine, and data-parallel training on Spark.

`import tensorlite as tl` gives tensors and NumPy-style functions (a Python array API namespace),
the transforms (`tl.grad`, `tl.vmap`, `tl.jit`, ...) and `tl.tree`; `nn`, `optim`, `random` and
`data` are submodules. `tensorlite.distributed` is imported by itself; its `launch`, and
`Trainer` with workers, need Spark.
"""

from math import e, inf, nan, pi
from typing import TYPE_CHECKING as _TYPE_CHECKING

from . import (
    checkpoint_policies,
    communication,
    data,
    debug,
    io,
    linalg,
    nn,
    optim,
    profiler,
    random,
    tree,
)
from . import names as _names
from ._version import __version__
from .array_api import VERSION as __array_api_version__
from .array_api import array_namespace_info as __array_namespace_info__
from .autodiff import grad, jvp, value_and_grad, vjp
from .checkpoint_policies import checkpoint_name
from .composite import checkpoint
from .control_flow import cond, while_loop
from .core import Tensor, TracerError
from .custom_derivative import custom_vjp
from .debug import debug_nans
from .derivatives import hessian, jacfwd, jacrev, linearize
from .device import Device, default_device, devices
from .dtypes import (
    bfloat16,
    can_cast,
    finfo,
    float16,
    float32,
    float64,
    iinfo,
    int8,
    int16,
    int32,
    int64,
    isdtype,
    result_type,
    uint8,
    uint16,
    uint32,
    uint64,
)
from .dtypes import bool_ as bool
from .graph import make_graph
from .io import load, save
from .jit import jit
from .ops import collective
from .ops import methods as _methods  # attaches the operators of Tensor
from .ops.control import stop_gradient
from .ops.creation import (
    arange,
    asarray,
    empty,
    empty_like,
    eye,
    from_dlpack,
    full,
    full_like,
    linspace,
    ones,
    ones_like,
    zeros,
    zeros_like,
)
from .ops.cumulative import cumulative_prod
from .ops.elementwise import (
    abs,
    acos,
    acosh,
    add,
    asin,
    asinh,
    atan,
    atan2,
    atanh,
    bitwise_and,
    bitwise_invert,
    bitwise_left_shift,
    bitwise_or,
    bitwise_right_shift,
    bitwise_xor,
    ceil,
    clip,
    copysign,
    cos,
    cosh,
    divide,
    equal,
    erf,
    erfinv,
    exp,
    expm1,
    floor,
    floor_divide,
    greater,
    greater_equal,
    hypot,
    isfinite,
    isinf,
    isnan,
    less,
    less_equal,
    log,
    log1p,
    log2,
    log10,
    logaddexp,
    logical_and,
    logical_not,
    logical_or,
    logical_xor,
    maximum,
    minimum,
    multiply,
    negative,
    nextafter,
    not_equal,
    positive,
    pow,
    reciprocal,
    remainder,
    round,
    rsqrt,
    sigmoid,
    sign,
    signbit,
    sin,
    sinh,
    sqrt,
    square,
    subtract,
    tan,
    tanh,
    trunc,
    where,
)
from .ops.index import take, take_along_axis
from .ops.linalg import matmul, outer, tensordot, vecdot
from .ops.methods import astype
from .ops.rearrange import diff, meshgrid, repeat, roll, tile, tril, triu, unstack
from .ops.reduce import (
    all,
    any,
    argmax,
    argmin,
    count_nonzero,
    cumulative_sum,
    logsumexp,
    max,
    mean,
    min,
    prod,
    std,
    sum,
    var,
)
from .ops.sets import nonzero, unique_all, unique_counts, unique_inverse, unique_values
from .ops.shape import (
    broadcast_arrays,
    broadcast_to,
    concat,
    expand_dims,
    flip,
    matrix_transpose,
    moveaxis,
    pad,
    permute_dims,
    reshape,
    squeeze,
    stack,
    swapaxes,
)
from .ops.sorting import argsort, searchsorted, sort
from .origin import named_scope
from .precision import precision
from .profiler import profile
from .scan import map, scan
from .threads import get_num_threads, set_num_threads
from .vectorize import vmap

debug.start_from_environment()

newaxis = None

if not _TYPE_CHECKING:  # a type checker would take every name for one that exists

    def __getattr__(name: str) -> object:
        raise _names.missing_function(name, globals())
