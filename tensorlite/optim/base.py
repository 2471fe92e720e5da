"""What an optimizer is, how several are chained, and how models are seen by name.

An optimizer works on dicts of tensors by dotted parameter name; `init`, `update` and
`apply_updates` translate between them and a model, which may be a module or any pytree of
floating-point tensors. Buffers are not seen at all. So states are dicts by parameter name as well,
and can be saved, read and compared.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from .. import dtypes, tree
from ..core import Tensor
from ..ops.collective import all_reduce
from ..ops.creation import asarray, cast, zeros, zeros_like
from ..ops.elementwise import sqrt, square
from ..ops.reduce import sum as sum_

Parameters = dict[str, Tensor]
Schedule = Callable[[Any], Any]
_BARE = "value"  # the name of a model that is one tensor


class Optimizer(NamedTuple):
    """A rule that turns gradients into updates. Make one with `sgd`, `adam`, ..., or from two
    functions of your own.

    Both functions work on dicts of tensors by parameter name. Gradients come as float32 for
    parameters of lower precision. An update is what `apply_updates` adds to the parameter, so it
    points downhill.
    """

    start: Callable[[Parameters], Any]  # parameters -> state, a pytree of tensors
    step: Callable[
        [Parameters, Any, Parameters], tuple[Parameters, Any]
    ]  # gradients, state, parameters -> updates, state

    def init(self, model: Any) -> Any:
        """The state before the first update: a pytree of tensors.

        Raises:
            TypeError: a parameter is not floating-point.
        """
        return self.start(named_parameters("init", model))

    def update(self, grads: Any, state: Any, model: Any) -> tuple[Any, Any]:
        """The updates for `model` and the new state.

        Args:
            grads: gradients at `model`, as `tl.grad` gives them.
            state: from `init` or the previous `update`.

        Returns:
            `(updates, state)`; `updates` has the structure of `model`, with zeros for buffers.

        Raises:
            ValueError: names or shapes of `grads`, `state` and `model` differ; the message lists
                them.
        """
        parameters = named_parameters("update", model)
        gradients = named_parameters("update", grads)
        check_agreement("the gradient", gradients, "the model", parameters)
        gradients = {name: cast(g, wide(parameters[name].dtype)) for name, g in gradients.items()}
        updates, state = self.step(gradients, state, parameters)
        return rebuild(model, updates, zeros_like), state


def chain(*optimizers: Optimizer) -> Optimizer:
    """One optimizer that applies several in turn, each to the updates of the one before: clipping
    first, then the rule itself.

    Raises:
        TypeError: an argument is no optimizer.

    Example:
        >>> rate = optim.cosine_decay(0.1, 1000)
        >>> opt = optim.chain(optim.clip_by_global_norm(1.0), optim.sgd(rate, momentum=0.9))
        >>> params = {"w": tl.asarray([0.0])}
        >>> updates, state = opt.update({"w": tl.asarray([50.0])}, opt.init(params), params)
        >>> print(updates["w"])
        [-0.1]
    """
    for position, optimizer in enumerate(optimizers):
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"optim.chain: argument {position} is no optimizer but a "
                f"{type(optimizer).__name__}; write chain(first, second), without a list"
            )

    def start(parameters: Parameters) -> Any:
        return tuple(optimizer.start(parameters) for optimizer in optimizers)

    def step(updates: Parameters, state: Any, parameters: Parameters) -> tuple[Parameters, Any]:
        if not isinstance(state, tuple | list) or len(state) != len(optimizers):
            size = f" of {len(state)}" if hasattr(state, "__len__") else ""
            raise ValueError(
                f"optim.chain: the state is a tuple with one entry for each of {len(optimizers)} "
                f"optimizers, got a {type(state).__name__}{size}"
            )
        new = []
        for optimizer, part in zip(optimizers, state, strict=True):
            updates, part = optimizer.step(updates, part, parameters)
            new.append(part)
        return updates, tuple(new)

    return Optimizer(start, step)


def apply_updates(model: Any, updates: Any) -> Any:
    """`model` with `updates` added to its parameters; dtypes stay as they are, and so do buffers.

    Raises:
        ValueError: names or shapes of the two differ.
    """
    parameters = named_parameters("apply_updates", model)
    added = named_parameters("apply_updates", updates)
    check_agreement("updates", added, "the model", parameters)
    return rebuild(
        model,
        {name: cast(p + added[name], p.dtype) for name, p in parameters.items()},
        lambda leaf: leaf,
    )


_sharded: contextvars.ContextVar[bool] = contextvars.ContextVar("sharded", default=False)


@contextlib.contextmanager
def sharded() -> Iterator[None]:
    """Within the block, gradients and parameters are this rank's pieces of them, and those of all
    ranks together are all: `global_norm` is that of all."""
    token = _sharded.set(True)
    try:
        yield
    finally:
        _sharded.reset(token)


def global_norm(values: Any) -> Tensor:
    """The square root of the sum of squares of all floating-point leaves: a tensor of shape ()."""
    leaves = [asarray(leaf) for leaf in tree.leaves(values)]
    total: Any = zeros(())
    for leaf in leaves:
        if dtypes.is_float(leaf.dtype):
            total = total + sum_(square(cast(leaf, wide(leaf.dtype))))
    return sqrt(all_reduce(total) if _sharded.get() else total)


# ---- for optimizers ------------------------------------------------------------------------------


def wide(dtype: np.dtype) -> np.dtype:
    """The dtype in which parameters of `dtype` are computed: float32, or float64 for float64."""
    return dtypes.promote(dtype, dtypes.float32)


def zeros_by_name(parameters: Parameters) -> Parameters:
    """Zeros for each parameter, in float32 at least."""
    return {name: zeros_like(p, dtype=wide(p.dtype)) for name, p in parameters.items()}


def new_count() -> Tensor:
    """The number of updates made: int64 of shape (), zero."""
    return zeros((), dtype=dtypes.int64)


def rate_at(rate: float | Schedule, count: Tensor, parameters: Parameters) -> Any:
    """A rate after `count` updates: the number itself, or what the schedule says, which gets a
    float64 count in float64 training.
    """
    if not callable(rate):
        return rate
    in_float64 = any(p.dtype == dtypes.float64 for p in parameters.values())
    value = asarray(rate(cast(count, dtypes.float64) if in_float64 else count))
    if value.shape or not dtypes.is_float(value.dtype):
        raise TypeError(
            f"optim: a schedule returns a float or a float tensor of shape (), got {value.aval}"
        )
    return value


def entry(state: Any, name: str, parameters: Parameters | None = None) -> Any:
    """`state[name]`; checked against the parameters if it is kept by parameter name.

    Raises:
        ValueError: the state belongs to another optimizer or to another model.
    """
    if not isinstance(state, Mapping) or name not in state:
        found = sorted(state) if isinstance(state, Mapping) else type(state).__name__
        raise ValueError(
            f"optim: the state has no {name!r} (it has {found}), so it belongs to another "
            "optimizer; use the one whose init made it"
        )
    if parameters is not None:
        check_agreement(f"the state's {name}", state[name], "the model", parameters)
    return state[name]


def selected(what: str, mask: Any, parameters: Parameters) -> set[str]:
    """The names of the parameters that `mask` picks: a function of the name, a dict name -> bool,
    or None for all.

    Raises:
        ValueError: a dict that does not name exactly the parameters.
    """
    if mask is None:
        return set(parameters)
    if callable(mask):
        return {name for name in parameters if mask(name)}
    if set(mask) != set(parameters):
        missing, unknown = sorted(set(parameters) - set(mask)), sorted(set(mask) - set(parameters))
        raise ValueError(
            f"{what}: the mask names every parameter once; missing: {missing}, unknown: {unknown}"
        )
    return {name for name in parameters if mask[name]}


def named_parameters(what: str, model: Any) -> Parameters:
    """The parameters of a model by dotted name, buffers left out."""
    leaves, treedef = tree.flatten(model)
    named = {}
    for name, leaf, is_parameter in zip(
        tree.paths(model), leaves, tree.mask_of_structure(treedef), strict=True
    ):
        if not is_parameter:
            continue
        tensor = asarray(leaf)
        if not dtypes.is_float(tensor.dtype):
            raise TypeError(
                f"optim.{what}: parameter {name!r} is {tensor.aval}, but only floating-point "
                "tensors are trained; mark other state as nn.Buffer, or leave it out"
            )
        named[name or _BARE] = tensor
    return named


def rebuild(model: Any, values: Parameters, of_buffer: Callable[[Any], Any]) -> Any:
    """A tree of the structure of `model` with `values` for parameters and `of_buffer(leaf)` for
    buffers.
    """
    leaves, treedef = tree.flatten(model)
    mask = tree.mask_of_structure(treedef)
    return tree.unflatten(
        treedef,
        [
            values[name or _BARE] if is_parameter else of_buffer(asarray(leaf))
            for name, leaf, is_parameter in zip(tree.paths(model), leaves, mask, strict=True)
        ],
    )


def check_agreement(what: str, values: Parameters, other: str, parameters: Parameters) -> None:
    """Raise ValueError unless both have the same names and shapes."""
    if values.keys() == parameters.keys() and all(
        values[n].shape == p.shape for n, p in parameters.items()
    ):
        return
    lines = [f"{n}: {what} has none" for n in parameters if n not in values]
    lines += [f"{n}: {other} has none" for n in values if n not in parameters]
    lines += [
        f"{n}: {what} has shape {values[n].shape}, {other} {p.shape}"
        for n, p in parameters.items()
        if n in values and values[n].shape != p.shape
    ]
    shown = "\n  ".join(lines[:20]) + (f"\n  and {len(lines) - 20} more" if len(lines) > 20 else "")
    raise ValueError(f"optim: {what} and {other} do not agree:\n  {shown}")
