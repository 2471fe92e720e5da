"""Places in buffers, as sums over the axes of a loop nest, and how the axes of two nests are
recognized as the same.

An address is affine in the position along each axis. A reshape needs no rule of its own then: it
leaves addresses as they are, and only where something looks at the single indices of a reshaped
value is an address divided, which may ask for an axis to be split in two. `Axes` keeps account of
axes that were split, or found to be another one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple


class Affine(NamedTuple):
    """`const + sum(coefficient * position along axis)`; terms are sorted by axis, none is zero."""

    terms: tuple[tuple[int, int], ...] = ()
    const: int = 0

    def plus(self, other: Affine | int) -> Affine:
        if isinstance(other, int):
            return Affine(self.terms, self.const + other)
        if not other.terms:
            return Affine(self.terms, self.const + other.const)
        if not self.terms:
            return Affine(other.terms, self.const + other.const)
        total = dict(self.terms)
        for axis, c in other.terms:
            total[axis] = total.get(axis, 0) + c
        return Affine(_sorted(total), self.const + other.const)

    def times(self, factor: int) -> Affine:
        if factor == 1:
            return self
        if factor == 0:
            return ZERO
        return Affine(tuple((a, c * factor) for a, c in self.terms), self.const * factor)


def _sorted(terms: Mapping[int, int]) -> tuple[tuple[int, int], ...]:
    return tuple(sorted((a, c) for a, c in terms.items() if c))


ZERO = Affine()


class Split(Exception):
    """An axis must become two, of which the inner one has size `inner`."""

    def __init__(self, axis: int, inner: int):
        self.axis = axis
        self.inner = inner


class Axes:
    """All axes by number: their sizes, and what became of those that are no more."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self._replaced: dict[int, Affine] = {}

    def new(self, size: int) -> Affine:
        """The position along a new axis; 0 if it has one point only."""
        if size == 1:
            return ZERO
        self.sizes.append(size)
        return Affine(((len(self.sizes) - 1, 1),))

    def split(self, axis: int, inner: int) -> None:
        """Replace an axis by two."""
        self._replaced[axis] = self.halves(axis, inner)

    def halves(self, axis: int, inner: int) -> Affine:
        """The position along an axis by those along two new ones, the inner one of size `inner`."""
        return self.new(self.sizes[axis] // inner).times(inner).plus(self.new(inner))

    def resolve(self, index: Affine) -> Affine:
        """`index` in terms of the axes that there are now."""
        return substitute(index, self._replaced)

    def resolved(self, axes: Iterable[int]) -> set[int]:
        """The axes that there are now in place of these."""
        found: set[int] = set()
        for axis in axes:
            if axis in self._replaced:
                found.update(a for a, _ in self.resolve(Affine(((axis, 1),))).terms)
            else:
                found.add(axis)
        return found

    def span(self, index: Affine) -> tuple[int, int]:
        """The least and the largest value."""
        low = high = index.const
        for axis, c in index.terms:
            reach = c * (self.sizes[axis] - 1)
            low, high = low + min(reach, 0), high + max(reach, 0)
        return low, high

    def divide(self, index: Affine, by: int) -> tuple[Affine, Affine] | None:
        """Quotient and remainder, or None where they are not affine.

        Raises:
            Split: they would be, if an axis were split.
        """
        if by == 1:
            return index, ZERO
        whole = tuple((a, c // by) for a, c in index.terms if c % by == 0)
        rest = Affine(tuple((a, c) for a, c in index.terms if c % by), index.const % by)
        low, high = self.span(rest)
        if low >= 0 and high < by:
            return Affine(whole, index.const // by), rest
        for axis, c in rest.terms:
            if 0 < c < by and by % c == 0 and c * self.sizes[axis] > by:
                inner = by // c
                if self.sizes[axis] % inner == 0:
                    raise Split(axis, inner)
        return None

    def matching(self, left: Iterable[int], right: Iterable[int]) -> Matching:
        """An attempt to find the axes `right` of one nest among the axes `left` of another."""
        return Matching(self, self.resolved(left), self.resolved(right))

    def commit(self, matching: Matching) -> None:
        """From now on, the axes that were found to be the same are."""
        self._replaced.update(matching.replaced)


class Matching:
    """Axes of two nests, as far as they were found to be the same."""

    def __init__(self, axes: Axes, left: set[int], right: set[int]):
        self._axes = axes
        self.replaced: dict[int, Affine] = {}
        self._left, self._right = left, right  # those without a partner

    def resolve(self, index: Affine) -> Affine:
        return substitute(self._axes.resolve(index), self.replaced)

    def resolved(self, axes: Iterable[int]) -> set[int]:
        found: set[int] = set()
        for axis in self._axes.resolved(axes):
            found.update(a for a, _ in substitute(Affine(((axis, 1),)), self.replaced).terms)
        return found

    def unify(self, left: Affine, right: Affine) -> bool:
        """Take the two for the same place, splitting and identifying axes. If they cannot be,
        nothing is changed and the answer is False."""
        left, right = self.resolve(left), self.resolve(right)
        if left == right:
            return True
        if left.const != right.const:
            return False
        before = dict(self.replaced), set(self._left), set(self._right)
        ours, theirs = _by_step(left), _by_step(right)
        met = True
        while met and ours and theirs:
            met = self._meet(ours, theirs)
        if met and not ours and not theirs:
            return True
        self.replaced, self._left, self._right = before
        return False

    def _meet(self, ours: list[tuple[int, int]], theirs: list[tuple[int, int]]) -> bool:
        """Take the axes of the smallest steps, which stand last, for the same."""
        (step, axis), (other_step, other) = ours.pop(), theirs.pop()
        if step != other_step:
            return False
        if axis == other:
            return True
        if axis not in self._left or other not in self._right:
            return False  # one of them has another partner
        n, m = self._axes.sizes[axis], self._axes.sizes[other]
        if n == m:
            self._left.discard(axis)
            self._right.discard(other)
            self._replace(other, Affine(((axis, 1),)))
            return True
        if max(n, m) % min(n, m):
            return False
        if n > m:
            self._halve(axis, m, step, self._left, ours)
            theirs.append((step, other))
        else:
            self._halve(other, n, step, self._right, theirs)
            ours.append((step, axis))
        return self._meet(ours, theirs)

    def _halve(
        self, axis: int, inner: int, step: int, free: set[int], terms: list[tuple[int, int]]
    ) -> None:
        halves = self._axes.halves(axis, inner)
        self._replace(axis, halves)
        free.discard(axis)
        free.update(a for a, _ in halves.terms)
        terms.extend((c * step, a) for a, c in halves.terms)
        terms.sort(key=lambda t: (-abs(t[0]), t[1]))

    def _replace(self, axis: int, by: Affine) -> None:
        for old, index in self.replaced.items():
            if any(a == axis for a, _ in index.terms):
                self.replaced[old] = substitute(index, {axis: by})
        self.replaced[axis] = by


def _by_step(index: Affine) -> list[tuple[int, int]]:
    return sorted(((c, a) for a, c in index.terms), key=lambda t: (-abs(t[0]), t[1]))


def substitute(index: Affine, replaced: Mapping[int, Affine]) -> Affine:
    """`index` with some axes given in terms of others, which may be replaced in turn."""
    if not any(axis in replaced for axis, _ in index.terms):
        return index
    result = Affine((), index.const)
    for axis, c in index.terms:
        by = replaced.get(axis)
        part = Affine(((axis, c),)) if by is None else substitute(by, replaced).times(c)
        result = result.plus(part)
    return result


def flatten(index: Sequence[Affine], shape: Sequence[int]) -> Affine:
    """The address in a contiguous buffer of `shape`."""
    total, step = ZERO, 1
    for i, n in zip(reversed(index), reversed(shape), strict=True):
        total = total.plus(i.times(step))
        step *= n
    return total
