"""Graphs: a computation as a list of equations, and how a function is traced into one.

A graph is in single-assignment form. Its atoms are `Var`s and concrete tensors (constants). It is
plain data: passes build new graphs, backends compile them, and `Graph.run` evaluates one with
`bind`, so that any transform can run through it. `render.py` shows graphs to people.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from . import tree
from .arguments import check_function
from .core import Aval, Primitive, Tensor, Trace, Tracer, TracerError, bind, leaked, new_trace
from .device import Device, current_device
from .ops.creation import asarray, weak_aval
from .origin import Origin, border, here, replays


class Var:
    """A variable of a graph."""

    __slots__ = ("aval",)

    def __init__(self, aval: Aval):
        self.aval = aval


Atom = Var | Tensor


class Equation(NamedTuple):
    """`outputs = prim[params](inputs)`, asked for by the user's line `source`."""

    prim: Primitive
    inputs: tuple[Atom, ...]
    params: dict[str, Any]
    outputs: tuple[Var, ...]
    source: Origin | None = None

    @property
    def graphs(self) -> dict[str, Graph]:
        """The graphs among the parameters, by name."""
        return {name: value for name, value in self.params.items() if isinstance(value, Graph)}


class Graph:
    """A function of tensors as equations. Equations that no output needs are left out."""

    def __init__(
        self,
        inputs: Sequence[Var],
        equations: Iterable[Equation],
        outputs: Sequence[Atom],
        name: str = "f",
    ):
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.equations = _needed(equations, self.outputs)
        self.name = name
        self.derived: dict[
            Any, Any
        ] = {}  # what others made of this graph: its derivative, its batched form, executables

    @property
    def in_avals(self) -> tuple[Aval, ...]:
        return tuple(v.aval for v in self.inputs)

    @property
    def out_avals(self) -> tuple[Aval, ...]:
        return tuple(v.aval for v in self.outputs)

    @replays("eqn")
    def run(self, *args: Tensor) -> tuple[Tensor, ...]:
        """Evaluate with `bind`: `args` may be traced by any transform."""
        values: dict[Var, Tensor] = dict(zip(self.inputs, args, strict=True))

        def read(atom: Atom) -> Tensor:
            return values[atom] if isinstance(atom, Var) else atom

        for eqn in self.equations:
            result = bind(eqn.prim, *map(read, eqn.inputs), **eqn.params)
            results = result if isinstance(result, tuple) else (result,)
            values.update(zip(eqn.outputs, results, strict=True))
        return tuple(map(read, self.outputs))

    def to_text(self, *, sources: bool = False) -> str:
        """One equation a line, with its scope; `sources` adds the user's line to each."""
        from . import render  # which knows graphs, as graphs know how to be shown

        return render.text(self, sources)

    def to_svg(self) -> str:
        """A drawing of the graph as an SVG document: an arrow for each value that an equation
        reads."""
        from . import render

        return render.svg(self)

    def to_html(self) -> str:
        """The graph as one HTML page that needs nothing else: listing and drawing, a search, inner
        graphs that fold."""
        from . import render

        return render.html(self)

    def _repr_html_(self) -> str:
        from . import render

        return render.notebook(self)

    def __str__(self) -> str:
        return self.to_text()

    __repr__ = __str__


def _needed(equations: Iterable[Equation], outputs: Sequence[Atom]) -> tuple[Equation, ...]:
    live = {o for o in outputs if isinstance(o, Var)}
    kept = []
    for eqn in reversed(list(equations)):
        if not live.isdisjoint(eqn.outputs):
            kept.append(eqn)
            live.update(a for a in eqn.inputs if isinstance(a, Var))
    return tuple(reversed(kept))


class GraphTracer(Tracer):
    """A tensor that will exist when the graph runs."""

    __slots__ = ("aval", "trace", "variable", "weak")

    def __init__(self, trace: GraphTrace, variable: Var, weak: bool = False):
        self.trace = trace
        self.variable = variable
        self.aval = variable.aval  # type: ignore[misc]
        self.weak = weak

    def as_weak(self, weak: bool) -> GraphTracer:
        """The same value, which stands for a Python scalar or does not."""
        return GraphTracer(self.trace, self.variable, weak)  # type: ignore[arg-type]

    @property
    def device(self) -> Any:
        return self.trace.device  # type: ignore[union-attr]

    def concrete(self, wanted: str) -> Tensor:
        raise TracerError(
            f"{wanted} needs a concrete value, but while {self.trace} traces, this {self.aval} "
            f"has none{self.trace.made(self)}; "  # type: ignore[union-attr]
            "use tl.where or tl.cond instead of a Python `if` or `while` on it, move the branch "
            "out of the traced function, or make the "
            "value a static argument (static_argnums)"
        )


class GraphTrace(Trace):
    """Writes an equation for every primitive that runs, on constants too."""

    def __init__(self, level: int, device: Device, name: str):
        super().__init__(level)
        self.device = device
        self.name = name
        self.equations: list[Equation] = []
        self.captured: dict[
            int, tuple[Tensor, Var]
        ] = {}  # tracers of outer transforms that the function closes over

    def process(self, prim: Primitive, args: tuple[Tensor, ...], params: dict[str, Any]) -> Any:
        result = prim.abstract(*[arg.aval for arg in args], **params)
        avals = (result,) if isinstance(result, Aval) else result
        outputs = tuple(Var(aval) for aval in avals)
        self.equations.append(Equation(prim, tuple(map(self.atom, args)), params, outputs, here()))
        tracers = tuple(GraphTracer(self, variable) for variable in outputs)
        return tracers[0] if isinstance(result, Aval) else tracers

    def made(self, tracer: Tensor) -> str:
        variable = tracer.variable  # type: ignore[attr-defined]
        for eqn in self.equations:
            if variable in eqn.outputs:
                return f" (it is the result of {eqn.prim.name} at {eqn.source or 'no known line'})"
        return " (it is an argument of the function)"

    def atom(self, x: Tensor) -> Atom:
        """`x` in this graph: its variable, itself if it is a constant, or a new input if an outer
        transform traces it."""
        trace = x.trace
        if trace is None:
            return x
        if trace is self:
            return x.variable  # type: ignore[attr-defined]
        if not trace.alive or trace.level > self.level:
            raise leaked(trace, None, x)
        if id(x) not in self.captured:
            self.captured[id(x)] = (x, Var(x.aval))
        return self.captured[id(x)][1]


class Traced(NamedTuple):
    """A traced function: the graph's first inputs are `captured`, tracers of outer transforms that
    it closes over."""

    graph: Graph
    captured: tuple[Tensor, ...]
    out_def: tree.TreeDef


@border
def trace_graph(
    f: Callable[..., Any],
    avals: Sequence[Aval],
    *,
    device: Device | None = None,
    name: str | None = None,
    what: str = "tl.jit",
    weak: Sequence[bool] | None = None,
) -> Traced:
    """Trace `f`, a function of tensors, at these avals. Its result may be any pytree of tensors and
    scalars.

    `weak[i]` marks an argument that was a Python scalar.
    """
    name = name or str(getattr(f, "__name__", type(f).__name__))
    weak = weak or [False] * len(avals)
    with new_trace(
        GraphTrace, device or current_device(), f"{what} of {name}", is_floor=True
    ) as trace:
        variables = [Var(aval) for aval in avals]
        out = f(*[GraphTracer(trace, v, w) for v, w in zip(variables, weak, strict=True)])
        leaves, out_def = tree.flatten(out)
        outputs = [trace.atom(_result(leaf, out, i, trace)) for i, leaf in enumerate(leaves)]
    captured = tuple(x for x, _ in trace.captured.values())
    lifted = [var for _, var in trace.captured.values()]
    return Traced(Graph([*lifted, *variables], trace.equations, outputs, name), captured, out_def)


def _result(leaf: Any, out: Any, index: int, trace: Trace) -> Tensor:
    try:
        return asarray(leaf)
    except TypeError:
        path = tree.paths(out)[index]
        raise TypeError(
            f"{trace}: the function returned a {type(leaf).__name__}"
            + (f" at {path!r}" if path else "")
            + "; it may return tensors, arrays, numbers, None and containers of these"
        ) from None


def make_graph(f: Callable[..., Any]) -> Callable[..., Graph]:
    """`make_graph(f)(*args)` is the graph of `f` at the shapes and dtypes of `args` (pytrees);
    print it to read it.

    Raises:
        TypeError: `f` is no function.

    Example:
        >>> def loss(w, x):
        ...     return tl.sum(tl.tanh(x @ w))
        >>> print(tl.make_graph(loss)(tl.zeros(2), tl.zeros((5, 2))))
        loss(a: float32[2], b: float32[5,2]):
          c: float32[2,1] = reshape[shape=(2, 1)] a
          d: float32[5,1] = matmul b c
          e: float32[5] = reshape[shape=(5,)] d
          f: float32[5] = tanh e
          g: float32[] = sum[axes=(0,)] f
          return g
    """
    check_function("make_graph", f)

    def traced(*args: Any, **kwargs: Any) -> Graph:
        leaves, treedef = tree.flatten((args, kwargs))
        weak = [isinstance(leaf, bool | int | float) for leaf in leaves]
        avals = [
            weak_aval(leaf) if w else asarray(leaf).aval
            for leaf, w in zip(leaves, weak, strict=True)
        ]

        def flat(*flat_args: Tensor) -> Any:
            new_args, new_kwargs = tree.unflatten(treedef, flat_args)
            return f(*new_args, **new_kwargs)

        name = getattr(f, "__name__", type(f).__name__)
        return trace_graph(flat, avals, name=name, what="tl.make_graph", weak=weak).graph

    return traced
