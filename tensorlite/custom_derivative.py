"""`custom_vjp`: a function whose derivative the user gives.

Each call is a composite of its own, with the user's two functions as its derivative; so it goes
through every transform, and batching keeps the derivative.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from . import tree
from .arguments import as_positions, check_function
from .composite import Anonymous, Composite
from .core import Tensor, bind
from .ops.creation import asarray, zeros_like
from .ops.reduce import sum as sum_
from .vectorize import vmap


class custom_vjp:
    """A function whose derivative is given by hand.

        @tl.custom_vjp
        def f(x): ...
        f.defvjp(forward, backward)

    `forward(*args)` returns `(value, residuals)`; `backward(residuals, cotangent)` returns a tuple
    with the cotangent of each argument (None for zero). Arguments are pytrees of tensors; those in
    `nondiff_argnums` are static and are passed first to `backward`. For `jvp` and higher
    derivatives, `backward` must be made of tensorlite functions and linear in the cotangent.

    A call may name its arguments, and leave out those that have a default: `forward` gets all of
    them by position, whichever way they were given, and `backward` returns a cotangent for each.
    Defaults that a call leaves in place reach `f` and `forward` as they are, and are constants.

    Raises:
        TypeError: `f` is no function.
        ValueError: `f` has no parameter at one of `nondiff_argnums`.

    Example:
        >>> @tl.custom_vjp
        ... def clip_gradient(x):
        ...     return x
        >>> clip_gradient.defvjp(lambda x: (x, None), lambda _, g: (tl.clip(g, -1.0, 1.0),))
        >>> print(tl.grad(lambda x: 100 * clip_gradient(x))(2.0))
        1.0
    """

    def __init__(self, f: Callable[..., Any], nondiff_argnums: int | Sequence[int] = ()):
        check_function("custom_vjp", f)
        self.f = f
        self._signature = _signature(f)
        self.nondiff_argnums = self._static_positions(nondiff_argnums)
        self.forward: Callable[..., Any] | None = None
        self.backward: Callable[..., Any] | None = None
        functools.update_wrapper(self, f, updated=())

    def defvjp(self, forward: Callable[..., Any], backward: Callable[..., Any]) -> None:
        """Give the derivative."""
        self.forward, self.backward = forward, backward

    def _static_positions(self, argnums: int | Sequence[int]) -> tuple[int, ...]:
        positions = as_positions("custom_vjp", "nondiff_argnums", argnums)
        if self._signature is None:
            return positions
        parameters = self._signature.parameters.values()
        if any(p.kind is p.VAR_POSITIONAL for p in parameters):
            return positions
        count = len([p for p in parameters if p.kind in _BY_POSITION])
        for position in positions:
            if not -count <= position < count:
                raise ValueError(
                    f"custom_vjp: nondiff_argnums names position {position}, but the function has "
                    f"{count} positional parameters"
                )
        return tuple(p % count for p in positions)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        name = self._name
        if self.forward is None or self.backward is None:
            raise TypeError(
                f"custom_vjp: {name} has no derivative yet; call {name}.defvjp(forward, backward)"
            )
        args, given = self._by_position(args, kwargs)
        static = [i % len(args) for i in self.nondiff_argnums if -len(args) <= i < len(args)]
        moving = [i for i in range(len(args)) if i in given and i not in static]
        leaves, treedef = tree.flatten(tuple(self._as_tensors(i, args[i]) for i in moving))
        if not leaves:
            return self.f(*args)
        call = _UserFunctions(
            name, self.f, self.forward, self.backward, args, sorted(static), moving, treedef
        )
        out = bind(
            _custom_call(name, call.value, call.value_and_residuals, call.cotangents), *leaves
        )
        return tree.unflatten(call.out_def, out)

    def _by_position(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], set[int]]:
        """All arguments of a call in the order of the parameters, and which of them are not the
        parameters' defaults."""
        if self._signature is None:
            if kwargs:
                raise TypeError(f"custom_vjp: {self._name} does not tell its parameters' names")
            return args, set(range(len(args)))
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self._name}: {error}") from None
        if bound.kwargs:
            raise TypeError(
                f"custom_vjp: the derivative of {self._name} gets its arguments by position, "
                f"so {', '.join(bound.kwargs)} cannot be keyword-only; take the * out of its "
                "signature, and name what is static in nondiff_argnums"
            )
        named = [i for i, n in enumerate(self._signature.parameters) if n in bound.arguments]
        given = {*range(len(args)), *named}
        bound.apply_defaults()
        return bound.args, given

    def _as_tensors(self, position: int, argument: Any) -> Any:
        try:
            return tree.map(asarray, argument)
        except TypeError:
            raise TypeError(
                f"custom_vjp: argument {position} of {self._name} is {argument!r}, which is "
                "no tensor; name its position in nondiff_argnums"
            ) from None

    @property
    def _name(self) -> str:
        return getattr(self.f, "__name__", "f")


def _signature(f: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(f)
    except ValueError:  # some functions written in C do not tell
        return None


_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class _UserFunctions:
    """The three functions of a custom_vjp at one call, on flat sequences of tensors."""

    def __init__(
        self,
        name: str,
        f: Callable[..., Any],
        forward: Callable[..., Any],
        backward: Callable[..., Any],
        args: tuple[Any, ...],
        static: list[int],
        moving: list[int],
        treedef: tree.TreeDef,
    ):
        self.name, self.f, self.forward, self.backward = name, f, forward, backward
        self.args = args
        self.static, self.moving = static, moving  # positions; the others are left-out defaults
        self.treedef = treedef  # of the tuple of the moving arguments
        self.out_def: Any = (
            None  # known once one of the functions has run, which every way to bind the call does
        )

    def value(self, *leaves: Tensor) -> tuple[Tensor, ...]:
        return self._flat_value(self.f(*self._arguments(leaves)))

    def value_and_residuals(self, *leaves: Tensor) -> tuple[tuple[Tensor, ...], Any]:
        out = self.forward(*self._arguments(leaves))
        if not (isinstance(out, tuple) and len(out) == 2):
            raise TypeError(
                f"custom_vjp: the forward function of {self.name} returns (value, residuals), "
                f"got {type(out).__name__}"
            )
        return self._flat_value(out[0]), out[1]

    def cotangents(
        self, leaves: Sequence[Tensor], residuals: Any, cts: Sequence[Tensor]
    ) -> list[Tensor]:
        static = [self.args[i] for i in self.static]
        result = self.backward(*static, residuals, tree.unflatten(self.out_def, cts))
        wanted = [i for i in range(len(self.args)) if i not in self.static]
        if not isinstance(result, tuple | list) or len(result) != len(wanted):
            got = type(result).__name__ + (
                f" of {len(result)}" if isinstance(result, tuple | list) else ""
            )
            raise TypeError(
                f"custom_vjp: the backward function of {self.name} returns a tuple with the "
                f"cotangent of each of its {len(wanted)} arguments, got {got}"
            )
        flat: list[Any] = []
        moving = [ct for ct, i in zip(result, wanted, strict=True) if i in self.moving]
        for cotangent, child in zip(moving, self.treedef.children(), strict=True):
            flat += self._like(child, cotangent)
        flat = [
            zeros_like(x) if ct is None else asarray(ct) for ct, x in zip(flat, leaves, strict=True)
        ]
        for ct, leaf in zip(flat, leaves, strict=True):
            if ct.aval != leaf.aval:
                raise ValueError(
                    f"custom_vjp: the backward function of {self.name} gave a cotangent of "
                    f"{ct.aval} for an argument of {leaf.aval}"
                )
        return flat

    def _like(self, argument: tree.TreeDef, cotangent: Any) -> list[Any]:
        """The leaves of a cotangent of an argument of this structure; None stands for zeros."""
        if cotangent is None:
            return [None] * argument.num_leaves
        try:
            return argument.flatten_up_to(cotangent)
        except ValueError:
            how = tree.difference(argument, tree.structure(cotangent), leaf_fits="wanted")
            raise ValueError(
                f"custom_vjp: the backward function of {self.name} gave a cotangent unlike its "
                f"argument: {how}"
            ) from None

    def _arguments(self, leaves: Sequence[Tensor]) -> list[Any]:
        args = list(self.args)
        for i, argument in zip(self.moving, tree.unflatten(self.treedef, leaves), strict=True):
            args[i] = argument
        return args

    def _flat_value(self, value: Any) -> tuple[Tensor, ...]:
        leaves, self.out_def = tree.flatten(value)
        return tuple(asarray(leaf) for leaf in leaves)


def _custom_call(
    name: str,
    value: Callable[..., Any],
    value_and_residuals: Callable[..., Any],
    cotangents: Callable[..., Any],
) -> Composite:
    """A composite of flat functions with the given derivative, which batching keeps."""
    prim = Anonymous(name, value)

    @prim.fwd
    def _(needs: Sequence[bool], *args: Tensor) -> Any:
        ans, residuals = value_and_residuals(*args)

        def pull(cts: tuple[Tensor | None, ...]) -> list[Tensor]:
            full = [zeros_like(a) if ct is None else ct for ct, a in zip(cts, ans, strict=True)]
            return cotangents(args, residuals, full)

        return ans, pull

    @prim.batch
    def _(args: Sequence[Tensor], batched: Sequence[bool]) -> Any:
        axes = tuple(0 if b else None for b in batched)

        def batched_cotangents(
            args: Sequence[Tensor], residuals: Any, cts: Sequence[Tensor]
        ) -> list[Tensor]:
            each = vmap(cotangents, (axes, 0, 0))(tuple(args), residuals, tuple(cts))
            return [ct if b else sum_(ct, axis=0) for ct, b in zip(each, batched, strict=True)]

        mapped = _custom_call(
            name, vmap(value, axes), vmap(value_and_residuals, axes), batched_cotangents
        )
        return bind(mapped, *args)

    return prim
