"""What waits for what among groups that grow, which is kept up to date with little work."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tensorlite as tl
from tensorlite.compiler import fuse as fusion
from tensorlite.compiler.cluster import Clusters
from tensorlite.compiler.inline import inline
from tensorlite.compiler.simplify import simplify
from tensorlite.graph import Graph
from tests.compiler.random_graphs import arguments, function


def joined(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> Clusters:
    """The groups that fusion of `graph` ends with."""
    made: list[Clusters] = []

    class Recorded(Clusters):
        def __init__(self, *args: Any):
            super().__init__(*args)
            made.append(self)

    with monkeypatch.context() as patch:
        patch.setattr(fusion, "Clusters", Recorded)
        fusion.fuse(graph, guards=True)
    return made[0]


def waits_for(clusters: Clusters) -> dict[int, int]:
    """The same as the clusters keep, computed from nothing: all that each equation waits for, and
    the other members of its group with what they wait for, as bits."""
    known = dict.fromkeys(clusters._needs, 0)
    changed = True
    while changed:
        changed = False
        for k, needed in clusters._needs.items():
            total = known[k]
            for n in needed:
                total |= known[n] | 1 << n
            if k in clusters.groups:
                group = clusters.groups[k]
                if len(group.members) > 1:
                    total |= group.bits
                for member in group.members:
                    total |= known[member.number]
            changed |= total != known[k]
            known[k] = total
    return known


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**20), steps=st.integers(5, 80))
def test_what_equations_wait_for(seed: int, steps: int) -> None:
    args = [tl.asarray(x) for x in arguments(random.Random(seed), 3)]
    graph = simplify(inline(tl.make_graph(function(seed, steps))(*args), ()))
    with pytest.MonkeyPatch.context() as monkeypatch:
        clusters = joined(graph, monkeypatch)
    assert clusters._before == waits_for(clusters)


def test_joining_a_long_chain_looks_at_few_equations(monkeypatch: pytest.MonkeyPatch) -> None:
    visits = 0
    plain = Clusters._waits_for_all

    def counted(self: Clusters, members: Any, before: int) -> list[int]:
        nonlocal visits
        visits += len(members)
        return plain(self, members, before)

    def chain(x: tl.Tensor) -> tl.Tensor:
        for _ in range(600):
            x = tl.tanh(x) + 1
        return x

    monkeypatch.setattr(Clusters, "_waits_for_all", counted)
    graph = simplify(inline(tl.make_graph(chain)(tl.ones((8, 16))), ()))
    clusters = joined(graph, monkeypatch)
    largest = max(len(group.members) for group in clusters.distinct())
    assert visits <= len(graph.equations) * largest
