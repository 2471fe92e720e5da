"""Optimizers, and the parts that are chained with them: weight decay and clipping.

A learning rate is a number or a schedule (see `schedules`). Parameters of lower precision than
float32 are trained in float32.
"""

from __future__ import annotations

import math
from typing import Any

from ..core import Tensor
from ..ops.creation import asarray, cast
from ..ops.elementwise import clip, expm1, sqrt, square, where
from .base import (
    Optimizer,
    Parameters,
    Schedule,
    entry,
    global_norm,
    new_count,
    rate_at,
    selected,
    wide,
    zeros_by_name,
)

Rate = float | Schedule


def sgd(learning_rate: Rate, *, momentum: float = 0.0, nesterov: bool = False) -> Optimizer:
    """Stochastic gradient descent: p -= learning_rate * v, where v = momentum * v + g.

    With `nesterov`, p -= learning_rate * (g + momentum * v) for the new v (Sutskever et al., ICML
    2013, in the form that PyTorch's SGD and TensorFlow's MomentumOptimizer use).

    Raises:
        ValueError: momentum outside [0, 1), or nesterov without momentum.

    Example:
        >>> opt = optim.sgd(0.1, momentum=0.9)
        >>> params = {"w": tl.asarray([1.0, 2.0])}
        >>> state = opt.init(params)
        >>> updates, state = opt.update({"w": tl.asarray([10.0, 0.0])}, state, params)
        >>> print(optim.apply_updates(params, updates)["w"])
        [0. 2.]
    """
    _check_rate("sgd", learning_rate)
    _check_fraction("sgd", momentum=momentum)
    if nesterov and not momentum:
        raise ValueError("optim.sgd: nesterov=True needs momentum > 0")

    def start(parameters: Parameters) -> Any:
        state: dict[str, Any] = {"count": new_count()}
        return {**state, "momentum": zeros_by_name(parameters)} if momentum else state

    def step(gradients: Parameters, state: Any, parameters: Parameters) -> tuple[Parameters, Any]:
        count = entry(state, "count")
        rate = rate_at(learning_rate, count, parameters)
        new: dict[str, Any] = {"count": count + 1}
        directions = gradients
        if momentum:
            old = entry(state, "momentum", parameters)
            velocity = {name: momentum * old[name] + g for name, g in gradients.items()}
            new["momentum"] = directions = velocity
            if nesterov:
                directions = {name: g + momentum * velocity[name] for name, g in gradients.items()}
        return {name: -rate * d for name, d in directions.items()}, new

    return Optimizer(start, step)


def adam(learning_rate: Rate, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Optimizer:
    """Adam (Kingma and Ba, ICLR 2015, Algorithm 1), with bias-corrected moments m and v: p -=
    learning_rate * m / (sqrt(v) + eps).

    Example:
        >>> opt = optim.adam(0.5)
        >>> w = tl.asarray([2.0, -2.0])
        >>> state = opt.init(w)
        >>> for _ in range(100):
        ...     updates, state = opt.update(tl.grad(lambda w: tl.sum(w * w))(w), state, w)
        ...     w = optim.apply_updates(w, updates)
        >>> bool(tl.all(tl.abs(w) < 0.01))
        True
    """
    return adamw(learning_rate, b1, b2, eps, weight_decay=0.0)


def adamw(
    learning_rate: Rate,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    *,
    weight_decay: float = 0.01,
    mask: Any = None,
) -> Optimizer:
    """Adam with decoupled weight decay (Loshchilov and Hutter, ICLR 2019): as `adam`, and p -=
    learning_rate * weight_decay * p.

    Args:
        mask: which parameters decay: a function of the dotted name, or a dict name -> bool; all by
            default.
    """
    _check_rate("adam", learning_rate)
    _check_fraction("adam", b1=b1, b2=b2)

    def start(parameters: Parameters) -> Any:
        return {
            "count": new_count(),
            "m": zeros_by_name(parameters),
            "v": zeros_by_name(parameters),
        }

    def step(gradients: Parameters, state: Any, parameters: Parameters) -> tuple[Parameters, Any]:
        count = entry(state, "count")
        rate = rate_at(learning_rate, count, parameters)
        old_m, old_v = entry(state, "m", parameters), entry(state, "v", parameters)
        decays = selected("optim.adamw", mask, parameters) if weight_decay else set()
        count = count + 1
        m = {name: b1 * old_m[name] + (1 - b1) * g for name, g in gradients.items()}
        v = {name: b2 * old_v[name] + (1 - b2) * square(g) for name, g in gradients.items()}
        # As factors: processors multiply much faster than they divide.
        unbias = {
            d: (1 / _bias_correction(b1, count, d), 1 / _bias_correction(b2, count, d))
            for d in {wide(p.dtype) for p in parameters.values()}
        }
        updates = {}
        for name, p in parameters.items():
            unbias_m, unbias_v = unbias[wide(p.dtype)]
            direction = m[name] * unbias_m / (sqrt(v[name] * unbias_v) + eps)
            if name in decays:
                direction = direction + weight_decay * cast(p, wide(p.dtype))
            updates[name] = -rate * direction
        return updates, {"count": count, "m": m, "v": v}

    return Optimizer(start, step)


def rmsprop(learning_rate: Rate, decay: float = 0.9, eps: float = 1e-8) -> Optimizer:
    """RMSProp (Tieleman and Hinton, 2012): v = decay * v + (1 - decay) * g ** 2, p -= learning_rate
    * g / (sqrt(v) + eps).
    """
    _check_rate("rmsprop", learning_rate)
    _check_fraction("rmsprop", decay=decay)

    def start(parameters: Parameters) -> Any:
        return {"count": new_count(), "v": zeros_by_name(parameters)}

    def step(gradients: Parameters, state: Any, parameters: Parameters) -> tuple[Parameters, Any]:
        count, old = entry(state, "count"), entry(state, "v", parameters)
        rate = rate_at(learning_rate, count, parameters)
        v = {name: decay * old[name] + (1 - decay) * square(g) for name, g in gradients.items()}
        updates = {name: -rate * g / (sqrt(v[name]) + eps) for name, g in gradients.items()}
        return updates, {"count": count + 1, "v": v}

    return Optimizer(start, step)


def weight_decay(rate: Rate, mask: Any = None) -> Optimizer:
    """Decoupled weight decay, p -= rate * p, to be chained after an optimizer: `chain(sgd(0.1),
    weight_decay(1e-4))`.

    The learning rate does not enter. `mask` is as for `adamw`.
    """

    def start(parameters: Parameters) -> Any:
        selected("optim.weight_decay", mask, parameters)
        return {"count": new_count()}

    def step(updates: Parameters, state: Any, parameters: Parameters) -> tuple[Parameters, Any]:
        count = entry(state, "count")
        factor = rate_at(rate, count, parameters)
        decays = selected("optim.weight_decay", mask, parameters)
        shrunk = {n: u - factor * parameters[n] if n in decays else u for n, u in updates.items()}
        return shrunk, {"count": count + 1}

    return Optimizer(start, step)


def add_l2(rate: float, mask: Any = None) -> Optimizer:
    """The gradient of rate * sum(p ** 2) / 2 added to the gradients, to be chained before an
    optimizer. `mask` is as for `adamw`.
    """

    def start(parameters: Parameters) -> Any:
        selected("optim.add_l2", mask, parameters)
        return {}

    def step(gradients: Parameters, state: Any, parameters: Parameters) -> tuple[Parameters, Any]:
        decays = selected("optim.add_l2", mask, parameters)
        return {
            n: g + rate * parameters[n] if n in decays else g for n, g in gradients.items()
        }, state

    return Optimizer(start, step)


def clip_by_global_norm(max_norm: float) -> Optimizer:
    """All gradients scaled by one factor so that their global norm is at most `max_norm` (Pascanu
    et al., ICML 2013).

    Example:
        >>> opt = optim.clip_by_global_norm(1.0)
        >>> gradients = {"w": tl.asarray([3.0, 0.0]), "b": tl.asarray([4.0])}
        >>> clipped, _ = opt.update(gradients, opt.init(gradients), gradients)
        >>> print(optim.global_norm(gradients), clipped["w"])
        5.0 [0.6 0. ]
    """
    if not max_norm > 0:
        raise ValueError(f"optim.clip_by_global_norm: max_norm must be positive, got {max_norm}")

    def step(gradients: Parameters, state: Any, parameters: Parameters) -> tuple[Parameters, Any]:
        norm = global_norm(gradients)
        factor = where(norm > max_norm, max_norm / where(norm > max_norm, norm, 1.0), 1.0)
        return {name: g * cast(factor, g.dtype) for name, g in gradients.items()}, state

    return Optimizer(lambda parameters: {}, step)


def clip_by_value(limit: float) -> Optimizer:
    """Each element of the gradients limited to [-limit, limit]."""
    if not limit > 0:
        raise ValueError(f"optim.clip_by_value: limit must be positive, got {limit}")

    def step(gradients: Parameters, state: Any, parameters: Parameters) -> tuple[Parameters, Any]:
        return {name: clip(g, -limit, limit) for name, g in gradients.items()}, state

    return Optimizer(lambda parameters: {}, step)


def _bias_correction(decay: float, count: Tensor, dtype: Any) -> Tensor:
    """1 - decay ** count, without cancellation where `decay` is close to 1."""
    if decay == 0:
        return asarray(1.0, dtype=dtype)
    return -expm1(cast(count, dtype) * math.log(decay))


def _check_rate(optimizer: str, learning_rate: Any) -> None:
    is_number = isinstance(learning_rate, int | float) and not isinstance(learning_rate, bool)
    if not callable(learning_rate) and not (is_number and learning_rate >= 0):
        raise TypeError(
            f"optim.{optimizer}: learning_rate is a number of at least 0 or a schedule (a function "
            f"of the step), got {learning_rate!r}"
        )


def _check_fraction(optimizer: str, **values: float) -> None:
    for name, value in values.items():
        if not 0 <= value < 1:
            raise ValueError(f"optim.{optimizer}: {name} must be in [0, 1), got {value}")
