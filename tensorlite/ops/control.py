"""Primitives that compute nothing but tell the transforms and the compiler what may be done."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import tree
from ..core import Aval, Primitive, Tensor, bind
from .creation import asarray
from .shape import broadcast_to

stop_gradient_p = Primitive("stop_gradient", differentiable=False)


@stop_gradient_p.shape
def _(x: Aval) -> Aval:
    return x


@stop_gradient_p.numpy
def _(x: np.ndarray) -> np.ndarray:
    return x


@stop_gradient_p.batch
def _(args: list[Tensor], batched: list[bool]) -> Tensor:
    return bind(stop_gradient_p, args[0])


def stop_gradient(x: Any) -> Any:
    """`x` (a pytree), which the transforms take for a constant.

    Example:
        >>> print(tl.grad(lambda x: x * tl.stop_gradient(x))(3.0))
        3.0
    """
    return tree.map(lambda leaf: bind(stop_gradient_p, asarray(leaf)), x)


# Its results are its arguments, but all of them wait for all of them: what follows is not merged
# with or moved before what came earlier.
barrier_p = Primitive("optimization_barrier")


@barrier_p.shape
def _(*xs: Aval) -> tuple[Aval, ...]:
    return xs


@barrier_p.numpy
def _(*xs: np.ndarray) -> tuple[np.ndarray, ...]:
    return xs


@barrier_p.fwd
def _(needs: tuple[bool, ...], *xs: Tensor) -> Any:
    return bind(barrier_p, *xs), lambda cts: cts


@barrier_p.batch
def _(args: list[Tensor], batched: list[bool]) -> tuple[Tensor, ...]:
    size = next(x.shape[0] for x, b in zip(args, batched, strict=True) if b)
    every = [
        x if b else broadcast_to(x, (size, *x.shape)) for x, b in zip(args, batched, strict=True)
    ]
    return bind(barrier_p, *every)


def optimization_barrier(*xs: Tensor) -> tuple[Tensor, ...]:
    """`xs`, in a way that no pass merges, reorders or drops computations across."""
    return bind(barrier_p, *xs)
