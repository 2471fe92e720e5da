"""Derivatives: vjp, grad and value_and_grad, which are reverse mode, and jvp, which is the pullback
of the pullback."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from . import dtypes, tree
from .arguments import as_positions, check_callables, check_function
from .boxes import linearize
from .core import Aval, Tensor
from .ops.creation import asarray, full


def vjp(f: Callable[..., Any], *primals: Any, has_aux: bool = False) -> Any:
    """The value of `f` and its pullback.

    Args:
        f: a function of pytrees that returns a pytree of tensors.
        primals: the point; floating-point leaves are differentiated, others are constants.
        has_aux: `f` returns (value, aux), and aux is passed through.

    Returns:
        `(value, pullback)` or `(value, pullback, aux)`. `pullback(cotangent)`, where the cotangent
        has the structure, shapes and dtypes of the value, gives a tuple of cotangents, one for each
        primal. It may be called more than once.

    Raises:
        TypeError: `f` is no function.
        ValueError: a cotangent is unlike the value.

    Example:
        >>> value, pullback = tl.vjp(lambda x, y: x * y, 3.0, 4.0)
        >>> print(value, pullback(1.0))
        12.0 (Tensor(4., dtype=float32, device=cpu), Tensor(3., dtype=float32, device=cpu))
    """
    check_callables("vjp: takes a function and the point, as in vjp(f, x)", f)
    primals = tree.map(asarray, primals)
    leaves, treedef = tree.flatten(primals)
    active = [dtypes.is_float(leaf.dtype) for leaf in leaves]
    value, aux, pull, out_def = linearize(f, primals, active, has_aux, "vjp")
    out_avals = [asarray(leaf).aval for leaf in tree.leaves(value)]

    def pullback(cotangent: Any) -> tuple[Any, ...]:
        cts, ct_def = tree.flatten(cotangent)
        if ct_def != out_def:
            raise ValueError(
                "vjp: the cotangent does not have the structure of the function's value: "
                + tree.difference(out_def, ct_def)
            )
        cts = [_check_cotangent(ct, aval) for ct, aval in zip(cts, out_avals, strict=True)]
        gradients = iter(pull(cts))
        filled = [
            _fill(next(gradients) if a else None, x) for a, x in zip(active, leaves, strict=True)
        ]
        return tree.unflatten(treedef, filled)

    return (value, pullback, aux) if has_aux else (value, pullback)


def _check_cotangent(ct: Any, aval: Aval) -> Tensor | None:
    if not dtypes.is_float(aval.dtype):
        return None
    ct = asarray(ct)
    if ct.shape != aval.shape or ct.dtype != aval.dtype:
        raise ValueError(f"vjp: a cotangent is {ct.aval}, but the function's value there is {aval}")
    return ct


def _described(argument: Any) -> str:
    return str(argument.aval) if isinstance(argument, Tensor) else type(argument).__name__


def _fill(gradient: Tensor | None, like: Tensor) -> Tensor:
    return (
        full(like.shape, 0, dtype=like.dtype, device=like.device) if gradient is None else gradient
    )


class Chosen(NamedTuple):
    """The arguments that a derivative is taken with respect to.

    Attributes:
        call: the function, of these arguments alone.
        leaves: their leaves, `treedef` the structure of the tuple of them.
        active: which leaves are differentiated: all but the buffers of modules.
    """

    call: Callable[..., Any]
    leaves: list[Tensor]
    treedef: tree.TreeDef
    active: list[bool]

    def trees(self, leaves: Sequence[Any]) -> tuple[Any, ...]:
        """A tuple like that of the arguments, with these leaves."""
        return tree.unflatten(self.treedef, leaves)


def choose_arguments(
    what: str, f: Callable[..., Any], positions: tuple[int, ...], args: Any, kwargs: Any
) -> Chosen:
    """The arguments at `positions`, as every derivative takes them.

    Raises:
        TypeError: there is no such argument, or a leaf that is no buffer is not floating-point.
        ValueError: an argument is named twice.
    """
    for position in positions:
        if not -len(args) <= position < len(args):
            raise TypeError(
                f"{what}: argnums={position}, but the function was called with {len(args)} "
                "positional arguments"
            )
    places = [p % len(args) for p in positions]
    if len(set(places)) < len(places):
        raise ValueError(f"{what}: argnums={positions} names an argument twice")
    picked = tuple(tree.map(asarray, args[p]) for p in places)
    leaves, treedef = tree.flatten(picked)
    active = tree.parameter_mask(picked)
    for leaf, path, is_active in zip(leaves, tree.paths(picked), active, strict=True):
        if is_active and not dtypes.is_float(leaf.dtype):
            raise TypeError(_not_float(what, leaf, path, places))

    def call(*picked: Any) -> Any:
        # The other arguments are rebuilt too, so that a module that assigns to itself does not
        # keep boxes.
        full_args = [tree.map(lambda x: x, a) for a in args]
        for place, arg in zip(places, picked, strict=True):
            full_args[place] = arg
        return f(*full_args, **tree.map(lambda x: x, kwargs))

    return Chosen(call, leaves, treedef, active)


def value_and_grad(
    f: Callable[..., Any], argnums: int | Sequence[int] = 0, has_aux: bool = False
) -> Any:
    """A function that gives the value of `f` and its gradient.

    Args:
        f: returns a scalar floating-point tensor (with `has_aux`, a pair of it and anything else).
        argnums: position(s) of the arguments to differentiate: pytrees whose leaves are
            floating-point. Buffers of modules (running statistics) are not differentiated; their
            gradient is zero.

    Returns:
        a function of the same arguments giving `(value, gradient)` or `((value, aux), gradient)`.
        The gradient has the structure of the argument (a tuple of them if `argnums` is a sequence).

    Raises:
        TypeError: `f` is no function, a leaf to differentiate is not floating-point, or the value
            is not a scalar.

    Example:
        >>> def loss(w, x, y):
        ...     return tl.mean((x @ w - y) ** 2)
        >>> x, y = tl.asarray([[1.0, 2.0], [3.0, 4.0]]), tl.asarray([1.0, 0.0])
        >>> value, gradient = tl.value_and_grad(loss)(tl.zeros(2), x, y)
        >>> print(value, gradient)
        0.5 [-1. -2.]
    """
    check_function("value_and_grad", f)
    positions = as_positions("grad", "argnums", argnums)

    @functools.wraps(f)
    def with_gradient(*args: Any, **kwargs: Any) -> Any:
        chosen = choose_arguments("grad", f, positions, args, kwargs)
        active, leaves = chosen.active, chosen.leaves
        value, aux, pull, _ = linearize(
            chosen.call, chosen.trees(leaves), active, has_aux, "grad", f
        )
        if not isinstance(value, Tensor) or value.shape != () or not dtypes.is_float(value.dtype):
            got = str(value.aval) if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(
                f"grad: the function must return a floating-point scalar, got {got}; "
                "reduce it, e.g. with tl.mean"
                + ("" if has_aux else ", or pass has_aux=True if it returns (loss, aux)")
            )
        seed = full((), 1, dtype=value.dtype, device=value.device)
        gradients = iter(pull([seed]))
        filled = [
            _fill(next(gradients) if a else None, x) for a, x in zip(active, leaves, strict=True)
        ]
        gradient = chosen.trees(filled)
        return ((value, aux) if has_aux else value), (
            gradient[0] if isinstance(argnums, int) else gradient
        )

    return with_gradient


def _not_float(what: str, leaf: Tensor, path: str, positions: Sequence[int]) -> str:
    number, _, rest = path.partition(".")
    where = f"argument {positions[int(number)]}" + (f", leaf {rest!r}" if rest else "")
    return (
        f"{what}: {where} is {leaf.aval}, but only floating-point tensors have gradients; "
        "convert it, or choose other arguments with argnums"
    )


def grad(f: Callable[..., Any], argnums: int | Sequence[int] = 0, has_aux: bool = False) -> Any:
    """A function that gives the gradient of `f` (with `has_aux`, the pair `(gradient, aux)`). See
    `value_and_grad`.

    Example:
        >>> square = lambda x: x * x
        >>> print(tl.grad(square)(3.0), tl.grad(tl.grad(square))(3.0))
        6.0 2.0
        >>> params = {"w": tl.asarray([1.0, 2.0]), "b": tl.asarray(0.5)}
        >>> gradients = tl.grad(lambda p: tl.sum(p["w"] ** 2) + 3 * p["b"])(params)
        >>> print(gradients["w"], gradients["b"])
        [2. 4.] 3.0
    """
    check_function("grad", f)
    both = value_and_grad(f, argnums, has_aux)

    @functools.wraps(f)
    def gradient(*args: Any, **kwargs: Any) -> Any:
        value, result = both(*args, **kwargs)
        return (result, value[1]) if has_aux else result

    return gradient


def jvp(f: Callable[..., Any], primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, Any]:
    """The value of `f` at `primals` and its derivative along `tangents` (same structures, shapes
    and dtypes).

    The pullback is linear in its cotangent, so its own pullback is the pushforward; under jit the
    first sweep is dead code and disappears.

    Raises:
        TypeError: `f` is no function, or primals or tangents are no sequence.
        ValueError: primals and tangents differ in structure, shapes or dtypes.

    Example:
        >>> value, derivative = tl.jvp(lambda x: x**3, (2.0,), (1.0,))
        >>> print(value, derivative)
        8.0 12.0
    """
    check_callables("jvp: takes a function, the point and a direction, as in jvp(f, (x,), (v,))", f)
    for arguments in (primals, tangents):
        if not isinstance(arguments, tuple | list):
            raise TypeError(
                "jvp: primals and tangents are sequences, one entry per argument, "
                f"got {_described(arguments)}; write jvp(f, (x,), (v,))"
            )
    points_tree = tree.map(asarray, tuple(primals))
    leaves, treedef = tree.flatten(points_tree)
    directions, tangent_def = tree.flatten(tuple(tangents))
    if tangent_def != treedef:
        raise ValueError(
            "jvp: the tangents do not have the structure of the primals: "
            + tree.difference(treedef, tangent_def)
        )
    active = [dtypes.is_float(leaf.dtype) for leaf in leaves]
    directions = [asarray(d) for d, a in zip(directions, active, strict=True) if a]
    points = [x for x, a in zip(leaves, active, strict=True) if a]
    for direction, point in zip(directions, points, strict=True):
        if direction.aval != point.aval:
            raise ValueError(f"jvp: a tangent is {direction.aval}, its primal {point.aval}")
    value, _, pull, out_def = linearize(f, points_tree, active, False, "jvp")
    outs = [asarray(o) for o in tree.leaves(value)]
    floats = [dtypes.is_float(o.dtype) for o in outs]
    zeros = tuple(_fill(None, o) for o, is_float in zip(outs, floats, strict=True) if is_float)

    def pull_floats(*cts: Tensor) -> tuple[Tensor, ...]:
        supply = iter(cts)
        gradients = pull([next(supply) if is_float else None for is_float in floats])
        return tuple(_fill(g, x) for g, x in zip(gradients, points, strict=True))

    _, _, push, _ = linearize(pull_floats, zeros, [True] * len(zeros), False, "jvp")
    moved = iter(push(directions))
    result = [
        _fill(next(moved) if is_float else None, o)
        for o, is_float in zip(outs, floats, strict=True)
    ]
    return value, tree.unflatten(out_def, result)
