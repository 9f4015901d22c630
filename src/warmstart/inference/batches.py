"""Batches of sequences of about the same length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def length_sorted(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of ``lengths``, shortest first, in batches whose size times longest length is at most
    ``batch_tokens`` (a longer sequence is a batch of its own)."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[index] > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def pad(sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """(ids int64 [B, longest], zeros after each end; lengths int64 [B])."""
    lengths = [len(sequence) for sequence in sequences]
    ids = torch.zeros(len(sequences), max(lengths), dtype=torch.int64)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence, dtype=torch.int64)
    return ids, torch.tensor(lengths)
