"""Pytrees: flattening, names, prefixes, dataclasses."""

from __future__ import annotations

import dataclasses
import pickle
import threading
from collections import namedtuple
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

import tensorlite as tl
from tensorlite import tree

Pair = namedtuple("Pair", ["left", "right"])


@dataclasses.dataclass
class Point:
    x: Any
    y: Any = 0


@dataclasses.dataclass(frozen=True)
class Checked:
    """Its own rules hold when it is made, not when it is rebuilt with other leaves."""

    size: Any
    double: Any = dataclasses.field(init=False, default=None)

    def __post_init__(self) -> None:
        if not self.size > 0:
            raise ValueError("size must be positive")
        object.__setattr__(self, "double", 2 * self.size)


leaves = st.integers() | st.floats(allow_nan=False) | st.text(max_size=2)
trees = st.recursive(
    leaves | st.none(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        | st.builds(Pair, inner, inner)
        | st.builds(Point, inner, inner)
    ),
    max_leaves=12,
)


@given(trees)
def test_flatten_and_unflatten_are_inverse(value: Any) -> None:
    flat, treedef = tree.flatten(value)
    assert tree.unflatten(treedef, flat) == value
    assert tree.structure(value) == treedef
    assert hash(tree.structure(value)) == hash(treedef)
    assert len(tree.paths(value)) == len(flat) == len(tree.parameter_mask(value))
    assert tree.map(lambda leaf: leaf, value) == value


def test_dicts_are_sorted_and_none_has_no_leaves() -> None:
    assert tree.leaves({"b": 1, "a": [2, None, (3,)]}) == [2, 3, 1]
    assert tree.leaves(None) == []
    assert tree.map(lambda x: x + 1, {"a": None, "b": 1}) == {"a": None, "b": 2}


def test_paths_are_dotted_names() -> None:
    value = {"conv": {"weight": 1, "bias": [2, 3]}, "head": Pair(4, Point(5, None))}
    assert tree.paths(value) == [
        "conv.bias.0",
        "conv.bias.1",
        "conv.weight",
        "head.left",
        "head.right.x",
    ]
    assert tree.paths(1) == [""]


def test_map_over_several_trees() -> None:
    assert tree.map(lambda a, b: a + b, {"x": 1, "y": (2,)}, {"x": 10, "y": (20,)}) == {
        "x": 11,
        "y": (22,),
    }
    with pytest.raises(ValueError, match=r"tree 3 does not have the structure of the first one"):
        tree.map(lambda *xs: xs, [1, 2], [3, 4], [5])


def test_is_leaf_stops_the_walk() -> None:
    assert tree.leaves([Pair(1, 2), 3], is_leaf=lambda x: isinstance(x, Pair)) == [Pair(1, 2), 3]
    assert tree.leaves([Point(1, 2)], is_leaf=lambda x: isinstance(x, Point)) == [Point(1, 2)]


def test_dataclasses_are_rebuilt_without_their_init() -> None:
    rebuilt = tree.map(lambda leaf: -leaf, Checked(3))
    assert (rebuilt.size, rebuilt.double) == (-3, -6)
    assert tree.paths(Checked(3)) == ["size", "double"]
    doubled = tl.jit(lambda c: tree.map(lambda x: x * 2, c))(Checked(1))
    assert isinstance(doubled, Checked)
    assert doubled.double.item() == 4


def test_a_dataclass_first_met_by_many_threads_is_registered_once() -> None:
    made = dataclasses.make_dataclass("Fresh", ["value"])
    start = threading.Barrier(8)
    seen: list[Any] = []

    def work() -> None:
        start.wait()
        seen.append(tree.leaves(made([1, 2])))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [[1, 2]] * 8


class Named:
    """A node of its own, with a buffer."""

    def __init__(self, weight: Any, mean: Any):
        self.weight, self.mean = weight, mean


tree.register(
    Named,
    lambda n: ((n.weight, n.mean), None, ("weight", tree.BufferName("mean"))),
    lambda _, children: Named(*children),
)


def test_everything_below_a_buffer_name_is_no_parameter() -> None:
    value = [Named(1, {"sum": 2, "count": 3}), 4]
    assert tree.paths(value) == ["0.weight", "0.mean.count", "0.mean.sum", "1"]
    assert tree.parameter_mask(value) == [True, False, False, True]


def test_gradients_of_buffers_are_zero_and_integers_may_be_buffers() -> None:
    value = Named(tl.asarray(2.0), {"steps": tl.asarray(3), "mean": tl.asarray(5.0)})
    gradient = tl.grad(lambda n: n.weight * n.mean["mean"])(value)
    assert gradient.weight.item() == 5.0
    assert gradient.mean["mean"].item() == 0.0
    assert gradient.mean["steps"].dtype == tl.int64


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        (0, [0, 0, 0]),
        (None, [None, None, None]),
        ({"a": 1, "b": None}, [1, None, None]),
        ({"a": 1, "b": (2, 3)}, [1, 2, 3]),
    ],
)
def test_prefixes_stand_for_what_is_below_them(prefix: Any, expected: list[Any]) -> None:
    assert tree.broadcast_prefix(prefix, {"a": 7, "b": (8, 9)}, "it") == expected


@pytest.mark.parametrize("prefix", [{"a": 1}, (1, 2), {"a": (1, 2), "b": 0}])
def test_what_is_no_prefix_is_named(prefix: Any) -> None:
    with pytest.raises(ValueError, match="vmap: in_axes does not fit its arguments"):
        tree.broadcast_prefix(prefix, {"a": 7, "b": (8, 9)}, "vmap: in_axes")


def test_structures_pickle() -> None:
    treedef = tree.structure({"a": (1, None), "b": Pair(1, 2)})
    assert pickle.loads(pickle.dumps(treedef)) == treedef


@dataclasses.dataclass
class Options:
    w: Any
    b: Any


def anywhere(value: Any) -> Any:
    """`value` alone, and below a path."""
    return value, {"layers": [0, value]}


@pytest.mark.parametrize(
    ("wanted", "got", "told"),
    [
        ({"a": 1, "b": 2}, {"a": 1}, "it lacks 'b'"),
        ({"a": 1}, {"a": 1, "b": 2, "c": 3}, "it has 'b', 'c' besides"),
        ({"a": 1}, {"b": 1}, "it lacks 'a' and it has 'b' besides"),
        ([1, 2], (1, 2), "it is a tuple, not a list"),
        ([1, 2], [1], "it has 1 entries, not 2"),
        (1, None, "it is None, not a single value"),
        (Options(1, 2), {"w": 1, "b": 2}, "it is a dict, not an Options"),
        (Pair(1, 2), Pair(1, (2,)), "at '{}right' it is a tuple, not a single value"),
    ],
)
def test_differences_of_structures_are_told_in_words(wanted: Any, got: Any, told: str) -> None:
    bare, nested = zip(anywhere(wanted), anywhere(got), strict=True)
    assert tree.difference(*map(tree.structure, bare)) == told.format("")
    below = told.format("layers.1.") if "{}" in told else f"at 'layers.1' {told}"
    assert tree.difference(*map(tree.structure, nested)) == below


def test_differences_of_static_data_and_of_prefixes() -> None:
    class Node:
        def __init__(self, mode: str):
            self.mode = mode

    tree.register(Node, lambda n: ((1,), n.mode, ("child",)), lambda mode, _: Node(mode))
    a, b = tree.structure({"n": Node("a")}), tree.structure({"n": Node("b")})
    assert tree.difference(a, b) == "at 'n' the two differ in what a Node holds besides tensors"
    with pytest.raises(ValueError, match="tree 2 .*: at 'b' it is a single value, not a list"):
        tree.map(max, {"a": 1, "b": [2]}, {"a": [1], "b": 2})
    with pytest.raises(ValueError, match="vmap: in_axes .*: at '1' it lacks 'b'"):
        tl.vmap(lambda x, y: x, in_axes=(0, {"a": 0}))(tl.ones(2), {"a": tl.ones(2), "b": 1})
