"""Graphs for people: as text, as a drawing, and as a page to search.

Nothing here is needed to compute. The drawing is laid out by hand in `drawing.py`.
"""

from __future__ import annotations

import html as escaping
from collections.abc import Callable
from typing import Any

from .drawing import draw
from .graph import Atom, Equation, Graph, Var

_ALIGNED = 100  # longer lines keep their notes to themselves


def text(graph: Graph, sources: bool = False) -> str:
    """One equation a line: results, primitive, parameters, arguments, and behind a `#` the scope
    (and the user's line), aligned. Graphs inside parameters are indented below their equation."""
    lines = _lines(graph, "", sources)
    width = max((len(line) for line, note in lines if note and len(line) <= _ALIGNED), default=0)
    return "\n".join(f"{line:{width}}  # {note}" if note else line for line, note in lines)


def _lines(graph: Graph, indent: str, sources: bool) -> list[tuple[str, str]]:
    name = namer()

    def typed(atom: Atom) -> str:
        return f"{name(atom)}: {atom.aval}"

    lines = [(f"{indent}{graph.name}({', '.join(map(typed, graph.inputs))}):", "")]
    for eqn in graph.equations:
        results = ", ".join(map(typed, eqn.outputs))
        call = f"{eqn.prim}{parameters(eqn)} {' '.join(map(name, eqn.inputs))}".rstrip()
        lines.append((f"{indent}  {results} = {call}", note(eqn, sources)))
        for inner in eqn.graphs.values():
            lines += _lines(inner, indent + "    ", sources)
    lines.append((f"{indent}  return {', '.join(map(name, graph.outputs))}", ""))
    return lines


def note(eqn: Equation, sources: bool) -> str:
    """Where an equation belongs: its scope, and if wanted the user's line."""
    if eqn.source is None:
        return ""
    arrow = "derivative of " if eqn.source.backward and sources else ""
    return " ".join(filter(None, (eqn.source.path, (arrow + eqn.source.where) if sources else "")))


def namer() -> Callable[[Atom], str]:
    """A function that names the atoms of one graph: a, b, c, ... in the order in which it meets the
    variables."""
    names: dict[Var, str] = {}

    def name(atom: Atom) -> str:
        if isinstance(atom, Var):
            return names.setdefault(atom, _letters(len(names)))
        return f"{atom.item()}" if atom.shape == () else f"const {atom.aval}"

    return name


def parameters(eqn: Equation) -> str:
    """`[axes=(0, 1)]`, without the graphs, or nothing."""
    plain = {k: v for k, v in eqn.params.items() if k not in eqn.graphs}
    return f"[{', '.join(f'{k}={_brief(v)}' for k, v in plain.items())}]" if plain else ""


def svg(graph: Graph) -> str:
    """The graph drawn from top to bottom; hover over a box to read all of its equation."""
    return draw(graph, namer(), parameters, note)


def html(graph: Graph) -> str:
    """A page that needs nothing else: the listing, which can be searched, and the drawing."""
    title = escaping.escape(graph.name)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_PAGE}{_STYLE}</style></head><body>{_content(graph)}"
        f"<script>{_SEARCH}</script></body></html>"
    )


def notebook(graph: Graph) -> str:
    """The listing and the drawing for a notebook's cell, which runs no scripts."""
    return f"<style>{_STYLE}</style>{_content(graph, search=False)}"


def _content(graph: Graph, search: bool = True) -> str:
    box = (
        '<p><input class="tl-search" type="search" aria-label="Search the equations" '
        'placeholder="Search: op, shape, scope, line"> <output class="tl-found"></output></p>'
    )
    count = len(graph.equations)
    summary = f"{count} equation{'' if count == 1 else 's'}"
    return (
        f'<div class="tl-graph"><h1>{escaping.escape(graph.name)}</h1><p>{summary}; '
        f"{len(graph.inputs)} inputs, {len(graph.outputs)} outputs</p>{box if search else ''}"
        f"{_table(graph)}<details{' open' if count <= 400 else ''}><summary>Drawing</summary>"
        f'<div class="tl-drawing">{svg(graph)}</div></details></div>'
    )


def _table(graph: Graph) -> str:
    name = namer()
    rows = []

    def row(cells: list[str], kind: str = "") -> str:
        return f'<tr class="{kind}">' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"

    def typed(atom: Atom) -> str:
        return f"{name(atom)} <i>{escaping.escape(str(atom.aval))}</i>"

    for v in graph.inputs:
        rows.append(row([typed(v), "<b>input</b>", "", ""], "tl-port"))
    for eqn in graph.equations:
        arguments = " ".join(map(name, eqn.inputs))
        call = f"<b>{escaping.escape(str(eqn.prim))}</b> {escaping.escape(arguments)}"
        call += f" <small>{escaping.escape(parameters(eqn))}</small>"
        for inner in eqn.graphs.values():
            label = f"{inner.name}, {len(inner.equations)} equations"
            unfold = " open" if len(graph.equations) == 1 else ""
            call += f"<details{unfold}><summary>{escaping.escape(label)}</summary>"
            call += f"{_table(inner)}</details>"
        scope = eqn.source.path if eqn.source else ""
        line = eqn.source.where if eqn.source else ""
        if eqn.source and eqn.source.backward:
            line = f"\u2202 {line}"
        results = "<br>".join(map(typed, eqn.outputs))
        rows.append(row([results, call, escaping.escape(scope), escaping.escape(line)], "tl-eqn"))
    for atom in graph.outputs:
        rows.append(row([typed(atom), "<b>output</b>", "", ""], "tl-port"))
    head = "".join(f"<th>{title}</th>" for title in ("value", "equation", "scope", "line"))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _letters(number: int) -> str:
    """a, b, ..., z, aa, ab, ..."""
    letters = ""
    number += 1
    while number:
        number, digit = divmod(number - 1, 26)
        letters = chr(ord("a") + digit) + letters
    return letters


def _brief(value: Any) -> str:
    if callable(value) and hasattr(value, "__name__"):
        return value.__name__
    return str(value)


_PAGE = "body{margin:2rem auto;max-width:76rem;padding:0 1rem;color:#1c2430;background:#fff}"
_STYLE = """
.tl-graph{font:14px/1.45 system-ui,sans-serif}
.tl-graph h1{font-size:1.3rem;margin:0}
.tl-graph table{border-collapse:collapse;font:12.5px/1.5 ui-monospace,monospace;text-align:left}
.tl-graph th,.tl-graph td{padding:.1rem 1.2rem .1rem .3rem;vertical-align:top;text-align:left;
border-bottom:1px solid #e6eaf0}
.tl-graph i{color:#5b6b80;font-style:normal}
.tl-graph small{color:#5b6b80}
.tl-graph details>summary{cursor:pointer}
.tl-graph input{width:26rem;max-width:70%;padding:.35rem .5rem;font:inherit}
.tl-drawing{overflow:auto;max-height:90vh;border:1px solid #d5dce6}
.tl-graph tr.tl-hidden{display:none}
.tl-graph tr.tl-port td{background:#f4f7fb}
"""
# A row is shown if it, or a row of a graph inside it, has all the words that are looked for.
_SEARCH = """
for (const graph of document.querySelectorAll('.tl-graph')) {
  const box = graph.querySelector('.tl-search'), found = graph.querySelector('.tl-found');
  box.addEventListener('input', () => {
    const words = box.value.toLowerCase().split(/\\s+/).filter(Boolean);
    let count = 0;
    for (const row of graph.querySelectorAll('tbody > tr')) {
      const text = row.textContent.toLowerCase();
      const hit = words.every(word => text.includes(word));
      row.classList.toggle('tl-hidden', !hit);
      if (hit && row.classList.contains('tl-eqn') && !row.querySelector('table')) count += 1;
    }
    for (const fold of graph.querySelectorAll('td > details')) fold.open = words.length > 0;
    found.value = words.length ? count + ' found' : '';
  });
}
"""
