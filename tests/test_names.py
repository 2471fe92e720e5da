"""Names from other libraries are answered with the ones to write."""

from __future__ import annotations

import re
from typing import Any

import pytest

import tensorlite as tl
from tensorlite import names


@pytest.mark.parametrize("name", names.FUNCTIONS)
def test_functions_of_other_libraries_are_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(tl, name, raising=False)  # `distributed`, if another test has imported it
    with pytest.raises(AttributeError, match=re.escape(f"{name!r}; write {names.FUNCTIONS[name]}")):
        getattr(tl, name)


@pytest.mark.parametrize("name", names.METHODS)
def test_methods_of_other_libraries_are_named(name: str) -> None:
    with pytest.raises(AttributeError, match=re.escape(f"{name!r}; write {names.METHODS[name]}")):
        getattr(tl.ones(2), name)


@pytest.mark.parametrize("hint", [*names.FUNCTIONS.values(), *names.METHODS.values()])
def test_what_is_to_be_written_exists(hint: str) -> None:
    for path in re.findall(r"\btl\.([\w.]*\w)", hint):
        found: Any = tl
        for part in path.split("."):
            found = getattr(found, part)
    for method in re.findall(r"\bx\.(\w+)", hint):
        assert hasattr(tl.ones((2, 2)), method)


def test_misspelled_functions_are_guessed() -> None:
    with pytest.raises(AttributeError, match=r"did you mean tl\.broadcast_to\?"):
        tl.broadcast  # noqa: B018
    with pytest.raises(AttributeError, match=r"has no attribute 'nothing_like_it'$"):
        tl.nothing_like_it  # noqa: B018


@pytest.mark.parametrize("transform", [tl.grad, tl.jit, tl.vmap])
def test_traced_values_answer_alike(transform: Any) -> None:
    def f(x: tl.Tensor) -> tl.Tensor:
        assert not hasattr(x, "detach")
        with pytest.raises(AttributeError, match="write tl.stop_gradient"):
            x.detach  # noqa: B018
        return tl.sum(x)

    transform(f)(tl.ones((2, 2)) if transform is tl.vmap else tl.ones(2))


def test_what_is_absent_is_not_listed() -> None:
    x = tl.ones(2)
    assert not set(names.METHODS) & set(dir(x)) and {"shape", "reshape", "sum"} <= set(dir(x))
    assert not any(hasattr(x, name) for name in names.METHODS) and not hasattr(tl, "complex64")
