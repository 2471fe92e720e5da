"""The kernels in PyTorch, eager or compiled; eager Adam is its fused one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from benchmarks.kernels import COLUMNS, LEARNING_RATE, fingerprint, inputs


def build_kernel(
    kernel: str, elements: int, threads: int = 1, check: bool = False, compiled: bool = False
) -> Callable[[], float | None]:
    """See `benchmarks.kernels`.

    Args:
        compiled: through `torch.compile`.
    """
    torch.set_num_threads(threads)
    arrays = [torch.from_numpy(array) for array in inputs(kernel, elements)]
    if kernel == "adam":
        run = _compiled_adam(*arrays) if compiled else _eager_adam(*arrays)
    else:
        function = torch.compile(_FUNCTIONS[kernel]) if compiled else _FUNCTIONS[kernel]

        def run() -> Any:
            return function(*arrays)

    def step() -> float | None:
        with torch.no_grad():
            result = run()
        return fingerprint(result.detach()) if check else None

    return step


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "gelu": lambda x: functional.gelu(x, approximate="tanh"),
    "layer_norm": lambda x, scale, offset: functional.layer_norm(x, (COLUMNS,), scale, offset),
    "softmax": lambda x: functional.softmax(x, dim=-1),
}


def _eager_adam(parameter: Any, gradient: Any) -> Callable[[], Any]:
    parameter.requires_grad_()
    parameter.grad = gradient
    optimizer = torch.optim.Adam([parameter], lr=LEARNING_RATE, fused=True)

    def run() -> Any:
        optimizer.step()
        return parameter

    return run


def _compiled_adam(parameter: Any, gradient: Any) -> Callable[[], Any]:
    m, v, count = torch.zeros_like(parameter), torch.zeros_like(parameter), torch.zeros(())

    @torch.compile
    def update(parameter: Any, gradient: Any, m: Any, v: Any, count: Any) -> None:
        count += 1
        m.lerp_(gradient, 0.1)
        v.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        unbiased_m, unbiased_v = m / (1 - 0.9**count), v / (1 - 0.999**count)
        parameter -= LEARNING_RATE * unbiased_m / (unbiased_v.sqrt() + 1e-8)

    def run() -> Any:
        update(parameter, gradient, m, v, count)
        return parameter

    return run
