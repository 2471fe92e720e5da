"""Products without reuse, on GPUs: a work-item for each element of the result.

Depthwise convolutions have one channel in and out of each group, so there is no tile of columns to
share a row with. Neighbouring work-items compute neighbouring channels, so that loads coalesce.
"""

from __future__ import annotations

import math

from ..runtime import Traits
from . import arrange, gather
from .contraction import Contraction, start
from .draft import FIRST, RESULT, SECOND, Draft, Scalars, Source, indented, index_type, kernel_text
from .draft import total as summed
from .epilogue import Steps, functions, parameters, statements
from .types import Number, preamble

_GROUP = 64  # work-items of a work-group
_LONG = 256  # steps of a sum that are worth a split


def suits(contraction: Contraction) -> bool:
    """Whether so few columns in so many groups are better computed one by one."""
    columns = contraction.count("column")
    return columns < 8 and contraction.count("batch") * columns >= 16


def plan_points(
    draft: Draft, traits: Traits, contraction: Contraction, steps: Steps, is_whole: bool
) -> None:
    """Write the launches of a product, which gives all of the result or a part of it."""
    number = Number(contraction.c.dtype)
    checked = gather.bounds(contraction)
    indices = [i for role in ("row", "batch", "column") for i in contraction.of_role(role)]
    points = gather.counters(contraction, indices, checked)
    sums = gather.counters(contraction, contraction.of_role("sum"), checked)
    count, depth = math.prod(d.size for d in points), contraction.count("sum")
    wanted = 4 * traits.units * _GROUP if is_whole else 1
    splits = max(1, min(depth // _LONG, wanted // max(count, 1)))
    per_split = -(-depth // splits)
    splits = max(1, -(-depth // per_split)) if depth else 1
    size_c = contraction.c.size
    wide = index_type(max(contraction.a.size, contraction.b.size, size_c * splits))
    is_split = splits > 1
    operations = () if is_split else steps.operations

    checks = [
        f"const int at{n} = from{n}{_plus(gather.coordinate('k', sums, n))};\n"
        f"if (at{n} < 0 || at{n} >= {size}) continue;"
        for n, size in enumerate(checked.sizes)
    ]
    origins = [
        f"const int from{n} = {summed(str(origin), gather.coordinate('p', points, n))};"
        for n, origin in enumerate(checked.origins)
    ]
    first = number.load("a", f"from_a{_plus(gather.place('k', sums, 'a'))}")
    second = number.load("b", f"from_b{_plus(gather.place('k', sums, 'b'))}")
    after = statements(operations, "place", f"place % {contraction.c.shape[-1]}")
    places = {
        name: summed(str(start(getattr(contraction, name))), gather.place("p", points, name))
        for name in "abc"
    }
    result = "c[place] = value;" if is_split else number.store("value", "c", "place")
    body = f"""
const Index point = get_global_id(0);
if (point >= {count}) return;
{_lines(gather.split_up("p", "point", [d.size for d in points], "Index"))}
const Index from_a = {places["a"]}, from_b = {places["b"]};
{_lines(origins)}
const int end = get_global_id(1) * {per_split} + {per_split};
{number.computed} value = 0;
for (int k = get_global_id(1) * {per_split}; k < end && k < {depth}; ++k) {{
{indented(_lines(gather.split_up("k", "k", [d.size for d in sums])))}
{indented(_lines(checks))}
  value += {first} * {second};
}}
const Index place = {places["c"]}{f" + (Index)get_global_id(1) * {size_c}" if is_split else ""};
{_lines(after)}
{result}
"""
    stored = number.stored
    buffers = [
        f"__global const {stored} *restrict a",
        f"__global const {stored} *restrict b",
        f"__global {number.computed if is_split else stored} *restrict c",
        *parameters(operations),
    ]
    name = draft.named(contraction, operations)
    comment = "A work-item computes one element of the result" + (
        f", over {per_split} of {depth} steps of its sum." if is_split else "."
    )
    head = preamble(number) + functions(operations, number) + wide
    source = Source(name, head + kernel_text(name, buffers, (), body, comment), ())
    target = RESULT
    if is_split:
        target = draft.temporary(splits * size_c * number.accumulator.itemsize)
    operands = () if is_split else steps.operands
    grid = (-(-count // _GROUP) * _GROUP, splits)
    draft.launch(source, Scalars(), (FIRST, SECOND, target, *operands), grid, (_GROUP, 1))
    if is_split:
        arrange.finish(draft, contraction, splits, target, steps, RESULT, per_item=1)


def _plus(term: str) -> str:
    return "" if term == "0" else f" + {term}"


def _lines(parts: list[str]) -> str:
    return "\n".join(parts)
