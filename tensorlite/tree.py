"""Pytrees: nested containers with tensors at the leaves. A thin face on optree, which does the
walking in C++.

Nodes are lists, tuples, dicts (in sorted key order), named tuples, None (a node without leaves),
dataclasses, and classes registered with `register`. Everything else is a leaf. Next to optree's
functions this file adds what training needs: dotted names of the leaves (`paths`), which leaves are
parameters rather than buffers (`parameter_mask`), and in words how two structures differ
(`difference`).
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, Literal

import optree

__all__ = [
    "BufferName",
    "TreeDef",
    "difference",
    "flatten",
    "leaves",
    "map",
    "parameter_mask",
    "paths",
    "register",
    "structure",
    "unflatten",
]

TreeDef = optree.PyTreeSpec

_NAMESPACE = "tensorlite"
_plain_leaves: set[type] = {int, float, bool, str}  # types known not to be dataclasses
_dataclasses: set[type] = set()  # those that are registered
_registering = threading.Lock()


def flatten(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> tuple[list[Any], TreeDef]:
    """The leaves of `tree` in order, and its structure.

    Example:
        >>> leaves, treedef = tl.tree.flatten({"w": 1.0, "layers": [2.0, 3.0]})
        >>> print(leaves)
        [2.0, 3.0, 1.0]
        >>> tl.tree.unflatten(treedef, [x * 10 for x in leaves])
        {'w': 10.0, 'layers': [20.0, 30.0]}
    """
    leaves, treedef = optree.tree_flatten(tree, is_leaf, namespace=_NAMESPACE)
    for leaf in leaves:
        if (
            type(leaf) not in _plain_leaves
            and _register_dataclass(type(leaf))
            and not (is_leaf and is_leaf(leaf))
        ):
            return flatten(tree, is_leaf)
    return leaves, treedef


def unflatten(treedef: TreeDef, leaves: Iterable[Any]) -> Any:
    """The tree of structure `treedef` with these leaves."""
    return treedef.unflatten(leaves)


def leaves(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> list[Any]:
    """The leaves of `tree` in order.

    Example:
        >>> tl.tree.leaves({"b": 2, "a": [0, 1], "c": None})
        [0, 1, 2]
    """
    return flatten(tree, is_leaf)[0]


def structure(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> TreeDef:
    """The structure of `tree`: hashable, and equal for trees that differ in their leaves only."""
    return flatten(tree, is_leaf)[1]


def map(
    f: Callable[..., Any], tree: Any, *rest: Any, is_leaf: Callable[[Any], bool] | None = None
) -> Any:
    """`f` applied leaf by leaf to `tree` and to trees of the same structure.

    Raises:
        ValueError: the structures differ.

    Example:
        >>> tl.tree.map(lambda a, b: a + b, {"w": 1, "b": (2, 3)}, {"w": 10, "b": (20, 30)})
        {'w': 11, 'b': (22, 33)}
    """
    first, treedef = flatten(tree, is_leaf)
    columns = [first]
    for number, other in enumerate(rest, 2):
        try:
            columns.append(treedef.flatten_up_to(other))
        except ValueError:
            raise ValueError(
                f"tree.map: tree {number} does not have the structure of the first one: "
                + difference(treedef, structure(other), leaf_fits="wanted")
            ) from None
    return treedef.unflatten([f(*row) for row in zip(*columns, strict=True)])


def difference(
    wanted: TreeDef, got: TreeDef, leaf_fits: Literal["wanted", "got"] | None = None
) -> str:
    """How the structure `got` differs from `wanted`, in words for an error message: "it lacks
    'bias'", "at 'layers' it is a list, not a tuple". Only the first difference is told.

    Args:
        leaf_fits: where one of the two is meant to be a prefix of the other, that one.
    """
    return _difference(wanted, got, "", leaf_fits) or "they differ"


def _difference(wanted: TreeDef, got: TreeDef, path: str, leaf_fits: str | None) -> str:
    fits_any = wanted if leaf_fits == "wanted" else got if leaf_fits == "got" else None
    if wanted == got or (fits_any is not None and fits_any.is_leaf()):
        return ""
    at = f"at {path!r} " if path else ""
    if wanted.type is not got.type:
        return f"{at}it is {_kind(got)}, not {_kind(wanted)}"
    names, theirs = _entry_names(wanted), _entry_names(got)
    if wanted.type in (list, tuple) and len(names) != len(theirs):
        return f"{at}it has {len(theirs)} entries, not {len(names)}"
    told = []
    if lacking := [repr(n) for n in names if n not in theirs]:
        told.append(f"it lacks {', '.join(lacking)}")
    if besides := [repr(n) for n in theirs if n not in names]:
        told.append(f"it has {', '.join(besides)} besides")
    if told:
        return at + " and ".join(told)
    for name, child, other in zip(names, wanted.children(), got.children(), strict=True):
        below = f"{path}.{name}" if path else name
        if found := _difference(child, other, below, leaf_fits):
            return found
    return f"{at}the two differ in what {_kind(wanted)} holds besides tensors"


def _entry_names(treedef: TreeDef) -> list[str]:
    fields = getattr(treedef.type, "_fields", None)  # of a named tuple, whose entries are numbers
    return [str(e) for e in (fields or treedef.entries())]


def _kind(treedef: TreeDef) -> str:
    if treedef.is_leaf():
        return "a single value"
    if treedef.type is type(None):
        return "None"
    name = treedef.type.__name__ if treedef.type is not None else "node"
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"


class BufferName(str):
    """The name of a child that is state, such as a running statistic, rather than a parameter."""

    __slots__ = ()


def register(
    cls: type,
    flatten: Callable[[Any], tuple[Sequence[Any], Hashable, Sequence[str]]],
    unflatten: Callable[[Any, Iterable[Any]], Any],
) -> None:
    """Make `cls` a pytree node.

    Args:
        flatten: object -> (children, static data, names of the children). Static data must be
            hashable and comparable. A child that is a buffer has a `BufferName`.
        unflatten: (static data, children) -> object.
    """
    optree.register_pytree_node(cls, flatten, unflatten, namespace=_NAMESPACE)


def _register_dataclass(cls: type) -> bool:
    """Register `cls` when it is a dataclass that is not yet a node; remember it as a plain leaf
    type otherwise."""
    if not dataclasses.is_dataclass(cls):
        _plain_leaves.add(cls)
        return False
    names = tuple(field.name for field in dataclasses.fields(cls))

    def rebuild(_: Hashable, children: Iterable[Any]) -> Any:
        # Not through __init__, which may check or change what here may be traced or no tensor yet.
        obj = object.__new__(cls)
        for name, child in zip(names, children, strict=True):
            object.__setattr__(obj, name, child)
        return obj

    with _registering:
        if cls not in _dataclasses:
            register(cls, lambda obj: ([getattr(obj, n) for n in names], None, names), rebuild)
            _dataclasses.add(cls)
    return True


def paths(tree: Any) -> list[str]:
    """The dotted names of the leaves, in order: `{"conv": {"weight": w}}` gives `["conv.weight"]`;
    a bare leaf is `""`.

    Example:
        >>> tl.tree.paths({"conv": {"weight": 0, "bias": 1}, "layers": [2, 3]})
        ['conv.bias', 'conv.weight', 'layers.0', 'layers.1']
    """
    return list(_paths_of(structure(tree)))


@functools.lru_cache(maxsize=512)
def _paths_of(treedef: TreeDef) -> tuple[str, ...]:
    return tuple(".".join([_name_of(e) for e in path]) for path in treedef.accessors())


def _name_of(entry: Any) -> str:
    return entry.field if isinstance(entry, optree.NamedTupleEntry) else str(entry.entry)


def parameter_mask(tree: Any) -> list[bool]:
    """For each leaf of `tree`, in order, whether it is a parameter: False at and below a child with
    a `BufferName`."""
    return list(mask_of_structure(structure(tree)))


@functools.lru_cache(maxsize=512)
def mask_of_structure(treedef: TreeDef) -> tuple[bool, ...]:
    """`parameter_mask` of any tree of this structure."""
    return tuple(not any(isinstance(part, BufferName) for part in path) for path in treedef.paths())


def broadcast_prefix(prefix: Any, tree: Any, what: str) -> list[Any]:
    """One entry of `prefix` for each leaf of `tree`; a leaf of `prefix` (None too) stands for the
    whole subtree below it.

    Raises:
        ValueError: `prefix` is no prefix of `tree`; `what` names it in the message.
    """
    entries, treedef = optree.tree_flatten(prefix, none_is_leaf=True, namespace=_NAMESPACE)
    try:
        subtrees = treedef.flatten_up_to(tree)
    except ValueError:
        whole = optree.tree_structure(tree, none_is_leaf=True, namespace=_NAMESPACE)
        how = difference(whole, treedef, leaf_fits="got")
        raise ValueError(f"{what} does not fit its arguments: {how}") from None
    result: list[Any] = []
    for entry, subtree in zip(entries, subtrees, strict=True):
        result += [entry] * len(leaves(subtree))
    return result
