"""What workers look at together: whether they start alike and stay alike, and whether numbers are
finite.

They never send parameters, so each computes the same; what differs later has broken on its own."""

from __future__ import annotations

import hashlib
import sys
from typing import Any

import numpy as np

import tensorlite as tl

from .collectives import all_gather
from .errors import DistributedError
from .steps import is_float
from .worker import Worker

DRIFT_STEPS = 100  # how often workers compare their parameters, besides at each checkpoint


def check_agreement(worker: Worker, model: Any) -> None:
    """Refuse to start from different parameters, or with different libraries."""
    versions = f"tensorlite {tl.__version__}, NumPy {np.__version__}, Python {sys.version_info[:2]}"
    digest = hashlib.sha256(versions.encode())
    for name, leaf in zip(tl.tree.paths(model), tl.tree.leaves(model), strict=True):
        array = np.ascontiguousarray(np.asarray(leaf))
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    everyone = np.asarray(all_gather(np.frombuffer(digest.digest(), np.uint8)))
    odd = [rank for rank in range(worker.size) if (everyone[rank] != everyone[0]).any()]
    if odd:
        raise DistributedError(
            f"ranks {odd} would start from other parameters or libraries than rank 0; rank "
            f"{worker.rank} has {versions}. Install the same versions on all hosts"
        )


def check_drift(worker: Worker, model: Any, step: int) -> None:
    """Refuse to go on from parameters that are not those of all workers: they are computed by each,
    and equal unless a processor, a memory or a library is at fault."""
    if worker.size == 1:
        return
    names = tl.tree.paths(model)
    own = np.stack([_fingerprint(np.asarray(leaf)) for leaf in tl.tree.leaves(model)])
    everyone = np.asarray(all_gather(own))
    differs = (everyone != everyone[0]).any(axis=2)  # (workers, leaves)
    if differs.any():
        ranks = [rank for rank in range(worker.size) if differs[rank].any()]
        first = names[int(np.argmax(differs.any(axis=0)))]
        raise DistributedError(
            f"after step {step} ranks {ranks} have other parameters than rank 0, {first!r} first: "
            "a processor or its memory fails, or the hosts have different libraries. The "
            "checkpoints from before are sound"
        )


def check_sound(model: Any, step: int, epoch: int) -> None:
    """Refuse to save parameters that are not finite: a gradient may be infinite where the loss is
    not, and a run that goes on from there is lost."""
    for name, leaf in zip(tl.tree.paths(model), tl.tree.leaves(model), strict=True):
        if is_float(leaf) and not bool(tl.all(tl.isfinite(leaf))):
            raise FloatingPointError(
                f"after step {step} (epoch {epoch}) {name!r} is not finite, though the loss was; "
                "nothing is saved, and the checkpoints from before are sound. on_nonfinite='skip' "
                "leaves such updates out"
            )


def _fingerprint(array: np.ndarray) -> np.ndarray:
    """Two words that change with any bit of an array: the sum and the exclusive or of its words of
    64 bits. That is for accidents, and as fast as memory is read."""
    content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    whole = len(content) // 8 * 8
    words = content[:whole].view(np.uint64)
    rest = np.zeros(8, np.uint8)
    rest[: len(content) - whole] = content[whole:]
    last = rest.view(np.uint64)[0]
    total = np.add.reduce(words, dtype=np.uint64) + last
    return np.asarray([total, np.bitwise_xor.reduce(words) ^ last])
