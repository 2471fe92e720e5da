"""Reverse mode as a stack of boxes, and forward mode as the pullback of the pullback.

While `vjp` runs a function, its inputs are boxes. Every primitive that meets a box computes its
answer at once, on the value below the box, and leaves a node that knows how to pull a cotangent
back. Values below a box are concrete, so Python's `if`, `while` and `print` work; nodes hold values
of the level below, so that a pullback can itself be differentiated, batched or traced.
"""

from __future__ import annotations

import functools
import heapq
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from . import dtypes, tree
from .core import (
    Aval,
    Primitive,
    Tensor,
    Trace,
    Tracer,
    TracerError,
    bind,
    captured,
    new_trace,
    tracing_graph,
)
from .ops.creation import asarray, full
from .origin import Origin, here, recording, replays

_order = itertools.count()


class Node:
    """One step of the forward computation: where its arguments came from, and how cotangents go
    back to them."""

    __slots__ = ("order", "parents", "pull", "results")

    def __init__(
        self, parents: Sequence[tuple[Node, int] | None], pull: Any, results: int | None = None
    ):
        self.order = next(_order)  # creation order is a topological order
        self.parents = parents
        self.pull = pull  # a tuple of functions, one per parent, or one joint function
        self.results = (
            results  # how many, if the primitive returns a tuple; None if it returns one tensor
        )


class Box(Tracer):
    """A tensor in the computation that `trace` differentiates: its value one level below, and the
    node that made it."""

    __slots__ = ("index", "node", "trace", "value")

    def __init__(self, trace: VJPTrace, value: Tensor, node: Node, index: int = 0):
        self.trace = trace
        self.value = value
        self.node = node
        self.index = index

    @property
    def aval(self) -> Aval:
        return self.value.aval

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.value.dtype

    @property
    def device(self) -> Any:
        return self.value.device

    def concrete(self, wanted: str) -> Tensor:
        """The value below: looking at it is allowed, but it takes no gradient along."""
        return self.value.concrete(wanted)

    def numpy(self) -> np.ndarray:
        return self.concrete("numpy()").numpy()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        raise TracerError(
            f"conversion to NumPy of a value of {self.aval} inside tl.grad would lose its "
            "gradient; "
            "use tensorlite's own function, or x.numpy() to look at the value only"
        )

    def __repr__(self) -> str:
        return f"Box({self.value!r})"

    def __str__(self) -> str:
        return str(self.value)


class VJPTrace(Trace):
    """Records how cotangents flow back through the primitives that meet its boxes."""

    def __init__(self, level: int, what: str, f: Callable[..., Any]):
        super().__init__(level)
        self.what, self.f = what, f
        # Lines of eager operations are worth their time only when somebody looks for a mistake.
        self.records = recording.on or tracing_graph() is not None

    def __str__(self) -> str:
        return f"tl.{self.what} of {getattr(self.f, '__name__', type(self.f).__name__)}"

    def process(self, prim: Primitive, args: tuple[Tensor, ...], params: dict[str, Any]) -> Any:
        if not prim.differentiable:
            return bind(prim, *[a.value if a.trace is self else a for a in args], **params)  # type: ignore[attr-defined]
        values: list[Tensor] = []
        parents: list[tuple[Node, int] | None] = []
        for arg in args:
            if arg.trace is self:
                values.append(arg.value)  # type: ignore[attr-defined]
                parents.append((arg.node, arg.index))  # type: ignore[attr-defined]
            else:
                values.append(arg)
                parents.append(None)
        if prim.fwd_rule is not None:
            needs = tuple(parent is not None for parent in parents)
            ans, pull = prim.fwd_rule(needs, *values, **params)
        elif prim.vjp_rule is not None:
            ans = bind(prim, *values, **params)
            pull = prim.vjp_rule(ans, *values, **params)
            if not isinstance(pull, tuple):
                pull = (pull,)
        elif prim.body is not None:
            return prim.body(*args, **params)
        else:
            raise NotImplementedError(f"{prim.name} has no derivative")
        if self.records:
            pull = _recorded(pull, here())
        if isinstance(ans, tuple):
            for a in ans:
                if a.trace is self:
                    raise captured(self, prim)
            node = Node(parents, pull, len(ans))
            return tuple(Box(self, a, node, i) for i, a in enumerate(ans))
        return Box(self, ans, Node(parents, pull))


def _recorded(pull: Any, origin: Origin | None) -> Any:
    """`pull`, whose operations come from the line that asked for the forward one."""
    if pull is None or origin is None:
        return pull
    if isinstance(pull, tuple):
        return tuple(_recorded(each, origin) for each in pull)

    of_this = origin._replace(backward=True)

    @replays("source")
    def derivative(ct: Any, source: Origin = of_this) -> Any:
        return pull(ct)

    return derivative


def backward(
    seeds: Sequence[tuple[Node, int, Tensor]], leaves: Sequence[Node]
) -> list[Tensor | None]:
    """The cotangents that reach `leaves` when `seeds` (node, which of its results, cotangent) are
    pulled back; None is zero."""
    arrived: dict[Node, Any] = {}  # a cotangent, or a list of them for a node with several results
    waiting: list[tuple[int, Node]] = []

    def send(node: Node, index: int, cotangent: Tensor) -> None:
        present = arrived.get(node)
        if present is None:
            heapq.heappush(waiting, (-node.order, node))
            if node.results is None:
                arrived[node] = cotangent
                return
            present = arrived[node] = [None] * node.results
        if node.results is None:
            arrived[node] = present + cotangent
        else:
            slot = present[index]
            present[index] = cotangent if slot is None else slot + cotangent

    for node, index, cotangent in seeds:
        send(node, index, cotangent)
    while waiting:
        _, node = heapq.heappop(waiting)
        if node.pull is None:
            continue
        ct = arrived.pop(node)
        if node.results is not None:
            ct = tuple(ct)
        if isinstance(node.pull, tuple):
            for parent, pull in zip(node.parents, node.pull, strict=True):
                if parent is not None and pull is not None:
                    cotangent = pull(ct)
                    if cotangent is not None:
                        send(parent[0], parent[1], cotangent)
        else:
            for parent, cotangent in zip(node.parents, node.pull(ct), strict=True):
                if parent is not None and cotangent is not None:
                    send(parent[0], parent[1], cotangent)
    return [arrived.get(leaf) for leaf in leaves]


def _linearize(
    f: Callable[..., Any],
    args: tuple[Any, ...],
    active: Sequence[bool],
    has_aux: bool,
    what: str,
    user_function: Callable[..., Any] | None = None,
) -> tuple[Any, Any, Callable[[Sequence[Tensor | None]], list[Tensor | None]], tree.TreeDef]:
    """Run f(*args) with boxes around the `active` leaves of `args`.

    Returns the result, the auxiliary result, a function from cotangents of the result's leaves to
    cotangents of the active leaves, and the structure of the result.
    """
    leaves, treedef = tree.flatten(args)
    with new_trace(VJPTrace, what, user_function or f) as trace:
        sources = [Node((), None) for a in active if a]
        fresh = iter(sources)
        boxed = [
            Box(trace, leaf, next(fresh)) if a else leaf
            for leaf, a in zip(leaves, active, strict=True)
        ]
        out = f(*tree.unflatten(treedef, boxed))
        aux = None
        if has_aux:
            if not (isinstance(out, tuple) and len(out) == 2):
                raise TypeError(
                    f"{what}: with has_aux=True the function returns (value, aux), got "
                    f"{type(out).__name__}"
                )
            out, aux = out
        out_leaves, out_def = tree.flatten(out)
    ends = [(o.node, o.index) if _is_box_of(o, trace) else None for o in out_leaves]
    result = tree.unflatten(out_def, [_unbox(o, trace) for o in out_leaves])
    if has_aux:
        aux = tree.map(lambda leaf: _unbox(leaf, trace), aux)

    def pull(cotangents: Sequence[Tensor | None]) -> list[Tensor | None]:
        seeds = [
            (*end, ct)
            for end, ct in zip(ends, cotangents, strict=True)
            if end is not None and ct is not None
        ]
        return backward(seeds, sources)

    return result, aux, pull, out_def


def _is_box_of(value: Any, trace: Trace) -> bool:
    return isinstance(value, Box) and value.trace is trace


def _unbox(value: Any, trace: Trace) -> Any:
    return value.value if _is_box_of(value, trace) else value


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
    """
    primals = tree.map(asarray, primals)
    leaves, treedef = tree.flatten(primals)
    active = [dtypes.is_float(leaf.dtype) for leaf in leaves]
    value, aux, pull, out_def = _linearize(f, primals, active, has_aux, "vjp")
    out_avals = [asarray(leaf).aval for leaf in tree.leaves(value)]

    def pullback(cotangent: Any) -> tuple[Any, ...]:
        cts, ct_def = tree.flatten(cotangent)
        if ct_def != out_def:
            raise ValueError(
                f"vjp: the cotangent has structure {ct_def}, the function's value {out_def}"
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


def _fill(gradient: Tensor | None, like: Tensor) -> Tensor:
    return (
        full(like.shape, 0, dtype=like.dtype, device=like.device) if gradient is None else gradient
    )


def flat_vjp(
    f: Callable[..., tuple[Tensor, ...]], args: Sequence[Tensor], needs: Sequence[bool]
) -> tuple[tuple[Tensor, ...], Callable[[Sequence[Tensor | None]], list[Tensor | None]]]:
    """`vjp` for the rules of primitives: of a function of tensors that returns a tuple of them.

    The pullback takes one cotangent for each result and gives one for each argument that is needed;
    None is zero.
    """
    value, _, pull, _ = _linearize(f, tuple(args), needs, False, "vjp")
    return value, pull


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


def check_argnums(what: str, argnums: Any) -> tuple[int, ...]:
    """`argnums` as a tuple.

    Raises:
        TypeError: it is neither an int nor a sequence of ints.
    """
    positions = (argnums,) if isinstance(argnums, int) else argnums
    if not isinstance(positions, tuple | list) or not all(isinstance(p, int) for p in positions):
        raise TypeError(f"{what}: argnums is an int or a sequence of ints, got {argnums!r}")
    return tuple(positions)


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
        TypeError: a leaf to differentiate is not floating-point, or the value is not a scalar.
    """
    positions = check_argnums("grad", argnums)

    @functools.wraps(f)
    def with_gradient(*args: Any, **kwargs: Any) -> Any:
        chosen = choose_arguments("grad", f, positions, args, kwargs)
        active, leaves = chosen.active, chosen.leaves
        value, aux, pull, _ = _linearize(
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
    `value_and_grad`."""
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
    """
    points_tree = tree.map(asarray, tuple(primals))
    leaves, treedef = tree.flatten(points_tree)
    directions, tangent_def = tree.flatten(tuple(tangents))
    if tangent_def != treedef:
        raise ValueError(f"jvp: tangents have structure {tangent_def}, primals {treedef}")
    active = [dtypes.is_float(leaf.dtype) for leaf in leaves]
    directions = [asarray(d) for d, a in zip(directions, active, strict=True) if a]
    points = [x for x, a in zip(leaves, active, strict=True) if a]
    for direction, point in zip(directions, points, strict=True):
        if direction.aval != point.aval:
            raise ValueError(f"jvp: a tangent is {direction.aval}, its primal {point.aval}")
    value, _, pull, out_def = _linearize(f, points_tree, active, False, "jvp")
    outs = [asarray(o) for o in tree.leaves(value)]
    floats = [dtypes.is_float(o.dtype) for o in outs]
    zeros = tuple(_fill(None, o) for o, is_float in zip(outs, floats, strict=True) if is_float)

    def pull_floats(*cts: Tensor) -> tuple[Tensor, ...]:
        supply = iter(cts)
        gradients = pull([next(supply) if is_float else None for is_float in floats])
        return tuple(_fill(g, x) for g, x in zip(gradients, points, strict=True))

    _, _, push, _ = _linearize(pull_floats, zeros, [True] * len(zeros), False, "jvp")
    moved = iter(push(directions))
    result = [
        _fill(next(moved) if is_float else None, o)
        for o, is_float in zip(outs, floats, strict=True)
    ]
    return value, tree.unflatten(out_def, result)
