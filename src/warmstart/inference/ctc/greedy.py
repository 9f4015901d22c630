"""The likeliest label of every frame."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from warmstart.inference.ctc.labels import Labels, checked
from warmstart.inference.ctc.transcript import Transcript


def greedy(log_probs: npt.ArrayLike, labels: Labels) -> Transcript:
    """Repetitions of the likeliest label taken together, blanks left out (Graves et al. 2006, best path decoding).

    Args:
        log_probs: (T, A), natural logarithms; T may be 0.

    Raises:
        DataError: the shape does not fit the labels, or these are no log-probabilities.
    """
    array = checked(log_probs, labels)
    best = array.argmax(axis=1)
    starts = np.flatnonzero((best != labels.blank_id) & (np.diff(best, prepend=-1) != 0))
    ids = tuple(int(label) for label in best[starts])
    return Transcript(
        labels.decode(ids), float(array.max(axis=1, initial=-np.inf).sum()), ids, tuple(int(t) for t in starts)
    )
