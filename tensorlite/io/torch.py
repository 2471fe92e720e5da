"""Weights to and from PyTorch: which layout each parameter has there, and which name.

PyTorch puts channels first and output features first; tensorlite puts channels last and output
features last. What a parameter is, is known from the layer that holds it:

    layer                 tensorlite                    PyTorch
    Linear.weight         (in, out)                     (out, in)
    Conv.weight           (*window, in / groups, out)   (out, in / groups, *window)
    ConvTranspose.weight  (*window, out / groups, in)   (in, out / groups, *window)
    BatchNorm             scale, offset                 weight, bias
                          mean, variance                running_mean, running_var
    LayerNorm             scale, offset                 weight, bias
    all others            the same names and shapes

PyTorch itself is not needed, but for tensors of its own as results.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import dtypes, nn, tree
from ..core import Tensor
from ..ops.creation import asarray
from .files import read_arrays, shortened

Names = Mapping[str, str] | Callable[[str], str] | None
Flattened = Mapping[str, tuple[int, ...]] | None

_NORM = {"scale": "weight", "offset": "bias"}
_NAMES: dict[type, dict[str, str]] = {
    nn.BatchNorm: {**_NORM, "mean": "running_mean", "variance": "running_var"},
    nn.LayerNorm: _NORM,
}
_COUNTER = "num_batches_tracked"  # of a BatchNorm of PyTorch; nothing here needs it


def from_torch(
    state: Any,
    like: Any,
    *,
    names: Names = None,
    flattened: Flattened = None,
    strict: bool = True,
) -> Any:
    """A model like `like` with the weights of a PyTorch model.

    Args:
        state: a state_dict, of PyTorch tensors or arrays; or the path of a `.safetensors` or `.npz`
            file of one.
        like: a module, or a pytree with modules in it. Its own values are not used.
        names: how parameters are called in `state`, where that is not their dotted path with the
            names of the table above (in a `Sequential`, the number of the layer). A function from
            path to name, or a dict from paths, of parameters or of modules, to names.
        flattened: for a `Linear` that takes flattened images, its dotted path and the shape
            (C, *spatial) of the images: its input features are put from channels first to last.
        strict: refuse names that are missing in `state` or that nothing here is called; otherwise
            what is missing keeps the value it has in `like`. Shapes that differ are always refused.

    Returns:
        a tree of the structure of `like`; floating-point values are cast to the dtype they have
        there.

    Raises:
        ValueError: names or shapes do not fit; the message lists what differs.
        TypeError: a value is neither a tensor nor an array, or has another kind of dtype.
    """
    given = _arrays(state)
    lines, leaves, used = [], [], set()
    for slot in _slots(like, names, flattened):
        used.add(slot.name)
        if slot.name not in given:
            if strict:
                lines.append(f"{slot.name}: missing; {slot.path} takes {slot.shape}")
            leaves.append(slot.leaf)
            continue
        array = given[slot.name]
        if array.shape != slot.shape:
            lines.append(f"{slot.name}: has shape {array.shape}; {slot.path} takes {slot.shape}")
            continue
        if dtypes.is_float(array.dtype) != dtypes.is_float(slot.leaf.dtype):
            raise TypeError(
                f"tl.io.from_torch: {slot.name} is {array.dtype}, but {slot.path} {slot.leaf.dtype}"
            )
        values = slot.to_ours(array).astype(slot.leaf.dtype)
        leaves.append(asarray(np.ascontiguousarray(values), device=slot.leaf.device))
    if strict:
        extra = [n for n in given if n not in used and n.rpartition(".")[2] != _COUNTER]
        lines += [f"{name}: unexpected; it has shape {given[name].shape}" for name in extra]
    if lines:
        raise ValueError(f"tl.io.from_torch: the weights do not fit:\n  {shortened(lines)}")
    return tree.unflatten(tree.structure(like), leaves)


def to_torch(
    model: Any, *, names: Names = None, flattened: Flattened = None, as_numpy: bool = False
) -> dict[str, Any]:
    """The weights of a model as a state_dict for a PyTorch model, which `load_state_dict` takes.

    Args:
        model, names, flattened: as for `from_torch`.
        as_numpy: give NumPy arrays, for which PyTorch need not be installed. Saved with
            `tl.save("weights.safetensors", ...)`, they are a file that PyTorch programs read.

    Returns:
        PyTorch tensors, or NumPy arrays, by name, on the CPU. The weights are copied.

    Raises:
        ValueError: two parameters would have the same name.
        ImportError: PyTorch is not installed, and `as_numpy` is not set.

    Example:
        >>> layer = nn.Conv(3, 8, 5, key=random.key(0))
        >>> {name: x.shape for name, x in tl.io.to_torch(layer, as_numpy=True).items()}
        {'weight': (8, 3, 5, 5), 'bias': (8,)}
    """
    result: dict[str, np.ndarray] = {}
    for slot in _slots(model, names, flattened):
        if slot.name in result:
            raise ValueError(
                f"tl.io.to_torch: two parameters would be called {slot.name!r}; check `names`"
            )
        result[slot.name] = np.ascontiguousarray(slot.to_theirs(slot.leaf.numpy())).copy()
        if isinstance(slot.owner, nn.BatchNorm) and slot.path.endswith("variance"):
            counter = ".".join([*slot.name.split(".")[:-1], _COUNTER])
            result[counter] = np.zeros((), np.int64)
    return result if as_numpy else {name: _torch_tensor(a) for name, a in result.items()}


# ---- layouts -------------------------------------------------------------------------------------


class _Slot(NamedTuple):
    """A leaf of the model: what it is called in PyTorch and how it lies there."""

    path: str
    leaf: Tensor
    owner: Any
    name: str
    images: tuple[int, ...] | None  # (C, *spatial), of a Linear that takes them flattened

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in PyTorch."""
        return tuple(self.leaf.shape[axis] for axis in self._axes)

    @property
    def _axes(self) -> tuple[int, ...]:
        """The axes of the leaf in the order of PyTorch."""
        ndim = self.leaf.ndim
        is_weight = self.path.rpartition(".")[2] == "weight"
        if is_weight and isinstance(self.owner, nn.Linear):
            return (1, 0)
        if is_weight and isinstance(self.owner, nn.Conv | nn.ConvTranspose):
            return (ndim - 1, ndim - 2, *range(ndim - 2))
        return tuple(range(ndim))

    def to_ours(self, array: np.ndarray) -> np.ndarray:
        """From the layout of PyTorch to that of the leaf."""
        array = np.transpose(array, np.argsort(self._axes))
        if self.images is None:
            return array
        channels, *spatial = self.images
        images = array.reshape(channels, math.prod(spatial), -1)
        return np.moveaxis(images, 0, 1).reshape(array.shape)

    def to_theirs(self, array: np.ndarray) -> np.ndarray:
        """From the layout of the leaf to that of PyTorch."""
        if self.images is not None:
            channels, *spatial = self.images
            images = array.reshape(math.prod(spatial), channels, -1)
            array = np.moveaxis(images, 0, 1).reshape(array.shape)
        return np.transpose(array, self._axes)


def _slots(model: Any, names: Names, flattened: Flattened) -> Iterator[_Slot]:
    """The leaves of a model in order."""
    remaining = dict(flattened or {})
    for path, leaf in zip(tree.paths(model), tree.leaves(model), strict=True):
        owner, plain = _owner_and_name(model, path)
        images = None
        if isinstance(owner, nn.Linear) and path.rpartition(".")[2] == "weight":
            images = remaining.pop(path.rpartition(".")[0], None)
            if images is not None and math.prod(images) != leaf.shape[0]:
                raise ValueError(
                    f"flattened: images of {images} have {math.prod(images)} features, but {path} "
                    f"takes {leaf.shape[0]}"
                )
        yield _Slot(path, asarray(leaf), owner, _renamed(plain, names), images)
    if remaining:
        raise ValueError(f"flattened: there is no Linear called {', '.join(remaining)}")


def _owner_and_name(model: Any, path: str) -> tuple[Any, str]:
    """The innermost module that holds the leaf at `path`, and the name of the leaf in PyTorch."""
    owner, at, rest, name = None, model, path, []
    while rest:
        part = _first_part(at, rest)
        rest = rest[len(part) + 1 :]
        if isinstance(at, nn.Module):
            owner = at
        if not (isinstance(at, nn.Sequential) and part == "layers"):
            name.append(part)
        at = _child(at, part)
    if name:
        name[-1] = _NAMES.get(type(owner), {}).get(name[-1], name[-1])
    return owner, ".".join(name)


def _first_part(node: Any, path: str) -> str:
    """The name of a child of `node` with which a path begins; keys of dicts may have dots."""
    if isinstance(node, Mapping):
        return max((str(k) for k in node if f"{path}.".startswith(f"{k}.")), key=len)
    return path.partition(".")[0]


def _child(node: Any, part: str) -> Any:
    if isinstance(node, Mapping):
        return next(value for key, value in node.items() if str(key) == part)
    if isinstance(node, list | tuple) and part.isdigit():
        return node[int(part)]
    return getattr(node, part)


def _renamed(name: str, names: Names) -> str:
    if names is None:
        return name
    if callable(names):
        return names(name)
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        prefix = ".".join(parts[:count])
        if prefix in names:
            return ".".join(part for part in (names[prefix], *parts[count:]) if part)
    return name


# ---- values --------------------------------------------------------------------------------------


def _arrays(state: Any) -> dict[str, np.ndarray]:
    if isinstance(state, str | os.PathLike):
        return read_arrays("tl.io.from_torch", Path(state))
    if not isinstance(state, Mapping):
        raise TypeError(
            "tl.io.from_torch: takes a state_dict or the path of a file, "
            f"got {type(state).__name__}; of a model take model.state_dict()"
        )
    return {str(name): _array(str(name), value) for name, value in state.items()}


def _array(name: str, value: Any) -> np.ndarray:
    if hasattr(value, "detach"):  # a tensor of PyTorch
        value = value.detach().cpu().contiguous()
        if str(value.dtype) == "torch.bfloat16":  # which PyTorch does not hand to NumPy
            import torch

            return value.view(torch.int16).numpy().view(dtypes.bfloat16)
        return value.numpy()
    if not isinstance(value, np.ndarray | Tensor):
        raise TypeError(
            f"tl.io.from_torch: {name!r} is a {type(value).__name__}, not a tensor or array"
        )
    return value.numpy() if isinstance(value, Tensor) else value


def _torch_tensor(array: np.ndarray) -> Any:
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            "tl.io.to_torch: PyTorch is not installed; pass as_numpy=True for NumPy arrays"
        ) from error
    if array.dtype == dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
