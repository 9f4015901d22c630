"""What a decoder needs to know of a model's labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from warmstart.errors import DataError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class Labels(Protocol):
    """Labels in order, then the blank; ``warmstart.vocabularies.alphabet.Alphabet`` is one.

    In byte mode (``utf8``) label ``b - 1`` is the byte ``b`` of UTF-8, 1 ≤ b ≤ 255.
    """

    @property
    def tokens(self) -> tuple[str, ...]: ...

    @property
    def blank_id(self) -> int: ...

    @property
    def utf8(self) -> bool: ...

    def decode(self, ids: Sequence[int]) -> str: ...


def space_label(labels: Labels) -> int | None:
    """The label of the space that divides words; None in byte mode, where characters are scored, and without one."""
    return None if labels.utf8 or " " not in labels.tokens else labels.tokens.index(" ")


def begins_character(label: Any) -> Any:
    """Whether the byte of ``label`` (byte mode; a number or an array) is the first one of a code point (RFC 3629)."""
    return (label + 1) & 0xC0 != 0x80


def collapse(path: npt.ArrayLike, blank_id: int, before: int = -1) -> Ints:
    """The frames of ``path`` (T,), the label of each frame, in which a label begins: repetitions are taken together and
    blanks left out (Graves et al. 2006, §3.2). ``before`` is the label of the frame before the first."""
    labels = np.asarray(path, np.int64)
    return np.flatnonzero((labels != blank_id) & (np.diff(labels, prepend=before) != 0))


def checked(log_probs: npt.ArrayLike, labels: Labels) -> Floats:
    """``log_probs`` (T, A), natural logarithms, as float64.

    Raises:
        DataError: another shape, NaN, or values above zero (logits, or probabilities).
    """
    array = np.asarray(log_probs, np.float64)
    if array.ndim != 2 or array.shape[1] != len(labels.tokens):
        raise DataError(
            "the outputs to decode do not fit the alphabet",
            expected=f"(frames, {len(labels.tokens)}), the blank last",
            found=f"shape {array.shape}",
        )
    peak = array.max(initial=-np.inf)
    if np.isnan(peak):
        raise DataError(
            "the outputs to decode are not numbers",
            found="NaN",
            todo="the model's weights hold NaN, or became too large: take an earlier checkpoint",
        )
    if peak > 1e-3:
        raise DataError(
            "the outputs to decode are not log-probabilities",
            expected="natural logarithms, none above zero",
            found=f"up to {peak:.6g}",
            todo="apply log_softmax over the labels",
        )
    return array
