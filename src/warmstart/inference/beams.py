"""The hypotheses of a batch of sentences during search, in arrays.

Source of the rules: marian-dev ``src/translator/{beam_search.cpp,history.h}``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from warmstart.errors import WarmstartError
from warmstart.inference.batches import runs
from warmstart.lean import dataclass

Array = NDArray[Any]


@dataclass(frozen=True)
class Hypothesis:
    """One output: ``ids`` without the end token; ``score`` as ``SearchConfig`` defines it; ``log_prob``, the sum
    of ``token_log_probs`` (summed over the ensemble; the end token's last, absent if the limit cut it)."""

    ids: tuple[int, ...]
    score: float
    log_prob: float
    token_log_probs: tuple[float, ...]


@dataclass(frozen=True)
class Scoring:
    """``SearchConfig``'s score of a hypothesis of n tokens."""

    normalize: float
    word_penalty: float

    def score(self, total: Array, n: int) -> Array:
        """float64 score of log-probabilities that sum to ``total``."""
        score: Array = (total.astype(np.float64) - self.word_penalty * n) / n**self.normalize
        return score

    def bound(self, total: Array, n: int, limit: Array) -> Array:
        """The most that hypotheses of n tokens can score in the end: no token adds to ``total``, ``limit`` is the
        most tokens, and both terms of the score change with n in one direction."""
        least, most = n**self.normalize, limit**self.normalize
        penalty = np.maximum(-self.word_penalty * n / least, -self.word_penalty * limit / most)
        bound: Array = np.maximum(total / least, total / most) + penalty
        return bound


class _Step(NamedTuple):
    """What a step kept, ended or not: the last token of each hypothesis, its log-probability, and the index of
    the hypothesis it continues among those that the step before kept."""

    token: Array
    log_prob: Array
    parent: Array


class _Finished(NamedTuple):
    """Hypotheses that a step ended, after ``length`` tokens; ``place`` is among those that the step kept."""

    sentence: Array
    score: Array
    total: Array
    length: Array
    place: Array


class Beams:
    """``size`` hypotheses for each of B sentences at first, and fewer as they end, as they do at the latest with
    ``limits`` [B] tokens. A row is a live hypothesis; those of a sentence stand together, best first.

    A sentence is done when all have ended, or none can come among its ``nbest`` any more.
    """

    def __init__(self, size: int, limits: Array, scoring: Scoring, nbest: int, eos_id: int) -> None:
        self.limits, self.scoring, self.nbest, self.eos_id = np.ceil(limits), scoring, nbest, eos_id
        self.width = np.full(len(limits), size)  # hypotheses that each sentence keeps
        self.sentence = np.arange(len(limits))  # of each row, as are total and index
        self.total = np.zeros(len(limits), np.float32)
        self.index = np.zeros(len(limits), np.int64)  # among those that the last step kept
        self.steps: list[_Step] = []
        self.finished: list[_Finished] = []
        self.best = np.full((len(limits), nbest), -np.inf)  # scores of what has ended, best last

    def extend(self, log_probs: Array, tokens: Array) -> tuple[Array, Array]:
        """Continue each row by some of its best tokens (float32 ``log_probs`` and ``tokens`` [R, N]). Returns
        which rows the new rows continue, and their tokens."""
        row, column = self._choose(log_probs)
        step = _Step(tokens[row, column], log_probs[row, column], self.index[row])
        self.steps.append(step)
        sentence, total = self.sentence[row], self.total[row] + step.log_prob
        ended = (step.token == self.eos_id) | (len(self.steps) >= self.limits[sentence])
        if ended.any():
            self._finish(sentence[ended], total[ended], np.flatnonzero(ended))
        live = np.flatnonzero(~ended)
        if (self.best[sentence[live], 0] > -np.inf).any():
            live = live[~self._settled(sentence[live], total[live])]
        self.sentence, self.total, self.index = sentence[live], total[live], live
        self.width = np.bincount(self.sentence, minlength=len(self.width))
        return row[live], step.token[live]

    def _choose(self, log_probs: Array) -> tuple[Array, Array]:
        """(row, column) of the best continuations of each sentence, best first."""
        if log_probs.shape[1] == 1 and self.width.max() == 1:
            self._require(np.isfinite(log_probs))
            return np.arange(len(log_probs)), np.zeros(len(log_probs), np.int64)
        present, number, slot = runs(self.sentence)
        columns = log_probs.shape[1]
        grid = np.full((len(present), int(slot.max()) + 1, columns), -np.inf, np.float32)
        grid[number, slot] = self.total[:, None] + log_probs
        table = grid.reshape(len(present), -1)
        order = np.argsort(-table, axis=1, kind="stable")[:, : self.width.max()]
        chosen = np.isfinite(np.take_along_axis(table, order, 1))
        chosen &= np.arange(order.shape[1]) < self.width[present][:, None]
        self._require(np.any(chosen, 1))
        place = order[chosen]
        first = np.flatnonzero(slot == 0)[np.nonzero(chosen)[0]]
        return first + place // columns, place % columns

    def _require(self, found: Array) -> None:
        if not found.all():
            raise WarmstartError(
                "a model gives no token a finite score",
                expected="finite log-probabilities",
                found="only infinities or not-a-numbers",
                todo="look for damaged weights; a training that diverged leaves such",
            )

    def _finish(self, sentence: Array, total: Array, index: Array) -> None:
        score = self.scoring.score(total, len(self.steps))
        self.finished.append(_Finished(sentence, score, total, np.full(len(index), len(self.steps)), index))
        present, number, slot = runs(sentence)
        scores = np.full((len(present), int(slot.max()) + 1), -np.inf)
        scores[number, slot] = score
        self.best[present] = np.sort(np.hstack([self.best[present], scores]), 1)[:, -self.nbest :]

    def _settled(self, sentence: Array, total: Array) -> Array:
        """Of each row, whether its sentence is done: its best row cannot come among the n best that have ended
        (an equal score would not: the earlier stands first)."""
        present, number, slot = runs(sentence)
        bound = self.scoring.bound(total[slot == 0], len(self.steps) + 1, self.limits[present])
        settled: Array = (self.best[present, 0] >= bound)[number]
        return settled

    def results(self) -> list[list[Hypothesis]]:
        """The ``nbest`` hypotheses of each sentence, best first; of equals, the earlier first."""
        ended = _Finished(*(np.concatenate(column) for column in zip(*self.finished, strict=True)))
        order = np.lexsort((-ended.score, ended.sentence))
        order = order[runs(ended.sentence[order])[2] < self.nbest]
        ended = _Finished(*(column[order] for column in ended))
        length = len(self.steps)
        ids, log_probs = np.zeros((len(order), length), np.int64), np.zeros((len(order), length), np.float32)
        place = ended.place.copy()
        for t in range(length - 1, -1, -1):
            (on,) = np.nonzero(ended.length > t)
            step, here = self.steps[t], place[on]
            ids[on, t], log_probs[on, t], place[on] = step.token[here], step.log_prob[here], step.parent[here]
        results: list[list[Hypothesis]] = [[] for _ in self.width]
        columns = (ended.sentence, ended.length, ended.score, ended.total, ids, log_probs)
        for sentence, n, score, total, tokens, each in zip(*(column.tolist() for column in columns), strict=True):
            end = n - (tokens[n - 1] == self.eos_id)
            results[sentence].append(Hypothesis(tuple(tokens[:end]), score, total, tuple(each[:n])))
        return results
