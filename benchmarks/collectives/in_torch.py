"""All-reduce by Gloo, PyTorch's collectives for processors."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import torch
import torch.distributed


def build_all_reduce(
    *,
    rank: int,
    hosts: Sequence[str],
    folder: str,
    elements: int,
    check: bool = False,
    interface: str = "lo",
    threads: int = 1,
) -> Callable[[], float | None]:
    """See `benchmarks.collectives`."""
    if not torch.distributed.is_initialized():
        torch.set_num_threads(1)
        os.environ["GLOO_SOCKET_IFNAME"] = interface
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=len(hosts)
        )
    array = torch.zeros(elements)

    def step() -> float | None:
        if check:
            array.fill_(rank + 1)
        torch.distributed.all_reduce(array)
        return float(array[-1]) if check else None

    return step
