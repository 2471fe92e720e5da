"""How collectives move data, one way a file.

`around` passes chunks around a ring of connections, `direct` reads them from shared memory,
`two_level` does both: within hosts, and among them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ..agreement import Signature
from ..reduction import Array, Reduction


class Algorithm(Protocol):
    """Collectives of more than one rank on flat arrays, in place. Every rank makes the same calls.

    Each begins by making sure that all ranks mean the same: `sig` says what.

    Raises:
        MismatchError: they do not.
        TransportError: a connection ended or another rank took too long. The algorithm cannot be
            used any more, as after any other error.
    """

    def all_reduce(
        self, sig: Signature, flat: Array, how: Reduction, wire: np.dtype | None
    ) -> None:
        """Reduce over all ranks; what goes over connections goes as `wire`, if there is one."""

    def reduce_scatter(self, sig: Signature, chunks: Sequence[Array], how: Reduction) -> None:
        """Leave the reduction of `chunks[rank]` there; the other chunks become scratch space."""

    def all_gather(self, sig: Signature, chunks: Sequence[Array]) -> None:
        """Fill `chunks[r]` with that of rank r, for all others."""

    def broadcast(self, sig: Signature, flat: Array, root: int) -> None:
        """Fill `flat` with that of rank `root`."""

    def agree(self, sig: Signature) -> None:
        """Nothing but that all ranks are here and mean the same."""
