"""Modules: models as plain Python classes, each a pytree of its parameters and buffers.

An attribute that holds tensors (a tensor, an array, a module, or a list, tuple, dict, dataclass or
registered pytree with some of these in it) gives the children of the node, named by attribute paths
such as `layers.0.weight`. All else (ints, strings, functions, None) is static: it belongs to the
structure, which is compared with ==. Flattening and unflattening copies, so that what a transformed
function assigns to a module is not seen outside of it.

How flattening is kept quick, since every call of a jitted function begins with it: what the
attributes of a module are is found out once and kept in a `Layout`, until an assignment changes it.
Only containers that can change in place are walked each time. Equal layouts are one object, so that
structures compare and hash by identity.
"""

from __future__ import annotations

import collections
import dataclasses
import threading
import types
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from .. import tree
from ..core import Tensor
from ..ops.creation import asarray
from ..origin import modules as _scopes


class Buffer:
    """Marks state that is not trained: `self.mean = nn.Buffer(tl.zeros(64))` makes the attribute
    `mean` a buffer.

    The attribute is the tensor itself, and stays a buffer when it is assigned to later.
    """

    def __init__(self, value: Any):
        self.value = value


class Module:
    """Base class of models and layers. See the example in `tensorlite.nn`.

    Subclasses define `__init__` (which need not call `super().__init__()`) and usually `__call__`.
    A tensor that two attributes share is two parameters.

    Example:
        >>> class Affine(nn.Module):
        ...     def __init__(self, features, key):
        ...         self.weight = random.normal(key, (features,))
        ...         self.offset = tl.zeros(features)
        ...
        ...     def __call__(self, x):
        ...         return x * self.weight + self.offset
        >>> model = Affine(3, random.key(0))
        >>> model
        Affine(
          weight=float32[3],
          offset=float32[3],
        )
        >>> tl.tree.paths(model)
        ['weight', 'offset']
        >>> print(tl.grad(lambda model: tl.sum(model(tl.ones((2, 3)))))(model).offset)
        [2. 2. 2.]
    """

    __slots__ = ("__dict__", "__weakref__", "_module_buffers", "_module_layout", "_module_pinned")

    _module_layout: Layout | None  # None: the attributes have changed since it was found
    _module_buffers: frozenset[str]
    _module_pinned: dict[str, Skeleton]  # attributes whose children are so by decree, not by type

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        module = object.__new__(cls)
        _set_layout(module, None)
        _set_buffers(module, frozenset())
        _set_pinned(module, {})
        return module

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        tree.register(cls, _flatten, _unflatten)

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, np.ndarray):
            value = asarray(value)
        if self._stays_child(name, value):
            self.__dict__[name] = value
            return
        if isinstance(getattr(type(self), name, None), types.FunctionType | types.MethodType):
            raise AttributeError(
                f"{type(self).__name__}.{name} is a method; choose another name for the attribute"
            )
        if isinstance(value, types.MethodType) and isinstance(value.__self__, Module):
            raise TypeError(
                f"{type(self).__name__}.{name}: a method of a module would keep the present "
                "parameters for ever; store the module and call its method, or a plain function"
            )
        if isinstance(value, Buffer):
            _set_buffers(self, self._module_buffers | {name})
            value = asarray(value.value) if isinstance(value.value, np.ndarray) else value.value
        _forget_layout(self, name)
        object.__setattr__(self, name, value)

    def _stays_child(self, name: str, value: Any) -> bool:
        """Whether an assignment changes nothing but one child."""
        layout = self._module_layout
        if layout is None or name not in layout.direct or isinstance(value, Buffer):
            return False
        return _is_child(value) is _is_child(self.__dict__[name])

    def __delattr__(self, name: str) -> None:
        _forget_layout(self, name)
        _set_buffers(self, self._module_buffers - {name})
        object.__delattr__(self, name)

    def parameters(self) -> dict[str, Tensor]:
        """What is trained: tensors by their dotted names, without the buffers."""
        return _named_leaves(self, buffers=False)

    def buffers(self) -> dict[str, Tensor]:
        """What is kept but not trained, as running statistics: tensors by their dotted names."""
        return _named_leaves(self, buffers=True)

    def __getstate__(self) -> Any:
        odd = _odd_children(self)
        return dict(self.__dict__), self._module_buffers, {**self._module_pinned, **odd}

    def __setstate__(self, state: Any) -> None:
        attributes, buffers, pinned = state
        self.__dict__.update(attributes)
        _set_buffers(self, buffers)
        _set_pinned(self, pinned)

    def __repr__(self) -> str:
        lines = []
        for name, value in self.__dict__.items():
            note = " (buffer)" if name in self._module_buffers else ""
            lines.append(f"  {name}={_describe(value)}{note},".replace("\n", "\n  "))
        body = "\n".join(["", *lines, ""]) if lines else ""
        return f"{type(self).__name__}({body})"


_scopes.append(Module)  # what a module's __call__ runs stands in a scope of its name


_set_layout: Any = Module.__dict__["_module_layout"].__set__
_set_buffers: Any = Module.__dict__["_module_buffers"].__set__
_set_pinned: Any = Module.__dict__["_module_pinned"].__set__


def count_parameters(model: Any) -> int:
    """How many numbers are trained in `model`, a module or any pytree of tensors.

    Example:
        >>> nn.count_parameters(nn.Conv(3, 64, 5, key=random.key(0)))
        4864
    """
    masked = zip(tree.leaves(model), tree.parameter_mask(model), strict=True)
    return sum(leaf.size for leaf, is_parameter in masked if is_parameter)


def _named_leaves(module: Module, buffers: bool) -> dict[str, Tensor]:
    leaves, treedef = tree.flatten(module)
    mask = tree.mask_of_structure(treedef)
    names = tree.paths(module)
    return {
        n: x
        for n, x, is_parameter in zip(names, leaves, mask, strict=True)
        if is_parameter is not buffers
    }


# ---- skeletons: what a value is made of, without its children ------------------------------------
#  A skeleton is a hashable tuple that begins with what kind of thing it stands for. Types are part
# of it, since 1 == 1.0 == True.

Skeleton = tuple[Any, ...]
_CHILD: Skeleton = ("child",)
_CONSTANTS = frozenset(
    {
        int,
        float,
        bool,
        str,
        bytes,
        type(None),
        types.FunctionType,
        types.BuiltinFunctionType,
        type,
        np.dtype,
    }
)


def _is_child(value: Any) -> bool:
    """Whether `value` is a child of its own accord: something with tensors in it that is no
    container to be walked.
    """
    if isinstance(value, Tensor | Module | np.ndarray):
        return True
    if type(value) in _CONSTANTS or isinstance(value, tuple | list | dict | set | Buffer):
        return False
    return not dataclasses.is_dataclass(value) and not tree.structure(value).is_leaf()


def _walk(value: Any, children: list[Any]) -> Skeleton:
    """The skeleton of `value`; its children are appended to `children`."""
    kind = type(value)
    if kind in _CONSTANTS:
        return ("constant", kind.__name__, value)
    if _is_child(value):
        children.append(value)
        return _CHILD
    if kind is list or kind is tuple:
        return (kind, *[_walk(item, children) for item in value])
    if kind is dict or kind is collections.OrderedDict:
        return (kind, tuple(value), *[_walk(item, children) for item in value.values()])
    if kind is set:
        return (set, frozenset(value))
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return ("named tuple", kind, *[_walk(item, children) for item in value])
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return (
            "dataclass",
            kind,
            *[_walk(getattr(value, name), children) for name in _fields(kind)],
        )
    return ("constant", kind.__name__, value)


def _build(skeleton: Skeleton, children: Iterator[Any]) -> Any:
    """The value of this skeleton with the next of `children` in it."""
    kind = skeleton[0]
    if kind == "child":
        return next(children)
    if kind == "constant":
        return skeleton[2]
    if kind is list or kind is tuple:
        return kind([_build(item, children) for item in skeleton[1:]])
    if kind is set:
        return set(skeleton[1])
    parts = [_build(item, children) for item in skeleton[2:]]
    if kind == "named tuple":
        return skeleton[1](*parts)
    if kind == "dataclass":
        return skeleton[1](**dict(zip(_fields(skeleton[1]), parts, strict=True)))
    return kind(zip(skeleton[1], parts, strict=True))


def _collect(skeleton: Skeleton, value: Any, children: list[Any]) -> None:
    """Append what stands where `skeleton` has children, whatever it is."""
    kind = skeleton[0]
    if kind == "child":
        children.append(value)
        return
    for item, (_, part) in zip(_parts(value, skeleton), _named_parts(skeleton), strict=True):
        _collect(part, item, children)


def _parts(value: Any, skeleton: Skeleton) -> Sequence[Any]:
    kind = skeleton[0]
    if kind == "dataclass":
        return [getattr(value, name) for name in _fields(skeleton[1])]
    if kind == "constant" or kind is set:
        return []
    return list(value.values()) if isinstance(value, dict) else value


def _named_parts(skeleton: Skeleton) -> list[tuple[Any, Skeleton]]:
    kind = skeleton[0]
    if kind in ("child", "constant") or kind is set:
        return []
    if kind is list or kind is tuple:
        return list(enumerate(skeleton[1:]))
    if kind == "named tuple":
        return list(zip(skeleton[1]._fields, skeleton[2:], strict=True))
    names = _fields(skeleton[1]) if kind == "dataclass" else skeleton[1]
    return list(zip(names, skeleton[2:], strict=True))


def _fields(cls: Any) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(cls) if field.init)


def _child_names(skeleton: Skeleton, prefix: str) -> list[str]:
    """The dotted names of the children in a skeleton."""
    if skeleton[0] == "child":
        return [prefix]
    return [
        name
        for key, part in _named_parts(skeleton)
        for name in _child_names(part, f"{prefix}.{key}")
    ]


def _is_fixed(skeleton: Skeleton) -> bool:
    """Whether the value has no children and cannot change in place."""
    kind = skeleton[0]
    if kind is tuple or kind == "named tuple":
        return all(_is_fixed(part) for _, part in _named_parts(skeleton))
    return kind == "constant"


# ---- layouts -------------------------------------------------------------------------------------


class Layout:
    """What the attributes of a module are: the static data of its node.

    `moving` are the attributes with children in them and those that may change in place, in order,
    with their skeletons; `direct` those which are a child themselves; `static` are all others.
    """

    __slots__ = (
        "__weakref__",
        "buffers",
        "cls",
        "direct",
        "entries",
        "is_flat",
        "moving",
        "names",
        "static",
    )

    def __init__(
        self,
        cls: type[Module],
        buffers: frozenset[str],
        moving: tuple[tuple[str, Skeleton], ...],
        static: tuple[tuple[str, Skeleton], ...],
    ):
        self.cls, self.buffers, self.moving = cls, buffers, moving
        self.static = {name: _build(skeleton, iter(())) for name, skeleton in static}
        self.names = tuple(name for name, _ in moving)
        self.direct = frozenset(name for name, skeleton in moving if skeleton is _CHILD)
        self.is_flat = len(self.direct) == len(moving)
        self.entries = tuple(
            tree.BufferName(entry) if name in buffers else entry
            for name, skeleton in moving
            for entry in _child_names(skeleton, name)
        )

    def __reduce__(self) -> Any:
        static = tuple((name, _walk(value, [])) for name, value in self.static.items())
        return _layout, (self.cls, self.buffers, self.moving, static)

    def __repr__(self) -> str:
        return ", ".join(f"{name}={_describe(value)}" for name, value in self.static.items())


_layouts: weakref.WeakValueDictionary[Any, Layout] = weakref.WeakValueDictionary()
_lock = threading.Lock()


def _layout(cls: Any, buffers: Any, moving: tuple[Any, ...], static: tuple[Any, ...]) -> Layout:
    """The one layout with these parts."""
    moving = tuple((name, _CHILD if skeleton == _CHILD else skeleton) for name, skeleton in moving)
    key = (cls, buffers, moving, static)
    try:
        with _lock:
            found = _layouts.get(key)
            if found is None:
                found = _layouts[key] = Layout(*key)
            return found
    except TypeError:
        for name, skeleton in (*moving, *static):
            _check_hashable(cls, name, skeleton)
        raise


def _check_hashable(cls: type, name: str, skeleton: Skeleton) -> None:
    if skeleton[0] == "constant":
        try:
            hash(skeleton[2])
        except TypeError:
            raise TypeError(
                f"{cls.__name__}.{name} is a {skeleton[1]}, which is neither a tensor, a module, "
                "a container of these nor hashable, so it cannot be part of a module; "
                "keep it outside, or register its class with tl.tree.register"
            ) from None
    for key, part in _named_parts(skeleton):
        _check_hashable(cls, f"{name}.{key}", part)


def _classify(module: Module) -> Layout:
    """Find out what every attribute of `module` is."""
    moving: list[tuple[str, Skeleton]] = []
    static: list[tuple[str, Skeleton]] = []
    for name, value in module.__dict__.items():
        skeleton = module._module_pinned.get(name) or _walk(value, [])
        (static if _is_fixed(skeleton) else moving).append((name, skeleton))
    cls = type(module)
    layout = _layout(
        cls, module._module_buffers, tuple(moving), tuple(sorted(static, key=lambda item: item[0]))
    )
    _set_layout(module, layout)
    return layout


def _flatten(module: Module) -> tuple[list[Any], Layout, tuple[str, ...]]:
    layout = module._module_layout or _classify(module)
    attributes = module.__dict__
    if layout.is_flat:
        return [attributes[name] for name in layout.names], layout, layout.entries
    children: list[Any] = []
    moving = []
    for name, skeleton in layout.moving:
        value = attributes[name]
        if skeleton is _CHILD:
            children.append(value)
        elif name in module._module_pinned:
            _collect(skeleton, value, children)
        else:
            skeleton = _walk(value, children)
        moving.append((name, skeleton))
    if tuple(moving) != layout.moving:  # a list has grown, for instance
        layout = _classify(module)
    return children, layout, layout.entries


def _unflatten(layout: Layout, children: Iterable[Any]) -> Module:
    """A module of this layout, made without its `__init__`."""
    module = object.__new__(layout.cls)
    attributes = module.__dict__
    attributes.update(layout.static)
    pinned: dict[str, Skeleton] = {}
    if layout.is_flat:
        attributes.update(zip(layout.names, children, strict=True))
    else:
        supply = iter(children)
        for name, skeleton in layout.moving:
            attributes[name] = _build(skeleton, supply)
            if skeleton is not _CHILD and _walk(attributes[name], []) != skeleton:
                pinned[name] = skeleton  # leaves that are no tensors would be taken for constants
    _set_layout(module, layout)
    _set_buffers(module, layout.buffers)
    _set_pinned(module, pinned)
    return module


tree.register(Module, _flatten, _unflatten)


def _odd_children(module: Module) -> dict[str, Skeleton]:
    """Children that are not children of their own accord: what `tl.tree.map` has put in the place
    of a tensor.
    """
    layout = module._module_layout
    if layout is None:
        return {}
    return {name: _CHILD for name in layout.direct if not _is_child(module.__dict__[name])}


def _forget_layout(module: Module, name: str) -> None:
    """The attribute `name` changes its kind: find everything out anew, but keep what `tl.tree.map`
    has put elsewhere.
    """
    pinned = {**module._module_pinned, **_odd_children(module)}
    pinned.pop(name, None)
    _set_pinned(module, pinned)
    _set_layout(module, None)


def _describe(value: Any) -> str:
    """A value in a module's repr: tensors by dtype and shape."""
    if isinstance(value, Tensor | np.ndarray):
        return f"{value.dtype}[{','.join(map(str, value.shape))}]"
    if isinstance(value, list | tuple) and any(_is_shown_apart(item) for item in value):
        lines = "".join(f"\n{number}: {_describe(item)}," for number, item in enumerate(value))
        left, right = "[]" if isinstance(value, list) else "()"
        return left + lines.replace("\n", "\n  ") + f"\n{right}"
    if isinstance(value, dict) and any(_is_shown_apart(item) for item in value.values()):
        lines = "".join(f"\n{key!r}: {_describe(item)}," for key, item in value.items())
        return "{" + lines.replace("\n", "\n  ") + "\n}"
    if isinstance(value, types.FunctionType | types.BuiltinFunctionType | type):
        return value.__name__
    return repr(value)


def _is_shown_apart(item: Any) -> bool:
    """Whether a container with this item in it is shown with one item a line."""
    return isinstance(item, list | tuple | dict) or type(item) not in _CONSTANTS or callable(item)
