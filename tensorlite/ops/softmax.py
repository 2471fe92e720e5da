"""Softmax and what is made of it: log-softmax, cross-entropy, attention.

Composites whose derivatives are given where they are shorter than that of the body: that of the
    cross-entropy is softmax - one-hot.
Exponentials and sums of float16 and bfloat16 are computed in float32. Under
`tl.precision("bf16")` the results of softmax, log-softmax and cross-entropy are float32, too.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import dtypes
from ..composite import composite
from ..core import Tensor, TracerError, bind
from ..precision import for_sums, operands
from .control import stop_gradient
from .creation import asarray, cast
from .elementwise import exp, log, logical_and, where
from .index import one_hot, take_along_axis
from .linalg import exact_matmul
from .norm import wide
from .reduce import max, sum
from .shape import broadcast_shapes, expand_dims, matrix_transpose, normalize_axes, squeeze


def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """exp(x) / sum(exp(x)) along `axis`, without overflow. `x` is floating-point; the result is
    like `x`.

    Raises:
        TypeError: `x` is not floating-point.
        ValueError: there is no such axis.

    Example:
        >>> print(nn.softmax(tl.asarray([0.0, 0.0, -tl.inf])))
        [0.5 0.5 0. ]
    """
    x = for_sums(_floating("softmax", x))
    return bind(softmax_p, x, axis=normalize_axes("softmax", axis, x.ndim)[0])


def log_softmax(x: Tensor, axis: int = -1) -> Tensor:
    """x - log(sum(exp(x))) along `axis`, without overflow. `x` is floating-point; the result is
    like `x`.

    Raises:
        TypeError: `x` is not floating-point.
        ValueError: there is no such axis.
    """
    x = for_sums(_floating("log_softmax", x))
    return bind(log_softmax_p, x, axis=normalize_axes("log_softmax", axis, x.ndim)[0])


def softmax_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The cross-entropy of softmax(logits) against the labels, in nats: one loss for each example.

    Args:
        logits: (..., classes), floating-point.
        labels: class numbers, integers of shape (...); or the probabilities of the classes,
            floating-point and shaped like `logits`.

    Returns:
        (...), of the dtype of `logits`.

    Raises:
        ValueError: shapes do not fit, or a class number is out of range. Inside jit and vmap, where
            numbers cannot be looked at, the loss and the gradient of an example with such a label
            are NaN instead.
        TypeError: a dtype does not fit.

    Example:
        >>> logits = tl.asarray([[100.0, 0.0, 0.0], [100.0, 0.0, 0.0]])
        >>> print(nn.softmax_cross_entropy(logits, tl.asarray([0, 2])))
        [  0. 100.]
    """
    op = "softmax_cross_entropy"
    logits, labels = for_sums(_floating(op, logits, "logits")), for_sums(asarray(labels))
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise ValueError(
            f"{op}: logits are (..., classes) with at least one class, got {logits.aval}"
        )
    if labels.dtype in dtypes.FLOATS:
        if labels.aval != logits.aval:
            raise ValueError(
                f"{op}: floating-point labels are probabilities of the classes, shaped like the "
                f"logits of {logits.aval}, got {labels.aval}; class numbers are integers: convert "
                "with astype(tl.int32)"
            )
        return -sum(labels * log_softmax(logits), axis=-1)
    if labels.dtype not in dtypes.INTEGERS:
        raise TypeError(
            f"{op}: labels are integer class numbers or probabilities, got {labels.aval}"
        )
    if labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"{op}: logits are {logits.aval}, so integer labels have shape {logits.shape[:-1]}, "
            f"got {labels.aval}"
        )
    check_range(op, "label", labels, logits.shape[-1], "classes")
    return bind(cross_entropy_p, logits, labels)


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    """softmax(q k^T / sqrt(d)) v: for each query the mean of the values, weighted by their keys.

    Args:
        q: queries (..., T, d), floating-point. Leading axes (batch, heads) broadcast against those
            of `k` and `v`.
        k: keys (..., S, d).
        v: values (..., S, e).
        mask: boolean, broadcasts to (..., T, S): True where the query may look at the key.
        causal: a query sees no key that comes later; the last query stands at the last key.

    Returns:
        (..., T, e) of the dtype of `q`. A query that may look at no key at all gives zeros.

    Raises:
        ValueError: shapes do not fit.
        TypeError: dtypes differ, are not floating-point, or the mask is not boolean.

    Example:
        >>> q, k, v = tl.ones((2, 5, 8)), tl.ones((2, 7, 8)), tl.ones((2, 7, 16))
        >>> nn.attention(q, k, v).shape
        (2, 5, 16)
        >>> causal = tl.tril(tl.ones((5, 5), dtype=tl.bool))
        >>> nn.attention(q, q, q, mask=causal).shape
        (2, 5, 8)
    """
    named = (("q", q), ("k", k), ("v", v))
    q, k, v = operands(*[_floating("attention", t, name) for name, t in named])
    shapes = f"q {q.aval}, k {k.aval}, v {v.aval}"
    if not q.dtype == k.dtype == v.dtype:
        raise TypeError(f"attention: dtypes differ: {shapes}; convert with astype")
    if min(q.ndim, k.ndim, v.ndim) < 2 or q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2]:
        raise ValueError(
            f"attention: expects q (..., T, d), k (..., S, d), v (..., S, e), got {shapes}"
        )
    lead = broadcast_shapes("attention", q.shape[:-2], k.shape[:-2], v.shape[:-2])
    if mask is None:
        return bind(_attention, q, k, v, causal=bool(causal))
    mask = asarray(mask)
    if mask.dtype != dtypes.bool_:
        raise TypeError(
            f"attention: the mask is boolean, True where a query may look, got {mask.aval}"
        )
    scores = (*lead, q.shape[-2], k.shape[-2])
    if broadcast_shapes("attention (mask against scores)", mask.shape, scores) != scores:
        raise ValueError(
            f"attention: the mask of {mask.aval} does not broadcast to the scores, {scores}"
        )
    return bind(_attention, q, k, v, mask, causal=bool(causal))


# ---- softmax -------------------------------------------------------------------------


@composite
def _softmax(x: Tensor, *, axis: int) -> Tensor:
    powers = exp(_shifted(x, axis))
    return cast(powers / sum(powers, axis=axis, keepdims=True), x.dtype)


@composite
def _log_softmax(x: Tensor, *, axis: int) -> Tensor:
    shifted = _shifted(x, axis)
    return cast(shifted - log(sum(exp(shifted), axis=axis, keepdims=True)), x.dtype)


softmax_p, log_softmax_p = _softmax, _log_softmax


def _shifted(x: Tensor, axis: int) -> Tensor:
    """`x` less its largest value along `axis`, so that no exponential overflows."""
    x = wide(x)
    return x - stop_gradient(max(x, axis=axis, keepdims=True))


@softmax_p.fwd
def _(needs: tuple[bool, ...], x: Tensor, *, axis: int) -> Any:
    y = bind(softmax_p, x, axis=axis)

    def pull(g: Tensor) -> tuple[Tensor]:
        weighted = wide(g) * wide(y)
        return (cast(weighted - wide(y) * sum(weighted, axis=axis, keepdims=True), x.dtype),)

    return y, pull


@log_softmax_p.fwd
def _(needs: tuple[bool, ...], x: Tensor, *, axis: int) -> Any:
    y = bind(log_softmax_p, x, axis=axis)

    def pull(g: Tensor) -> tuple[Tensor]:
        total = sum(wide(g), axis=axis, keepdims=True)
        return (cast(wide(g) - exp(wide(y)) * total, x.dtype),)

    return y, pull


# ---- cross-entropy -------------------------------------------------------------------


@composite
def _softmax_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    shifted = _shifted(logits, logits.ndim - 1)
    labels = cast(labels, dtypes.int64)
    valid = _in_range(labels, logits.shape[-1])
    chosen = take_along_axis(shifted, expand_dims(where(valid, labels, 0), axis=-1), axis=-1)
    loss = log(sum(exp(shifted), axis=-1)) - squeeze(chosen, axis=-1)
    return cast(where(valid, loss, math.nan), logits.dtype)


cross_entropy_p = _softmax_cross_entropy


@cross_entropy_p.fwd
def _(needs: tuple[bool, ...], logits: Tensor, labels: Tensor) -> Any:
    loss = bind(cross_entropy_p, logits, labels)
    classes = logits.shape[-1]
    surplus = softmax(wide(logits)) - one_hot(labels, classes, dtype=wide(logits).dtype)
    valid = _in_range(cast(labels, dtypes.int64), classes)

    def pull(g: Tensor) -> tuple[Tensor, None]:
        weight = wide(g) * where(valid, 1.0, math.nan).astype(surplus.dtype)
        return cast(surplus * expand_dims(weight, axis=-1), logits.dtype), None

    return loss, pull


def _in_range(labels: Tensor, classes: int) -> Tensor:
    return logical_and(labels >= 0, labels < classes)


# ---- attention -----------------------------------------------------------------------


@composite
def _attention(q: Tensor, k: Tensor, v: Tensor, *mask: Tensor, causal: bool) -> Tensor:
    dtype = q.dtype
    # bfloat16 has the range of float32, so that products may be stored in it; float16 has not.
    if q.dtype == dtypes.float16:
        q, k, v = wide(q), wide(k), wide(v)
    scores = wide(exact_matmul(q, matrix_transpose(k))) / math.sqrt(q.shape[-1])
    allowed = list(mask)
    if causal:
        queries, keys = scores.shape[-2:]
        not_later = np.tri(queries, keys, keys - queries, dtype=np.bool_)
        allowed.append(asarray(not_later, device=scores.device))
    # A finite stand-in for -inf, so that a query without keys gives zeros in the end and not NaN.
    lowest = float(np.finfo(scores.dtype).min)
    for each in allowed:
        scores = where(each, scores, lowest)
    weights = softmax(scores)
    for each in allowed:
        weights = where(each, weights, 0.0)
    return cast(exact_matmul(cast(weights, v.dtype), v), dtype)


# ---- checks --------------------------------------------------------------------------


def _floating(op: str, x: Any, name: str = "x") -> Tensor:
    x = asarray(x)
    if x.dtype not in dtypes.FLOATS:
        raise TypeError(
            f"{op}: {name} is floating-point, got {x.aval}; convert with astype(tl.float32)"
        )
    return x


def check_range(op: str, what: str, numbers: Tensor, count: int, kind: str) -> None:
    """Raise ValueError naming the first of `numbers` outside [0, count), unless they are traced."""
    try:
        values = numbers.concrete(op).numpy()
    except TracerError:
        return
    wrong = (values < 0) | (values >= count)
    if wrong.any():
        place = tuple(int(i) for i in np.argwhere(wrong)[0])
        where_ = f" at {place[0] if len(place) == 1 else place}" if place else ""
        raise ValueError(
            f"{op}: {what} {values[place]}{where_} is out of range for {count} {kind}, "
            f"which are numbered 0 to {count - 1}"
        )
