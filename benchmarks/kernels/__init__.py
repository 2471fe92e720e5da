"""The fused kernels that `benchmarks/fused.py` times, in each framework.

`KERNELS` says how many bytes each has to move for a float32 element; `inputs` makes the same
arrays for all. The files `in_<framework>` have `build_kernel(kernel, elements, threads, check)`,
which returns a function that runs the kernel once. With `check` that function returns
`fingerprint` of the result, to see that all compute the same; otherwise it returns None.
"""

from __future__ import annotations

from typing import Any

import numpy as np

COLUMNS = 1000  # of the rows that layer norm and softmax normalize
LEARNING_RATE = 1e-3

# Adam reads a parameter, its gradient and two moments, and writes all but the gradient.
KERNELS = {"gelu": 8, "layer_norm": 8, "softmax": 8, "adam": 28}


def inputs(kernel: str, elements: int) -> list[np.ndarray[Any, Any]]:
    """x (elements / 1000, 1000) for a row kernel, with scale and offset (1000,) for layer norm; for
    Adam a parameter and its gradient, (elements,). All float32."""
    random = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray[Any, Any]:
        return random.standard_normal(shape, dtype=np.float32)

    if kernel == "adam":
        return [normal(elements), normal(elements)]
    x = normal(elements // COLUMNS, COLUMNS)
    return [x, normal(COLUMNS), normal(COLUMNS)] if kernel == "layer_norm" else [x]


def fingerprint(result: Any) -> float:
    """The mean of the absolute values of an array, in float64."""
    return float(np.mean(np.abs(np.asarray(result)), dtype=np.float64))
