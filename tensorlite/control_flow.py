"""Structured control flow: `cond` and `while_loop`. (`scan` has a file of its own.)

On concrete values, Python's own `if` and `while` do, and these functions do just that. Where the
predicate is traced, the functions are traced to graphs, and one primitive holds them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from . import dtypes, tree
from .arguments import check_callables
from .boxes import flat_vjp
from .core import Aval, Primitive, Tensor, bind, tracing_graph
from .device import Device, current_device
from .graph import Graph, Traced, Var, trace_graph
from .ops.control import optimization_barrier
from .ops.creation import asarray, zeros_like
from .ops.elementwise import where
from .ops.reduce import any as any_
from .ops.shape import broadcast_to, reshape
from .vectorize import BatchTracer, vmap

# ---- cond ----------------------------------------------------------------------------------------

cond_p = Primitive(
    "cond"
)  # (predicate, *args); the graphs take the same args and give like results


def cond(
    predicate: Any,
    true_function: Callable[..., Any],
    false_function: Callable[..., Any],
    *args: Any,
) -> Any:
    """`true_function(*args)` if `predicate`, else `false_function(*args)`.

    Args:
        predicate: a boolean scalar. If it is concrete, only the function it chooses is ever run.
        true_function, false_function: functions of `args` (pytrees); they may close over anything.
            Where the predicate is traced they must give results of the same structure, shapes and
            dtypes.

    Raises:
        TypeError: the predicate is no boolean scalar, a function is none, or the results differ.

    Example:
        >>> @tl.jit
        ... def halve_or_triple(n):
        ...     return tl.cond(n % 2 == 0, lambda n: n // 2, lambda n: 3 * n + 1, n)
        >>> print(halve_or_triple(10), halve_or_triple(7))
        5 22
    """
    rule = "cond: takes two functions of the arguments after them (tl.where chooses values)"
    check_callables(rule, true_function, false_function)
    predicate = asarray(predicate)
    if predicate.shape != () or predicate.dtype != dtypes.bool_:
        raise TypeError(f"cond: the predicate is a boolean scalar, got {predicate.aval}")
    args = tree.map(asarray, args)
    if is_concrete(predicate):
        return (true_function if bool(predicate) else false_function)(*args)
    leaves, treedef = tree.flatten(args)
    branches = [
        _trace(f, treedef, leaves, predicate.device, "tl.cond")
        for f in (true_function, false_function)
    ]
    _check_alike("cond", "true_function", branches[0], "false_function", branches[1])
    true, false, captured = _with_all_captured(*branches)
    out = bind(cond_p, predicate, *captured, *leaves, true=true, false=false)
    return tree.unflatten(branches[0].out_def, out)


@cond_p.shape
def _(predicate: Aval, *args: Aval, true: Graph, false: Graph) -> tuple[Aval, ...]:
    return true.out_avals


@cond_p.fwd
def _(needs: tuple[bool, ...], predicate: Tensor, *args: Tensor, true: Graph, false: Graph) -> Any:
    ans = bind(cond_p, predicate, *args, true=true, false=false)
    wanted = needs[1:]

    def pull(cts: tuple[Tensor | None, ...]) -> list[Tensor | None]:
        # Each branch runs again for its derivative, so that neither has to keep anything.
        full = [zeros_like(a) if ct is None else ct for ct, a in zip(cts, ans, strict=True)]
        again = optimization_barrier(*args, *full)
        backward = [_gradient_graph(g, wanted, predicate.device) for g in (true, false)]
        gradients = iter(bind(cond_p, predicate, *again, true=backward[0], false=backward[1]))
        return [None, *[next(gradients) if need else None for need in wanted]]

    return ans, pull


def _gradient_graph(graph: Graph, needs: tuple[bool, ...], device: Device) -> Graph:
    """(args, cotangents of the results) -> cotangents of the needed args."""
    key = ("gradient", needs)
    if key not in graph.derived:
        count = len(graph.inputs)
        floats = [dtypes.is_float(aval.dtype) for aval in graph.out_avals]

        def gradient(*xs: Tensor) -> list[Tensor]:
            args, cts = xs[:count], xs[count:]
            _, pull = flat_vjp(graph.run, args, needs)
            pulled = pull([ct if f else None for ct, f in zip(cts, floats, strict=True)])
            wanted = [x for x, need in zip(args, needs, strict=True) if need]
            return [zeros_like(x) if g is None else g for g, x in zip(pulled, wanted, strict=True)]

        avals = graph.in_avals + graph.out_avals
        graph.derived[key] = trace_graph(gradient, avals, device=device, name=graph.name).graph
    return graph.derived[key]


@cond_p.batch
def _(args: list[Tensor], batched: list[bool], *, true: Graph, false: Graph) -> tuple[Tensor, ...]:
    predicate, *rest = args
    axes = tuple(0 if b else None for b in batched[1:])
    size = next(x.shape[0] for x, b in zip(args, batched, strict=True) if b)
    run_true, run_false = (vmap(g.run, axes, axis_size=size) for g in (true, false))
    if not batched[0]:
        return tuple(cond(predicate, run_true, run_false, *rest))
    chosen = [
        where(reshape(predicate, (size, *(1,) * (t.ndim - 1))), t, f)
        for t, f in zip(run_true(*rest), run_false(*rest), strict=True)
    ]
    return tuple(chosen)


# ---- while ---------------------------------------------------------------------------------------

while_p = Primitive("while_loop")  # (*captured by test, *captured by step, *state)


def while_loop(test: Callable[[Any], Any], step: Callable[[Any], Any], state: Any) -> Any:
    """`while test(state): state = step(state)`; returns the last state.

    Args:
        test: state -> a boolean scalar.
        step: state -> state of the same structure, shapes and dtypes.
        state: any pytree of tensors.

    In eager mode on concrete values this is that Python loop, and `tl.grad` goes through it. Where
    the number of steps is traced it has no derivative, since nothing bounds what would have to be
    kept: use `scan` for a loop of known length.

    Raises:
        TypeError: `test` gives no boolean scalar, or `step` changes structure, shapes or dtypes.

    Example:
        >>> @tl.jit
        ... def root(a):  # Newton's iteration
        ...     def test(x):
        ...         return tl.abs(x * x - a) > 1e-4
        ...     return tl.while_loop(test, lambda x: 0.5 * (x + a / x), a)
        >>> print(round(float(root(16.0)), 4))
        4.0
    """
    check_callables("while_loop: test and step are functions of the state", test, step)
    state = tree.map(asarray, state)
    leaves, treedef = tree.flatten(state)
    avals = [x.aval for x in leaves]
    while tracing_graph() is None:
        going = asarray(test(state))
        _check_test([going.aval])
        if not is_concrete(going):
            break  # from here on it depends on the example of a batch
        if not going:
            return state
        state = tree.map(asarray, step(state))
        leaves, new_def = tree.flatten(state)
        _check_state(treedef, avals, new_def, [x.aval for x in leaves])
    return _traced_loop(test, step, state)


def _traced_loop(test: Callable[[Any], Any], step: Callable[[Any], Any], state: Any) -> Any:
    leaves, treedef = tree.flatten(state)
    device = leaves[0].device if leaves else current_device()
    tested = _trace(test, treedef, leaves, device, "tl.while_loop", single=True)
    stepped = _trace(step, treedef, leaves, device, "tl.while_loop", single=True)
    _check_test(tested.graph.out_avals)
    avals = [x.aval for x in leaves]
    _check_state(treedef, avals, stepped.out_def, stepped.graph.out_avals)
    counts = (len(tested.captured), len(stepped.captured))
    captured = (*tested.captured, *stepped.captured)
    graphs = {"test": tested.graph, "step": stepped.graph}
    return tree.unflatten(treedef, bind(while_p, *captured, *leaves, counts=counts, **graphs))


def _check_test(avals: Sequence[Aval]) -> None:
    """Raise unless a test, traced or not, gives what can be true or false."""
    if tuple(avals) != (Aval((), dtypes.bool_),):
        got = ", ".join(map(str, avals))
        raise TypeError(f"while_loop: test must return one boolean scalar, got {got}")


def _check_state(
    treedef: tree.TreeDef, avals: Sequence[Aval], new_def: tree.TreeDef, new_avals: Sequence[Aval]
) -> None:
    """Raise unless a step keeps the structure, shapes and dtypes of the state, traced or not."""
    if new_def != treedef:
        raise TypeError(
            "while_loop: step must return a state of the structure of the one it gets; of what it "
            f"returned: {tree.difference(treedef, new_def)}"
        )
    for index, (old, new) in enumerate(zip(avals, new_avals, strict=True)):
        if old != new:
            path = tree.paths(tree.unflatten(treedef, range(len(avals))))[index]
            where = f"leaf {path!r} of the state" if path else "the state"
            raise TypeError(
                f"while_loop: step gets {where} as {old} and returns it as {new}; it must keep "
                "shapes and dtypes, so start with those that it returns, or use astype in it"
            )


@while_p.shape
def _(*args: Aval, test: Graph, step: Graph, counts: tuple[int, int]) -> tuple[Aval, ...]:
    return args[sum(counts) :]


@while_p.fwd
def _(needs: tuple[bool, ...], *args: Tensor, **params: Any) -> Any:
    raise TypeError(
        "while_loop has no derivative where the number of its steps is traced; use tl.scan for a "
        "loop "
        "of known length, or tl.stop_gradient on its arguments"
    )


@while_p.batch
def _(
    args: list[Tensor],
    batched: list[bool],
    *,
    test: Graph,
    step: Graph,
    counts: tuple[int, int],
) -> tuple[Tensor, ...]:
    """All examples step until the last one is done; an example that is done keeps its state."""
    size = next(x.shape[0] for x, b in zip(args, batched, strict=True) if b)
    for_test, for_step = args[: counts[0]], args[counts[0] : sum(counts)]
    axes = [0 if b else None for b in batched]
    test_axes, step_axes = axes[: counts[0]], axes[counts[0] : sum(counts)]
    state = [
        x if b else broadcast_to(x, (size, *x.shape))
        for x, b in zip(args[sum(counts) :], batched[sum(counts) :], strict=True)
    ]
    everywhere = [0] * len(state)

    def active(state: list[Tensor]) -> Tensor:
        run = vmap(lambda *xs: test.run(*xs)[0], (*test_axes, *everywhere), axis_size=size)
        return run(*for_test, *state)

    def stepped(state: list[Tensor]) -> list[Tensor]:
        going = active(state)
        run = vmap(step.run, (*step_axes, *everywhere), axis_size=size)
        new = run(*for_step, *state)
        return [
            where(reshape(going, (size, *(1,) * (n.ndim - 1))), n, old)
            for n, old in zip(new, state, strict=True)
        ]

    return tuple(while_loop(lambda state: any_(active(state)), stepped, state))


# ---- helpers -------------------------------------------------------------------------------------


def is_concrete(x: Tensor) -> bool:
    """Whether the value of `x` can be looked at, through the boxes of reverse mode too."""
    while x.trace is not None:
        if not hasattr(x, "value") or isinstance(x, BatchTracer):
            return False
        x = x.value
    return True


def _trace(
    f: Callable[..., Any],
    treedef: tree.TreeDef,
    leaves: Sequence[Tensor],
    device: Device,
    what: str,
    single: bool = False,
) -> Traced:
    """Trace a function of a tree (or of a tuple of arguments) whose leaves are like `leaves`."""

    def flat(*xs: Tensor) -> Any:
        arguments = tree.unflatten(treedef, xs)
        return f(arguments) if single else f(*arguments)

    name = getattr(f, "__name__", type(f).__name__)
    return trace_graph(flat, [x.aval for x in leaves], device=device, name=name, what=what)


def _check_alike(op: str, name: str, first: Traced, other_name: str, other: Traced) -> None:
    if first.out_def != other.out_def:
        raise TypeError(
            f"{op}: the results of {name} and {other_name} have different structures; of that of "
            f"{other_name}: {tree.difference(first.out_def, other.out_def)}"
        )
    for index, (a, b) in enumerate(zip(first.graph.out_avals, other.graph.out_avals, strict=True)):
        if a != b:
            raise TypeError(
                f"{op}: result {index} of {name} is {a}, that of {other_name} is {b}; they must "
                "agree"
            )


def _with_all_captured(*traced: Traced) -> tuple[Any, ...]:
    """The graphs, each taking what any of them closes over as its first inputs, and these
    tensors."""
    everything: dict[int, Tensor] = {id(x): x for t in traced for x in t.captured}
    captured = list(everything.values())
    graphs = []
    for t in traced:
        extra = {id(x): v for x, v in zip(t.captured, t.graph.inputs, strict=False)}
        inputs = [extra.get(key) or Var(x.aval) for key, x in everything.items()]
        own = t.graph.inputs[len(t.captured) :]
        graphs.append(Graph([*inputs, *own], t.graph.equations, t.graph.outputs, t.graph.name))
    return (*graphs, captured)
