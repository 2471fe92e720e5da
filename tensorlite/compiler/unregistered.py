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
        self._title = title

    def title(self, params: dict[str, Any]) -> str:
        return super().title(params) if self._title is None else self._title(params)

    def register(self) -> None:
        pass
