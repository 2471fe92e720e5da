"""What every transform checks of its own arguments: the function, and positions in its
signature."""

from __future__ import annotations

from typing import Any


def check_function(what: str, f: Any) -> None:
    """Raise at once where a transform is given what cannot be called.

    Raises:
        TypeError: `f` is no function; `what` names the transform in the message.
    """
    if not callable(f):
        raise TypeError(
            f"{what}: takes a function and returns one, got {f!r} of type {type(f).__name__}; "
            f"write {what}(f)(x), not {what}(f(x))"
        )


def check_callables(rule: str, *functions: Any) -> None:
    """Raise where one of `functions` cannot be called.

    Raises:
        TypeError: with the `rule`, and what was given instead.
    """
    for f in functions:
        if not callable(f):
            raise TypeError(f"{rule}, got {f!r}")


def as_positions(what: str, option: str, value: Any) -> tuple[int, ...]:
    """Positions of arguments, given as an int or a sequence of ints.

    Raises:
        TypeError: `value` is neither.
    """
    positions = (value,) if isinstance(value, int) else value
    if not isinstance(positions, tuple | list) or not all(_is_int(p) for p in positions):
        raise TypeError(f"{what}: {option} is an int or a sequence of ints, got {value!r}")
    return tuple(positions)


def as_names(what: str, option: str, value: Any) -> tuple[str, ...]:
    """Names of parameters, given as a string or a sequence of strings.

    Raises:
        TypeError: `value` is neither.
    """
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, tuple | list) or not all(isinstance(n, str) for n in names):
        raise TypeError(f"{what}: {option} is a string or a sequence of strings, got {value!r}")
    return tuple(names)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
