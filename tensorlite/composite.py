"""Composites: functions of primitives that trace as one equation, and the two transforms made of
them.

A composite is a `Primitive` whose `body` is a plain function of tensors. A backend may lower it
whole, and a transform for which it has a rule uses that rule; everywhere else its body answers.
`custom_vjp` is a composite whose derivative the user gives, and `checkpoint` one whose derivative
runs the body a second time instead of keeping what it computed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import tree
from .autodiff import flat_vjp
from .core import Aval, Primitive, Tensor, bind, exactly
from .device import current_device
from .graph import Graph, trace_graph
from .ops.control import optimization_barrier
from .ops.creation import asarray, zeros_like
from .ops.reduce import sum as sum_
from .vectorize import vmap


class Composite(Primitive):
    """A primitive with a decomposition: `body(*tensors, **params)` returns a tensor or a tuple of
    tensors."""

    def __init__(self, name: str, body: Callable[..., Any]):
        self.body: Callable[..., Any] = body
        self._graphs: dict[Any, tuple[Graph, bool]] = {}
        super().__init__(name)
        functools.update_wrapper(self, body, updated=())

    def abstract(self, *avals: Aval, **params: Any) -> Aval | tuple[Aval, ...]:
        if self.shape_rule is not None:
            return self.shape_rule(*avals, **params)
        graph, single = self.graph(*avals, **params)
        return graph.out_avals[0] if single else graph.out_avals

    def graph(self, *avals: Aval, **params: Any) -> tuple[Graph, bool]:
        """The body traced at `avals`, and whether it returns one bare tensor."""
        key = (avals, current_device(), *((name, exactly(params[name])) for name in sorted(params)))
        if key not in self._graphs:
            traced = trace_graph(
                lambda *xs: self.body(*xs, **params),
                avals,
                name=self.name,
                what=f"the body of {self.name}",
            )
            refuse_captured(traced.captured, self.name)
            self._graphs[key] = traced.graph, traced.out_def.is_leaf()
        return self._graphs[key]


def composite(body: Callable[..., Any]) -> Composite:
    """Decorator: make a function of tensors (and keyword parameters) one primitive, named like the
    function."""
    return Composite(body.__name__.strip("_"), body)


class _Anonymous(Composite):
    """A composite made by a transform of a user's function: many may share a name, so none is
    registered."""

    def register(self) -> None:
        pass


def refuse_captured(captured: Sequence[Tensor], name: str) -> None:
    """Raise if a function that must be self-contained closes over values that an outer transform
    traces."""
    if captured:
        raise TypeError(
            f"{name}: the function closes over a value of {captured[0].aval} that "
            f"{captured[0].trace} traces; "
            "pass it as an argument instead"
        )


class custom_vjp:
    """A function whose derivative is given by hand.

        @tl.custom_vjp
        def f(x): ...
        f.defvjp(forward, backward)

    `forward(*args)` returns `(value, residuals)`; `backward(residuals, cotangent)` returns a tuple
    with the cotangent of each argument (None for zero). Arguments are pytrees of tensors; those in
    `nondiff_argnums` are static and are passed first to `backward`. For `jvp` and higher
    derivatives, `backward` must be made of tensorlite functions and linear in the cotangent.
    """

    def __init__(self, f: Callable[..., Any], nondiff_argnums: Sequence[int] = ()):
        self.f = f
        self.nondiff_argnums = tuple(nondiff_argnums)
        self.forward: Callable[..., Any] | None = None
        self.backward: Callable[..., Any] | None = None
        functools.update_wrapper(self, f, updated=())

    def defvjp(self, forward: Callable[..., Any], backward: Callable[..., Any]) -> None:
        """Give the derivative."""
        self.forward, self.backward = forward, backward

    def __call__(self, *args: Any) -> Any:
        name = getattr(self.f, "__name__", "f")
        if self.forward is None or self.backward is None:
            raise TypeError(
                f"custom_vjp: {name} has no derivative yet; call {name}.defvjp(forward, backward)"
            )
        static = {i: a for i, a in enumerate(args) if i in self.nondiff_argnums}
        moving = tree.map(asarray, tuple(a for i, a in enumerate(args) if i not in static))
        leaves, treedef = tree.flatten(moving)
        if not leaves:
            return self.f(*args)
        call = _UserFunctions(name, self.f, self.forward, self.backward, static, treedef)
        out = bind(
            _custom_call(name, call.value, call.value_and_residuals, call.cotangents), *leaves
        )
        return tree.unflatten(call.out_def, out)


class _UserFunctions:
    """The three functions of a custom_vjp at one call, on flat sequences of tensors."""

    def __init__(
        self,
        name: str,
        f: Callable[..., Any],
        forward: Callable[..., Any],
        backward: Callable[..., Any],
        static: dict[int, Any],
        treedef: tree.TreeDef,
    ):
        self.name, self.f, self.forward, self.backward = name, f, forward, backward
        self.static, self.treedef = static, treedef
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
        result = self.backward(*self.static.values(), residuals, tree.unflatten(self.out_def, cts))
        children = self.treedef.children()
        if not isinstance(result, tuple | list) or len(result) != len(children):
            got = type(result).__name__ + (
                f" of {len(result)}" if isinstance(result, tuple | list) else ""
            )
            raise TypeError(
                f"custom_vjp: the backward function of {self.name} returns a tuple with the "
                "cotangent of each of "
                f"its {len(children)} arguments, got {got}"
            )
        flat: list[Any] = []
        for cotangent, child in zip(result, children, strict=True):
            flat += (
                [None] * child.num_leaves if cotangent is None else child.flatten_up_to(cotangent)
            )
        flat = [
            zeros_like(x) if ct is None else asarray(ct) for ct, x in zip(flat, leaves, strict=True)
        ]
        for ct, leaf in zip(flat, leaves, strict=True):
            if ct.aval != leaf.aval:
                raise ValueError(
                    f"custom_vjp: the backward function of {self.name} gave a cotangent of "
                    f"{ct.aval} "
                    f"for an argument of {leaf.aval}"
                )
        return flat

    def _arguments(self, leaves: Sequence[Tensor]) -> list[Any]:
        moving = iter(tree.unflatten(self.treedef, leaves))
        count = len(self.static) + self.treedef.num_children
        return [self.static[i] if i in self.static else next(moving) for i in range(count)]

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
    prim = _Anonymous(name, value)

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


def checkpoint(f: Callable[..., Any]) -> Callable[..., Any]:
    """`f`, but reverse mode keeps its arguments only and runs it a second time for the derivative.

    `f` is traced into a graph, so it may not branch on the values of tensors. Arguments that are
    neither tensors nor arrays (flags, numbers, strings) reach it as they are, and it may close over
    anything.
    """

    @functools.wraps(f)
    def checkpointed(*args: Any, **kwargs: Any) -> Any:
        leaves, treedef = tree.flatten((args, kwargs))
        places = [i for i, x in enumerate(leaves) if isinstance(x, Tensor | np.ndarray)]
        weak = [isinstance(leaves[i], Tensor) and leaves[i].weak for i in places]
        tensors = [asarray(leaves[i]) for i in places]

        def flat(*xs: Tensor) -> Any:
            filled = list(leaves)
            for place, x in zip(places, xs, strict=True):
                filled[place] = x
            new_args, new_kwargs = tree.unflatten(treedef, filled)
            return f(*new_args, **new_kwargs)

        name = getattr(f, "__name__", "f")
        avals = [x.aval for x in tensors]
        traced = trace_graph(flat, avals, name=name, what="tl.checkpoint", weak=weak)
        inputs = (*traced.captured, *tensors)
        graph = traced.graph
        out = bind(checkpoint_p, *inputs, graph=graph) if inputs else graph.run()
        return tree.unflatten(traced.out_def, out)

    return checkpointed


checkpoint_p = Composite("checkpoint", lambda *args, graph: graph.run(*args))


@checkpoint_p.shape
def _(*avals: Aval, graph: Graph) -> tuple[Aval, ...]:
    return graph.out_avals


@checkpoint_p.fwd
def _(needs: Sequence[bool], *args: Tensor, graph: Graph) -> Any:
    ans = bind(checkpoint_p, *args, graph=graph)

    def pull(cts: tuple[Tensor | None, ...]) -> list[Tensor | None]:
        # The barrier makes the second run wait for the cotangents: without it, a compiler would see
        # two equal computations, do one, and keep its results, which is what checkpoint is there to
        # avoid.
        present = [ct for ct in cts if ct is not None]
        fenced = optimization_barrier(*args, *present)
        again, arrived = fenced[: len(args)], iter(fenced[len(args) :])
        full = tuple(
            zeros_like(a) if ct is None else next(arrived) for ct, a in zip(cts, ans, strict=True)
        )
        _, pull_again = flat_vjp(graph.run, again, needs)
        gradients = iter(pull_again(full))
        return [next(gradients) if need else None for need in needs]

    return ans, pull
