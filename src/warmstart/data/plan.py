"""What every stream of batches has in common: it is a pure function of (seed, epoch, window, k)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from copy import copy
from fractions import Fraction
from typing import Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from warmstart.data.ahead import in_order
from warmstart.data.permutation import derive_key, mix, permute
from warmstart.errors import DataError
from warmstart.lean import dataclass

Ints = NDArray[np.int64]
BatchT = TypeVar("BatchT")


@dataclass(frozen=True)
class Position:
    """The next batch to be read: number ``k`` of ``window`` of ``epoch``."""

    epoch: int = 0
    window: int = 0
    k: int = 0


class BatchStream(ABC, Generic[BatchT]):
    """Endless batches: an epoch has ``num_windows`` windows, each of which is planned at once.

    ``ahead`` batches are made before they are asked for, in as many threads; they are the same batches.
    """

    seed: int
    num_windows: int
    ahead: int = 0

    @abstractmethod
    def window_batches(self, epoch: int, window: int) -> list[tuple[Ints, Ints]]:
        """(tasks, indices) of each batch of a window, in order."""

    @abstractmethod
    def make(self, at: Position, tasks: Ints, indices: Ints) -> BatchT:
        """The batch at a position, of examples ``indices`` of splits ``tasks``."""

    def reordered(self, order: int) -> Self:
        """The same examples in order number ``order``; 0 is this one."""
        other = copy(self)
        other.seed = self.seed if order == 0 else derive_key(self.seed, "reordered", order)
        return other

    def iterate(self, position: Position | None = None) -> Iterator[tuple[Position, BatchT]]:
        """Endless (position after the batch, batch) from ``position`` on: the same as iterating from the start
        and skipping, at the cost of planning one window."""
        return in_order(lambda p: (p[0], self.make(*p[1:])), self._planned(position or Position()), self.ahead)

    def deal(self, position: Position, rank: int, size: int) -> Iterator[tuple[Position, BatchT | None]]:
        """As :meth:`iterate`, but only every ``size``-th batch, from number ``rank`` on, is made; the others are
        None."""
        planned = enumerate(self._planned(position))
        return in_order(lambda n: (n[1][0], self.make(*n[1][1:]) if n[0] % size == rank else None), planned, self.ahead)

    def _planned(self, at: Position) -> Iterator[tuple[Position, Position, Ints, Ints]]:
        """(position after the batch, its own, tasks, indices)."""
        while True:
            batches = self.window_batches(at.epoch, at.window)
            if not 0 <= at.k < len(batches):
                raise DataError("no such batch of the data", expected=f"0 to {len(batches) - 1}", found=at)
            for k in range(at.k, len(batches)):
                now = Position(at.epoch, at.window, k)
                if k + 1 < len(batches):
                    after = Position(at.epoch, at.window, k + 1)
                elif at.window + 1 < self.num_windows:
                    after = Position(at.epoch, at.window + 1, 0)
                else:
                    after = Position(at.epoch + 1, 0, 0)
                yield after, now, *batches[k]
            at = after


class MixedBatches(BatchStream[BatchT]):
    """Batches of a mixture, examples of similar length together.

    ``lengths`` are those of each task's examples and ``rates`` the tasks' weights (by size when None: then every
    example comes once in an epoch). An epoch has as many examples as all tasks together; task t has its exact share
    of every stretch of it, to within rounding, and is itself reshuffled each time it is used up. An epoch is cut
    into windows of about ``window`` examples; within one, examples of similar length are put together so that
    rows × longest ≤ ``budget`` and rows ≤ ``max_rows``, and the batches are shuffled. Raises ``DataError``.
    """

    def __init__(
        self,
        lengths: Sequence[Ints],
        *,
        budget: int | None,
        max_rows: int | None = None,
        rates: Sequence[float] | None = None,
        window: int = 8192,
        seed: int = 0,
        units: str = "tokens",
    ) -> None:
        self.lengths, self.budget, self.max_rows, self.seed = tuple(lengths), budget, max_rows, seed
        self.sizes = [len(values) for values in self.lengths]
        weights = self.sizes if rates is None else list(rates)
        if not self.lengths or min(self.sizes) == 0 or min(window, budget or 1, max_rows or 1) < 1:
            raise DataError(f"a batch plan needs examples of every task, batch_{units} and window of at least 1")
        if len(weights) != len(self.lengths) or not all(0 < weight < float("inf") for weight in weights):
            raise DataError("a mixture needs a positive rate for each task", found=weights)
        longest = max(int(values.max()) for values in self.lengths)
        if budget is not None and longest > budget:
            raise DataError("an example does not fit into a batch", expected=f"at most {budget} {units}", found=longest)
        exact = [Fraction(weight) for weight in weights]
        # Share of each task among itself and the later ones: floors of these never count a position twice.
        self._shares = [rate / sum(exact[t:]) for t, rate in enumerate(exact)]
        self.epoch_examples = sum(self.sizes)
        self.num_windows = -(-self.epoch_examples // window)

    def counts(self, position: int) -> list[int]:
        """How many examples of each task are among the first ``position`` ones of the training (they sum to
        ``position`` and never fall as it grows)."""
        result, rest = [], position
        for share in self._shares:
            result.append(int(rest * share))
            rest -= result[-1]
        return result

    def window_examples(self, epoch: int, window: int) -> tuple[Ints, Ints]:
        """(tasks, indices) of the examples in a window, by task."""
        if not (epoch >= 0 and 0 <= window < self.num_windows):
            raise DataError(
                "no such window of the data", expected=f"0 to {self.num_windows - 1}", found=f"{window} of {epoch}"
            )
        n = self.epoch_examples
        starts = self.counts(epoch * n + n * window // self.num_windows)
        stops = self.counts(epoch * n + n * (window + 1) // self.num_windows)
        tasks, indices = [], []
        for t, (start, stop, size) in enumerate(zip(starts, stops, self.sizes, strict=True)):
            stream = np.arange(start, stop)
            for cycle in range(start // size, -(-stop // size)):
                offsets = stream[(stream // size) == cycle] - cycle * size
                indices.append(permute(offsets, size, derive_key(self.seed, "order", t, cycle)))
            tasks.append(np.full(stop - start, t))
        return np.concatenate(tasks).astype(np.int64), np.concatenate(indices)

    def window_batches(self, epoch: int, window: int) -> list[tuple[Ints, Ints]]:
        tasks, indices = self.window_examples(epoch, window)
        lengths = np.empty_like(indices)
        for t, values in enumerate(self.lengths):
            lengths[tasks == t] = values[indices[tasks == t]]
        ties = mix(np.arange(len(indices)), derive_key(self.seed, "ties", epoch, window))
        order = np.lexsort((ties, lengths))
        cuts = cut(lengths[order], self.budget, self.max_rows)
        shuffled = np.argsort(mix(np.arange(len(cuts)), derive_key(self.seed, "batches", epoch, window)), kind="stable")
        chosen = [order[slice(*cuts[b])] for b in shuffled]
        return [(tasks[rows], indices[rows]) for rows in chosen]

    def longest(self) -> BatchT:
        """The longest examples of all tasks, as many as make a batch: no batch of the training is longer."""
        tasks = np.concatenate([np.full(size, t, np.int64) for t, size in enumerate(self.sizes)])
        indices = np.concatenate([np.arange(size, dtype=np.int64) for size in self.sizes])
        lengths = np.concatenate(self.lengths)
        order = np.argsort(-lengths, kind="stable")
        start, stop = cut(lengths[order], self.budget, self.max_rows)[0]
        return self.make(Position(), tasks[order[start:stop]], indices[order[start:stop]])


def cut(lengths: Ints, budget: int | None, max_rows: int | None = None) -> list[tuple[int, int]]:
    """(start, stop) of consecutive batches that keep rows × longest within ``budget`` and rows within ``max_rows``."""
    cuts: list[tuple[int, int]] = []
    start = longest = 0
    for i, length in enumerate(lengths.tolist()):
        longest = max(longest, length)
        rows = i - start + 1
        if i > start and ((budget is not None and rows * longest > budget) or rows > (max_rows or rows)):
            cuts.append((start, i))
            start, longest = i, length
    return [*cuts, (start, len(lengths))] if len(lengths) else []
