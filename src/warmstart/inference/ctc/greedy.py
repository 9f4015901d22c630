"""The likeliest label of every frame."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from warmstart.inference.ctc.labels import Labels, checked, collapse
from warmstart.inference.ctc.transcript import Transcript


def greedy(log_probs: npt.ArrayLike, labels: Labels) -> Transcript:
    """Repetitions of the likeliest label taken together, blanks left out (Graves et al. 2006, best path decoding).

    Args:
        log_probs: (T, A), natural logarithms; T may be 0.

    Raises:
        DataError: the shape does not fit the labels, or these are no log-probabilities.
    """
    stream = GreedyStream(labels)
    stream.feed(log_probs)
    return stream.finish()[0]


class GreedyStream:
    """:func:`greedy` of frames that come in pieces, used like :class:`~warmstart.inference.ctc.beam.DecoderStream`."""

    def __init__(self, labels: Labels) -> None:
        self._labels = labels
        self._ids: list[int] = []
        self._starts: list[int] = []
        self._last, self._frame, self._score = -1, 0, 0.0

    def feed(self, log_probs: npt.ArrayLike) -> None:
        """Goes on with (T, A) natural logarithms; T may be 0.

        Raises:
            DataError: the shape does not fit the labels, or these are no log-probabilities.
        """
        array = checked(log_probs, self._labels)
        best = array.argmax(axis=1)
        starts = collapse(best, self._labels.blank_id, self._last)
        self._ids += best[starts].tolist()
        self._starts += (starts + self._frame).tolist()
        self._score += float(array.max(axis=1, initial=-np.inf).sum())
        self._last = int(best[-1]) if len(best) else self._last
        self._frame += len(best)

    def intermediate(self) -> list[Transcript]:
        """The one transcript of what was fed until now."""
        ids = tuple(self._ids)
        return [Transcript(self._labels.decode(ids), self._score, ids, tuple(self._starts))]

    finish = intermediate
