"""Derivatives made of the transforms: Jacobians, the Hessian, and linearization."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import dtypes, tree
from .autodiff import jvp, vjp
from .core import Tensor
from .ops.creation import asarray
from .ops.shape import reshape
from .vectorize import vmap


def jacrev(f: Callable[..., Any], argnums: int | Sequence[int] = 0, has_aux: bool = False) -> Any:
    """A function that gives the Jacobian of `f`, row by row in reverse mode.

    Args:
        f: returns a pytree of floating-point tensors (with `has_aux`, a pair of it and anything).
        argnums: the argument(s) to differentiate; pytrees of floating-point tensors.

    Returns:
        A function of the same arguments. For a result of shape `s` and an argument of shape `t` it
        gives a tensor of shape `s + t`: a tree like the result whose leaves are trees like the
        argument (tuples of them if `argnums` is a sequence). With `has_aux`, a pair of it and aux.
    """

    @functools.wraps(f)
    def jacobian(*args: Any, **kwargs: Any) -> Any:
        chosen, of_chosen = _function_of(f, argnums, args, kwargs, "jacrev")
        value, pull, *aux = vjp(of_chosen, *chosen, has_aux=has_aux)
        leaves, out_def = tree.flatten(value)
        _check_floats("jacrev", "result", leaves)
        rows = []
        for index, leaf in enumerate(leaves):
            basis = [
                _basis(x) if i == index else _nothing(x, leaf.size) for i, x in enumerate(leaves)
            ]
            pulled = vmap(lambda *cts: pull(tree.unflatten(out_def, cts)))(*basis)
            rows.append(tree.map(lambda g, s=leaf.shape: reshape(g, s + g.shape[1:]), pulled))
        picked = [row if not isinstance(argnums, int) else row[0] for row in rows]
        result = tree.unflatten(out_def, picked)
        return (result, *aux) if has_aux else result

    return jacobian


def jacfwd(f: Callable[..., Any], argnums: int | Sequence[int] = 0, has_aux: bool = False) -> Any:
    """A function that gives the Jacobian of `f`, column by column in forward mode. See `jacrev`."""

    @functools.wraps(f)
    def jacobian(*args: Any, **kwargs: Any) -> Any:
        chosen, of_chosen = _function_of(f, argnums, args, kwargs, "jacfwd")
        aux: list[Any] = []

        def values(*picked: Any) -> Any:
            out = of_chosen(*picked)
            if not has_aux:
                return out
            aux[:] = [tree.map(lambda x: x, out[1])]
            return out[0]

        leaves, treedef = tree.flatten(tree.map(asarray, chosen))
        _check_floats("jacfwd", "argument", leaves)
        columns = []
        for index, leaf in enumerate(leaves):
            basis = [
                _basis(x) if i == index else _nothing(x, leaf.size) for i, x in enumerate(leaves)
            ]

            def push(*tangents: Tensor) -> Any:
                primals = tree.unflatten(treedef, leaves)
                return jvp(values, primals, tree.unflatten(treedef, tangents))[1]

            pushed = vmap(push, out_axes=-1)(*basis)
            columns.append(tree.map(lambda d, s=leaf.shape: reshape(d, d.shape[:-1] + s), pushed))
        outputs = [tree.leaves(column) for column in columns]
        out_def = tree.structure(columns[0])
        rows = []
        for number in range(len(outputs[0])):
            row = tree.unflatten(treedef, [column[number] for column in outputs])
            rows.append(row if not isinstance(argnums, int) else row[0])
        result = tree.unflatten(out_def, rows)
        return (result, of_chosen(*chosen)[1]) if has_aux else result

    return jacobian


def hessian(f: Callable[..., Any], argnums: int | Sequence[int] = 0, has_aux: bool = False) -> Any:
    """A function that gives the matrix of second derivatives of `f`: the Jacobian of its Jacobian,
    forward over reverse. For a scalar result and an argument of shape `t`, shape `t + t`."""
    return jacfwd(jacrev(f, argnums, has_aux), argnums, has_aux)


def linearize(f: Callable[..., Any], *primals: Any) -> tuple[Any, Callable[..., Any]]:
    """The value of `f` and its derivative there, as a linear function of tangents.

    The forward computation runs once; each call of the linear function pushes tangents (of the
    structures, shapes and dtypes of `primals`) through what was recorded.
    """
    value, pull = vjp(f, *primals)
    avals = [asarray(x).aval for x in tree.leaves(primals)]
    zeros = tree.map(lambda x: x * 0, value)

    def push(*tangents: Any) -> Any:
        given = [asarray(t).aval for t in tree.leaves(tangents)]
        if given != avals:
            raise ValueError(
                f"linearize: tangents are {', '.join(map(str, given))}, "
                f"the primals {', '.join(map(str, avals))}"
            )
        _, transpose = vjp(lambda ct: pull(ct), zeros)
        return transpose(tangents)[0]

    return value, push


def _function_of(
    f: Callable[..., Any], argnums: int | Sequence[int], args: Any, kwargs: Any, what: str
) -> tuple[tuple[Any, ...], Callable[..., Any]]:
    """The chosen arguments, and `f` as a function of these alone."""
    positions = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    for position in positions:
        if not -len(args) <= position < len(args):
            raise TypeError(
                f"{what}: argnums={argnums}, but the function was called with {len(args)} "
                "positional arguments"
            )
    places = [p % len(args) for p in positions]

    def of_chosen(*picked: Any) -> Any:
        everything = list(args)
        for place, arg in zip(places, picked, strict=True):
            everything[place] = arg
        return f(*everything, **kwargs)

    chosen = tuple(args[p] for p in places)
    _check_floats(what, "argument", [asarray(x) for x in tree.leaves(chosen)])
    return chosen, of_chosen


def _check_floats(what: str, role: str, leaves: Sequence[Tensor]) -> None:
    for leaf in leaves:
        if not dtypes.is_float(leaf.dtype):
            raise TypeError(
                f"{what}: every leaf of the {role} must be floating-point, got {leaf.aval}"
            )


def _basis(x: Tensor) -> Tensor:
    """All unit tensors of the shape of `x`, along a new first axis."""
    unit = np.eye(x.size, dtype=x.dtype).reshape(x.size, *x.shape)
    return asarray(unit, device=x.device)


def _nothing(x: Tensor, count: int) -> Tensor:
    return asarray(np.zeros((count, *x.shape), x.dtype), device=x.device)
