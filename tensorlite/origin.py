"""Where an operation comes from: the user's line that asked for it, and the scopes it stands in.

Nothing is written down while operations run. The call stack already knows the line, the modules
whose `__call__` is running and the graph that is being replayed, so `here` reads it off when
somebody asks: for every equation that is traced, and in eager mode only for an error or a profile.
"""

from __future__ import annotations

import contextlib
import functools
import linecache
import os
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, NamedTuple

_LIBRARY = os.path.dirname(__file__) + os.sep
# Decorated functions are called through these; they are nobody's own code.
_PLUMBING = frozenset({contextlib.__file__, functools.__file__})


class Origin(NamedTuple):
    """The user's line, and the scopes around it, outermost first. `backward` marks the derivative
    of what the line asked for."""

    file: str
    line: int
    function: str
    scope: tuple[str, ...] = ()
    backward: bool = False

    @property
    def where(self) -> str:
        """`model.py:12`, short enough for a listing."""
        return f"{os.path.basename(self.file)}:{self.line}" if self.file else ""

    @property
    def path(self) -> str:
        """The scopes as one name, `Net/conv1`, or the empty string."""
        return "/".join(self.scope)

    def inside(self, outer: Origin | None) -> Origin:
        """This origin, in a graph whose equation stands at `outer`."""
        if outer is None or not (outer.scope or outer.backward):
            return self
        scope = outer.scope + self.scope
        return self._replace(scope=scope, backward=outer.backward or self.backward)

    def __str__(self) -> str:
        code = linecache.getline(self.file, self.line).strip()
        line = f"{self.file}:{self.line} in {self.function}" + (f": {code}" if code else "")
        text = f"the derivative of {line}" if self.backward else line
        return f"{text} (scope {self.path})" if self.scope else text


class _Scope(NamedTuple):
    name: str
    frame: (
        FrameType | None
    )  # of the `with` statement, which places the scope among those of modules


class _Scopes(threading.local):
    def __init__(self) -> None:
        self.entered: list[_Scope] = []


_scopes = _Scopes()


class named_scope(contextlib.ContextDecorator):
    """`with tl.named_scope("attention"): ...` names the part of a model that the operations inside
    belong to.

    The name stands before theirs in printed graphs, profiles and errors. Scopes nest, and every
    module whose `__call__` is running is a scope by itself: it is named by the attribute that holds
    it. It may decorate a function. Nothing that is computed depends on it.
    """

    def __init__(self, name: str):
        if not isinstance(name, str) or not name:
            raise TypeError(f"named_scope: the name is a non-empty string, got {name!r}")
        self.name = name

    def _recreate_cm(self) -> named_scope:
        return named_scope(self.name)

    def __enter__(self) -> named_scope:
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame.f_back and frame.f_code.co_filename in _PLUMBING:
            frame = frame.f_back
        _scopes.entered.append(_Scope(self.name, frame))
        return self

    def __exit__(self, *exc: Any) -> None:
        _scopes.entered.pop()


class _Recording:
    on = False


recording = _Recording()  # whether derivatives in eager mode remember the forward line, too
modules: list[type] = []  # the classes whose `__call__` is a scope
# By the identity of the code, since the hash of a code object reads all of it.
_borders: set[int] = set()
_replays: dict[int, str] = {}


def border(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: scopes entered outside of this function do not reach what it traces, so that a
    graph can be used in several places."""
    _borders.add(id(function.__code__))
    return function


def replays(local: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: what this function runs comes from where its local variable says, an `Origin` or
    something with such a `source`."""

    def mark(function: Callable[..., Any]) -> Callable[..., Any]:
        _replays[id(function.__code__)] = local
        return function

    return mark


def here() -> Origin | None:
    """The origin of the operation that is running, from the innermost frame outwards."""
    place: tuple[str, int, str] | None = None
    scope: list[str] = []
    entered = _scopes.entered
    module: Any = None
    bounded = False
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if not bounded:
            if id(code) in _replays:
                replayed = frame.f_locals.get(_replays[id(code)])
                outer = getattr(replayed, "source", replayed)
                if isinstance(outer, Origin):
                    return _at(place or outer[:3], _named(scope, module), outer)
            if entered:
                names = [s.name for s in reversed(entered) if s.frame is frame]
                if names:
                    scope, module = [*_named(scope, module), *names], None
            if code.co_name == "__call__" and code.co_argcount:
                called = frame.f_locals.get(code.co_varnames[0])
                if isinstance(called, tuple(modules)) and called is not module:
                    if module is not None:
                        scope.append(_name_in(called, module))
                    module = called
            bounded = id(code) in _borders
        if place is None and not _is_plumbing(code.co_filename):
            place = (code.co_filename, frame.f_lineno, code.co_qualname)
        if bounded and place is not None:
            break
        frame = frame.f_back
    if place is None:
        return None
    return _at(place, _named(scope, module), None)


def _at(place: tuple[Any, ...], scope: list[str], outer: Origin | None) -> Origin:
    file, line, function = place
    return Origin(file, line, function, tuple(reversed(scope))).inside(outer)


def _named(scope: list[str], module: Any) -> list[str]:
    """The scopes, innermost first, and the module around them that no other module holds."""
    return scope if module is None else [*scope, type(module).__name__]


def _name_in(holder: Any, module: Any) -> str:
    """What a module is called by the module that calls it."""
    for name, value in vars(holder).items():
        if value is module:
            return name
        pairs = value.items() if isinstance(value, dict) else ()
        for key, item in enumerate(value) if isinstance(value, list | tuple) else pairs:
            if item is module:
                return f"{name}.{key}"
    return type(module).__name__


def _is_plumbing(file: str) -> bool:
    return file.startswith((_LIBRARY, "<frozen ")) or file in _PLUMBING
