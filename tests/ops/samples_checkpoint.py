"""Samples for the primitive that names a value for a checkpoint's policy."""

from __future__ import annotations

from typing import Any

from tests.ops.sampling import Sample, rngs, samples, shapes


@samples("checkpoint_name")
def checkpoint_name(draw: Any, name: str) -> Sample:
    return Sample((draw(rngs()).normal(size=draw(shapes())),), {"name": "a"})
