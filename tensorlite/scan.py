"""`scan`: a loop of known length that carries a state, and its derivative.

The body is traced once. Reverse mode runs a second scan from the end: what its body needs from the
forward body is kept, one slice for each step, unless it is there anyway (a constant of the loop, or
a slice of the inputs) or depends on constants of the loop only, which is computed once, outside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from . import dtypes, tree
from .arguments import check_callables
from .composite import checkpoint as checkpointed
from .core import Aval, Primitive, Tensor, bind
from .device import current_device
from .graph import Atom, Equation, Graph, Var, trace_graph
from .halves import differentiate
from .ops.creation import asarray, zeros, zeros_like
from .ops.shape import broadcast_to, concat, moveaxis, reshape
from .vectorize import vmap


class Layout(NamedTuple):
    """How the inputs of a scan's body are grouped, and how the loop runs.

    The body takes constants, carries and slices of the inputs, in this order; it returns the new
    carries and then slices of the outputs.
    """

    consts: int
    carries: int
    length: int
    reverse: bool


scan_p = Primitive("scan")  # (*consts, *carries, *xs) -> (*carries, *ys)


def scan(
    f: Callable[[Any, Any], tuple[Any, Any]],
    init: Any,
    xs: Any = None,
    length: int | None = None,
    *,
    reverse: bool = False,
    checkpoint: bool = False,
) -> tuple[Any, Any]:
    """A loop: `carry, y = f(carry, x)` for each slice `x` of `xs`; returns the last carry and the
    stacked `y`.

    Args:
        f: (carry, x) -> (carry, y). It is traced once, so it may not branch on values; the carry
            keeps its structure, shapes and dtypes.
        init: the first carry, a pytree.
        xs: a pytree of tensors of shape (length, ...), sliced along axis 0; None for no inputs.
        length: the number of steps; needed if `xs` has no leaves.
        reverse: from the last slice to the first.
        checkpoint: keep, for reverse mode, the carry at about sqrt(length) places only and run the
            steps in between again: memory grows with the square root of the length, for one more
            forward computation.

    Raises:
        ValueError: the inputs disagree in length, or `length` is missing.
        TypeError: `f` is no function, returns no pair, or a carry unlike the one it got.

    Example:
        >>> def add(total, x):
        ...     return total + x, total + x
        >>> total, sums = tl.scan(add, 0.0, tl.asarray([1.0, 2.0, 4.0]))
        >>> print(total, sums)
        7.0 [1. 3. 7.]
        >>> def last(rate):  # the loop is differentiated like anything else
        ...     return tl.scan(lambda x, _: (x * rate, None), 1.0, length=3)[0]
        >>> print(tl.grad(last)(2.0))
        12.0
    """
    check_callables("scan: takes a function f(carry, x), as in tl.scan(f, init, xs)", f)
    init, xs = tree.map(asarray, init), tree.map(asarray, xs)
    count = _length("scan", xs, length)
    if checkpoint and count > 3:
        return _in_pieces(f, init, xs, count, reverse)
    carry_leaves, carry_def = tree.flatten(init)
    x_leaves, x_def = tree.flatten(xs)
    places = carry_leaves + x_leaves
    device = places[0].device if places else current_device()

    def body(*leaves: Tensor) -> tuple[Any, Any]:
        carry = tree.unflatten(carry_def, leaves[: len(carry_leaves)])
        x = tree.unflatten(x_def, leaves[len(carry_leaves) :])
        out = f(carry, x)
        if not (isinstance(out, tuple) and len(out) == 2):
            raise TypeError(f"scan: f must return (carry, y), got {type(out).__name__}")
        return out

    avals = [x.aval for x in carry_leaves]
    avals += [Aval(x.shape[1:], x.dtype) for x in x_leaves]
    name = getattr(f, "__name__", type(f).__name__)
    traced = trace_graph(body, avals, device=device, name=name, what="tl.scan")
    new_def, y_def = traced.out_def.children()
    got = traced.graph.out_avals[: new_def.num_leaves]
    _check_carry(init, carry_def, new_def, avals, got)
    layout = Layout(len(traced.captured), len(carry_leaves), count, reverse)
    out = _bind(traced.graph, layout, [*traced.captured, *carry_leaves, *x_leaves])
    return (
        tree.unflatten(carry_def, out[: len(carry_leaves)]),
        tree.unflatten(y_def, out[len(carry_leaves) :]),
    )


def map(f: Callable[[Any], Any], xs: Any) -> Any:
    """`f` of each slice of `xs` along axis 0, one after the other, and the results stacked. `vmap`
    computes them at once, with more memory.

    Raises:
        TypeError: `f` is no function.
        ValueError: `xs` has no leaves, one without dimensions, or several of different lengths.

    Example:
        >>> print(tl.map(lambda row: tl.sum(row), tl.asarray([[1, 2], [3, 4], [5, 6]])))
        [ 3  7 11]
    """
    check_callables("map: takes a function f(x), as in tl.map(f, xs)", f)
    xs = tree.map(asarray, xs)
    if not tree.leaves(xs):
        raise ValueError("map: xs holds no tensors, so there is nothing to map over")
    _length("map", xs, None)
    return scan(lambda _, x: (None, f(x)), None, xs)[1]


def _check_carry(
    init: Any, wanted: tree.TreeDef, new: tree.TreeDef, avals: Sequence[Aval], got: Sequence[Aval]
) -> None:
    """That a step gives a carry like the one it takes."""
    rule = "scan: f must return a carry like the one it gets"
    if new != wanted:
        raise TypeError(f"{rule}, but of what it returned: {tree.difference(wanted, new)}")
    for path, aval, other in zip(tree.paths(init), avals, got, strict=False):
        if other != aval:
            at = f" at {path!r}" if path else ""
            raise TypeError(f"{rule}, {aval}{at}, but it returned {other}; use astype or reshape")


def _length(what: str, xs: Any, length: int | None) -> int:
    sizes: dict[int, str] = {}
    for path, leaf in zip(tree.paths(xs), tree.leaves(xs), strict=True):
        if leaf.ndim == 0:
            at = f" at {path!r}" if path else ""
            raise ValueError(
                f"{what}: xs is {leaf.aval}{at}, which has no axis to go along; "
                "its slices along axis 0 are what the steps take"
            )
        sizes.setdefault(leaf.shape[0], path or "xs")
    if length is not None:
        sizes.setdefault(length, "length")
    if len(sizes) != 1:
        found = "; ".join(f"{size} by {path!r}" for size, path in sizes.items())
        raise ValueError(
            f"{what}: the lengths disagree: {found}" if sizes else "scan: needs xs, or a length"
        )
    return next(iter(sizes))


def _in_pieces(f: Any, init: Any, xs: Any, count: int, reverse: bool) -> tuple[Any, Any]:
    """A scan over pieces of about sqrt(count) steps, each of which keeps only where it began."""
    size = math.isqrt(count)
    pieces, rest = divmod(count, size)
    whole = pieces * size

    def cut(start: int, stop: int) -> Any:
        return tree.map(lambda x: x[start:stop], xs)

    def run_piece(carry: Any, piece: Any) -> tuple[Any, Any]:
        return scan(f, carry, piece, size, reverse=reverse)

    def over_pieces(carry: Any) -> tuple[Any, Any]:
        start = rest if reverse else 0
        stacked = tree.map(
            lambda x: reshape(x, (pieces, size, *x.shape[1:])), cut(start, start + whole)
        )
        carry, ys = scan(checkpointed(run_piece), carry, stacked, pieces, reverse=reverse)
        return carry, tree.map(lambda y: reshape(y, (whole, *y.shape[2:])), ys)

    def over_rest(carry: Any) -> tuple[Any, Any]:
        start = 0 if reverse else whole
        return scan(f, carry, cut(start, start + rest), rest, reverse=reverse)

    if not rest:
        return over_pieces(init)
    # The piece of another size comes last in the order of the steps.
    carry, first = over_pieces(init)
    carry, last = over_rest(carry)
    pair = (last, first) if reverse else (first, last)
    return carry, tree.map(lambda a, b: concat([a, b]), *pair)


# ---- the primitive -------------------------------------------------------------------------------


def _bind(body: Graph, layout: Layout, args: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Bind `scan`, with everything that depends on constants of the loop computed before it."""
    consts, moving = list(args[: layout.consts]), args[layout.consts :]
    before, inside = _hoist(body, layout.consts)
    if before is not None:
        consts += before.run(*consts)
        layout = layout._replace(consts=len(consts))
    place = {} if consts or moving else {"device": current_device()}
    return bind(scan_p, *consts, *moving, body=inside, layout=layout, **place)


def _hoist(body: Graph, consts: int) -> tuple[Graph | None, Graph]:
    """Split off the equations that depend on constants only: a graph of the constants, and the body
    with their results as further constants."""
    if "hoisted" not in body.derived:
        before, made = _depending_on_constants(body, consts)
        inside = [eqn for eqn in body.equations if made.isdisjoint(eqn.outputs)]
        read = [a for eqn in inside for a in eqn.inputs] + list(body.outputs)
        results = list(dict.fromkeys(a for a in read if isinstance(a, Var) and a in made))
        first = body.inputs[:consts]
        moved = Graph(first, before, results, body.name) if results else None
        kept = Graph([*first, *results, *body.inputs[consts:]], inside, body.outputs, body.name)
        body.derived["hoisted"] = moved, kept if results else body
    return body.derived["hoisted"]


@scan_p.shape
def _(*args: Aval, body: Graph, layout: Layout, device: Any = None) -> tuple[Aval, ...]:
    carries = body.out_avals[: layout.carries]
    ys = body.out_avals[layout.carries :]
    return (*carries, *[Aval((layout.length, *y.shape), y.dtype) for y in ys])


@scan_p.batch
def _(args: list[Tensor], batched: list[bool], *, body: Graph, layout: Layout) -> tuple[Any, ...]:
    consts, carries = layout.consts, layout.carries
    size = next(x.shape[0] for x, b in zip(args, batched, strict=True) if b)
    flags = list(batched)
    # A carry that a batched value flows into is batched from the start.
    while True:
        outputs = _reached(body, flags)
        grown = [a or b for a, b in zip(flags[consts : consts + carries], outputs, strict=False)]
        if grown == flags[consts : consts + carries]:
            break
        flags[consts : consts + carries] = grown
    moved = []
    for number, (x, was, now) in enumerate(zip(args, batched, flags, strict=True)):
        if now and not was:
            x = broadcast_to(x, (size, *x.shape))
        # The loop goes along axis 0 of the inputs, so their batch goes behind it.
        moved.append(moveaxis(x, 0, 1) if number >= consts + carries and now else x)
    in_axes = tuple(0 if b else None for b in flags)
    out_axes = tuple(0 if b else None for b in flags[consts : consts + carries])
    out_axes += (0,) * (len(body.outputs) - carries)
    avals = [
        Aval((size, *aval.shape), aval.dtype) if b else aval
        for aval, b in zip(body.in_avals, flags, strict=True)
    ]
    key = ("batched", in_axes, size)
    if key not in body.derived:
        run = vmap(body.run, in_axes, out_axes)
        body.derived[key] = trace_graph(run, avals, device=args[0].device, name=body.name).graph
    out = bind(scan_p, *moved, body=body.derived[key], layout=layout)
    ends = [
        c if b else broadcast_to(c, (size, *c.shape))
        for c, b in zip(out[:carries], flags[consts : consts + carries], strict=True)
    ]
    return (*ends, *[moveaxis(y, 1, 0) for y in out[carries:]])


def _reached(graph: Graph, marked: Sequence[bool]) -> list[bool]:
    """Which outputs depend on the marked inputs."""
    late: set[Atom] = {v for v, m in zip(graph.inputs, marked, strict=True) if m}
    for eqn in graph.equations:
        if not late.isdisjoint(a for a in eqn.inputs if isinstance(a, Var)):
            late.update(eqn.outputs)
    return [isinstance(a, Var) and a in late for a in graph.outputs]


# ---- the derivative ------------------------------------------------------------------------------


@scan_p.fwd
def _(needs: tuple[bool, ...], *args: Tensor, body: Graph, layout: Layout) -> Any:
    plan = _plan(body, layout, _active(body, layout, needs), args[0].device)
    out = bind(scan_p, *args, body=plan.forward, layout=layout)
    carries, outputs = layout.carries, len(body.outputs)
    stacked = out[outputs:]
    answers = out[:outputs]

    def pull(cts: tuple[Tensor | None, ...]) -> list[Tensor | None]:
        full = [zeros_like(a) if ct is None else ct for ct, a in zip(cts, answers, strict=True)]
        return _pull(plan, layout, needs, args, stacked, full[:carries], full[carries:])

    return answers, pull


def _active(body: Graph, layout: Layout, needs: Sequence[bool]) -> tuple[bool, ...]:
    """Which inputs of the body have derivatives: those needed, and carries that these flow into."""
    start, stop = layout.consts, layout.consts + layout.carries
    active = list(needs)
    while True:
        outputs = _reached(body, active)
        grown = [
            was or (reached and dtypes.is_float(aval.dtype))
            for was, reached, aval in zip(
                active[start:stop],
                outputs[: layout.carries],
                body.in_avals[start:stop],
                strict=True,
            )
        ]
        if grown == active[start:stop]:
            return tuple(active)
        active[start:stop] = grown


class _Plan(NamedTuple):
    """The two bodies of a differentiated scan.

    `forward` returns, behind the outputs of the original body, the residuals to be stacked;
    `invariant` computes those that depend on constants of the loop only. `backward` takes the
    residuals (in the order of `sources`) and the cotangents of all outputs. A source is the kind of
    a residual ("argument" of the scan that is no carry, "invariant" or "stacked") and its place.
    """

    forward: Graph
    invariant: Graph
    backward: Graph
    active: tuple[bool, ...]
    sources: tuple[tuple[str, int], ...]


def _plan(body: Graph, layout: Layout, active: tuple[bool, ...], device: Any) -> _Plan:
    key = ("scan derivative", active)
    if key in body.derived:
        return body.derived[key]
    halves = differentiate(body, active, device)
    outputs = len(body.outputs)
    place = {v: i for i, v in enumerate(halves.forward.inputs)}
    carry_range = range(layout.consts, layout.consts + layout.carries)
    before, fixed = _depending_on_constants(halves.forward, layout.consts)
    sources: list[tuple[str, int]] = []
    stacked: list[Atom] = []
    invariant: list[Atom] = []
    for residual in halves.forward.outputs[outputs:]:
        assert isinstance(residual, Var)
        position = place.get(residual)
        if position is not None and position not in carry_range:
            sources.append(("argument", position))
        elif residual in fixed:
            sources.append(("invariant", len(invariant)))
            invariant.append(residual)
        else:
            sources.append(("stacked", len(stacked)))
            stacked.append(residual)
    forward, name = halves.forward, body.name
    body.derived[key] = _Plan(
        Graph(
            forward.inputs,
            forward.equations,
            [*forward.outputs[:outputs], *stacked],
            forward.name,
        ),
        Graph(forward.inputs[: layout.consts], before, invariant, f"{name} invariant"),
        halves.backward,
        active,
        tuple(sources),
    )
    return body.derived[key]


def _depending_on_constants(body: Graph, consts: int) -> tuple[list[Equation], set[Var]]:
    """The equations of a scan's body that depend on its constants only, and their results."""
    known = set(body.inputs[:consts])
    made: set[Var] = set()
    equations = []
    for eqn in body.equations:
        reads = {a for a in eqn.inputs if isinstance(a, Var)}
        if reads and reads <= known | made:
            equations.append(eqn)
            made.update(eqn.outputs)
    return equations, made


def _pull(
    plan: _Plan,
    layout: Layout,
    needs: Sequence[bool],
    args: Sequence[Tensor],
    stacked: Sequence[Tensor],
    carry_cts: Sequence[Tensor],
    y_cts: Sequence[Tensor],
) -> list[Tensor | None]:
    """Scan backwards: the carries are the cotangents of the carries and the sums of those of the
    constants, the inputs are residuals and cotangents of the outputs."""
    consts, carries = layout.consts, layout.carries
    active_consts = [i for i in range(consts) if plan.active[i]]
    active_carries = [i for i in range(carries) if plan.active[consts + i]]
    groups = {
        "argument": args,
        "invariant": plan.invariant.run(*args[:consts]),
        "stacked": stacked,
    }
    residuals = [groups[kind][at] for kind, at in plan.sources]
    sliced = [
        kind == "stacked" or (kind == "argument" and at >= consts) for kind, at in plan.sources
    ]

    def step(state: Any, slices: Any) -> Any:
        sums, cts = state
        kept, of_ys = slices
        supply = iter(kept)
        of_step = [next(supply) if s else r for r, s in zip(residuals, sliced, strict=True)]
        all_cts = [zeros_like(c) for c in carry_cts]
        for i, ct in zip(active_carries, cts, strict=True):
            all_cts[i] = ct
        gradients = iter(plan.backward.run(*of_step, *all_cts, *of_ys))
        found = [next(gradients) if a else None for a in plan.active]
        new_sums = [s + found[i] for s, i in zip(sums, active_consts, strict=True)]
        new_cts = [found[consts + i] for i in active_carries]
        return (new_sums, new_cts), [g for g in found[consts + carries :] if g is not None]

    sums = [zeros(args[i].shape, dtype=args[i].dtype, device=args[i].device) for i in active_consts]
    cts = [carry_cts[i] for i in active_carries]
    slices = ([r for r, s in zip(residuals, sliced, strict=True) if s], list(y_cts))
    (sums, cts), x_cts = scan(step, (sums, cts), slices, layout.length, reverse=not layout.reverse)
    gradients: list[Tensor | None] = [None] * len(args)
    for i, ct in zip(active_consts, sums, strict=True):
        gradients[i] = ct
    for i, ct in zip(active_carries, cts, strict=True):
        gradients[consts + i] = ct
    inputs = [i for i in range(consts + carries, len(args)) if plan.active[i]]
    for i, ct in zip(inputs, x_cts, strict=True):
        gradients[i] = ct
    return [g if need else None for g, need in zip(gradients, needs, strict=True)]
