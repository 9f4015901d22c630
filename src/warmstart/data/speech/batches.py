"""Batches of recordings.

Shapes: B rows of a batch, T frames of the longest, K coefficients of a frame, L labels of the longest transcript.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from warmstart.data.ahead import processors
from warmstart.data.batches import pad_rows
from warmstart.data.permutation import derive_key, permute
from warmstart.data.plan import BatchStream, Ints, MixedBatches, Position, cut
from warmstart.data.speech.split import SpeechSplit
from warmstart.errors import DataError
from warmstart.lean import dataclass

Floats = NDArray[np.float32]
Labels = NDArray[np.int32]

MOST_AHEAD = 4


@dataclass(frozen=True, eq=False)
class SpeechBatch:
    """float32 ``features`` (B, T, K) with zeros after a row's end and ``feature_lengths`` (B,), int32 ``labels``
    (B, L) with zeros after a row's end and ``label_lengths`` (B,).

    Row b is example ``indices[b]`` of split ``tasks[b]``.
    """

    features: Floats
    feature_lengths: Labels
    labels: Labels
    label_lengths: Labels
    tasks: Ints
    indices: Ints


class Augmenter(Protocol):
    """Makes another example of one."""

    def __call__(self, split: SpeechSplit, index: int, key: int, clock: float) -> Floats:
        """(T, K) features of example ``index``, at random by ``key`` alone; ``clock`` in [0, 1] says how far the
        training is. T is enough for the example's labels."""
        ...


@dataclass(frozen=True)
class Augmented:
    """How training examples are changed: the clock of the ranges runs from 0 to 1 over ``epochs`` epochs."""

    augment: Augmenter
    epochs: float


class MixedSpeech(MixedBatches[SpeechBatch]):
    """Batches of a mixture with B·T ≤ ``batch_frames`` and B ≤ ``batch_size``; see ``MixedBatches``."""

    def __init__(
        self,
        splits: Sequence[SpeechSplit],
        *,
        batch_frames: int | None,
        batch_size: int | None = None,
        rates: Sequence[float] | None = None,
        window: int = 8192,
        seed: int = 0,
        augmented: Augmented | None = None,
    ) -> None:
        self.splits, self.augmented, self.ahead = tuple(splits), augmented, _ahead(augmented)
        lengths = [split.frames for split in self.splits]
        super().__init__(
            lengths, budget=batch_frames, max_rows=batch_size, rates=rates, window=window, seed=seed, units="frames"
        )

    def make(self, at: Position, tasks: Ints, indices: Ints) -> SpeechBatch:
        progress = at.epoch + at.window / self.num_windows
        return make_speech_batch(
            self.splits, tasks, indices, self.augmented, (self.seed, at.epoch, at.window), progress
        )


class SortedSpeech(BatchStream[SpeechBatch]):
    """Coqui's order: ``batch_size`` examples after each other by the size of their files, the same in every epoch;
    what does not fill a last batch is left out. From epoch ``shuffle_from`` (0 is the first) the batches are shuffled.

    Examples of several tasks are sorted by their frames, as Coqui sorts several files by duration. Raises
    ``DataError`` where there are fewer examples than a batch has.
    """

    num_windows = 1

    def __init__(
        self,
        splits: Sequence[SpeechSplit],
        *,
        batch_size: int,
        shuffle_from: int | None = 1,
        seed: int = 0,
        augmented: Augmented | None = None,
    ) -> None:
        self.splits, self.augmented, self.seed, self.ahead = tuple(splits), augmented, seed, _ahead(augmented)
        self.batch_size, self.shuffle_from = batch_size, shuffle_from
        sizes = [len(split) for split in self.splits]
        if sum(sizes) < batch_size:
            raise DataError(
                "there are fewer recordings than a batch has", expected=f"at least {batch_size}", found=sum(sizes)
            )
        by_size = len(self.splits) == 1
        keys = [e.size for e in self.splits[0].examples] if by_size else np.concatenate([s.frames for s in self.splits])
        self._order = np.argsort(np.asarray(keys, np.int64), kind="stable")
        self._tasks = np.concatenate([np.full(size, t, np.int64) for t, size in enumerate(sizes)])
        self._indices = np.concatenate([np.arange(size, dtype=np.int64) for size in sizes])

    def window_batches(self, epoch: int, window: int) -> list[tuple[Ints, Ints]]:
        count = len(self._order) // self.batch_size
        batches = np.arange(count)
        if self.shuffle_from is not None and epoch >= self.shuffle_from:
            batches = permute(batches, count, derive_key(self.seed, "sorted", epoch))
        rows = [self._order[b * self.batch_size : (b + 1) * self.batch_size] for b in batches.tolist()]
        return [(self._tasks[chosen], self._indices[chosen]) for chosen in rows]

    def make(self, at: Position, tasks: Ints, indices: Ints) -> SpeechBatch:
        progress = at.epoch + at.k * self.batch_size / len(self._order)
        return make_speech_batch(self.splits, tasks, indices, self.augmented, (self.seed, at.epoch), progress)

    def longest(self) -> SpeechBatch:
        """The examples of the most frames, as many as make a batch."""
        frames = np.concatenate([split.frames for split in self.splits])
        rows = np.argsort(-frames, kind="stable")[: self.batch_size]
        return make_speech_batch(self.splits, self._tasks[rows], self._indices[rows])


SpeechStream = MixedSpeech | SortedSpeech


def _ahead(augmented: Augmented | None) -> int:
    """Batches that are made meanwhile. Copying features is done sooner than a thread is asked."""
    return 0 if augmented is None else min(MOST_AHEAD, max(1, processors() - 1))


def sequential_speech(
    split: SpeechSplit, *, batch_frames: int | None, batch_size: int | None = None
) -> Iterator[SpeechBatch]:
    """Every example of ``split`` once, for evaluation: sorted by length (``indices`` tells the original order).

    An example longer than ``batch_frames`` is a batch of its own.
    """
    order = np.argsort(split.frames, kind="stable")
    for start, stop in cut(split.frames[order], batch_frames, batch_size):
        indices = order[start:stop]
        yield make_speech_batch([split], np.zeros_like(indices), indices)


def make_speech_batch(
    splits: Sequence[SpeechSplit],
    tasks: Ints,
    indices: Ints,
    augmented: Augmented | None = None,
    key: tuple[int, ...] = (),
    progress: float = 0.0,
) -> SpeechBatch:
    """The padded arrays of examples ``indices`` of splits ``tasks``; ``progress`` counts epochs."""
    picked = list(zip(tasks.tolist(), indices.tolist(), strict=True))
    if augmented is None:
        rows = [splits[t].features(i) for t, i in picked]
    else:
        clock = min(1.0, progress / augmented.epochs)
        rows = [augmented.augment(splits[t], i, derive_key("augment", *key, t, i), clock) for t, i in picked]
    lengths = np.array([len(row) for row in rows], np.int32)
    features = np.zeros((len(rows), int(lengths.max()), splits[0].mfcc.n_input), np.float32)
    for b, row in enumerate(rows):
        features[b, : len(row)] = row
    labels, label_lengths = pad_rows([splits[t].spelling(i) for t, i in picked], 0)
    return SpeechBatch(features, lengths, labels, label_lengths, tasks, indices)
