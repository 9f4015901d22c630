"""Batches of sequences of about the same length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def length_sorted(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of ``lengths``, longest first, in batches whose size times longest length is at most
    ``batch_tokens`` (a longer sequence is a batch of its own). What is left over for the last batch is short."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        if batch and (len(batch) + 1) * lengths[batch[0]] > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def pad(sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """(ids int64 [B, longest], zeros after each end; lengths int64 [B])."""
    lengths = np.fromiter(map(len, sequences), np.int64, len(sequences))
    ids = np.zeros((len(sequences), lengths.max()), np.int64)
    ids[np.arange(ids.shape[1]) < lengths[:, None]] = np.fromiter(
        chain.from_iterable(sequences), np.int64, lengths.sum()
    )
    return torch.from_numpy(ids), torch.from_numpy(lengths)


def runs(values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[np.int64]]:
    """Of ascending ``values`` [N]: the different ones, the number of each value among them [N], and its place in
    the run of its equals [N]."""
    new = np.ones(len(values), np.bool_)
    new[1:] = values[1:] != values[:-1]
    begins = np.flatnonzero(new)
    number = np.cumsum(new) - 1
    return values[begins], number, np.arange(len(values)) - begins[number]
