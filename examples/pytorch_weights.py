"""Bring the weights of a PyTorch model: a state_dict read into an `nn.Module`.

    python examples/pytorch_weights.py                with a file that it makes for itself
    python examples/pytorch_weights.py weights.safetensors
    python examples/pytorch_weights.py weights.pt     needs PyTorch, which alone reads its format

The model, in PyTorch:

    torch.nn.Sequential(OrderedDict(
        features=torch.nn.Sequential(
            torch.nn.Conv2d(1, 16, 3, padding=1), torch.nn.BatchNorm2d(16), torch.nn.ReLU(),
            torch.nn.MaxPool2d(2), torch.nn.Conv2d(16, 32, 3, padding=1), torch.nn.ReLU()),
        classifier=torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(32 * 4 * 4, 10))))

Three things differ here: what the parameters are called, how they lie (channels last), and the
order in which the dense layer sees the pixels of an image. `tl.io.from_torch` is told the first and
the last, and knows the second. Without a file the result is checked against the model computed in
NumPy as PyTorch does it, channels first.
"""

from __future__ import annotations

import argparse
import pathlib
import pickle
import sys
import tempfile
from typing import Any

import numpy as np

import tensorlite as tl
from tensorlite import nn, random

# What PyTorch calls our modules, and the images (C, H, W) that a dense layer reads flattened.
NAMES = {
    "conv1": "features.0",
    "norm1": "features.1",
    "conv2": "features.4",
    "head": "classifier.1",
}
FLATTENED = {"head": (32, 4, 4)}
COUNTER = "num_batches_tracked"  # PyTorch's batch norm has it, and nothing here needs it


class Net(nn.Module):
    """The model above, for images of shape (N, 8, 8, 1)."""

    def __init__(self, key: tl.Tensor):
        k1, k2, k3 = random.split(key, 3)
        self.conv1 = nn.Conv(1, 16, 3, padding=1, key=k1)
        self.norm1 = nn.BatchNorm(16)
        self.conv2 = nn.Conv(16, 32, 3, padding=1, key=k2)
        self.head = nn.Linear(32 * 4 * 4, 10, key=k3)

    def __call__(self, x: Any, training: bool = False) -> tl.Tensor:
        x = nn.max_pool(nn.relu(self.norm1(self.conv1(x), training=training)), 2)
        x = nn.relu(self.conv2(x))
        return self.head(x.reshape(x.shape[0], -1))


def state_of_pytorch(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Random weights under the names and in the layouts that PyTorch saves."""

    def normal(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    return {
        "features.0.weight": normal(16, 1, 3, 3),
        "features.0.bias": normal(16),
        "features.1.weight": 1 + normal(16) / 4,
        "features.1.bias": normal(16),
        "features.1.running_mean": normal(16),
        "features.1.running_var": np.exp(normal(16) / 4),
        "features.1.num_batches_tracked": np.array(100),
        "features.4.weight": normal(32, 16, 3, 3),
        "features.4.bias": normal(32),
        "classifier.1.weight": normal(10, 32 * 4 * 4),
        "classifier.1.bias": normal(10),
    }


def as_pytorch_does(state: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """Logits for images (N, 1, 8, 8) in NumPy, channels first."""

    def conv(x: np.ndarray, name: str) -> np.ndarray:
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
        y = np.einsum("ncyxij,ocij->noyx", windows, state[f"{name}.weight"])
        return y + state[f"{name}.bias"][:, None, None]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        parts = ("weight", "bias", "running_mean", "running_var")
        scale, offset, mean, variance = (state[f"{name}.{p}"][:, None, None] for p in parts)
        return (x - mean) / np.sqrt(variance + 1e-5) * scale + offset

    x = np.maximum(norm(conv(x, "features.0"), "features.1"), 0)
    x = x.reshape(*x.shape[:2], 4, 2, 4, 2).max(axis=(3, 5))
    x = np.maximum(conv(x, "features.4"), 0).reshape(len(x), -1)
    return x @ state["classifier.1.weight"].T + state["classifier.1.bias"]


def read(path: pathlib.Path) -> Net:
    """The model with the weights of a file."""
    state: Any = path
    if path.suffix in (".pt", ".pth"):
        import torch

        # A .pt file is a pickle; weights_only keeps it from running what is in it.
        state = torch.load(path, map_location="cpu", weights_only=True)
    return tl.io.from_torch(state, like=Net(random.key(0)), names=NAMES, flattened=FLATTENED)


def show_mapping(model: Net) -> None:
    """What each of our parameters and buffers is in PyTorch."""
    theirs = tl.io.to_torch(model, names=NAMES, flattened=FLATTENED, as_numpy=True)
    pairs = [(name, array) for name, array in theirs.items() if not name.endswith(COUNTER)]
    ours = zip(tl.tree.paths(model), tl.tree.leaves(model), strict=True)
    for (path, leaf), (name, array) in zip(ours, pairs, strict=True):
        print(f"{name:24} {array.shape!s:16} -> {path:15} {leaf.shape}")


def main() -> None:
    """Read, show, compute."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", nargs="?", type=pathlib.Path, help=".safetensors, .npz, .pt, .pth")
    path = parser.parse_args().file
    images = tl.data.handwritten_digits(train=False).arrays[0]
    if path is not None:
        try:
            model = read(path)
        except ImportError:
            sys.exit(f"{path.suffix} files are read by PyTorch; install it, or save safetensors")
        except (OSError, ValueError, TypeError, pickle.UnpicklingError) as error:
            sys.exit(str(error))
        show_mapping(model)
        print("classes of the first test images:", tl.argmax(model(images[:10]), axis=-1).numpy())
        return
    state = state_of_pytorch(np.random.default_rng(0))
    with tempfile.TemporaryDirectory() as folder:
        made = pathlib.Path(folder, "weights.safetensors")
        tl.save(made, state)
        model = read(made)
    show_mapping(model)
    wanted = as_pytorch_does(state, np.moveaxis(images, -1, 1))
    apart = np.max(np.abs(model(images).numpy() - wanted))
    print(f"logits of {len(images)} images: at most {apart:.1e} from the computation in NumPy")


if __name__ == "__main__":
    main()
