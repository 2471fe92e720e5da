"""Epilogues: what is done to the result of a convolution or a product, one element at a time, is
done by the operation itself before it stores the result.

The chain behind a heavy operation (a bias, a residual, relu) becomes one equation of `absorbed`, as
far as the backend can do it and nobody else reads what lies between.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

from ..core import Aval, Primitive
from ..graph import Atom, Equation, Graph, Var
from ..ops.activation import relu
from ..ops.broadcasting import Elementwise
from ..ops.elementwise import add, sigmoid, tanh
from .unregistered import Unregistered

PostOp = tuple[Any, ...]
_FUNCTIONS = {relu.prim: "relu", sigmoid.prim: "sigmoid", tanh.prim: "tanh"}


def _title(params: dict[str, Any]) -> str:
    eqn: Equation = params["eqn"]
    return "_".join([eqn.prim.name, *(post_op[0] for post_op in params["epilogue"])])


absorbed_p = Unregistered("absorbed", _title)


@absorbed_p.shape
def _(*inputs: Aval, eqn: Equation, epilogue: tuple[PostOp, ...]) -> Aval:
    return eqn.outputs[0].aval


def absorb(
    graph: Graph, heavy: Collection[Primitive], accepts: Callable[[Equation], bool]
) -> Graph:
    """`graph` with equations of `absorbed_p`, whose parameters are `eqn`, the equation of a heavy
    primitive, and `epilogue`: ("bias", i) adds input i, which has one element for each channel,
    ("add", i) adds input i, which has the shape of the result, ("relu",) and the like are
    functions. Inputs behind those of `eqn` are what the epilogue names.

    Args:
        heavy: primitives with one result that may have epilogues.
        accepts: whether the backend can run such an equation.
    """
    reads = Counter(a for eqn in graph.equations for a in eqn.inputs if isinstance(a, Var))
    reads.update(a for a in graph.outputs if isinstance(a, Var))
    reader = {a: k for k, e in enumerate(graph.equations) for a in e.inputs if isinstance(a, Var)}
    # A term that is computed for this sum alone need not be stored if a loop nest does both.
    passing = {
        id(var)
        for eqn in graph.equations
        if isinstance(eqn.prim, Elementwise)
        for var in eqn.outputs
        if reads[var] == 1
    }
    replaced: dict[int, Equation | None] = {}  # None: it has gone into another one
    for k, eqn in enumerate(graph.equations):
        if eqn.prim not in heavy or k in replaced:
            continue
        chain = _chain(graph, eqn, reads, {v: n for v, n in reader.items() if n not in replaced})
        if chain and chain[-1][1][0] == "add" and id(chain[-1][1][1]) in passing:
            chain.pop()
        while chain:
            whole = _whole(eqn, [link for _, link in chain], graph.equations[chain[-1][0]])
            if accepts(whole):
                replaced |= dict.fromkeys([k, *(number for number, _ in chain)])
                replaced[chain[-1][0]] = whole
                break
            chain.pop()
    equations = [replaced.get(k, eqn) for k, eqn in enumerate(graph.equations)]
    kept = [eqn for eqn in equations if eqn is not None]
    return Graph(graph.inputs, kept, graph.outputs, graph.name)


_Link = tuple[str, Atom | None]  # the name of a post-operation and its operand


def _chain(
    graph: Graph, eqn: Equation, reads: Counter[Var], reader: dict[Var, int]
) -> list[tuple[int, _Link]]:
    """The equations behind `eqn` that could be its epilogue, with what they do."""
    chain: list[tuple[int, _Link]] = []
    value = eqn.outputs[0]
    while reads[value] == 1 and value in reader:
        number = reader[value]
        link = _link(graph.equations[number], value)
        if link is None:
            break
        chain.append((number, link))
        value = graph.equations[number].outputs[0]
    return chain


def _link(eqn: Equation, value: Var) -> _Link | None:
    if eqn.outputs[0].aval != value.aval:
        return None
    if eqn.prim in _FUNCTIONS:
        return _FUNCTIONS[eqn.prim], None
    if eqn.prim is add.prim:
        (other,) = [a for a in eqn.inputs if a is not value]
        if other.aval.shape == value.aval.shape:
            return "add", other
        if other.aval.shape == value.aval.shape[-1:]:
            return "bias", other
    return None


def _whole(eqn: Equation, links: list[_Link], last: Equation) -> Equation:
    inputs = list(eqn.inputs)
    epilogue: list[PostOp] = []
    for name, operand in links:
        if operand is None:
            epilogue.append((name,))
        else:
            epilogue.append((name, len(inputs)))
            inputs.append(operand)
    params = {"eqn": eqn, "epilogue": tuple(epilogue)}
    return Equation(absorbed_p, tuple(inputs), params, last.outputs, last.source or eqn.source)
