"""Gradients in fewer bytes than they have.

Two ways: the wire's dtype (float16 or bfloat16, which the collectives do by themselves), and
`PowerSGD`, which sends two thin factors of each matrix and keeps what they lose for the next step.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import tensorlite as tl
from tensorlite import collective, random

from .collectives import all_reduce

Tensors = dict[str, tl.Tensor]
State = dict[str, Tensors]

_STREAM = 3  # of the job's seed: where the first factors come from
_TINY = 1e-30  # a column shorter than this is zero


@dataclasses.dataclass(frozen=True)
class PowerSGD:
    """Compression by one step of the power method for each gradient, with error feedback (Vogels,
    Karimireddy and Jaggi, NeurIPS 2019).

    A gradient is seen as a matrix of (all axes but the last) x (the last). Instead of n x m numbers
    each worker sends n x rank, waits for their sum, and sends m x rank. What is lost is added to
    the worker's next gradient, so that nothing is lost for ever; the factors of one step are where
    the next one starts from. All workers get the same bits.

    Args:
        rank: of the approximation. 1 and 2 are for large networks; more lose less.
        min_ratio: gradients that would not become so many times smaller are sent whole.

    Raises:
        ValueError: rank is below 1 or min_ratio not above 1.
    """

    rank: int = 2
    min_ratio: float = 2.0

    def __post_init__(self) -> None:
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise ValueError(
                f"PowerSGD: rank must be a whole number of at least 1, got {self.rank!r}"
            )
        if not isinstance(self.min_ratio, int | float) or not self.min_ratio > 1:
            raise ValueError(f"PowerSGD: min_ratio must be above 1, got {self.min_ratio!r}")

    def compresses(self, shape: tuple[int, ...]) -> bool:
        """Whether a gradient of this shape is sent as factors."""
        if len(shape) < 2:
            return False
        rows, columns = _matrix(shape)
        return rows * columns >= self.min_ratio * self.rank * (rows + columns)

    def start(self, gradients: Tensors, seed: int) -> State:
        """The state before the first step: the right factors, alike on all workers, and the errors
        of this worker."""
        chosen = {n: g for n, g in gradients.items() if self.compresses(g.shape)}
        key = random.fold_in(random.key(seed), _STREAM)
        return {
            "factors": {
                name: random.normal(
                    random.fold_in(key, number), (_matrix(g.shape)[1], self.rank), dtype=g.dtype
                )
                for number, (name, g) in enumerate(chosen.items())
            },
            "errors": {name: tl.zeros_like(g) for name, g in chosen.items()},
        }

    def reduce(self, gradients: Tensors, state: State) -> tuple[Tensors, State]:
        """The sums of the workers' gradients, approximately, and the new state."""
        sums = {n: all_reduce(g) for n, g in gradients.items() if n not in state["factors"]}
        factors, errors = {}, {}
        wanted = {  # what is to be summed, as matrices
            name: (gradients[name] + error).reshape(_matrix(error.shape))
            for name, error in state["errors"].items()
        }
        # All left factors are on their way before the first one is waited for.
        lefts = {name: all_reduce(m @ state["factors"][name]) for name, m in wanted.items()}
        for name, matrix in wanted.items():
            left = orthonormal(lefts[name])
            own = tl.matrix_transpose(matrix) @ left
            factors[name] = all_reduce(own)
            shape = gradients[name].shape
            sums[name] = (left @ tl.matrix_transpose(factors[name])).reshape(shape)
            errors[name] = (matrix - left @ tl.matrix_transpose(own)).reshape(shape)
        return {n: sums[n] for n in gradients}, {"factors": factors, "errors": errors}

    def sent(self, shape: tuple[int, ...]) -> int:
        """How many numbers of a gradient of this shape are all-reduced."""
        rows, columns = _matrix(shape) if len(shape) > 1 else (0, 0)
        return self.rank * (rows + columns) if self.compresses(shape) else math.prod(shape)


def orthonormal(x: tl.Tensor) -> tl.Tensor:
    """The columns of `x` made orthonormal one after the other (modified Gram-Schmidt, each column
    twice). One that depends on those before it becomes zero."""
    done: list[tl.Tensor] = []
    for number in range(x.shape[1]):
        column = x[:, number]
        before = tl.sqrt(tl.sum(column * column))
        for _ in range(2):
            for other in done:
                column = column - tl.sum(other * column) * other
        length = tl.sqrt(tl.sum(column * column))
        # What is left of a dependent column is rounding, and points anywhere.
        counts = length > tl.maximum(before * 1e-6, tl.asarray(_TINY, dtype=x.dtype))
        done.append(tl.where(counts, column / tl.where(counts, length, 1.0), 0.0))
    return tl.stack(done, axis=1)


def check(compression: Any) -> None:
    """Refuse what is no compression.

    Raises:
        ValueError: it names none.
    """
    if isinstance(compression, PowerSGD) or compression in (None, *collective.WIRES):
        return
    raise ValueError(
        f"Trainer: compression must be None, one of {', '.join(collective.WIRES)}, or a PowerSGD, "
        f"such as PowerSGD(rank=2), got {compression!r}"
    )


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    return math.prod(shape[:-1]), shape[-1]
