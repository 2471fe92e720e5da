"""Graphs as text with scopes and lines, as drawings and as pages; and where equations come from."""

from __future__ import annotations

import contextlib
import html.parser
import xml.etree.ElementTree as ET
from typing import Any

import numpy as np
import pytest

import tensorlite as tl
from tensorlite import nn, random
from tensorlite.compiler.inline import inline
from tensorlite.graph import Graph

SVG = "{http://www.w3.org/2000/svg}"


class Perceptron(nn.Module):
    def __init__(self, key: tl.Tensor):
        first, second = random.split(key)
        self.hidden = nn.Linear(3, 4, key=first)
        self.layers = [nn.Linear(4, 2, key=second)]

    def __call__(self, x: tl.Tensor) -> tl.Tensor:
        x = nn.relu(self.hidden(x))
        with tl.named_scope("head"):
            return self.layers[0](x)


def loss(model: Any, x: tl.Tensor) -> tl.Tensor:
    return tl.mean(tl.square(model(x)))


def line_of(function: Any, offset: int) -> str:
    return f"test_render.py:{function.__code__.co_firstlineno + offset}"


@pytest.fixture(scope="module")
def gradient() -> Graph:
    return tl.make_graph(tl.grad(loss))(Perceptron(random.key(0)), tl.ones((2, 3)))


# ---- origins -------------------------------------------------------------------------------------


def test_equations_know_the_users_line_and_the_modules_around_it(gradient: Graph) -> None:
    forward = [e for e in gradient.equations if e.source and not e.source.backward]
    first, second = (e for e in forward if e.prim.name == "matmul")
    assert first.source is not None and second.source is not None
    assert first.source.scope == ("Perceptron", "hidden")
    assert second.source.scope == ("Perceptron", "head", "Linear")
    assert first.source.where == line_of(Perceptron.__call__, 1)
    assert second.source.where == line_of(Perceptron.__call__, 3)
    assert second.source.function == "Perceptron.__call__"


def test_a_derivative_comes_from_the_line_of_what_it_differentiates(gradient: Graph) -> None:
    backward = [e for e in gradient.equations if e.source and e.source.backward]
    matmuls = [e.source for e in backward if e.prim.name == "matmul"]
    assert {s.where for s in matmuls if s} == {
        line_of(Perceptron.__call__, 1),
        line_of(Perceptron.__call__, 3),
    }
    assert {s.path for s in matmuls if s} == {"Perceptron/hidden", "Perceptron/head/Linear"}
    assert str(matmuls[-1]).startswith(f"the derivative of {__file__}:")


def test_scopes_nest_decorate_and_end() -> None:
    @tl.named_scope("c")
    def decorated(x: tl.Tensor) -> tl.Tensor:
        return tl.exp(x)

    def f(x: tl.Tensor) -> Any:
        with tl.named_scope("a"), tl.named_scope("b"):
            y = decorated(x)
        with contextlib.ExitStack() as stack:
            stack.enter_context(tl.named_scope("d"))
            y = tl.sin(y)
        with pytest.raises(ZeroDivisionError), tl.named_scope("lost"):
            raise ZeroDivisionError
        return tl.cos(y)

    sources = [e.source for e in tl.make_graph(f)(tl.ones(2)).equations]
    assert [s.path for s in sources if s] == ["a/b/c", "d", ""]
    with pytest.raises(TypeError, match=r"named_scope: the name is a non-empty string, got ''"):
        tl.named_scope("")


def test_a_jitted_function_takes_the_scope_of_each_of_its_calls() -> None:
    @tl.jit
    def inner(x: tl.Tensor) -> tl.Tensor:
        with tl.named_scope("inner"):
            return tl.exp(x)

    def outer(x: tl.Tensor) -> tl.Tensor:
        for name in ("first", "second"):
            with tl.named_scope(name):
                x = inner(x)
        return x

    flat = inline(tl.make_graph(outer)(tl.ones(2)), {})
    assert [e.source.path for e in flat.equations if e.source] == ["first/inner", "second/inner"]


def test_the_body_of_a_composite_comes_from_the_line_that_calls_it() -> None:
    def f(x: tl.Tensor) -> tl.Tensor:
        y = nn.gelu(x)
        return nn.gelu(y)

    x = tl.ones(7)
    graph = tl.make_graph(f)(x)
    assert {e.prim.name for e in graph.equations} == {"gelu"}
    flat = inline(graph, {})
    lines = list(dict.fromkeys(e.source.where for e in flat.equations if e.source))
    assert lines == [line_of(f, 1), line_of(f, 2)]


def test_derivatives_of_jitted_functions_keep_the_lines() -> None:
    @tl.jit
    def f(x: tl.Tensor) -> tl.Tensor:
        y = tl.tanh(x)
        return tl.sum(y)

    flat = inline(tl.make_graph(tl.grad(f))(tl.ones(2)), {})
    of_tanh = [e.source for e in flat.equations if e.prim.name == "square"] or [
        e.source for e in flat.equations if e.prim.name == "multiply"
    ]
    assert {(s.where, s.backward) for s in of_tanh if s} == {(line_of(f.f, 2), True)}


# ---- text ----------------------------------------------------------------------------------------


def test_the_listing_has_scopes_and_on_demand_lines(gradient: Graph) -> None:
    with_lines = gradient.to_text(sources=True).splitlines()
    plain = str(gradient).splitlines()
    assert any(line.endswith("# Perceptron/hidden") for line in plain)
    assert ".py" not in str(gradient)
    where = line_of(Perceptron.__call__, 3)
    assert any(line.endswith(f"# Perceptron/head/Linear {where}") for line in with_lines)
    assert any(f"derivative of {where}" in line for line in with_lines)
    assert len({line.index("#") for line in with_lines if "#" in line}) == 1, "aligned"


# ---- drawings and pages --------------------------------------------------------------------------


def boxes(svg: str) -> list[tuple[float, float, float, float]]:
    root = ET.fromstring(svg)
    return [
        tuple(float(r.attrib[k]) for k in ("x", "y", "width", "height"))  # type: ignore[misc]
        for g in root.iter(f"{SVG}g")
        for r in g.findall(f"{SVG}rect")
    ]


def test_the_drawing_has_a_box_for_everything_and_none_overlap(gradient: Graph) -> None:
    drawn = boxes(gradient.to_svg())
    assert len(drawn) == len(gradient.inputs) + len(gradient.equations) + len(gradient.outputs)
    for i, (x, y, w, h) in enumerate(drawn):
        assert x >= 0 and y >= 0
        for x2, y2, w2, h2 in drawn[:i]:
            assert x + w <= x2 or x2 + w2 <= x or y + h <= y2 or y2 + h2 <= y


def test_arrows_go_down_and_the_drawing_is_always_the_same(gradient: Graph) -> None:
    svg = gradient.to_svg()
    assert svg == gradient.to_svg()
    for path in ET.fromstring(svg).iter(f"{SVG}path"):
        if "C" in path.attrib["d"]:
            start, end = path.attrib["d"][1:].split("C")
            assert float(start.split()[1]) < float(end.split()[-1])


def test_names_are_escaped_and_odd_graphs_are_drawn() -> None:
    table = tl.asarray(np.ones((2, 2), np.float32))
    graph = tl.make_graph(lambda x: (x, 3.0, tl.zeros(2), table))(tl.ones(2))
    assert graph.name == "<lambda>"
    assert ET.fromstring(graph.to_svg()).find(f"{SVG}title").text == "<lambda>"  # type: ignore[union-attr]
    assert "<lambda>" not in graph.to_html()
    empty = tl.make_graph(lambda: ())()
    ET.fromstring(empty.to_svg())
    assert "0 equations" in empty.to_html()


def test_a_large_graph_is_drawn_without_the_bends_of_its_longest_arrows() -> None:
    def f(x: tl.Tensor) -> tl.Tensor:
        for _ in range(100):
            x = tl.sin(x) * x
        return tl.sum(x)

    graph = tl.make_graph(tl.grad(f))(tl.ones(3))
    svg = graph.to_svg()
    assert len(boxes(svg)) == len(graph.equations) + 2
    assert "stroke-dasharray" in svg
    assert svg.count("<path") < 22_000
    assert "stroke-dasharray" not in tl.make_graph(lambda x: (tl.sin(x), x))(tl.ones(2)).to_svg()


class Tags(html.parser.HTMLParser):
    VOID = frozenset({"meta", "input", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.append(tag)
        assert not any(name in {"src", "href"} for name, _ in attrs), "the page stands alone"
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_well_formed_folds_inner_graphs_and_can_be_searched() -> None:
    inner = tl.jit(lambda x: tl.exp(x) * 2)
    graph = tl.make_graph(lambda x: inner(inner(x)))(tl.ones(2))
    for page, scripts in ((graph.to_html(), 1), (graph._repr_html_(), 0)):
        tags = Tags()
        tags.feed(page)
        assert not tags.open
        assert tags.seen.count("table") == 3, "the graph and two calls"
        assert tags.seen.count("details") == 3, "two calls and the drawing"
        assert tags.seen.count("script") == scripts
        assert tags.seen.count("svg") == 1
        assert "exp" in page and "float32[2]" in page and "test_render.py" in page
