"""Affine places: division that splits axes, and the axes of two nests that are the same."""

from __future__ import annotations

import itertools
from typing import Any

import hypothesis.strategies as st
from hypothesis import given

from tensorlite.compiler.affine import ZERO, Affine, Axes, Split, flatten


def values(axes: Axes, *indices: Affine) -> list[tuple[int, ...]]:
    """The indices at every point."""
    used = sorted({a for i in indices for a, _ in axes.resolve(i).terms})
    result = []
    for point in itertools.product(*[range(axes.sizes[a]) for a in used]):
        at = dict(zip(used, point, strict=True))
        resolved = [axes.resolve(i) for i in indices]
        result.append(tuple(i.const + sum(c * at[a] for a, c in i.terms) for i in resolved))
    return result


def test_arithmetic_drops_what_is_zero() -> None:
    axes = Axes()
    i, j = axes.new(4), axes.new(5)
    assert axes.new(1) == ZERO
    assert i.times(3).plus(j).plus(i.times(-3)).plus(2) == j.plus(2)
    assert axes.span(i.times(-2).plus(j).plus(7)) == (1, 11)


@given(data=st.data())
def test_division_is_exact(data: Any) -> None:
    axes = Axes()
    shape = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    index = [axes.new(n) for n in shape]
    address = flatten(index, shape).plus(data.draw(st.integers(0, 5)))
    by = data.draw(st.integers(1, 8))
    while True:
        try:
            parts = axes.divide(axes.resolve(address), by)
            break
        except Split as split:
            assert axes.sizes[split.axis] % split.inner == 0
            axes.split(split.axis, split.inner)
    if parts is not None:
        for whole, rest, total in values(axes, *parts, address):
            assert (whole, rest) == divmod(total, by)


def test_reshapes_of_the_same_buffer_have_the_same_axes() -> None:
    axes = Axes()
    long = [axes.new(6), axes.new(20)]
    short = [axes.new(n) for n in (2, 3, 4, 5)]
    left, right = flatten(long, (6, 20)), flatten(short, (2, 3, 4, 5))
    matching = axes.matching({0, 1}, {2, 3, 4, 5})
    assert matching.unify(left, right)
    axes.commit(matching)
    assert axes.resolve(left) == axes.resolve(right)
    assert axes.resolved({0, 1}) == axes.resolved({2, 3, 4, 5})


def test_an_axis_has_one_partner() -> None:
    axes = Axes()
    i, j, k, m = (axes.new(4) for _ in range(4))
    matching = axes.matching({0, 1}, {2, 3})
    assert matching.unify(i.times(4).plus(j), k.times(4).plus(m))
    assert not matching.unify(i, m)  # a row is no column
    assert not matching.unify(i.times(4).plus(j), m.times(4).plus(k))
    assert matching.unify(i, k)


def test_what_fails_changes_nothing() -> None:
    axes = Axes()
    i, j, k, m = axes.new(6), axes.new(4), axes.new(5), axes.new(2)
    matching = axes.matching({0, 1}, {2, 3})
    assert not matching.unify(i.times(4).plus(j), k.times(2).plus(m))  # j splits, i and k differ
    assert [matching.resolve(x) for x in (i, j, k, m)] == [i, j, k, m]
    assert not matching.unify(j, j.plus(1))
