"""The arena: values that live at the same time never overlap, and little is wasted."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tensorlite.compiler.memory import ALIGNMENT, Life, peak, place


@st.composite
def _lives(draw: st.DrawFn) -> list[Life]:
    result = []
    for _ in range(draw(st.integers(0, 30))):
        first = draw(st.integers(0, 20))
        size = draw(st.integers(0, 40)) * ALIGNMENT + draw(st.sampled_from([0, 0, 4, 63]))
        result.append(Life(size, first, first + draw(st.integers(0, 20))))
    return result


@given(_lives())
def test_values_that_live_together_do_not_overlap(lives: list[Life]) -> None:
    layout = place(lives)
    ends = [start + life.size for start, life in zip(layout.offsets, lives, strict=True)]
    for i, a in enumerate(lives):
        assert layout.offsets[i] % ALIGNMENT == 0
        assert ends[i] <= layout.size
        for j, b in enumerate(lives[:i]):
            together = a.first <= b.last and b.first <= a.last
            apart = ends[i] <= layout.offsets[j] or ends[j] <= layout.offsets[i]
            assert apart or not together or not a.size or not b.size
    assert peak(lives) <= layout.size


def test_a_chain_needs_two_values_at_a_time() -> None:
    lives = [Life(1024, i, i + 1) for i in range(50)]
    assert peak(lives) == 2048
    assert place(lives).size == 2048


def test_the_values_of_a_backward_sweep_die_in_reverse() -> None:
    depth = 40
    lives = [Life(4096 * (1 + i % 3), i, 2 * depth - i) for i in range(depth)]
    assert place(lives).size == peak(lives)


def test_no_values_need_no_memory() -> None:
    assert place([]).size == 0
    assert peak([]) == 0
