"""Random bits: Philox-4x32-10 as `ops.random` defines it. A work-item computes four words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...compiler.launches import Call, Plan, Ref
from ...ops.random import _KEY_STEPS, _MULTIPLIERS
from .kernels import Kernel
from .runtime import Traits

_SOURCE = """\
/* Philox-4x32-10 (Salmon et al. 2011): words of the stream of each key, four to a block. */
__kernel void random_bits(__global const uint *keys, __global uint *words,
                          const int key_count, const int count, const int width) {
    const int blocks = (count * width + 3) / 4 + 1;
    const long items = (long)key_count * blocks;
    for (long item = get_global_id(0); item < items; item += get_global_size(0)) {
        const int row = item / blocks, block = item % blocks;
        __global const uint *key = keys + 4 * row;
        /* A sharded key starts at the words of its rows. */
        const uint rows = key[3];
        const bool sharded = rows != 0 && count % max(rows, 1u) == 0;
        const ulong start = sharded ? (ulong)key[2] * (count / max(rows, 1u)) * width : 0;
        const ulong number = start / 4 + block;
        uint c0 = (uint)number, c1 = (uint)(number >> 32), c2 = 0, c3 = 0;
        uint k0 = key[0], k1 = key[1];
        for (int round = 0; round < 10; ++round) {
            const ulong p0 = (ulong)c0 * M0, p1 = (ulong)c2 * M1;
            c0 = (uint)(p1 >> 32) ^ c1 ^ k0;
            c2 = (uint)(p0 >> 32) ^ c3 ^ k1;
            c1 = (uint)p1;
            c3 = (uint)p0;
            k0 += S0;
            k1 += S1;
        }
        const int place = 4 * block - (int)(start % 4), total = count * width;
        __global uint *out = words + (long)row * total;
        if (place >= 0 && place < total) out[place] = c0;
        if (place + 1 >= 0 && place + 1 < total) out[place + 1] = c1;
        if (place + 2 >= 0 && place + 2 < total) out[place + 2] = c2;
        if (place + 3 >= 0 && place + 3 < total) out[place + 3] = c3;
    }
}
"""
_CONSTANTS = {
    "M0": _MULTIPLIERS[0, 0],
    "M1": _MULTIPLIERS[1, 0],
    "S0": _KEY_STEPS[0, 0],
    "S1": _KEY_STEPS[1, 0],
}
_DEFINITIONS = "".join(f"#define {name} {int(value)}U\n" for name, value in _CONSTANTS.items())


def plan_bits(traits: Traits, keys: int, shape: Sequence[int], dtype: np.dtype[Any]) -> Plan | None:
    """A kernel that fills `shape` with uint32 or uint64 for each of `keys` keys; None for draws
    whose words it cannot count in ints, which the host makes."""
    count, width = math.prod(shape), dtype.itemsize // 4
    if count * width * keys >= 2**31 - 8:
        return None
    items = keys * ((count * width + 3) // 4 + 1)
    if traits.kind == "cpu":
        # One work-item for some thousand blocks, so that each runs a loop.
        size: tuple[int, ...] = (min(-(-items // 512), 8 * traits.units),)
        local: tuple[int, ...] | None = (1,)
    else:
        group = min(traits.max_work_group, 128)
        size, local = (-(-items // group) * group,), (group,)
    kernel = Kernel("random_bits", _DEFINITIONS + _SOURCE, size, local, (keys, count, width))
    return Plan("random_bits", (Call(kernel, (Ref("input", 0), Ref("output", 0))),))
