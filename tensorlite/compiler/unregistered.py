"""Primitives of the compiler's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..core import Primitive


class Unregistered(Primitive):
    """A primitive that only passes make: no function binds it, so no transform needs to know it.

    `title(params)` is what people see of an equation in profiles and logs.
    """

    def __init__(self, name: str, title: Callable[[dict[str, Any]], str] | None = None):
        super().__init__(name)
        if title is not None:
            self.title = title  # type: ignore[method-assign]

    def register(self) -> None:
        pass
