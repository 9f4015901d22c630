"""What numpy's generators begin from, in a fraction of the time that numpy takes for it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.random.bit_generator import ISeedSequence

_WORD = 0xFFFFFFFF
_WORDS = 4  # of a pool


class Seed(ISeedSequence):
    """The words of ``np.random.SeedSequence`` for an integer from 0 to 2^64 - 1 (O'Neill 2015, "Developing a seed_seq
    alternative"). numpy's go through arrays, whose functions a processor's caches have lost since the last update."""

    def __init__(self, entropy: int) -> None:
        self._entropy = entropy

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> Any:
        """``n_words`` of ``dtype``, which is uint32 or uint64."""
        pool, count = _pool(self._entropy), n_words * np.dtype(dtype).itemsize // 4
        pairs = _OUT if count <= len(_OUT) else _pairs(0x8B51F9DD, 0x58F38DED, count)
        words = [_hashed(pool[k % _WORDS], *pairs[k]) for k in range(count)]
        return np.array(words, np.uint32).view(dtype)


def _pairs(first: int, factor: int, count: int) -> Sequence[tuple[int, int]]:
    """What each hashed word is combined with, by exclusive or and as a factor."""
    constants = [first * pow(factor, k, 1 << 32) & _WORD for k in range(count + 1)]
    return list(pairwise(constants))


_IN, _OUT = _pairs(0x43B0D7E5, 0x931E8875, _WORDS * _WORDS), _pairs(0x8B51F9DD, 0x58F38DED, 8)


def _hashed(word: int, other: int, factor: int) -> int:
    word = (word ^ other) * factor & _WORD
    return word ^ word >> 16


def _pool(entropy: int) -> list[int]:
    """Words in each of which there is something of every bit of ``entropy``."""
    pairs = iter(_IN)
    pool = [_hashed(word, *next(pairs)) for word in (entropy & _WORD, entropy >> 32, 0, 0)]
    for source in range(_WORDS):
        for target in range(_WORDS):
            if source != target:
                word = (0xCA01F9DD * pool[target] - 0x4973F715 * _hashed(pool[source], *next(pairs))) & _WORD
                pool[target] = word ^ word >> 16
    return pool
