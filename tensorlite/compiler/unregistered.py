"""Primitives of the compiler's own."""

from __future__ import annotations

from ..core import Primitive


class Unregistered(Primitive):
    """A primitive that only passes make: no function binds it, so no transform needs to know it."""

    def register(self) -> None:
        pass
