"""Which examples make which batch: a pure function of (seed, epoch, window, k).

Shapes: B rows of a batch, S and T the longest source and target among them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from fractions import Fraction
from typing import Self

import numpy as np
from numpy.typing import NDArray

from warmstart.data.index import EncodedSplit
from warmstart.data.permutation import derive_key, mix, permute
from warmstart.errors import DataError

Ints = NDArray[np.int64]
Tokens = NDArray[np.int32]


@dataclass(frozen=True)
class Position:
    """The next batch to be read: number ``k`` of ``window`` of ``epoch``."""

    epoch: int = 0
    window: int = 0
    k: int = 0


@dataclass(frozen=True, eq=False)
class Batch:
    """int32 ``source`` (B, S) and ``target`` (B, T), padded with the end row, and their lengths (B,).

    Row b is example ``indices[b]`` of split ``tasks[b]``.
    """

    source: Tokens
    source_lengths: Tokens
    target: Tokens
    target_lengths: Tokens
    tasks: Ints
    indices: Ints


class BatchPlan:
    """Batches of a mixture.

    ``splits`` are the tasks' examples and ``rates`` their weights (by size when None: then every example
    comes once in an epoch). An epoch has as many examples as all tasks together; task t has its exact share
    of every stretch of it, to within rounding, and is itself reshuffled each time it is used up. An epoch is cut
    into windows of about ``window`` examples; within one, examples of similar length are put together so that
    B·S ≤ ``batch_tokens`` and B·T ≤ ``batch_tokens``, and the batches are shuffled. Raises ``DataError``.
    """

    def __init__(
        self,
        splits: Sequence[EncodedSplit],
        *,
        eos_ids: tuple[int, int],
        rates: Sequence[float] | None = None,
        batch_tokens: int = 4096,
        window: int = 8192,
        seed: int = 0,
    ) -> None:
        self.splits, self.eos_ids, self.seed, self.batch_tokens = tuple(splits), eos_ids, seed, batch_tokens
        self.sizes = [len(split) for split in self.splits]
        weights = self.sizes if rates is None else list(rates)
        if not self.splits or min(self.sizes) == 0 or batch_tokens < 1 or window < 1:
            raise DataError("a batch plan needs examples of every task, batch_tokens and window of at least 1")
        if len(weights) != len(self.splits) or not all(0 < weight < float("inf") for weight in weights):
            raise DataError("a mixture needs a positive rate for each task", found=weights)
        longest = max(int(max(s.source_lengths.max(), s.target_lengths.max())) for s in self.splits)
        if longest > batch_tokens:
            raise DataError(
                "an example does not fit into a batch", expected=f"at most {batch_tokens} tokens", found=longest
            )
        exact = [Fraction(weight) for weight in weights]
        # Share of each task among itself and the later ones: floors of these never count a position twice.
        self._shares = [rate / sum(exact[t:]) for t, rate in enumerate(exact)]
        self.epoch_examples = sum(self.sizes)
        self.num_windows = -(-self.epoch_examples // window)

    def reordered(self, order: int) -> Self:
        """The same examples in order number ``order``; 0 is this one."""
        other = copy(self)
        other.seed = self.seed if order == 0 else derive_key(self.seed, "reordered", order)
        return other

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
        """(tasks, indices) of each batch of a window, in order."""
        tasks, indices = self.window_examples(epoch, window)
        source, target = np.empty_like(indices), np.empty_like(indices)
        for t, split in enumerate(self.splits):
            of_task = tasks == t
            source[of_task] = split.source_lengths[indices[of_task]]
            target[of_task] = split.target_lengths[indices[of_task]]
        ties = mix(np.arange(len(indices)), derive_key(self.seed, "ties", epoch, window))
        order = np.lexsort((ties, np.maximum(source, target)))
        cuts = _cut(source[order], target[order], self.batch_tokens)
        shuffled = np.argsort(mix(np.arange(len(cuts)), derive_key(self.seed, "batches", epoch, window)), kind="stable")
        chosen = [order[slice(*cuts[b])] for b in shuffled]
        return [(tasks[rows], indices[rows]) for rows in chosen]

    def iterate(self, position: Position | None = None) -> Iterator[tuple[Position, Batch]]:
        """Endless (position after the batch, batch) from ``position`` on: the same as iterating from the start
        and skipping, at the cost of planning one window."""
        at = position or Position()
        while True:
            batches = self.window_batches(at.epoch, at.window)
            if not 0 <= at.k < len(batches):
                raise DataError("no such batch of the data", expected=f"0 to {len(batches) - 1}", found=at)
            for k in range(at.k, len(batches)):
                if k + 1 < len(batches):
                    after = Position(at.epoch, at.window, k + 1)
                elif at.window + 1 < self.num_windows:
                    after = Position(at.epoch, at.window + 1, 0)
                else:
                    after = Position(at.epoch + 1, 0, 0)
                yield after, make_batch(self.splits, *batches[k], self.eos_ids)
            at = after


def sequential_batches(split: EncodedSplit, batch_tokens: int, eos_ids: tuple[int, int]) -> Iterator[Batch]:
    """Every example of ``split`` once, for evaluation: sorted by length (``indices`` tells the original order)."""
    source, target = split.source_lengths, split.target_lengths
    order = np.argsort(np.maximum(source, target), kind="stable")
    for start, stop in _cut(source[order], target[order], batch_tokens):
        indices = order[start:stop]
        yield make_batch([split], np.zeros_like(indices), indices, eos_ids)


def make_batch(splits: Sequence[EncodedSplit], tasks: Ints, indices: Ints, eos_ids: tuple[int, int]) -> Batch:
    """The padded arrays of examples ``indices`` of splits ``tasks``."""
    picked = list(zip(tasks.tolist(), indices.tolist(), strict=True))
    sources = [splits[t].source[splits[t].source_offsets[i] : splits[t].source_offsets[i + 1]] for t, i in picked]
    targets = [splits[t].target[splits[t].target_offsets[i] : splits[t].target_offsets[i + 1]] for t, i in picked]
    return Batch(*_pad(sources, eos_ids[0]), *_pad(targets, eos_ids[1]), tasks, indices)


def _pad(rows: Sequence[Tokens], fill: int) -> tuple[Tokens, Tokens]:
    lengths = np.array([len(row) for row in rows], np.int32)
    padded = np.full((len(rows), int(lengths.max())), fill, np.int32)
    for b, row in enumerate(rows):
        padded[b, : len(row)] = row
    return padded, lengths


def _cut(source: Ints, target: Ints, batch_tokens: int) -> list[tuple[int, int]]:
    """(start, stop) of consecutive batches that keep both sides, padded, within ``batch_tokens``."""
    cuts: list[tuple[int, int]] = []
    start = longest = 0
    for i, length in enumerate(np.maximum(source, target).tolist()):
        longest = max(longest, length)
        if i > start and (i - start + 1) * longest > batch_tokens:
            cuts.append((start, i))
            start, longest = i, length
    return [*cuts, (start, len(source))] if len(source) else []
