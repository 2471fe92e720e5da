"""Random bits: Philox-4x32-10 as `ops.random` defines it, eight counters at a time.

A 64-bit lane holds a 32-bit word of one counter, and what lies above it is ignored: the machine's
product of 32-bit words takes just the low halves of such lanes.
"""

from __future__ import annotations

from ....ops.random import _KEY_STEPS, _MULTIPLIERS
from .render import write_parallel
from .text import Function, Module

_LANES = 8
_WORDS = 4 * _LANES  # that a group of lanes gives
_GROUPS = 64  # that a thread takes at a time
_PARALLEL_WORDS = 1 << 14  # below which a second thread costs more than it saves
_WIDE = f"<{_LANES} x i64>"
_MASK = "splat (i64 4294967295)"


def render_random_bits(module: Module, name: str, keys: int, count: int, width: int) -> None:
    """Add a function of (key buffer, output buffer): for each of `keys` keys of four uint32, so
    many elements of `width` words. A sharded key starts at the words of its rows."""
    words = count * width
    # A start within a group of four words shifts the output by up to three.
    groups = -(-(words + 3) // _WORDS)
    chunks = -(-groups // _GROUPS)
    header = f"define internal void @{name}.units(ptr %buffers, i64 %begin, i64 %end)"
    function = Function(module, header)
    key_base = function.value("load ptr, ptr %buffers")
    second = function.value("getelementptr ptr, ptr %buffers, i64 1")
    output = function.value(f"load ptr, ptr {second}")
    edge = function.slot("i32", _WORDS, align=64)
    with function.loop("%begin", "%end") as unit:
        row = function.value(f"udiv i64 {unit}, {max(chunks, 1)}")
        chunk = function.value(f"urem i64 {unit}, {max(chunks, 1)}")
        key = _load_key(function, key_base, row)
        start = _start(function, key, count, width)
        skipped = function.value(f"and i64 {start}, 3")
        first = function.value(f"lshr i64 {start}, 2")
        base = function.value(
            f"getelementptr i32, ptr {output}, i64 {function.integer('mul', row, str(words))}"
        )
        low = function.integer("mul", chunk, str(_GROUPS))
        limit = function.integer("add", low, str(_GROUPS))
        high = function.call("i64", "llvm.smin.i64", ("i64", limit), ("i64", str(groups)))
        with function.loop(low, high) as group:
            block = function.integer("mul", group, str(_LANES))
            lanes = _philox(function, function.value(f"add i64 {first}, {block}"), key)
            shifted = function.integer("mul", group, str(_WORDS))
            place = function.value(f"sub i64 {shifted}, {skipped}")
            _store(function, lanes, base, place, words, edge)
    function.finish()
    units = keys * chunks
    if units > 1 and keys * words >= _PARALLEL_WORDS:
        write_parallel(module, name, units)
        return
    whole = Function(module, f"define void @{name}(ptr %buffers)")
    whole.line(f"call void @{name}.units(ptr %buffers, i64 0, i64 {units})")
    whole.finish()


def _load_key(function: Function, base: str, row: str) -> list[str]:
    """The four words of a key as i64."""
    at = function.integer("mul", row, "4")
    words = []
    for i in range(4):
        index = function.integer("add", at, str(i))
        place = function.value(f"getelementptr i32, ptr {base}, i64 {index}")
        word = function.value(f"load i32, ptr {place}, align 4")
        words.append(function.value(f"zext i32 {word} to i64"))
    return words


def _start(function: Function, key: list[str], count: int, width: int) -> str:
    """The word at which a draw starts: not 0 for a sharded key whose rows divide the draw."""
    first_row, rows = key[2], key[3]
    none = function.value(f"icmp eq i64 {rows}, 0")
    divisor = function.value(f"select i1 {none}, i64 1, i64 {rows}")
    rest = function.value(f"urem i64 {count}, {divisor}")
    per_row = function.value(f"udiv i64 {count}, {divisor}")
    uneven = function.value(f"icmp ne i64 {rest}, 0")
    ordinary = function.value(f"or i1 {none}, {uneven}")
    start = function.value(f"mul i64 {first_row}, {per_row}")
    words = function.value(f"mul i64 {start}, {width}")
    return function.value(f"select i1 {ordinary}, i64 0, i64 {words}")


def _philox(function: Function, block: str, key: list[str]) -> list[str]:
    """The four words of the counters block, block + 1, ..."""
    ramp = ", ".join(f"i64 {i}" for i in range(_LANES))
    counter = function.value(f"add {_WIDE} {_splat(function, block)}, <{ramp}>")
    high = function.value(f"lshr {_WIDE} {counter}, splat (i64 32)")
    c0, c1, c2, c3 = counter, high, "zeroinitializer", "zeroinitializer"
    m0, m1 = (int(m) for m in _MULTIPLIERS[:, 0])
    for number in range(10):
        keys = []
        for word, step in zip(key[:2], _KEY_STEPS[:, 0], strict=True):
            offset = (number * int(step)) & 0xFFFFFFFF
            keys.append(_splat(function, function.value(f"add i64 {word}, {offset}")))
        p0 = _product(function, c0, m0)
        p1 = _product(function, c2, m1)
        c0 = _xor(function, _upper(function, p1), c1, keys[0])
        c2 = _xor(function, _upper(function, p0), c3, keys[1])
        c1, c3 = p1, p0
    return [c0, c1, c2, c3]


def _splat(function: Function, scalar: str) -> str:
    one = function.value(f"insertelement {_WIDE} poison, i64 {scalar}, i64 0")
    zeros = f"<{_LANES} x i32> zeroinitializer"
    return function.value(f"shufflevector {_WIDE} {one}, {_WIDE} poison, {zeros}")


def _product(function: Function, x: str, multiplier: int) -> str:
    low = function.value(f"and {_WIDE} {x}, {_MASK}")
    return function.value(f"mul {_WIDE} {low}, splat (i64 {multiplier})")


def _upper(function: Function, x: str) -> str:
    return function.value(f"lshr {_WIDE} {x}, splat (i64 32)")


def _xor(function: Function, x: str, y: str, z: str) -> str:
    first = function.value(f"xor {_WIDE} {x}, {y}")
    return function.value(f"xor {_WIDE} {first}, {z}")


def _store(
    function: Function, lanes: list[str], base: str, place: str, words: int, edge: str
) -> None:
    """Write the words in order, four for each lane; at the edges only those that belong to the
    draw."""
    pairs = []
    for low, high in ((lanes[0], lanes[1]), (lanes[2], lanes[3])):
        lower = function.value(f"and {_WIDE} {low}, {_MASK}")
        upper = function.value(f"shl {_WIDE} {high}, splat (i64 32)")
        pairs.append(function.value(f"or {_WIDE} {lower}, {upper}"))
    order = ", ".join(f"i32 {i}, i32 {i + _LANES}" for i in range(_LANES))
    kind = f"<{2 * _LANES} x i64>"
    merged = function.value(
        f"shufflevector {_WIDE} {pairs[0]}, {_WIDE} {pairs[1]}, <{2 * _LANES} x i32> <{order}>"
    )
    begins = function.value(f"icmp sge i64 {place}, 0")
    fits = function.value(f"icmp sle i64 {place}, {words - _WORDS}")
    inside = function.value(f"and i1 {begins}, {fits}")
    with function.when(inside):
        at = function.value(f"getelementptr i32, ptr {base}, i64 {place}")
        function.line(f"store {kind} {merged}, ptr {at}, align 4")
    outside = function.value(f"xor i1 {inside}, true")
    with function.when(outside):
        function.line(f"store {kind} {merged}, ptr {edge}, align 64")
        with function.loop("0", str(_WORDS)) as i:
            at = function.integer("add", place, i)
            below = function.value(f"icmp ult i64 {at}, {words}")  # also where `at` is negative
            with function.when(below):
                source = function.value(f"getelementptr i32, ptr {edge}, i64 {i}")
                word = function.value(f"load i32, ptr {source}, align 4")
                target = function.value(f"getelementptr i32, ptr {base}, i64 {at}")
                function.line(f"store i32 {word}, ptr {target}, align 4")
