"""Derivatives made of the transforms: Jacobians, the Hessian, and linearization."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import dtypes, tree
from .arguments import as_positions, check_function
from .autodiff import Chosen, choose_arguments, jvp, vjp
from .core import Tensor
from .ops.creation import asarray, zeros
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

    Example:
        >>> print(tl.jacrev(lambda x: tl.stack([x[0] * x[1], x[0] ** 2]))(tl.asarray([3.0, 4.0])))
        [[4. 3.]
         [6. 0.]]
    """

    check_function("jacrev", f)
    positions = as_positions("jacrev", "argnums", argnums)

    @functools.wraps(f)
    def jacobian(*args: Any, **kwargs: Any) -> Any:
        chosen = choose_arguments("jacrev", f, positions, args, kwargs)
        points, of_points = _function_of_active(chosen)
        value, pull, *aux = vjp(of_points, *points, has_aux=has_aux)
        outs, out_def = tree.flatten(value)
        _check_floats("jacrev", outs)
        rows = []
        for index, out in enumerate(outs):
            units = [_basis(x) if i == index else _nothing(x, out.size) for i, x in enumerate(outs)]
            pulled = vmap(lambda *cts: pull(tree.unflatten(out_def, cts)))(*units)
            parts = [reshape(g, out.shape + x.shape) for g, x in zip(pulled, points, strict=True)]
            rows.append(_row(chosen, out, parts, argnums))
        result = tree.unflatten(out_def, rows)
        return (result, *aux) if has_aux else result

    return jacobian


def jacfwd(f: Callable[..., Any], argnums: int | Sequence[int] = 0, has_aux: bool = False) -> Any:
    """A function that gives the Jacobian of `f`, column by column in forward mode. See `jacrev`.

    Example:
        >>> print(tl.jacfwd(lambda t: tl.stack([t, t**2, t**3]))(2.0))
        [ 1.  4. 12.]
    """

    check_function("jacfwd", f)
    positions = as_positions("jacfwd", "argnums", argnums)

    @functools.wraps(f)
    def jacobian(*args: Any, **kwargs: Any) -> Any:
        chosen = choose_arguments("jacfwd", f, positions, args, kwargs)
        points, of_points = _function_of_active(chosen)

        def values(*xs: Tensor) -> Any:
            return of_points(*xs)[0] if has_aux else of_points(*xs)

        columns = []
        for index, x in enumerate(points):
            units = [_basis(y) if i == index else _nothing(y, x.size) for i, y in enumerate(points)]
            push = vmap(lambda *moves: jvp(values, points, moves)[1], out_axes=-1)
            columns.append(tree.leaves(push(*units)))
        full = of_points(*points)
        value, aux = full if has_aux else (full, None)
        outs, out_def = tree.flatten(tree.map(asarray, value))
        _check_floats("jacfwd", outs)
        rows = []
        for index, out in enumerate(outs):
            parts = [
                reshape(column[index], out.shape + x.shape)
                for column, x in zip(columns, points, strict=True)
            ]
            rows.append(_row(chosen, out, parts, argnums))
        result = tree.unflatten(out_def, rows)
        return (result, aux) if has_aux else result

    return jacobian


def hessian(f: Callable[..., Any], argnums: int | Sequence[int] = 0, has_aux: bool = False) -> Any:
    """A function that gives the matrix of second derivatives of `f`: the Jacobian of its Jacobian,
    forward over reverse. For a scalar result and an argument of shape `t`, shape `t + t`.

    Example:
        >>> print(tl.hessian(lambda x: x[0] ** 2 * x[1])(tl.asarray([3.0, 4.0])))
        [[8. 6.]
         [6. 0.]]
    """
    check_function("hessian", f)
    return jacfwd(jacrev(f, argnums, has_aux), argnums, has_aux)


def linearize(f: Callable[..., Any], *primals: Any) -> tuple[Any, Callable[..., Any]]:
    """The value of `f` and its derivative there, as a linear function of tangents.

    The forward computation runs once; each call of the linear function pushes tangents (of the
    structures, shapes and dtypes of `primals`) through what was recorded.

    Example:
        >>> value, derivative = tl.linearize(lambda x: x**2, 3.0)
        >>> print(value, derivative(1.0), derivative(10.0))
        9.0 6.0 60.0
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


def _function_of_active(chosen: Chosen) -> tuple[list[Tensor], Callable[..., Any]]:
    """The leaves that are differentiated, and the function of these alone."""

    def of_points(*points: Tensor) -> Any:
        supply = iter(points)
        pairs = zip(chosen.leaves, chosen.active, strict=True)
        return chosen.call(*chosen.trees([next(supply) if a else x for x, a in pairs]))

    points = [x for x, a in zip(chosen.leaves, chosen.active, strict=True) if a]
    return points, of_points


def _row(chosen: Chosen, out: Tensor, parts: Sequence[Tensor], argnums: int | Sequence[int]) -> Any:
    """The derivatives of one result by all arguments, in their structure; by buffers, zero."""
    supply = iter(parts)
    leaves = [
        next(supply) if a else zeros(out.shape + x.shape, dtype=out.dtype, device=out.device)
        for x, a in zip(chosen.leaves, chosen.active, strict=True)
    ]
    row = chosen.trees(leaves)
    return row[0] if isinstance(argnums, int) else row


def _check_floats(what: str, results: Sequence[Tensor]) -> None:
    for leaf in results:
        if not dtypes.is_float(leaf.dtype):
            raise TypeError(
                f"{what}: every leaf of the result must be floating-point, got {leaf.aval}"
            )


def _basis(x: Tensor) -> Tensor:
    """All unit tensors of the shape of `x`, along a new first axis."""
    unit = np.eye(x.size, dtype=x.dtype).reshape(x.size, *x.shape)
    return asarray(unit, device=x.device)


def _nothing(x: Tensor, count: int) -> Tensor:
    return asarray(np.zeros((count, *x.shape), x.dtype), device=x.device)
