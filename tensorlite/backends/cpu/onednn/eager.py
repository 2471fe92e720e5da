"""Eager mode: the lowerings of the CPU that run on oneDNN, and on NumPy where it has nothing.

A call costs a look-up by shapes and dtypes besides the work itself. Compiled graphs whose equations
run one by one use the same lowerings.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .... import dtypes
from ....composite import Composite
from ....core import Aval, Primitive
from ....device import lowering
from ....ops.conv import conv_input_grad_p, conv_p, conv_weight_grad_p
from ....ops.linalg import matmul_p
from ....ops.norm import standardize_p
from ....ops.pool import max_pool_p, pool_argmax_p, pool_scatter_p, pool_spread_p, pool_sum_p
from ....ops.softmax import log_softmax_p, softmax_p
from ..executor import executable
from ..openmp import num_threads
from . import memory
from .library import load
from .matmul import plan_matmul
from .plan import Plan, enough_threads, plan, run

_REMEMBERED = 4096  # calls that a kernel has plans for, before it forgets them all
_Planned = tuple[Plan | None, tuple[Aval, ...]]


class _Kernel:
    """A lowering that runs the plan for its arguments if there is one, and NumPy's way else."""

    def __init__(self, prim: Primitive, finite_only: bool = False):
        self._prim = prim
        self._finite_only = finite_only
        self._planned: dict[Any, _Planned] = {}

    def __call__(self, *arrays: np.ndarray, **params: Any) -> Any:
        if arrays[0].dtype not in memory.FLOATS or load() is None:
            return self._without(*arrays, **params)
        key = (num_threads(), *params.values(), *[(a.shape, a.dtype) for a in arrays])
        chosen, out_avals = self._planned.get(key) or self._look_up(key, arrays, params)
        if chosen is None or (self._finite_only and not _is_finite(arrays[0])):
            return self._without(*arrays, **params)
        results = tuple([np.empty(aval.shape, aval.dtype) for aval in out_avals])
        run(chosen, [np.ascontiguousarray(a) for a in arrays], results)
        return results[0] if len(results) == 1 else results

    def _look_up(self, key: Any, arrays: tuple[np.ndarray, ...], params: Any) -> _Planned:
        avals = [Aval(a.shape, a.dtype) for a in arrays]
        out = self._prim.abstract(*avals, **params)
        out_avals = (out,) if isinstance(out, Aval) else out
        if len(self._planned) >= _REMEMBERED:
            self._planned.clear()
        threads = enough_threads(self._prim, avals, out_avals, params)
        chosen = plan(
            self._prim,
            avals,
            out_avals,
            params,
            assume_finite=self._finite_only,
            threads=threads,
        )
        self._planned[key] = chosen, out_avals
        return chosen, out_avals

    def _without(self, *arrays: np.ndarray, **params: Any) -> Any:
        if self._prim.numpy_rule is not None:
            return self._prim.numpy_rule(*arrays, **params)
        return _run_body(self._prim, arrays, params)


def _run_body(prim: Primitive, arrays: tuple[np.ndarray, ...], params: dict[str, Any]) -> Any:
    """A composite by its decomposition."""
    assert isinstance(prim, Composite)
    graph, is_single = prim.graph(*[Aval(a.shape, a.dtype) for a in arrays], **params)
    results = executable(graph)(*arrays)
    return results[0] if is_single else results


def _is_finite(x: np.ndarray) -> bool:
    """Whether all of `x` is finite; False also for numbers whose squares overflow. This reads `x`
    once, which costs little beside what is done with it."""
    if x.dtype == dtypes.float32:
        values = x.reshape(-1)
        return bool(np.isfinite(np.dot(values, values)))
    exponent = np.uint16(0x7C00 if x.dtype == dtypes.float16 else 0x7F80)
    return bool(np.all(x.view(np.uint16) & exponent != exponent))


for _prim in (
    *(conv_p, conv_input_grad_p, conv_weight_grad_p),
    *(pool_sum_p, pool_spread_p, pool_scatter_p),
    standardize_p,
):
    lowering(_prim, "cpu")(_Kernel(_prim))
for _prim in (pool_argmax_p, max_pool_p, softmax_p, log_softmax_p):
    lowering(_prim, "cpu")(_Kernel(_prim, finite_only=True))


# ---- matmul --------------------------------------------------------------------------

# Products of fewer multiplications are faster by NumPy's BLAS, which costs less to call.
_SMALL = 1 << 19
_products: dict[Any, _Planned] = {}


@lowering(matmul_p, "cpu")
def _(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    if x.size * y.shape[-1] > _SMALL and x.dtype in memory.FLOATS and load() is not None:
        z = _product(x, y)
        if z is not None:
            return z
    return matmul_p.numpy_rule(x, y)  # type: ignore[misc]


def _product(x: np.ndarray, y: np.ndarray) -> np.ndarray | None:
    """The product by oneDNN, or None if it cannot. A transposed view is read where it lies."""
    stored_x, is_swapped_x = _as_stored(x)
    stored_y, is_swapped_y = _as_stored(y)
    key = (x.shape, x.dtype, is_swapped_x, y.shape, y.dtype, is_swapped_y, num_threads())
    found = _products.get(key)
    if found is None:
        z = matmul_p.abstract(Aval(x.shape, x.dtype), Aval(y.shape, y.dtype))
        assert isinstance(z, Aval)
        avals = [Aval(a.shape, a.dtype) for a in (stored_x, stored_y)]
        chosen = plan_matmul(*avals, z, transpose_a=is_swapped_x, transpose_b=is_swapped_y)
        if len(_products) >= _REMEMBERED:
            _products.clear()
        found = _products[key] = chosen, (z,)
    chosen, (z,) = found
    if chosen is None:
        return None
    result = np.empty(z.shape, z.dtype)
    run(chosen, (stored_x, stored_y), (result,))
    return result


def _as_stored(x: np.ndarray) -> tuple[np.ndarray, bool]:
    """A C-contiguous array that holds the matrices `x`, and whether they are transposed in it."""
    if x.flags.c_contiguous:
        return x, False
    swapped = x.swapaxes(-1, -2)
    if swapped.flags.c_contiguous:
        return swapped, True
    return np.ascontiguousarray(x), False
