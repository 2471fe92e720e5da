"""The names that other libraries have for what is here, for whoever types them out of habit.

A name that tensorlite lacks is an `AttributeError` that says what to write instead. Nothing is
looked up here unless a name is missing.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import NoReturn

# What NumPy, PyTorch, JAX and TensorFlow call it: what to write here.
FUNCTIONS = {
    "amax": "tl.max",
    "amin": "tl.min",
    "arccos": "tl.acos",
    "arcsin": "tl.asin",
    "arctan": "tl.atan",
    "arctan2": "tl.atan2",
    "array": "tl.asarray",
    "as_tensor": "tl.asarray",
    "cast": "tl.astype",
    "cat": "tl.concat",
    "checkpoint_sequential": "tl.checkpoint",
    "concatenate": "tl.concat",
    "constant": "tl.asarray",
    "convert_to_tensor": "tl.asarray",
    "cumprod": "tl.cumulative_prod",
    "cumsum": "tl.cumulative_sum",
    "distributed": "import tensorlite.distributed, which tensorlite does not do by itself",
    "dot": "tl.matmul or tl.vecdot",
    "double": "tl.float64",
    "einsum": "tl.tensordot, tl.matmul and tl.permute_dims, or einops",
    "float": "tl.float32",
    "fori_loop": "tl.scan or tl.while_loop",
    "from_numpy": "tl.asarray",
    "gather": "tl.take_along_axis or tl.take",
    "GradientTape": "tl.grad(f)(x), which differentiates a function",
    "half": "tl.float16",
    "int": "tl.int32",
    "long": "tl.int64",
    "manual_seed": "tl.random.key(seed), and pass the key on",
    "no_grad": "tl.stop_gradient(x); nothing is recorded outside of tl.grad",
    "norm": "tl.linalg.vector_norm or tl.linalg.matrix_norm",
    "one_hot": "tl.nn.one_hot",
    "pmap": "tensorlite.distributed.launch or Trainer",
    "power": "tl.pow",
    "rand": "tl.random.uniform(key, shape)",
    "randn": "tl.random.normal(key, shape)",
    "reduce_max": "tl.max",
    "reduce_mean": "tl.mean",
    "reduce_sum": "tl.sum",
    "relu": "tl.nn.relu",
    "Size": "a tuple of ints",
    "softmax": "tl.nn.softmax",
    "tensor": "tl.asarray",
    "transpose": "tl.permute_dims, tl.matrix_transpose or x.T",
    "unsqueeze": "tl.expand_dims",
    "Variable": "a tensor; tl.grad takes derivatives of functions of tensors",
    "vstack": "tl.concat or tl.stack",
}
METHODS = {
    "backward": "tl.grad(f)(x), which differentiates a function",
    "block_until_ready": "nothing: a result is there when its name is",
    "clone": "nothing: tensors are immutable, x itself does",
    "contiguous": "nothing: x itself does",
    "copy": "nothing: tensors are immutable, x itself does",
    "cpu": 'x.to_device("cpu")',
    "cuda": "x.to_device(device); tl.devices() lists them",
    "detach": "tl.stop_gradient(x)",
    "dim": "x.ndim",
    "double": "x.astype(tl.float64)",
    "flatten": "x.reshape(-1)",
    "float": "x.astype(tl.float32)",
    "grad": "tl.grad(f)(x), which differentiates a function",
    "half": "x.astype(tl.float16)",
    "int": "x.astype(tl.int32)",
    "long": "x.astype(tl.int64)",
    "nbytes": "x.size * x.dtype.itemsize",
    "permute": "tl.permute_dims(x, axes)",
    "ravel": "x.reshape(-1)",
    "requires_grad": "tl.grad(f, argnums), which says what to differentiate",
    "requires_grad_": "tl.grad(f, argnums), which says what to differentiate",
    "t": "x.T",
    "to": "x.to_device(device) or x.astype(dtype)",
    "transpose": "tl.permute_dims(x, axes), x.T or x.mT",
    "type": "x.astype(dtype)",
    "unsqueeze": "tl.expand_dims(x, axis=axis)",
    "view": "x.reshape(shape)",
}


def missing_function(name: str, known: Iterable[str]) -> AttributeError:
    """The error for `tl.name`, which does not exist among the `known` names."""
    return AttributeError(f"module 'tensorlite' has no attribute {name!r}" + _hint(name, known))


def absent_method(name: str) -> property:
    """In the place of a method that tensors do not have: an `AttributeError` when it is asked for,
    so that `hasattr` says no. (A `__getattr__` would make all other attributes slower.)"""

    def absent(self: object) -> NoReturn:
        raise AttributeError(f"a tensor has no attribute {name!r}; write {METHODS[name]}")

    return property(absent)


def _hint(name: str, known: Iterable[str]) -> str:
    if name in FUNCTIONS:
        return f"; write {FUNCTIONS[name]}"
    if name.startswith("_"):  # what tools look for
        return ""
    close = difflib.get_close_matches(name, [k for k in known if not k.startswith("_")], 1, 0.75)
    return f"; did you mean tl.{close[0]}?" if close else ""
