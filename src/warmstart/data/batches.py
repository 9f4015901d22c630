"""Batches of pairs of texts.

Shapes: B rows of a batch, S and T the longest source and target among them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from warmstart.data.index import EncodedSplit
from warmstart.data.plan import Ints, MixedBatches, Position, cut
from warmstart.lean import dataclass

Tokens = NDArray[np.int32]


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


class BatchPlan(MixedBatches[Batch]):
    """Batches of a mixture of pairs of texts, with B·S ≤ ``batch_tokens`` and B·T ≤ ``batch_tokens``.

    ``splits`` are the tasks' examples; see ``MixedBatches``. Raises ``DataError``.
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
        self.splits, self.eos_ids, self.batch_tokens = tuple(splits), eos_ids, batch_tokens
        lengths = [_lengths(split) for split in self.splits]
        super().__init__(lengths, budget=batch_tokens, rates=rates, window=window, seed=seed)

    def make(self, at: Position, tasks: Ints, indices: Ints) -> Batch:
        return make_batch(self.splits, tasks, indices, self.eos_ids)


def sequential_batches(split: EncodedSplit, batch_tokens: int, eos_ids: tuple[int, int]) -> Iterator[Batch]:
    """Every example of ``split`` once, for evaluation: sorted by length (``indices`` tells the original order)."""
    lengths = _lengths(split)
    order = np.argsort(lengths, kind="stable")
    for start, stop in cut(lengths[order], batch_tokens):
        indices = order[start:stop]
        yield make_batch([split], np.zeros_like(indices), indices, eos_ids)


def make_batch(splits: Sequence[EncodedSplit], tasks: Ints, indices: Ints, eos_ids: tuple[int, int]) -> Batch:
    """The padded arrays of examples ``indices`` of splits ``tasks``."""
    picked = list(zip(tasks.tolist(), indices.tolist(), strict=True))
    sources = [splits[t].source[splits[t].source_offsets[i] : splits[t].source_offsets[i + 1]] for t, i in picked]
    targets = [splits[t].target[splits[t].target_offsets[i] : splits[t].target_offsets[i + 1]] for t, i in picked]
    return Batch(*pad_rows(sources, eos_ids[0]), *pad_rows(targets, eos_ids[1]), tasks, indices)


def pad_rows(rows: Sequence[Tokens], fill: int) -> tuple[Tokens, Tokens]:
    """(int32 (B, longest) filled up with ``fill``, lengths (B,))."""
    lengths = np.array([len(row) for row in rows], np.int32)
    padded = np.full((len(rows), int(lengths.max())), fill, np.int32)
    for b, row in enumerate(rows):
        padded[b, : len(row)] = row
    return padded, lengths


def _lengths(split: EncodedSplit) -> Ints:
    lengths: Ints = np.maximum(split.source_lengths, split.target_lengths)
    return lengths
