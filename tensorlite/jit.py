"""jit: trace once for each signature, compile for the device, and call.

A jitted function is one primitive, `call`, whose parameter is a graph; so every transform goes
through it; `grad(jit(f))` runs the two compiled halves that `halves.py` makes. A new signature
(structure, shapes, dtypes, device, precision, static values, number of ranks) is traced anew: a
graph is never replayed for arguments that it was not traced for.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from . import observe, tree
from .arguments import as_names, as_positions, check_function
from .communication import world
from .core import Aval, Primitive, Tensor, bind, exactly, tracing_graph
from .device import Device, current_device
from .graph import Graph, Traced, trace_graph
from .halves import differentiate
from .ops.creation import asarray, weak_aval, zeros_like
from .precision import active as active_precision
from .vectorize import vmap

call_p = Primitive("call")


@call_p.shape
def _(
    *avals: Aval, graph: Graph, device: Device | None = None, donated: tuple[int, ...] = ()
) -> tuple[Aval, ...]:
    # `device` is there when there is no argument to tell it. `donated` are the arguments whose
    # memory the backend may use for results; it is there when nothing is traced.
    return graph.out_avals


@call_p.fwd
def _(needs: tuple[bool, ...], *args: Tensor, graph: Graph) -> Any:
    halves = differentiate(graph, needs, args[0].device if args else current_device())
    results = bind(call_p, *args, graph=halves.forward)
    count = len(graph.outputs)
    ans, residuals = results[:count], results[count:]

    def pull(cts: tuple[Tensor | None, ...]) -> list[Tensor | None]:
        full = [zeros_like(a) if ct is None else ct for ct, a in zip(cts, ans, strict=True)]
        gradients = iter(bind(call_p, *residuals, *full, graph=halves.backward))
        return [next(gradients) if need else None for need in needs]

    return ans, pull


@call_p.batch
def _(args: list[Tensor], batched: list[bool], *, graph: Graph) -> tuple[Tensor, ...]:
    sizes = {a.shape[0] for a, b in zip(args, batched, strict=True) if b}
    key = ("batched", tuple(batched), *sizes)
    if key not in graph.derived:
        axes = tuple(0 if b else None for b in batched)
        traced = trace_graph(
            vmap(graph.run, axes), [a.aval for a in args], device=args[0].device, name=graph.name
        )
        graph.derived[key] = traced.graph
    return bind(call_p, *args, graph=graph.derived[key])


class CacheInfo(NamedTuple):
    """How often a jitted function was traced, and how often an earlier trace served."""

    traces: int
    hits: int


class Jitted:
    """A function that `jit` has wrapped."""

    def __init__(self, f: Callable[..., Any], static: Choice, donated: Choice):
        self.f = f
        self.static = static
        self.donated = donated
        self._cache: dict[Any, Traced] = {}
        self._traces = 0
        self._hits = 0
        self._explained: list[dict[str, str]] = []  # signatures that were logged
        functools.update_wrapper(self, f, updated=())

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        donated = self._donated(args, kwargs) if self.donated else []
        static, moving, named = (
            self._split_static(args, kwargs) if self.static else ((), args, kwargs)
        )
        leaves, treedef = tree.flatten((moving, named))
        signature: list[Any] = [treedef, static]
        weak: list[int] = []  # where a Python scalar is, whose dtype yields to that of a tensor
        device = None
        for i, leaf in enumerate(leaves):
            if type(leaf) is not Tensor:
                if isinstance(leaf, bool | int | float):
                    weak.append(i)
                    leaf = leaves[i] = asarray(leaf, dtype=weak_aval(leaf).dtype)
                elif not isinstance(leaf, Tensor):
                    leaf = leaves[i] = self._as_tensor(leaf, i, args, kwargs)
                elif leaf.weak:
                    weak.append(i)
            shape = leaf.shape
            if device is None and shape:
                device = leaf.device
            signature += shape, leaf.dtype
        if device is None:
            device = leaves[0].device if leaves else current_device()
        if donated and any(leaf.trace is not None for leaf in leaves):
            donated = []  # a transform uses them again
        key = (*signature, *weak, device, active_precision(), world())
        traced = self._cache.get(key)
        if traced is None:
            traced = self._trace(key, args, kwargs, treedef, leaves, weak, device)
        else:
            self._hits += 1
            if donated:
                return self._call_donating(traced, leaves, donated)
        if leaves or traced.captured:
            out = bind(call_p, *traced.captured, *leaves, graph=traced.graph)
        else:
            out = bind(call_p, graph=traced.graph, device=device)
        for tensor in donated:
            tensor.delete()
        return tree.unflatten(traced.out_def, out)

    def _call_donating(self, traced: Traced, leaves: list[Tensor], donated: list[Tensor]) -> Any:
        """Call a graph that may write results over donated arguments. It has been compiled before,
        so that what fails now may have written already."""
        given = set(map(id, donated))
        places = tuple([i for i, leaf in enumerate(leaves) if id(leaf) in given])
        try:
            out = bind(call_p, *leaves, graph=traced.graph, donated=places)
        finally:
            for tensor in donated:
                tensor.delete()
        return tree.unflatten(traced.out_def, out)

    def cache_info(self) -> CacheInfo:
        """How often the function was traced, and how often an earlier trace served."""
        return CacheInfo(self._traces, self._hits)

    def clear_cache(self) -> None:
        """Forget all traces."""
        self._cache.clear()

    def __getstate__(self) -> dict[str, Any]:
        """Pickles carry the function, not its traces."""
        return {**self.__dict__, "_cache": {}, "_traces": 0, "_hits": 0, "_explained": []}

    def _split_static(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, Sequence[Any], dict[str, Any]]:
        """A key for the static arguments, and the other ones."""
        places = self.static.among(args, kwargs)
        for place in places:
            value = args[place] if isinstance(place, int) else kwargs[place]
            try:
                hash(value)
            except TypeError as error:
                raise TypeError(
                    f"jit: static argument {place!r} of {self._name} is a "
                    f"{type(value).__name__}, which is not hashable ({error}); "
                    "pass a tuple instead of a list, or make it an ordinary argument"
                ) from None
        fixed = [(p, exactly(args[p] if isinstance(p, int) else kwargs[p])) for p in places]
        moving = [a for i, a in enumerate(args) if i not in places]
        return tuple(fixed), moving, {k: v for k, v in kwargs.items() if k not in places}

    def _as_tensor(
        self, leaf: Any, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        try:
            return asarray(leaf)
        except TypeError:
            static = self.static.among(args, kwargs)
            kept = [None if i in static else a for i, a in enumerate(args)]
            named = {k: v for k, v in kwargs.items() if k not in static}
            path = tree.paths((kept, named))[index].split(".", 1)[1]
            raise TypeError(
                f"jit: argument {path!r} of {self._name} is a {type(leaf).__name__}, not a "
                "tensor, array or number; "
                "name it in static_argnames (or static_argnums), or close over it"
            ) from None

    def _trace(
        self,
        key: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        treedef: tree.TreeDef,
        leaves: list[Tensor],
        weak: list[int],
        device: Device,
    ) -> Traced:
        fixed = {
            place: args[place] if isinstance(place, int) else kwargs[place]
            for place in self.static.among(args, kwargs)
        }
        count = len(args)

        def flat(*xs: Tensor) -> Any:
            moving, named = tree.unflatten(treedef, xs)
            supply = iter(moving)
            positional = [fixed[i] if i in fixed else next(supply) for i in range(count)]
            return self.f(*positional, **named, **{k: fixed[k] for k in fixed if k in kwargs})

        avals = [leaf.aval for leaf in leaves]
        flags = [i in weak for i in range(len(leaves))]
        if observe.verbosity.level:
            described = {str(i): str(aval) for i, aval in enumerate(avals)}
            for i, path in enumerate(tree.paths(tree.unflatten(treedef, range(len(avals))))):
                number, _, rest = path.partition(".")
                name = f"argument {rest}" if number == "0" else f"keyword {rest}"
                described[name] = described.pop(str(i)) + (" (Python scalar)" if flags[i] else "")
            described |= {f"static argument {place}": repr(fixed[place]) for place in fixed}
            described |= {"device": str(device), "precision": active_precision()}
            described["workers"] = str(world().size)
            described["structure"] = str(treedef)
            self._log_trace(described)
        with observe.span(f"trace {self._name}"):
            traced = trace_graph(flat, avals, device=device, name=self._name, weak=flags)
        self._traces += 1
        # A graph that closes over values of an outer transform is good for this call only.
        if not traced.captured:
            self._cache[key] = traced
        return traced

    def _log_trace(self, signature: dict[str, str]) -> None:
        """Say what is traced and, if it was before, what is new since the most similar time."""

        def changes(earlier: dict[str, str]) -> list[str]:
            names = dict.fromkeys([*signature, *earlier])
            return [n for n in names if signature.get(n) != earlier.get(n)]

        shown = ", ".join(f"{k}: {v}" for k, v in signature.items() if k != "structure")
        observe.logger.debug(f"trace {self._name}({shown})")
        if self._explained:
            closest = min(self._explained, key=lambda earlier: len(changes(earlier)))
            reasons = [
                f"{n} was {closest.get(n, 'absent')}, is {signature.get(n, 'absent')}"
                for n in changes(closest)
            ]
            why = "; ".join(reasons) or "its earlier trace closes over values of a transform"
            observe.logger.debug(f"  {self._name} is traced again, since {why}")
        self._explained.append(signature)

    def _donated(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        """The tensors to delete after the call; none while something traces, since they are used
        again."""
        places = self.donated.among(args, kwargs)
        if tracing_graph() is not None:
            return []
        given = [args[p] if isinstance(p, int) else kwargs[p] for p in places]
        return [leaf for leaf in tree.leaves(given) if type(leaf) is Tensor]

    @property
    def _name(self) -> str:
        return getattr(self.f, "__name__", type(self.f).__name__)


class Choice(NamedTuple):
    """Some of a function's parameters: those at `positions` (from the end if negative, where `f`
    takes any number of them), and those called `names`."""

    positions: tuple[int, ...]
    names: frozenset[str]

    def __bool__(self) -> bool:
        return bool(self.positions or self.names)

    def among(self, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
        """Where the chosen ones are in a call: positions and keywords."""
        count = len(args)
        places: list[Any] = sorted({p % count for p in self.positions if -count <= p < count})
        return places + sorted(self.names.intersection(kwargs)) if kwargs else places


def _choose(f: Callable[..., Any], what: str, argnums: Any, argnames: Any) -> Choice:
    """The parameters of `f` that are given by position or by name. One that is given by position
    may be passed by keyword, and the other way round."""
    positions = as_positions("jit", f"{what}_argnums", argnums)
    names = as_names("jit", f"{what}_argnames", argnames)
    if not (positions or names):
        return Choice((), frozenset())
    try:
        parameters = list(inspect.signature(f).parameters.values())
    except (TypeError, ValueError):  # some functions written in C do not tell
        return Choice(positions, frozenset(names))
    name = getattr(f, "__name__", type(f).__name__)
    ordered = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    by_keyword = [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    count = len(ordered)
    if not any(p.kind is p.VAR_POSITIONAL for p in parameters):
        for position in positions:
            if not -count <= position < count:
                raise ValueError(
                    f"jit: {what}_argnums names position {position}, but {name} has {count} "
                    f"positional parameters: {', '.join(ordered) or 'none'}"
                )
        positions = tuple(p % count for p in positions)
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for wanted in names:
            if wanted not in by_keyword:
                raise ValueError(
                    f"jit: {what}_argnames names {wanted!r}, but {name} has no parameter that can "
                    f"be passed by that name; it has {', '.join(by_keyword) or 'none'}"
                )
    at_names = {ordered.index(n) for n in names if n in ordered}
    at_positions = {ordered[p] for p in positions if 0 <= p < count}
    keywords = {*names, *(n for n in at_positions if n in by_keyword)}
    return Choice(tuple(sorted({*positions, *at_names})), frozenset(keywords))


def jit(
    f: Callable[..., Any] | None = None,
    *,
    static_argnums: int | Sequence[int] = (),
    static_argnames: str | Sequence[str] = (),
    donate_argnums: int | Sequence[int] = (),
    donate_argnames: str | Sequence[str] = (),
) -> Any:
    """`f`, compiled. Use as `jit(f)`, `@jit` or `@jit(static_argnames=...)`.

    Args:
        f: a function of pytrees of tensors (or NumPy arrays, numbers) that returns such a pytree.
            Python runs once for each signature, so its effects (printing, appending to a list)
            happen while tracing only, and what it closes over is fixed then.
        static_argnums, static_argnames: positions and names of hashable arguments to compile in; a
            new value is a new signature. Either is enough: an argument that is static is so
            however it is passed.
        donate_argnums, donate_argnames: likewise, arguments whose memory may be reused for results,
            as the parameters of a training step: they are updated in place where nobody else sees
            them, and cannot be used after the call, even if it fails.

    Raises:
        TracerError: `f` needs the value of a traced tensor, e.g. in a Python `if`.
        TypeError: `f` is no function, or an argument is neither a tensor nor static.
        ValueError: `f` has no such parameter, or one is both static and donated.

    Example:
        >>> @tl.jit
        ... def step(w, x):
        ...     return w - 0.5 * tl.grad(lambda w: tl.sum((w - x) ** 2))(w)
        >>> print(step(tl.zeros(3), tl.asarray([1.0, 2.0, 3.0])))
        [1. 2. 3.]
        >>> print(step(tl.ones(3), tl.asarray([4.0, 5.0, 6.0])), step.cache_info())
        [4. 5. 6.] CacheInfo(traces=1, hits=1)
    """
    if f is None:
        return functools.partial(
            jit,
            static_argnums=static_argnums,
            static_argnames=static_argnames,
            donate_argnums=donate_argnums,
            donate_argnames=donate_argnames,
        )
    check_function("jit", f)
    static = _choose(f, "static", static_argnums, static_argnames)
    donated = _choose(f, "donate", donate_argnums, donate_argnames)
    both = sorted(
        map(str, {*static.positions, *static.names} & {*donated.positions, *donated.names})
    )
    if both:
        raise ValueError(
            f"jit: argument {', '.join(both)} is both static and donated; only tensors are donated"
        )
    return Jitted(f, static, donated)
