"""Second and third derivatives of a small CNN in float64, by every order of the transforms, against
finite differences."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tensorlite as tl
from tensorlite import nn, tree

rng = np.random.default_rng(7)


def normal(*shape: int) -> tl.Tensor:
    return tl.asarray(rng.normal(size=shape) / 2)


IMAGES, LABELS = normal(2, 6, 6, 2), tl.asarray([2, 0])
PARAMETERS = {
    "first": normal(3, 3, 2, 3),
    "norm": (normal(3) + 1, normal(3)),
    "second": normal(2, 2, 3, 4),
    "head": normal(4, 3),
}
DIRECTION = tree.map(lambda x: normal(*x.shape), PARAMETERS)
STEP = 1e-4


def loss(p: Any) -> tl.Tensor:
    x = nn.conv(IMAGES, p["first"])
    x = nn.gelu(nn.batch_norm_train(x, *p["norm"])[0])
    x = nn.local_response_norm(nn.max_pool(x, 2), 3, alpha=0.5)
    x = tl.tanh(nn.conv(x, p["second"], stride=2, padding="valid"))
    logits = tl.mean(x, axis=(1, 2)) @ p["head"]
    penalty = sum(nn.l2_loss(w) for w in tree.leaves(p))
    return tl.mean(nn.softmax_cross_entropy(logits, LABELS)) + 0.01 * penalty


# ---- the transforms ------------------------------------------------------------------------------

Function = Callable[[Any], Any]


def forward(f: Function) -> Function:
    """The derivative of a scalar function along the direction, in forward mode."""
    return lambda p: tl.jvp(f, (p,), (DIRECTION,))[1]


def reverse(f: Function) -> Function:
    """The derivative of a scalar function along the direction, in reverse mode."""
    return lambda p: sum(
        tl.sum(g * v)
        for g, v in zip(tree.leaves(tl.grad(f)(p)), tree.leaves(DIRECTION), strict=True)
    )


def batched(f: Function) -> Function:
    """`f` as the second example of a batch."""

    def of_batch(p: Any) -> Any:
        both = tree.map(lambda x: tl.stack([x + 1, x]), p)
        return tree.map(lambda y: y[1], tl.vmap(f)(both))

    return of_batch


def plain(f: Function) -> Function:
    return f


MODES = {"forward": forward, "reverse": reverse}
WRAPS = {"plain": plain, "jit": tl.jit, "vmap": batched, "checkpoint": tl.checkpoint}


def moved(step: float) -> Any:
    return tree.map(lambda x, v: x + step * v, PARAMETERS, DIRECTION)


def difference(f: Function) -> list[np.ndarray]:
    """The derivative of `f` along the direction by central differences, error of order STEP^4."""
    near, far = (
        [
            (a - b).numpy() / (2 * h)
            for a, b in zip(tree.leaves(f(moved(h))), tree.leaves(f(moved(-h))), strict=True)
        ]
        for h in (STEP, 2 * STEP)
    )
    return [(4 * a - b) / 3 for a, b in zip(near, far, strict=True)]


@functools.cache
def expected(order: int) -> list[np.ndarray]:
    """1: the slope; 2: the product of the Hessian with the direction; 3: the third derivative along
    the direction. Each from one order less."""
    lower = {1: loss, 2: tl.grad(loss), 3: reverse(reverse(loss))}[order]
    return difference(lower)


def check(result: Any, order: int) -> None:
    found = [leaf.numpy() for leaf in tree.leaves(result)]
    for a, b in zip(found, expected(order), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9)


# ---- the derivatives -----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_slopes(mode: str) -> None:
    check(MODES[mode](loss)(PARAMETERS), 1)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("wraps", list(itertools.permutations(WRAPS, 3)), ids="-".join)
def test_products_with_the_hessian(mode: str, wraps: tuple[str, ...]) -> None:
    inner, middle, outer = (WRAPS[name] for name in wraps)
    slope = middle(MODES[mode](inner(loss)))
    check(outer(tl.grad(slope))(PARAMETERS), 2)


@pytest.mark.parametrize("wrap", WRAPS)
def test_products_with_the_hessian_by_other_transforms(wrap: str) -> None:
    gradient = WRAPS[wrap](tl.grad(WRAPS[wrap](loss)))
    check(forward(gradient)(PARAMETERS), 2)
    check(tl.linearize(gradient, PARAMETERS)[1](DIRECTION), 2)
    check(tl.vjp(gradient, PARAMETERS)[1](DIRECTION)[0], 2)  # the Hessian is symmetric


@pytest.mark.parametrize("modes", list(itertools.product(MODES, repeat=3)), ids="-".join)
@pytest.mark.parametrize("wrap", [plain, tl.jit], ids=["eager", "jit"])
def test_third_derivatives(modes: tuple[str, ...], wrap: Any) -> None:
    f: Function = loss
    for mode in modes:
        f = MODES[mode](f)
    check(wrap(f)(PARAMETERS), 3)


@pytest.mark.parametrize("wraps", list(itertools.permutations(WRAPS)), ids="-".join)
def test_third_derivatives_by_every_order_of_transforms(wraps: tuple[str, ...]) -> None:
    f: Function = WRAPS[wraps[0]](loss)
    for mode, name in zip(("reverse", "forward", "reverse"), wraps[1:], strict=True):
        f = WRAPS[name](MODES[mode](f))
    check(f(PARAMETERS), 3)
