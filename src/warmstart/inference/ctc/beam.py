"""Prefix beam search, frame by frame, with Coqui STT's scores.

The algorithm is Hannun et al. 2014 (arXiv 1408.2873), the scoring that of Coqui STT 1.4.0
(``ctcdecode/ctc_beam_search_decoder.cpp``), computed for all prefixes of a frame at once, in float64.

Shapes: K prefixes are alive, A labels with the blank, N ways to go on.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from warmstart.errors import ConfigError
from warmstart.inference.ctc.history import ROOT, History
from warmstart.inference.ctc.labels import Floats, Labels, begins_character, checked, space_label
from warmstart.inference.ctc.lexicon import Ints
from warmstart.inference.ctc.options import BeamOptions, check_hot_words
from warmstart.inference.ctc.scorer import Scorer
from warmstart.inference.ctc.transcript import Transcript
from warmstart.inference.ctc.units import Units, character_length
from warmstart.lean import dataclass

_SURE = math.log(0.999)  # before a frame whose blank is less likely nothing begins
_FLOOR = math.log(np.finfo(np.float32).tiny)  # what Coqui adds to every probability
_ROOM = 100_000  # nodes that a history grows by before it is cleaned
_NEVER = -np.inf


@dataclass
class _Beam:
    """K prefixes; every array has one entry for each."""

    node: Ints  # in the history of prefixes
    label: Ints  # the last; -1 of the empty prefix
    parent: Ints  # the node without the last label; -1 where there is none
    blank: Floats  # ln P of all paths that end in a blank
    nonblank: Floats  # ln P of all paths that end in the last label
    times: Ints  # the node in the history of times
    state: Ints  # of the lexicon
    length: Ints  # bytes of the last character, and how many of them are there (byte mode)
    seen: Ints

    @classmethod
    def empty(cls, state: int) -> _Beam:
        """The empty prefix, where the lexicon is in ``state``."""
        none, zero = np.array([-1]), np.array([0])
        return cls(
            node=zero, label=none, parent=none, blank=np.array([0.0]), nonblank=np.array([_NEVER]), times=zero,
            state=np.array([state]), length=zero, seen=zero,
        )  # fmt: skip

    @property
    def score(self) -> Floats:
        """ln P of the prefixes."""
        return np.logaddexp(self.blank, self.nonblank)


class DecoderStream:
    """A beam search that is fed frames as they come, and gives the same as all frames at once.

    Args:
        labels: the model's, with the blank last.
        scorer: adds a language model and restricts what is spelt.

    Raises:
        ConfigError: hot words without a scorer, or ones that it can never meet; all at once.
    """

    def __init__(self, labels: Labels, options: BeamOptions | None = None, scorer: Scorer | None = None) -> None:
        self._labels, self._scorer = labels, scorer
        self._options = options or BeamOptions()
        check_hot_words(self._options, labels, scorer)
        self._prefixes, self._times = History(), History()
        self._units = None
        if scorer is not None:
            self._units = Units(scorer, labels, dict(self._options.hot_words), self._prefixes)
        self._lexicon = scorer.lexicon if scorer else None
        self._space = space_label(labels)
        self._beam = _Beam.empty(self._lexicon.start if self._lexicon else 0)
        self._frame, self._begun, self._ended = 0, False, False
        self._clean_at = _ROOM

    def feed(self, log_probs: npt.ArrayLike) -> None:
        """Goes on with (T, A) natural logarithms; T may be 0.

        Raises:
            DataError: the shape does not fit the labels, or these are no log-probabilities.
            ConfigError: the stream is finished.
        """
        if self._ended:
            raise ConfigError("the stream is finished", todo="make a new one for the next recording")
        for emission in np.logaddexp(checked(log_probs, self._labels), _FLOOR):
            self._begun |= bool(emission[self._labels.blank_id] < _SURE)
            if self._begun:
                self._step(self._cut(emission), emission)
                if len(self._prefixes) + len(self._times) > self._clean_at:
                    self._clean()
            self._frame += 1

    def intermediate(self, results: int = 1) -> list[Transcript]:
        """Up to ``results`` transcripts if it ended here, the best first; the stream can go on."""
        beam = self._beam
        scores = beam.score
        if self._units is not None:
            scores = scores + [self._ending(i) for i in range(len(scores))]
        order = np.lexsort((beam.label, -scores))[:results]
        return [self._transcript(i, float(scores[i])) for i in order]

    def finish(self, results: int = 1) -> list[Transcript]:
        """Up to ``results`` transcripts of everything that was fed, the best first; nothing can be fed any more."""
        self._ended = True
        return self.intermediate(results)

    def _transcript(self, i: int, score: float) -> Transcript:
        ids = self._prefixes.path(int(self._beam.node[i]))
        return Transcript(self._labels.decode(ids), score, ids, self._times.path(int(self._beam.times[i])))

    def _ending(self, i: int) -> float:
        """What the language model says of a last word that no space (or last byte) has ended."""
        beam, node = self._beam, int(self._beam.node[i])
        assert self._units is not None
        if self._labels.utf8:
            return 0.0 if node != ROOT and beam.length[i] == beam.seen[i] else self._units.last(node)
        return 0.0 if node == ROOT or beam.label[i] == self._space else self._units.last(node)

    def _cut(self, emission: Floats) -> Floats:
        """``emission`` with the labels that are not looked at set to -inf."""
        options = self._options
        count = min(options.cutoff_top_n or len(emission), len(emission))
        if options.cutoff_prob >= 1 and count == len(emission):
            return emission
        order = np.argsort(-emission, kind="stable")
        if options.cutoff_prob < 1:
            enough = np.cumsum(np.exp(emission[order])) >= options.cutoff_prob
            count = min(count, int(enough.argmax()) + 1) if enough.any() else count
        emission = emission.copy()
        emission[order[count:]] = _NEVER
        return emission

    def _step(self, emission: Floats, whole: Floats) -> None:
        """One frame: ``emission`` with what is cut off at -inf, ``whole`` without."""
        beam, score = self._beam, self._beam.score
        blank = emission[self._labels.blank_id]
        # With a full beam Coqui's search with a scorer does not try what could not survive but for its words.
        least = _NEVER
        if self._scorer is not None and len(score) == self._options.width:
            least = score.min() + whole[self._labels.blank_id] - max(0.0, self._scorer.beta)

        # Prefixes that stay: their last label again, a blank, or their own parent going on to them.
        parent = self._slots()
        own = np.where(beam.label >= 0, emission[beam.label], _NEVER)
        again = np.where(own + score >= least, own + beam.nonblank, _NEVER)
        arrived = np.full(len(score), _NEVER)
        inside = np.flatnonzero(parent >= 0)
        arrived[inside] = self._going_on(emission, score, least, parent[inside], beam.label[inside])
        nonblank = np.logaddexp(again, arrived)
        stay_blank = blank + score
        stay = np.logaddexp(nonblank, stay_blank)
        newer = (arrived > again) & (nonblank >= stay_blank)

        # Prefixes that begin: what could not reach the best ``width`` is not looked at.
        source, label, state = self._ways(emission, parent[inside], beam.label[inside])
        bound = least
        if self._scorer is None and len(stay) >= self._options.width:
            bound = stay.min()
        reached = emission[label] + score[source]
        kept = np.flatnonzero((reached >= bound) & (reached > _NEVER))
        source, label, state = source[kept], label[kept], state[kept]
        fresh = self._going_on(emission, score, least, source, label)

        total = np.concatenate([stay, fresh])
        chosen = np.flatnonzero(total > _NEVER)
        if not len(chosen):  # the labels that are left lead nowhere; Coqui goes on with prefixes of probability zero
            self._step(whole, whole)
            return
        if len(chosen) > self._options.width:
            chosen = chosen[np.argpartition(-total[chosen], self._options.width - 1)[: self._options.width]]
        old = chosen[chosen < len(stay)]
        new = chosen[chosen >= len(stay)] - len(stay)
        self._beam = self._survivors(
            old, stay_blank, nonblank, newer, parent, source[new], label[new], state[new], fresh[new]
        )

    def _slots(self) -> Ints:
        """Where in the beam the parent of each prefix is; -1: not there."""
        slot = {node: i for i, node in enumerate(self._beam.node.tolist())}
        return np.array([slot.get(node, -1) for node in self._beam.parent.tolist()])

    def _ways(self, emission: Floats, inside: Ints, inside_label: Ints) -> tuple[Ints, Ints, Ints]:
        """(prefix, label, lexicon's state then) of every way to go on to a prefix that is not in the beam."""
        beam, count = self._beam, len(emission)
        if self._lexicon is not None:
            source, label, state = self._lexicon.arcs(beam.state)
        else:
            spelt = np.flatnonzero(emission[:-1] > _NEVER)
            source = np.repeat(np.arange(len(beam.node)), len(spelt))
            label = np.tile(spelt, len(beam.node))
            state = np.zeros(len(source), np.int64)
        there = np.zeros(len(beam.node) * count, bool)
        there[inside * count + inside_label] = True
        kept = ~there[source * count + label]
        return source[kept], label[kept], state[kept]

    def _going_on(self, emission: Floats, score: Floats, least: float, source: Ints, label: Ints) -> Floats:
        """ln P of prefix ``source[n]`` going on with ``label[n]``, with the language model where a unit ends (N)."""
        beam = self._beam
        log_prob = emission[label] + np.where(beam.label[source] == label, beam.blank[source], score[source])
        log_prob[emission[label] + score[source] < least] = _NEVER
        if self._units is None:
            return log_prob
        if self._labels.utf8:
            length, seen = self._bytes(source, label)
            ends = np.flatnonzero((length == seen) & (log_prob > _NEVER))
            pairs = zip(beam.node[source[ends]].tolist(), label[ends].tolist(), strict=True)
            log_prob[ends] += [self._units.character(*pair) for pair in pairs]
        else:
            ends = np.flatnonzero((label == self._space) & (log_prob > _NEVER))
            log_prob[ends] += [self._units.word(prefix) for prefix in beam.node[source[ends]].tolist()]
        return log_prob

    def _bytes(self, source: Ints, label: Ints) -> tuple[Ints, Ints]:
        """(length, bytes seen) of the last character, when ``source`` goes on with ``label``."""
        first = begins_character(label)
        length = np.where(first, character_length(label), self._beam.length[source])
        return length, np.where(first, 1, self._beam.seen[source] + 1)

    def _survivors(
        self,
        old: Ints,
        blank: Floats,
        nonblank: Floats,
        newer: npt.NDArray[np.bool_],
        parent: Ints,
        source: Ints,
        label: Ints,
        state: Ints,
        fresh: Floats,
    ) -> _Beam:
        """The next beam: prefixes ``old`` that stay, and ``source`` going on with ``label``."""
        beam, frame = self._beam, self._frame
        times = beam.times[old]
        later = np.flatnonzero(newer[old])
        times[later] = self._times.children(beam.times[parent[old[later]]].tolist(), [frame] * len(later))
        began = self._times.children(beam.times[source].tolist(), [frame] * len(source))
        nodes = self._prefixes.children(beam.node[source].tolist(), label.tolist())
        none = np.zeros_like(source)
        length, seen = self._bytes(source, label) if self._labels.utf8 else (none, none)
        return _Beam(
            node=np.append(beam.node[old], nodes).astype(np.int64),
            label=np.append(beam.label[old], label),
            parent=np.append(beam.parent[old], beam.node[source]),
            blank=np.append(blank[old], np.full(len(source), _NEVER)),
            nonblank=np.append(nonblank[old], fresh),
            times=np.append(times, began).astype(np.int64),
            state=np.append(beam.state[old], state),
            length=np.append(beam.length[old], length),
            seen=np.append(beam.seen[old], seen),
        )

    def _clean(self) -> None:
        """Forgets prefixes and times that no prefix of the beam comes from, so that a long stream stays small."""
        beam = self._beam
        number = self._prefixes.keep(beam.node.tolist())
        beam.node = np.array([number[node] for node in beam.node.tolist()])
        beam.parent = np.array([number.get(node, -1) for node in beam.parent.tolist()])
        number = self._times.keep(beam.times.tolist())
        beam.times = np.array([number[node] for node in beam.times.tolist()])
        if self._units is not None:
            self._units.forget()
        self._clean_at = 2 * (len(self._prefixes) + len(self._times)) + _ROOM


def decode_beam(
    log_probs: npt.ArrayLike,
    labels: Labels,
    options: BeamOptions | None = None,
    scorer: Scorer | None = None,
    results: int = 1,
) -> list[Transcript]:
    """Up to ``results`` transcripts of (T, A) natural logarithms, the best first; see :class:`DecoderStream`."""
    stream = DecoderStream(labels, options, scorer)
    stream.feed(log_probs)
    return stream.finish(results)
