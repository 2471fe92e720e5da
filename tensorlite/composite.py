"""Composites: functions of primitives that trace as one equation; and `checkpoint`, made of one.

A composite is a `Primitive` whose `body` is a plain function of tensors. A backend may lower it
whole, and a transform for which it has a rule uses that rule; everywhere else its body answers.
`checkpoint` is a composite whose derivative runs the body a second time instead of keeping what it
computed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from . import dtypes, tree
from .arguments import check_function
from .boxes import Box, flat_vjp
from .checkpoint_policies import Policy, name_p, save_names, save_nothing
from .core import Aval, Primitive, Tensor, bind, exactly
from .device import Device, current_device
from .graph import Atom, Equation, Graph, Var, trace_graph
from .ops.control import optimization_barrier
from .ops.creation import asarray, zeros_like
from .origin import replays
from .precision import active as active_precision
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
        named = [(name, exactly(params[name])) for name in sorted(params)]
        key = (avals, current_device(), active_precision(), *named)
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


class Anonymous(Composite):
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


def checkpoint(
    f: Callable[..., Any] | None = None, *, policy: Policy = save_nothing
) -> Callable[..., Any]:
    """`f`, but reverse mode keeps its arguments, and what `policy` says, and runs the rest of it a
    second time for the derivative. Use as `checkpoint(f)` or `@checkpoint(policy=...)`.

    `f` is traced into a graph, so it may not branch on the values of tensors. Arguments that are
    neither tensors nor arrays (flags, numbers, strings) reach it as they are, and it may close over
    anything.

    Args:
        policy: from `tl.checkpoint_policies`: `save_nothing`, `save_everything`, `save_matmuls` or
            `save_names("a", ...)`; or a hashable function of one's own of an equation of `f`.

    Raises:
        TypeError: `f` or the policy is no such function.

    Example:
        >>> @tl.checkpoint
        ... def block(x):
        ...     return tl.sum(tl.exp(x) ** 2)
        >>> print(tl.grad(block)(tl.zeros(2)))
        [2. 2.]
    """
    if f is None:
        return functools.partial(checkpoint, policy=policy)
    check_function("checkpoint", f)
    if not callable(policy) or getattr(policy, "__hash__", None) is None:
        raise TypeError(
            f"checkpoint: policy is a hashable function of an equation, got {policy!r}; see "
            "tl.checkpoint_policies"
        )
    if cast(Any, policy) is save_names:
        raise TypeError('checkpoint: save_names is called with names: policy=save_names("a", "b")')

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
        out = bind(checkpoint_p, *inputs, graph=graph, policy=policy) if inputs else graph.run()
        return tree.unflatten(traced.out_def, out)

    return checkpointed


checkpoint_p = Composite("checkpoint", lambda *args, graph, policy: graph.run(*args))


@checkpoint_p.shape
def _(*avals: Aval, graph: Graph, policy: Policy) -> tuple[Aval, ...]:
    return graph.out_avals


@checkpoint_p.batch
def _(args: list[Tensor], batched: list[bool], *, graph: Graph, policy: Policy) -> Any:
    sizes = {a.shape[0] for a, b in zip(args, batched, strict=True) if b}
    key = ("batched", tuple(batched), *sizes)
    if key not in graph.derived:
        run = vmap(graph.run, tuple(0 if b else None for b in batched))
        avals = [a.aval for a in args]
        traced = trace_graph(run, avals, device=args[0].device, name=graph.name)
        graph.derived[key] = traced.graph
    return bind(checkpoint_p, *args, graph=graph.derived[key], policy=policy)


@checkpoint_p.fwd
def _(needs: Sequence[bool], *args: Tensor, graph: Graph, policy: Policy) -> Any:
    plan = _plan(graph, policy, tuple(needs), args[0].device)
    results = bind(checkpoint_p, *args, graph=plan.forward, policy=policy)
    ans, saved = results[: len(graph.outputs)], results[len(graph.outputs) :]
    kept = [*[args[i] for i in plan.arguments], *saved]

    def pull(cts: tuple[Tensor | None, ...]) -> list[Tensor | None]:
        # The barrier makes the second run wait for the cotangents: without it, a compiler would see
        # two equal computations, do one, and keep its results, which is what checkpoint is there to
        # avoid.
        full = [zeros_like(a) if ct is None else ct for ct, a in zip(cts, ans, strict=True)]
        gradients = iter(plan.backward.run(*optimization_barrier(*kept, *full)))
        return [next(gradients) if need else None for need in needs]

    return ans, pull


class _Plan(NamedTuple):
    """`forward(*args) -> (*outputs, *saved)`, and `backward(*arguments, *saved, *cotangents)` ->
    cotangents of the needed args, where `arguments` are the places of those that it reads."""

    forward: Graph
    backward: Graph
    arguments: tuple[int, ...]


def _plan(graph: Graph, policy: Policy, needs: tuple[bool, ...], device: Device) -> _Plan:
    """Trace the second run and the sweep back together, so that of the second run only what the
    sweep reads is left; of what the policy offers, only that is saved."""
    key = ("checkpoint", policy, needs)
    if key in graph.derived:
        return graph.derived[key]
    offered = _offered(graph, policy)
    n_args, n_saved = len(graph.inputs), sum(len(eqn.outputs) for eqn in offered)
    floats = [dtypes.is_float(aval.dtype) for aval in graph.out_avals]

    def gradient(*xs: Tensor) -> list[Tensor]:
        args, saved, cts = xs[:n_args], xs[n_args : n_args + n_saved], xs[n_args + n_saved :]
        _, pull = flat_vjp(functools.partial(_run_again, graph, offered, saved), args, needs)
        pulled = pull([ct if f else None for ct, f in zip(cts, floats, strict=True)])
        wanted = [x for x, need in zip(args, needs, strict=True) if need]
        return [zeros_like(x) if g is None else g for g, x in zip(pulled, wanted, strict=True)]

    variables = [v for eqn in offered for v in eqn.outputs]
    avals = (*graph.in_avals, *[v.aval for v in variables], *graph.out_avals)
    backward = trace_graph(gradient, avals, device=device, name=f"{graph.name} backward").graph
    read = {a for eqn in backward.equations for a in eqn.inputs if isinstance(a, Var)}
    read |= {a for a in backward.outputs if isinstance(a, Var)}
    own, given = backward.inputs[:n_args], backward.inputs[n_args : n_args + n_saved]
    arguments = tuple(i for i, v in enumerate(own) if v in read)
    saved = [v for v, g in zip(variables, given, strict=True) if g in read]
    inputs = [v for v in (*own, *given) if v in read] + list(backward.inputs[n_args + n_saved :])
    graph.derived[key] = _Plan(
        Graph(graph.inputs, graph.equations, [*graph.outputs, *saved], graph.name),
        Graph(inputs, backward.equations, backward.outputs, backward.name),
        arguments,
    )
    return graph.derived[key]


def _offered(graph: Graph, policy: Policy) -> list[Equation]:
    """The equations whose results the policy saves. For a name it is the one that makes the named
    value, since its derivative may want its result, too."""
    maker: dict[Atom, Equation] = {v: eqn for eqn in graph.equations for v in eqn.outputs}
    chosen: set[Var] = set()
    for eqn in graph.equations:
        if policy(eqn):
            while eqn.prim is name_p and eqn.inputs[0] in maker:
                eqn = maker[eqn.inputs[0]]
            chosen.update(eqn.outputs)
    return [eqn for eqn in graph.equations if not chosen.isdisjoint(eqn.outputs)]


@replays("eqn")
def _run_again(
    graph: Graph, offered: Sequence[Equation], saved: Sequence[Tensor], *args: Tensor
) -> tuple[Tensor, ...]:
    """`graph.run`, but the results of the `offered` equations are there, in `saved`."""
    values: dict[Atom, Tensor] = dict(zip(graph.inputs, args, strict=True))
    supply = iter(saved)
    there = {eqn.outputs for eqn in offered}
    for eqn in graph.equations:
        inputs = [values[a] if isinstance(a, Var) else a for a in eqn.inputs]
        if eqn.outputs in there:
            result = tuple(next(supply) for _ in eqn.outputs)
            if any(isinstance(x, Box) for x in inputs):
                result = bind(_known(eqn), *result, *inputs)
        else:
            result = bind(eqn.prim, *inputs, **eqn.params)
        results = result if isinstance(result, tuple) else (result,)
        values.update(zip(eqn.outputs, results, strict=True))
    return tuple(values[a] if isinstance(a, Var) else a for a in graph.outputs)


def _known(eqn: Equation) -> Composite:
    """The primitive of `eqn` as a function of its results, which are known, and its arguments:
    nothing is computed, and the derivative is that of the primitive."""
    count = len(eqn.outputs)

    def again(*args: Tensor) -> tuple[Tensor, ...]:
        out = bind(eqn.prim, *args, **eqn.params)
        return out if isinstance(out, tuple) else (out,)

    prim = Anonymous(eqn.prim.name, lambda *xs: xs[:count])

    @prim.fwd
    def _(needs: Sequence[bool], *xs: Tensor) -> Any:
        results, args = xs[:count], xs[count:]
        rule = eqn.prim.vjp_rule
        if rule is None or eqn.prim.fwd_rule is not None or count > 1:
            # The pull of the second run; what it does not read of this run is dead code.
            _, pull_all = flat_vjp(again, args, needs[count:])

            def pull(cts: Sequence[Tensor | None]) -> list[Tensor | None]:
                gradients = iter(pull_all(cts))
                rest = [next(gradients) if need else None for need in needs[count:]]
                return [*[None] * count, *rest]

            return results, pull
        pulls = rule(results[0], *args, **eqn.params)
        pulls = pulls if isinstance(pulls, tuple) else (pulls,)

        def pull_each(cts: Sequence[Tensor | None]) -> list[Tensor | None]:
            (ct,) = cts
            rest = [
                p(ct) if need and p is not None else None
                for p, need in zip(pulls, needs[count:], strict=True)
            ]
            return [*[None] * count, *rest]

        return results, pull_each

    return prim
