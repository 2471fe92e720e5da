"""The kernels in tensorlite: jitted functions of whole arrays; Adam is that of `optim`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorlite as tl
from benchmarks.kernels import LEARNING_RATE, fingerprint, inputs
from tensorlite import nn, optim

profile = tl.profile


def build_kernel(
    kernel: str, elements: int, threads: int = 1, check: bool = False
) -> Callable[[], float | None]:
    """See `benchmarks.kernels`. The environment has set the number of threads already."""
    arrays = [tl.asarray(array) for array in inputs(kernel, elements)]
    run = _adam(*arrays) if kernel == "adam" else _jitted(kernel, arrays)

    def step() -> float | None:
        result = run()
        return fingerprint(result) if check else None

    return step


def _jitted(kernel: str, arrays: list[tl.Tensor]) -> Callable[[], tl.Tensor]:
    functions: dict[str, Callable[..., tl.Tensor]] = {
        "gelu": lambda x: nn.gelu(x, approximate=True),
        "layer_norm": nn.layer_norm,
        "softmax": nn.softmax,
    }
    compiled = tl.jit(functions[kernel])
    return lambda: compiled(*arrays)


def _adam(parameter: tl.Tensor, gradient: tl.Tensor) -> Callable[[], tl.Tensor]:
    optimizer = optim.adam(LEARNING_RATE)
    parameters = {"w": parameter}
    state = optimizer.init(parameters)

    @tl.jit(donate_argnums=(0, 1))
    def update(
        parameters: dict[str, tl.Tensor], state: Any, gradients: dict[str, tl.Tensor]
    ) -> tuple[dict[str, tl.Tensor], Any]:
        updates, state = optimizer.update(gradients, state, parameters)
        return optim.apply_updates(parameters, updates), state

    def run() -> tl.Tensor:
        nonlocal parameters, state
        parameters, state = update(parameters, state, {"w": gradient})
        return parameters["w"]

    return run
