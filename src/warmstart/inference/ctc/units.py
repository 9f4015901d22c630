"""What a language model scores of a spelt prefix: words, in byte mode characters."""

from __future__ import annotations

import numpy as np

from warmstart.inference.ctc.history import ROOT, History
from warmstart.inference.ctc.labels import Labels, begins_character, space_label
from warmstart.inference.ctc.lexicon import Ints
from warmstart.inference.ctc.scorer import Scorer

# Bytes of the code point that a byte begins, by byte (RFC 3629); 0: a continuation byte, or none of UTF-8.
_LENGTH = np.zeros(256, np.int64)
_LENGTH[:0x80], _LENGTH[0xC0:0xE0], _LENGTH[0xE0:0xF0], _LENGTH[0xF0:0xF8] = 1, 2, 3, 4


def character_length(label: Ints) -> Ints:
    """How many bytes the code point has that begins with the byte of ``label``; 0: it begins none."""
    return _LENGTH[label + 1]


class Units:
    """Scores of the words (or characters) of prefixes, as Coqui STT 1.4.0 cuts them (``Scorer::make_ngram``)."""

    def __init__(self, scorer: Scorer, labels: Labels, hot_words: dict[str, float], prefixes: History) -> None:
        self._scorer, self._labels, self._hot, self._prefixes = scorer, labels, hot_words, prefixes
        self._space = space_label(labels)
        self._utf8, self._order = labels.utf8, scorer.model.order
        self._words: dict[int, float] = {}
        self._ngrams: dict[int, tuple[str, ...]] = {}

    def forget(self) -> None:
        """Prefixes are numbered anew."""
        self._words.clear()
        self._ngrams.clear()

    def word(self, prefix: int) -> float:
        """What the word at the end of ``prefix`` adds when a space follows it."""
        score = self._words.get(prefix)
        if score is None:
            score = self._words[prefix] = self._score(self._ngram(prefix), boosted=True)
        return score

    def character(self, prefix: int, label: int) -> float:
        """What the character adds that ``label`` completes behind ``prefix`` (byte mode)."""
        unit, before = self._unit(prefix, [label])
        return self._score((*self._ngram(before), unit)[-self._order :], boosted=True)

    def last(self, prefix: int) -> float:
        """What an unfinished word at the end of everything adds; hot words do not count there."""
        return self._score(self._ngram(prefix), boosted=False)

    def _score(self, ngram: tuple[str, ...], *, boosted: bool) -> float:
        boost = sum(self._hot.get(unit, 0.0) for unit in ngram) if boosted and self._hot else 0.0
        return self._scorer.alpha * (self._scorer.model.log_prob(ngram) + boost) + self._scorer.beta

    def _ngram(self, prefix: int) -> tuple[str, ...]:
        """The last units of ``prefix``, as many as the model's order; the last one may be unfinished."""
        units: list[str] = []
        known: tuple[str, ...] = ()
        node = prefix
        while node != ROOT and len(units) < self._order:
            if node in self._ngrams:
                known = self._ngrams[node]
                break
            unit, node = self._unit(node, [])
            units.append(unit)
        found = self._ngrams[prefix] = (*known, *reversed(units))[-self._order :]
        return found

    def _unit(self, prefix: int, backwards: list[int]) -> tuple[str, int]:
        """(what ``prefix`` with the labels ``backwards`` ends in, the prefix before it, without a dividing space).

        A word may be empty: two spaces follow each other.
        """
        labels, parents = self._prefixes.values, self._prefixes.parents
        while not (self._utf8 and backwards and begins_character(backwards[-1])) and prefix != ROOT:
            label, prefix = labels[prefix], parents[prefix]
            if label == self._space:
                break
            backwards.append(label)
        return self._labels.decode(backwards[::-1]), prefix
