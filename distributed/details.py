"""What rank 0 tells of a training besides its progress, for TensorBoard: what a batch is like, and
now and then histograms of parameters and gradients.

A histogram travels as a few dozen numbers, so records stay short; of a large tensor it is that of a
sample, so that its cost does not grow with the model.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

import tensorlite as tl

from .steps import Job

BINS = 32
SAMPLE = 16_384  # values of a tensor that are looked at
TOGETHER = 64  # histograms in a record, whose length is bounded


class Details:
    """What is told while the steps are made.

    Args:
        report: where it is told; None of ranks that tell nothing.
    """

    def __init__(self, job: Job, report: Callable[..., None] | None):
        self._every = job.histograms_every
        self._report = report if job.tensorboard else None
        self._has_told = False

    def wants_gradients(self, step: int) -> bool:
        """Whether the gradients of the step that ends at number `step` are to be kept; the same on
        all ranks, whose steps must be one program."""
        return self._every is not None and step % self._every == 0

    def after(
        self, step: int, arrays: Sequence[tl.Tensor], model: Any, gradients: list[tl.Tensor]
    ) -> None:
        """Tell what there is to tell of a step."""
        if self._report is None:
            return
        if not self._has_told:
            self._has_told = True
            likes = [[str(x.dtype), list(x.shape)] for x in arrays]
            self._report({"details": {"batch": likes}}, last=True)
        if self.wants_gradients(step):
            found = dict(histograms(model, gradients))
            names = list(found)
            for first in range(0, len(names), TOGETHER):
                some = {name: found[name] for name in names[first : first + TOGETHER]}
                self._report({"details": {"step": step, "histograms": some}}, last=True)


def histograms(model: Any, gradients: list[tl.Tensor]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The histograms of a model's parameters, and of their gradients, if there are any."""
    leaves = zip(
        tl.tree.paths(model), tl.tree.leaves(model), tl.tree.parameter_mask(model), strict=True
    )
    parameters = {name: leaf for name, leaf, is_parameter in leaves if is_parameter}
    kinds = {"parameters": parameters}
    if gradients:
        kinds["gradients"] = dict(zip(parameters, gradients, strict=True))
    for kind, named in kinds.items():
        for name, tensor in named.items():
            found = histogram(np.asarray(tensor))
            if found is not None:
                yield f"{kind}/{name}", found


def histogram(array: np.ndarray) -> dict[str, Any] | None:
    """A histogram of the finite values of an array, or of a sample of them; None of no values."""
    values = array.reshape(-1)
    if len(values) > SAMPLE:
        values = values[_sample(len(values))]
    values = values.astype(np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    counts, edges = np.histogram(values, BINS)
    return {
        "min": float(values.min()),
        "max": float(values.max()),
        "num": len(values),
        "sum": float(values.sum()),
        "sum_squares": float(values @ values),
        "first": float(edges[0]),
        "width": float(edges[1] - edges[0]),
        "counts": counts.tolist(),
    }


@functools.lru_cache(64)
def _sample(count: int) -> np.ndarray:
    """Which of so many values are looked at. Not each n-th: with a step that goes with the number
    of channels it would be always the same ones."""
    return np.sort(np.random.default_rng(0).integers(0, count, SAMPLE))
