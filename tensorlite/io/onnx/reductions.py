"""ONNX operators that sum: reductions, products of matrices, softmax and the losses."""

from __future__ import annotations

import math
import string
from typing import Any

import numpy as np

from ... import dtypes
from ...core import Tensor
from ...ops import elementwise as ew
from ...ops import reduce as red
from ...ops import shape as sh
from ...ops import softmax as soft
from ...ops.creation import asarray, cast, full
from ...ops.index import one_hot, take, take_along_axis
from ...ops.linalg import matmul
from ...ops.sorting import argsort
from .registry import Node, operator, scalar

# ---- reductions ----------------------------------------------------------------------------------


def _sum(x: Tensor, **options: Any) -> Tensor:
    return red.sum(x, dtype=x.dtype, **options)


def _extremum(function: Any, sign: int) -> Any:
    """max or min, also of nothing (its neutral element) and of booleans."""

    def reduce(x: Tensor, *, axis: tuple[int, ...], keepdims: bool) -> Tensor:
        if x.dtype == dtypes.bool_:
            return (red.all if sign > 0 else red.any)(x, axis=axis, keepdims=keepdims)
        if red.count(x, axis):
            return function(x, axis=axis, keepdims=keepdims)
        is_float = dtypes.is_float(x.dtype)
        info = None if is_float else np.iinfo(x.dtype)
        neutral = sign * math.inf if info is None else int(info.max if sign > 0 else info.min)
        shape = red.sum(x, axis=axis, keepdims=keepdims).shape
        return full(shape, neutral, dtype=x.dtype, device=x.device)

    return reduce


_REDUCTIONS: dict[str, Any] = {
    "ReduceL1": lambda x, **over: _sum(ew.abs(x), **over),
    "ReduceL2": lambda x, **over: cast(ew.sqrt(_sum(x * x, **over)), x.dtype),
    "ReduceLogSum": lambda x, **over: cast(ew.log(_sum(x, **over)), x.dtype),
    "ReduceLogSumExp": lambda x, **over: _log_sum_exp(x, **over),
    "ReduceMax": _extremum(red.max, -1),
    "ReduceMean": lambda x, **over: cast(red.mean(x, **over), x.dtype),
    "ReduceMin": _extremum(red.min, 1),
    "ReduceProd": lambda x, **over: red.prod(x, dtype=x.dtype, **over),
    "ReduceSum": _sum,
    "ReduceSumSquare": lambda x, **over: _sum(x * x, **over),
}


def _log_sum_exp(x: Tensor, *, axis: tuple[int, ...], keepdims: bool) -> Tensor:
    if red.count(x, axis):
        return cast(red.logsumexp(x, axis=axis, keepdims=keepdims), x.dtype)
    return ew.log(_sum(x, axis=axis, keepdims=keepdims))


@operator(*_REDUCTIONS)
def _(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    over = node.integers("axes", axes)
    if not over and node.get("noop_with_empty_axes", 0):
        over = ()
    elif not over:
        over = tuple(range(x.ndim))
    over = sh.normalize_axes(str(node), over, x.ndim)
    return _REDUCTIONS[node.op](x, axis=over, keepdims=bool(node.get("keepdims", 1)))


@operator("ArgMax", "ArgMin")
def _(node: Node, x: Tensor) -> Tensor:
    axis, keepdims = node.get("axis", 0) % x.ndim, bool(node.get("keepdims", 1))
    find = red.argmax if node.op == "ArgMax" else red.argmin
    if not node.get("select_last_index", 0):
        return find(x, axis=axis, keepdims=keepdims)
    return x.shape[axis] - 1 - find(sh.flip(x, axis=axis), axis=axis, keepdims=keepdims)


# ---- products ------------------------------------------------------------------------------------


@operator("MatMul")
def _(node: Node, x: Tensor, y: Tensor) -> Tensor:
    return matmul(x, y)


@operator("Gemm")
def _(node: Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    a = sh.matrix_transpose(a) if node.get("transA", 0) else a
    b = sh.matrix_transpose(b) if node.get("transB", 0) else b
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    y = matmul(a, b)
    y = y if alpha == 1 else cast(y * alpha, y.dtype)
    if c is None:
        return y
    return y + (c if beta == 1 else cast(c * beta, c.dtype))


@operator("Einsum")
def _(node: Node, *inputs: Tensor) -> Tensor:
    terms, out = _einsum_terms(node, inputs)
    sizes: dict[str, int] = {}
    for x, term in zip(inputs, terms, strict=True):
        for letter, size in zip(term, x.shape, strict=True):
            sizes[letter] = size if sizes.get(letter, 1) == 1 else sizes[letter]
    # All operands over all letters; the sums come last. Simple, and right for any equation.
    letters = sorted(sizes)
    product: Any = 1
    for x, term in zip(inputs, terms, strict=True):
        x, term = _diagonal(x, term)
        order = sorted(range(len(term)), key=lambda i: term[i])
        x = sh.permute_dims(x, tuple(order))
        there = iter(x.shape)
        product = product * sh.reshape(x, tuple(next(there) if a in term else 1 for a in letters))
    summed = tuple(i for i, letter in enumerate(letters) if letter not in out)
    total = _sum(product, axis=summed)
    left = [letter for letter in letters if letter in out]
    return sh.permute_dims(total, tuple(left.index(letter) for letter in out))


def _einsum_terms(node: Node, inputs: tuple[Tensor, ...]) -> tuple[list[str], str]:
    """The letters of each operand and of the result, with the dots spelt out in capitals."""
    equation = node.get("equation").replace(" ", "")
    left, arrow, out = equation.partition("->")
    terms = left.split(",")
    ranks = [
        x.ndim - len(term.replace("...", "")) if "..." in term else 0
        for x, term in zip(inputs, terms, strict=True)
    ]
    free = [letter for letter in string.ascii_uppercase if letter not in equation]
    dots = free[: max(ranks, default=0)]
    spelt = [
        term.replace("...", "".join(dots[len(dots) - rank :]))
        for term, rank in zip(terms, ranks, strict=True)
    ]
    if not arrow:
        every = "".join(spelt)
        out = "..." + "".join(
            sorted(a for a in set(every) if every.count(a) == 1 and a not in dots)
        )
    return spelt, out.replace("...", "".join(dots))


def _diagonal(x: Tensor, term: str) -> tuple[Tensor, str]:
    """`x` with each letter once: of one that is repeated, the diagonal."""
    for letter in set(term):
        while term.count(letter) > 1:
            first, second = term.index(letter), term.rindex(letter)
            rest = [i for i in range(x.ndim) if i not in (first, second)]
            x = sh.permute_dims(x, (first, second, *rest))
            places = asarray(np.arange(x.shape[0]))
            x = x[places, places]
            term = letter + "".join(term[i] for i in rest)
    return x, term


# ---- softmax and losses --------------------------------------------------------------------------


@operator("Softmax", "LogSoftmax", "Hardmax")
def _(node: Node, x: Tensor) -> Tensor:
    function = {"Softmax": soft.softmax, "LogSoftmax": soft.log_softmax, "Hardmax": _hardmax}
    if node.version >= 13:
        return function[node.op](x, node.get("axis", -1))
    axis = node.get("axis", 1)  # everything from this axis on is one
    rows = math.prod(x.shape[: axis % x.ndim if axis < 0 else axis])
    return sh.reshape(function[node.op](sh.reshape(x, (rows, x.size // rows)), -1), x.shape)


def _hardmax(x: Tensor, axis: int) -> Tensor:
    best = red.argmax(x, axis=axis)
    return one_hot(best, x.shape[axis], dtype=x.dtype, axis=axis % x.ndim)


@operator("SoftmaxCrossEntropyLoss")
def _(node: Node, scores: Tensor, labels: Tensor, weights: Tensor | None = None) -> Any:
    log_prob = soft.log_softmax(scores, 1)
    loss = _negative_log_likelihood(node, log_prob, labels, weights)
    return loss if node.count_outputs() < 2 else (loss, log_prob)


@operator("NegativeLogLikelihoodLoss")
def _(node: Node, log_prob: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    return _negative_log_likelihood(node, log_prob, labels, weights)


def _negative_log_likelihood(
    node: Node, log_prob: Tensor, labels: Tensor, weights: Tensor | None
) -> Tensor:
    """log_prob (N, C, ...), labels (N, ...): -log_prob of each label, weighted and reduced."""
    ignored = (
        ew.equal(labels, node.get("ignore_index")) if "ignore_index" in node.attributes else None
    )
    ids = cast(labels, dtypes.int64)
    ids = ids if ignored is None else ew.where(ignored, 0, ids)
    chosen = take_along_axis(log_prob, sh.expand_dims(ids, axis=1), axis=1)
    loss = -sh.squeeze(chosen, axis=1)
    weight = None if weights is None else take(weights, ids, axis=0)
    if ignored is not None:
        unit = full(loss.shape, 1, dtype=loss.dtype) if weight is None else weight
        weight = ew.where(ignored, scalar(0, loss), unit)
    if weight is not None:
        loss = loss * weight
    reduction = node.get("reduction", "mean")
    if reduction == "none":
        return loss
    if reduction == "sum":
        return red.sum(loss)
    return red.mean(loss) if weight is None else red.sum(loss) / red.sum(weight)


# ---- order ---------------------------------------------------------------------------------------


@operator("TopK")
def _(node: Node, x: Tensor, k: Tensor | None = None) -> tuple[Tensor, Tensor]:
    axis = node.get("axis", -1) % x.ndim
    count = (node.integers("k", k) or (0,))[0]
    order = argsort(x, axis=axis, descending=bool(node.get("largest", 1)))
    places = order[tuple(slice(count) if i == axis else slice(None) for i in range(x.ndim))]
    return take_along_axis(x, places, axis=axis), places
