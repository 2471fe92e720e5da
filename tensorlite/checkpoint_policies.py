"""What `tl.checkpoint` saves: policies.

A policy is a hashable function of an equation of the checkpointed function that says whether its
results are kept for the backward pass; what is not kept is computed again. `save_nothing` is what
`tl.checkpoint` does without a policy. A value is given a name, by which a policy can choose it,
with `tl.checkpoint_name`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import tree
from .core import Aval, Primitive, Tensor, bind
from .graph import Equation
from .ops.creation import asarray

__all__ = ["checkpoint_name", "save_everything", "save_matmuls", "save_names", "save_nothing"]

Policy = Callable[[Equation], bool]

# Products of matrices and convolutions cost the most to compute again.
_PRODUCTS = frozenset({"matmul", "conv", "conv_input_grad", "conv_weight_grad"})

name_p = Primitive("checkpoint_name")  # its argument, which a policy can ask for by its name


@name_p.shape
def _(x: Aval, *, name: str) -> Aval:
    return x


@name_p.numpy
def _(x: np.ndarray, *, name: str) -> np.ndarray:
    return x


@name_p.vjp
def _(ans: Tensor, x: Tensor, *, name: str) -> Any:
    return lambda g: g


@name_p.batch
def _(args: list[Tensor], batched: list[bool], *, name: str) -> Tensor:
    return bind(name_p, args[0], name=name)


def checkpoint_name(x: Any, name: str) -> Any:
    """`x` (a pytree of tensors), under a name for `tl.checkpoint_policies.save_names`. It changes
    nothing else.

    Example:
        >>> def block(x):
        ...     h = tl.checkpoint_name(tl.exp(x), "hidden")
        ...     return tl.sum(h * h)
        >>> keep_h = tl.checkpoint(block, policy=tl.checkpoint_policies.save_names("hidden"))
        >>> print(tl.grad(keep_h)(tl.zeros(2)))
        [2. 2.]
    """
    if not isinstance(name, str):
        raise TypeError(f"checkpoint_name: the name is a string, got {type(name).__name__}")
    return tree.map(lambda leaf: bind(name_p, asarray(leaf), name=name), x)


def save_nothing(eqn: Equation) -> bool:
    """Keep the arguments only, and compute everything again."""
    return False


def save_everything(eqn: Equation) -> bool:
    """Keep whatever the derivative needs, as without a checkpoint."""
    return True


def save_matmuls(eqn: Equation) -> bool:
    """Keep the results of matrix products and convolutions; elementwise operations, norms and
    reductions are cheap to compute again."""
    return eqn.prim.name in _PRODUCTS


@dataclass(frozen=True)
class _SaveNames:
    names: tuple[str, ...]

    def __str__(self) -> str:
        return f"save_names{self.names}"

    def __call__(self, eqn: Equation) -> bool:
        return eqn.prim is name_p and eqn.params["name"] in self.names


def save_names(*names: str) -> Policy:
    """Keep the values that were given one of these names with `tl.checkpoint_name`."""
    if not names or not all(isinstance(name, str) for name in names):
        raise TypeError(f"save_names: takes one name or more, all strings, got {names!r}")
    return _SaveNames(tuple(sorted(set(names))))
