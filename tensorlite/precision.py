"""Mixed precision: products of bfloat16 beside float32 parameters.

    with tl.precision("bf16"):
        model, state, loss = step(model, state, images, labels)

Convolutions and matrix products are where the time of a training step goes, and processors with
instructions for bfloat16 do twice as many of these multiplications in the same time. Under "bf16"
the float32 operands of these two are rounded to bfloat16, as they are asked for, and the sums are
still made in float32. A result remains bfloat16 along whatever is done to it, so that activations
take half the memory; but softmax, cross-entropy and the statistics of normalizations are computed
in float32. The derivative of the rounding brings cotangents back to float32, so that parameters,
their gradients and the state of an optimizer never are anything else.

The policy is asked for by public functions only (`tl.matmul`, `nn.conv`, ...), never by the rules
of a primitive: a graph holds the rounding as equations of its own, and is right under every policy.
What keeps graphs by the function that they came from has `active()` in its key.
"""

from __future__ import annotations

import contextvars
import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from . import dtypes
from .core import Tensor
from .ops.creation import asarray, cast

Function = TypeVar("Function", bound=Callable[..., Any])

POLICIES = ("f32", "bf16")

# The policies of the blocks that the thread or task is in, the innermost last.
_entered: contextvars.ContextVar[tuple[str, ...]] = contextvars.ContextVar("precision", default=())


class precision:
    """`with tl.precision("bf16"): ...` or `@tl.precision("bf16")` on a function: what is called
    inside makes convolutions and matrix products of bfloat16, with sums in float32.

    A jitted function is traced once for each precision that it is called in. To give one module
    another precision than the rest, decorate its `__call__`. Operands of other dtypes than float32
    and bfloat16 are left alone.

    Args:
        name: "bf16", or "f32" to have products of float32 inside of a block of "bf16".

    Raises:
        ValueError: there is no precision of that name.
        TypeError: a decorated generator or coroutine, which would run after the call is over.

    Example:
        >>> x = tl.ones((2, 2))
        >>> with tl.precision("bf16"):
        ...     print((x @ x).dtype)
        bfloat16
    """

    def __init__(self, name: str):
        if name not in POLICIES:
            known = ", ".join(repr(policy) for policy in POLICIES)
            raise ValueError(f"precision: there is no {name!r}; it is one of {known}")
        self.name = name

    def __enter__(self) -> None:
        _entered.set((*_entered.get(), self.name))

    def __exit__(self, *exc: object) -> None:
        _entered.set(_entered.get()[:-1])

    def __call__(self, function: Function) -> Function:
        checks = (
            inspect.isgeneratorfunction,
            inspect.iscoroutinefunction,
            inspect.isasyncgenfunction,
        )
        if any(check(function) for check in checks):
            raise TypeError(
                f"precision: {function.__name__} is a generator or coroutine, whose body runs "
                f"after the call; use `with tl.precision({self.name!r})` inside of it"
            )

        @functools.wraps(function)
        def under_precision(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        return under_precision  # type: ignore[return-value]

    def __repr__(self) -> str:
        return f"precision({self.name!r})"


def active() -> str:
    """The name of the precision of the innermost block; "f32" outside of all."""
    entered = _entered.get()
    return entered[-1] if entered else "f32"


_ROUNDED = frozenset({dtypes.float32, dtypes.bfloat16})


def operands(*tensors: Any) -> tuple[Any, ...]:
    """The operands of one convolution or product, as bfloat16 where the precision says so. What is
    neither a tensor nor an array is left to whoever checks the operands."""
    if active() == "f32" or not all(isinstance(t, Tensor | np.ndarray) for t in tensors):
        return tensors
    if not all(t.dtype in _ROUNDED for t in tensors):
        return tensors
    return tuple(cast(asarray(t), dtypes.bfloat16) for t in tensors)


def for_sums(x: Tensor) -> Tensor:
    """The operand of a softmax or a loss: float32 where the precision has made it bfloat16."""
    return cast(x, dtypes.float32) if active() != "f32" and x.dtype == dtypes.bfloat16 else x


def beside(parameter: Tensor, y: Tensor) -> Tensor:
    """What a layer adds to its product `y`, in the dtype that the precision has given to `y`: a
    float32 parameter as it is would make the sum float32."""
    return operands(parameter, y)[0] if y.dtype == dtypes.bfloat16 else parameter
