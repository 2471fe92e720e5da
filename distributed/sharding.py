"""An optimizer whose state is divided among the workers (ZeRO, stage 1: Rajbhandari et al., SC
2020).

Each parameter is seen as one row of numbers, padded and cut into one piece for each worker. A
worker gets the sum of its pieces of the gradients by one reduce-scatter, updates them with its part
of the optimizer's state, and all-gathers the new parameters. That sends as many bytes as an
all-reduce does, and holds a part of the state. It needs an optimizer that computes each element by
itself, but for `optim.global_norm`."""

from __future__ import annotations

import math
from typing import Any

import tensorlite as tl
from tensorlite import optim, random

from .collectives import all_gather, reduce_scatter
from .worker import Worker

Tensors = dict[str, tl.Tensor]


class ShardedOptimizer:
    """This worker's part of an optimizer.

    Args:
        like: the parameters by name; their shapes and dtypes count.

    Raises:
        ValueError: the optimizer does not compute each element by itself.
    """

    def __init__(self, optimizer: optim.Optimizer, like: Tensors, worker: Worker):
        self._optimizer = optimizer
        self._like = {name: p.aval for name, p in like.items()}
        self._rank, self._size = worker.rank, worker.size
        self._check()

    def init(self, parameters: Tensors) -> Any:
        """The state of this worker's pieces."""
        return self._optimizer.init(self.pieces(parameters))

    def scatter(self, gradients: Tensors) -> Tensors:
        """This worker's pieces of the sums of all workers' gradients."""
        found: Tensors = {}
        for names in _of_one_dtype(gradients):
            rows = tl.concat([_rows(gradients[n], self._size) for n in names], axis=1)
            own = self._split(names, reduce_scatter(rows))
            found |= {name: piece[0] for name, piece in own.items()}
        return {name: found[name] for name in gradients}

    def pieces(self, whole: Tensors) -> Tensors:
        """This worker's pieces of what every worker has."""
        return {name: _rows(x, self._size)[self._rank] for name, x in whole.items()}

    def update(self, gradients: Tensors, state: Any, parameters: Tensors) -> tuple[Tensors, Any]:
        """The new parameters, whole, and the new state of this worker's pieces.

        Args:
            gradients: this worker's pieces of them.
            parameters: whole.
        """
        pieces = self.pieces(parameters)
        with optim.sharded():
            updates, state = self._optimizer.update(gradients, state, pieces)
        return self._gathered(optim.apply_updates(pieces, updates)), state

    # ---- the state as a whole ------------------------------------------------------------------

    def whole(self, state: Any, parameters: Tensors) -> Any:
        """The state as the optimizer would have it without sharding; every worker must ask."""
        like = self._optimizer.init(parameters)

        def gathered(piece: tl.Tensor, full: tl.Tensor) -> tl.Tensor:
            if piece.shape == ():  # such as the count of updates, which all workers have
                return piece
            return all_gather(piece).reshape(-1)[: full.size].reshape(full.shape)

        return tl.tree.map(gathered, state, like)

    def own(self, whole: Any) -> Any:
        """This worker's part of a whole state."""
        like = self._optimizer.init(
            {n: tl.zeros(self._width(n), dtype=a.dtype) for n, a in self._like.items()}
        )

        def cut(full: tl.Tensor, piece: tl.Tensor) -> tl.Tensor:
            return full if piece.shape == () else _rows(full, self._size)[self._rank]

        return tl.tree.map(cut, whole, like)

    # ---- pieces --------------------------------------------------------------------------------

    def _width(self, name: str) -> int:
        return -(-math.prod(self._like[name].shape) // self._size)

    def _split(self, names: list[str], rows: tl.Tensor) -> Tensors:
        """What lies side by side in rows, (n, widths of all), by name."""
        found, at = {}, 0
        for name in names:
            found[name] = rows[:, at : at + self._width(name)]
            at += self._width(name)
        return found

    def _gathered(self, pieces: Tensors) -> Tensors:
        """The pieces of all workers, put together."""
        found: Tensors = {}
        for names in _of_one_dtype(pieces):
            together = self._split(names, all_gather(tl.concat([pieces[n] for n in names])))
            for name, rows in together.items():
                shape = self._like[name].shape
                found[name] = rows.reshape(-1)[: math.prod(shape)].reshape(shape)
        return {name: found[name] for name in pieces}

    # ---- which optimizers --------------------------------------------------------------------

    def _check(self) -> None:
        """Make two updates of random numbers, of all elements and of the pieces."""
        root = random.key(0)

        def numbers(stream: int) -> Tensors:
            return {
                name: random.normal(random.fold_in(root, 2 * n + stream), like.shape, like.dtype)
                for n, (name, like) in enumerate(self._like.items())
            }

        parameters, gradients = numbers(0), numbers(1)
        state, mine = self._optimizer.init(parameters), self.init(parameters)
        for _ in range(2):
            updates, state = self._optimizer.update(gradients, state, parameters)
            with optim.sharded():
                found, mine = self._optimizer.update(
                    self.pieces(gradients), mine, self.pieces(parameters)
                )
        wanted = self.pieces(updates)
        for name, like in self._like.items():
            near = tl.abs(found[name] - wanted[name]) <= 1e-3 * tl.abs(wanted[name]) + 1e-6
            if not bool(tl.all(near)):
                raise ValueError(
                    "Trainer: shard_optimizer divides each parameter among the workers, and this "
                    f"optimizer's update of {name or 'the parameter'} ({like}) is another one if "
                    "it sees a piece of it; use one that computes each element by itself (sgd, "
                    "adam, adamw, rmsprop, clipping by value; by global norm works, too), or leave "
                    "shard_optimizer out"
                )


def _rows(x: tl.Tensor, size: int) -> tl.Tensor:
    """`x` as one row of numbers, padded with zeros and cut into `size` rows."""
    width = -(-x.size // size)
    flat = x.reshape(-1)
    if width * size != x.size:
        flat = tl.concat([flat, tl.zeros(width * size - x.size, dtype=x.dtype)])
    return flat.reshape(size, width)


def _of_one_dtype(tensors: Tensors) -> list[list[str]]:
    """The names, those of one dtype together: so many trips around the ring are needed."""
    groups: dict[Any, list[str]] = {}
    for name, x in tensors.items():
        groups.setdefault(x.dtype, []).append(name)
    return list(groups.values())
