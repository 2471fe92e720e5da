"""The functions of neural networks: `nn.conv`, `nn.relu`, `nn.softmax_cross_entropy` and the rest.

Those that are primitives or composites live with their rules in `tensorlite.ops`; this file gathers
them, and adds those that are plain functions of others. Images are channels last: (N, *spatial, C).
"""

from __future__ import annotations

from typing import Any

from .. import dtypes, random
from ..core import Tensor
from ..ops.activation import elu, gelu, leaky_relu, relu, relu6, silu
from ..ops.conv import conv, conv_transpose
from ..ops.creation import asarray
from ..ops.elementwise import sigmoid, softplus, square, tanh, where
from ..ops.index import one_hot, take
from ..ops.norm import batch_norm, batch_norm_train, layer_norm, local_response_norm
from ..ops.pool import avg_pool, max_pool
from ..ops.reduce import sum
from ..ops.softmax import attention, check_range, log_softmax, softmax, softmax_cross_entropy

__all__ = [
    "attention",
    "avg_pool",
    "batch_norm",
    "batch_norm_train",
    "conv",
    "conv_transpose",
    "dropout",
    "elu",
    "embedding",
    "gelu",
    "l2_loss",
    "layer_norm",
    "leaky_relu",
    "local_response_norm",
    "log_softmax",
    "max_pool",
    "one_hot",
    "relu",
    "relu6",
    "sigmoid",
    "silu",
    "softmax",
    "softmax_cross_entropy",
    "softplus",
    "tanh",
]


def dropout(x: Tensor, rate: float, key: Tensor) -> Tensor:
    """`x` with each element set to zero with probability `rate`, the others divided by 1 - rate.

    Args:
        x: floating-point.
        rate: a Python number in [0, 1); 0 gives `x` itself.
        key: a key of `tl.random`; the same key drops the same elements.

    Raises:
        ValueError: `rate` is outside [0, 1).
        TypeError: `x` is not floating-point, or `rate` is no number.

    Example:
        >>> x = tl.ones((2, 1000))
        >>> y = nn.dropout(x, 0.2, random.key(0))
        >>> tl.unique_values(y)
        Tensor([0.  , 1.25], dtype=float32, device=cpu)
    """
    x = asarray(x)
    if x.dtype not in dtypes.FLOATS:
        raise TypeError(
            f"dropout: x is floating-point, got {x.aval}; convert with astype(tl.float32)"
        )
    if not isinstance(rate, int | float):
        raise TypeError(f"dropout: rate is a Python number in [0, 1), got {rate!r}")
    if not 0 <= rate < 1:
        raise ValueError(
            f"dropout: rate is the probability of dropping an element, in [0, 1), got {rate!r}"
        )
    if rate == 0:
        return x
    kept = random.bernoulli(key, 1 - rate, x.shape)
    return where(kept, x / (1 - rate), 0.0)


def embedding(table: Tensor, ids: Any) -> Tensor:
    """The rows of `table` at `ids`.

    Args:
        table: (rows, *features).
        ids: row numbers, integers of any shape.

    Returns:
        (*ids.shape, *features) of the dtype of `table`.

    Raises:
        ValueError: an id is out of range. Inside jit and vmap ids cannot be looked at: there,
            negative ones count from the end, and others that are out of range raise IndexError on
            the CPU.
        TypeError: `ids` are not integers.

    Example:
        >>> table = tl.asarray([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]])
        >>> print(nn.embedding(table, [2, 0]))
        [[2. 2.]
         [0. 0.]]
    """
    table, ids = asarray(table), asarray(ids)
    if ids.dtype not in dtypes.INTEGERS:
        raise TypeError(
            f"embedding: ids are integer row numbers, got {ids.aval}; convert with astype(tl.int32)"
        )
    if table.ndim == 0:
        raise ValueError(f"embedding: the table is (rows, *features), got {table.aval}")
    check_range("embedding", "id", ids, table.shape[0], "rows")
    return take(table, ids, axis=0)


def l2_loss(x: Tensor) -> Tensor:
    """sum(x ** 2) / 2, a scalar: as a penalty on weights its gradient is the weights themselves."""
    return sum(square(asarray(x))) / 2
