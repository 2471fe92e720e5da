"""Drawing a graph as SVG: boxes in layers, arrows downwards.

The layout is the classic one in four steps: layers by the longest path, bends where an arrow
crosses a layer, orders within the layers by the mean place of the neighbours, and then places that
pull neighbours above each other. It is deterministic and needs no other program.
"""

from __future__ import annotations

import html
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

from .graph import Atom, Equation, Graph, Var

_LETTER = 7.2  # pixels, of the 12 pixel monospaced font
_LINE, _GAP, _LAYER_GAP, _MARGIN = 15, 18, 34, 16
_SWEEPS = 12
_BENDS = 20_000  # at most, in one drawing


@dataclass(eq=False)
class _Node:
    """A box, or (without lines) a bend of a long arrow."""

    lines: tuple[str, ...]
    kind: str
    title: str = ""
    layer: int = 0
    x: float = 0.0  # of the middle
    y: float = 0.0  # of the upper edge
    above: list[_Node] = field(default_factory=list)
    below: list[_Node] = field(default_factory=list)

    @property
    def width(self) -> float:
        return max((len(line) for line in self.lines), default=0) * _LETTER + 16 * bool(self.lines)

    @property
    def height(self) -> float:
        return len(self.lines) * _LINE + 8 * bool(self.lines)


def draw(
    graph: Graph,
    name: Callable[[Atom], str],
    parameters: Callable[[Equation], str],
    note: Callable[[Equation, bool], str],
) -> str:
    """An SVG document; the functions say how atoms, parameters and notes are written."""
    while len(graph.equations) == 1 and len(graph.equations[0].graphs) == 1:
        (graph,) = graph.equations[0].graphs.values()  # one call: what is called is worth seeing
    boxes = _boxes(graph, name, parameters, note)
    _choose_layers(boxes)
    layers = _with_bends(boxes)
    _order(layers)
    _place(layers)
    return _document(graph.name, boxes, layers)


def _boxes(
    graph: Graph,
    name: Callable[[Atom], str],
    parameters: Callable[[Equation], str],
    note: Callable[[Equation, bool], str],
) -> list[_Node]:
    made: dict[Var, _Node] = {}
    boxes: list[_Node] = []

    def connect(node: _Node, atoms: tuple[Atom, ...]) -> None:
        for source in dict.fromkeys(made[a] for a in atoms if isinstance(a, Var)):
            node.above.append(source)
            source.below.append(node)
        boxes.append(node)

    for v in graph.inputs:
        made[v] = _Node((name(v), str(v.aval)), "input")
        connect(made[v], ())
    for eqn in graph.equations:
        results = ", ".join(f"{name(v)}: {v.aval}" for v in eqn.outputs)
        call = f"{eqn.prim}{parameters(eqn)} {' '.join(map(name, eqn.inputs))}"
        inner = [g.name for g in eqn.graphs.values()]
        label = f"{eqn.prim} {', '.join(inner)}" if inner else str(eqn.prim)
        scope = eqn.source.path if eqn.source else ""
        shown = (label, _short(", ".join(str(v.aval) for v in eqn.outputs)), _short(scope))
        kind = "backward" if eqn.source and eqn.source.backward else "forward"
        node = _Node(
            tuple(filter(None, shown)),
            "graph" if inner else kind,
            f"{results} = {call}\n{note(eqn, True)}".strip(),
        )
        connect(node, eqn.inputs)
        made.update((v, node) for v in eqn.outputs)
    for atom in graph.outputs:
        connect(_Node((f"return {_short(name(atom))}", str(atom.aval)), "output"), (atom,))
    return boxes


def _short(line: str, most: int = 34) -> str:
    return line if len(line) <= most else f"{line[: most - 1]}\u2026"


def _choose_layers(boxes: list[_Node]) -> None:
    """Every box below all it reads. What reads nothing, and what belongs to the derivative, comes
    just before its first reader, so that the derivative stays together below."""
    for box in boxes:  # in the order of the equations, so arguments come first
        box.layer = 1 + max((a.layer for a in box.above), default=-1)
    for box in reversed(boxes):
        if box.below and (not box.above or box.kind == "backward"):
            box.layer = min(b.layer for b in box.below) - 1


def _with_bends(boxes: list[_Node]) -> list[list[_Node]]:
    """The layers from the top, where every arrow goes from one layer to the next: a longer one
    bends in each layer that it crosses, and arrows from one box share their bends. In a large graph
    the longest do not bend, since they would be most of the drawing."""
    layers: list[list[_Node]] = [[] for _ in range(1 + max((b.layer for b in boxes), default=0))]
    for box in boxes:
        layers[box.layer].append(box)
    longest = max(2, _BENDS // max(1, len(boxes)))
    for box in boxes:
        box.below, readers = [r for r in box.below if r.layer > box.layer + longest], box.below
        readers = [r for r in readers if r.layer <= box.layer + longest]
        chain = box
        for layer in range(box.layer + 1, 1 + max((r.layer for r in readers), default=box.layer)):
            for reader in readers:
                if reader.layer == layer:
                    reader.above[reader.above.index(box)] = chain
                    chain.below.append(reader)
            if any(reader.layer > layer for reader in readers):
                bend = _Node((), "bend", layer=layer, above=[chain])
                chain.below.append(bend)
                layers[layer].append(bend)
                chain = bend
    return layers


def _order(layers: list[list[_Node]]) -> None:
    """Sort each layer by the mean place of the neighbours, downwards and upwards in turn."""
    for sweep in range(_SWEEPS):
        down = sweep % 2 == 0
        for number in range(len(layers)) if down else reversed(range(len(layers))):
            layer, near = layers[number], layers[max(number - 1, 0) : number + 2]
            place = {node: float(i) for other in near for i, node in enumerate(other)}
            means = {}
            for i, node in enumerate(layer):
                neighbours = node.above if down else node.below
                means[node] = _mean([place[n] for n in neighbours if n in place], i)
            layer.sort(key=means.__getitem__)


def _place(layers: list[list[_Node]]) -> None:
    """Give every node its place: near its neighbours, and beside those of its layer."""
    for layer in layers:
        x = 0.0
        for node in layer:
            node.x = x + node.width / 2
            x += node.width + _GAP
    for sweep in range(2 * _SWEEPS):
        down = sweep % 2 == 0
        for layer in layers if down else layers[::-1]:
            wanted = [_mean([n.x for n in (v.above if down else v.below)], v.x) for v in layer]
            _spread(layer, wanted)
    left = min((n.x - n.width / 2 for layer in layers for n in layer), default=0.0)
    y = float(_MARGIN)
    for layer in layers:
        height = max((n.height for n in layer), default=0.0)
        for node in layer:
            node.x += _MARGIN - left
            node.y = y + (height - node.height) / 2
        y += height + _LAYER_GAP


def _spread(layer: list[_Node], wanted: list[float]) -> None:
    """The places closest to those wanted that keep the order and the gaps: the mean of pushing to
    the right and pushing to the left, both of which do."""
    need = [(a.width + b.width) / 2 + _GAP for a, b in itertools.pairwise(layer)]
    right, left = list(wanted), list(wanted)
    for i, gap in enumerate(need):
        right[i + 1] = max(right[i + 1], right[i] + gap)
    for i in range(len(need) - 1, -1, -1):
        left[i] = min(left[i], left[i + 1] - need[i])
    for node, a, b in zip(layer, right, left, strict=True):
        node.x = (a + b) / 2


def _mean(values: list[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


_FILLS = {
    "input": "#e3f0fd",
    "output": "#e2f5e5",
    "forward": "#ffffff",
    "backward": "#fdeedd",
    "graph": "#f0e8fb",
}


def _document(title: str, boxes: list[_Node], layers: list[list[_Node]]) -> str:
    nodes = [node for layer in layers for node in layer]
    width = max((n.x + n.width / 2 for n in nodes), default=0.0) + _MARGIN
    height = max((n.y + n.height for n in nodes), default=0.0) + _MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" font-family="ui-monospace,Menlo,Consolas,'
        f'DejaVu Sans Mono,monospace" font-size="12" role="img">'
        f"<title>{html.escape(title)}</title>",
        '<defs><marker id="tl-tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="#7b8798"/></marker></defs>',
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="#fff"/>',
        '<g fill="none" stroke="#7b8798" stroke-width="1.1">',
        *[_arrow(node, reader) for node in nodes for reader in node.below],
        "</g>",
        *map(_box, boxes),
        "</svg>",
    ]
    return "\n".join(parts)


def _arrow(start: _Node, end: _Node) -> str:
    x1, y1, x2, y2 = start.x, start.y + start.height, end.x, end.y
    middle = (y1 + y2) / 2
    tip = ' marker-end="url(#tl-tip)"' if end.lines else ""
    if end.layer > start.layer + 1:
        tip += ' stroke-dasharray="2 4" stroke-opacity=".5"'
    curve = f"{x1:.1f} {middle:.1f} {x2:.1f} {middle:.1f} {x2:.1f} {y2:.1f}"
    return f'<path d="M{x1:.1f} {y1:.1f}C{curve}"{tip}/>'


def _box(node: _Node) -> str:
    left, text = node.x - node.width / 2, []
    for number, line in enumerate(node.lines):
        weight = ' font-weight="bold"' if number == 0 else ' fill="#5b6b80"'
        y = node.y + 15 + number * _LINE
        text.append(f'<text x="{node.x:.1f}" y="{y:.1f}"{weight}>{html.escape(line)}</text>')
    tooltip = f"<title>{html.escape(node.title)}</title>" if node.title else ""
    return (
        f'<g text-anchor="middle" fill="#1c2430">{tooltip}<rect x="{left:.1f}" y="{node.y:.1f}" '
        f'width="{node.width:.1f}" height="{node.height:.1f}" rx="4" fill="{_FILLS[node.kind]}" '
        f'stroke="#8f9bad"/>{"".join(text)}</g>'
    )
