"""Running products. Their derivative is that of the body, a tree of multiplications, so that zeros
do no harm; running sums, which are linear, are with the reductions."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import dtypes
from ..composite import composite
from ..core import Tensor, bind
from .reduce import numeric, one_axis, shifted_products, with_initial


@composite
def cumulative_product(x: Tensor, *, axis: int) -> Tensor:
    """Running products along `axis`."""
    return shifted_products(x, axis) * x


@cumulative_product.numpy
def _(x: np.ndarray, *, axis: int) -> np.ndarray:
    narrow = x.dtype in (dtypes.float16, dtypes.bfloat16)  # multiply in float32
    return np.cumprod(x, axis=axis, dtype=np.float32 if narrow else x.dtype).astype(
        x.dtype, copy=False
    )


def cumulative_prod(
    x: Tensor, /, *, axis: int | None = None, dtype: Any = None, include_initial: bool = False
) -> Tensor:
    """Running products along `axis` (may be left out in one dimension), with a leading one if
    `include_initial`."""
    x = numeric(x, dtype)
    where_ = one_axis("cumulative_prod", axis, x)
    x = with_initial(x, where_, 1) if include_initial else x
    return bind(cumulative_product, x, axis=where_)
