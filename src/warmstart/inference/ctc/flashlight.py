"""The lexicon search of flashlight-text (an extra) behind the interface of ours: faster, with other scores."""

from __future__ import annotations

import math
import os

import numpy as np
import numpy.typing as npt

from warmstart.errors import ConfigError, MissingExtra, Problem
from warmstart.inference.ctc.labels import Labels, checked, collapse, space_label
from warmstart.inference.ctc.lexicon import spell
from warmstart.inference.ctc.options import BeamOptions
from warmstart.inference.ctc.scorer import Scorer
from warmstart.inference.ctc.transcript import Transcript

_AFAR = 50.0  # prefixes that are this much less likely than the best one are given up (natural logarithm)


class FlashlightDecoder:
    """Words of the scorer's lexicon, with flashlight's own pruning, and with ``</s>`` scored at the end.

    Its language model weight is for decimal logarithms, so ``alpha`` · ln 10 is passed on; ``beta`` is its word score.

    Raises:
        MissingExtra: ``flashlight-text`` is not installed.
        ConfigError: no lexicon, byte mode, hot words or ``cutoff_prob``, which it does not know; all at once.
    """

    def __init__(self, labels: Labels, scorer: Scorer, options: BeamOptions | None = None) -> None:
        options = options or BeamOptions()
        self._labels, space = labels, space_label(labels)
        if space is None or scorer.lexicon is None or scorer.path is None:
            raise ConfigError(
                "flashlight decodes words only",
                expected="an alphabet with a space, and a scorer of a file with a word list",
                todo="use the search of warmstart itself",
            )
        unknown = {"hot words": options.hot_words, "cutoff_prob": options.cutoff_prob < 1}
        problems = [Problem(f"flashlight knows no {name}") for name, wanted in unknown.items() if wanted]
        if problems:
            raise ConfigError(
                "flashlight cannot decode so", problems=problems, todo="use the search of warmstart itself"
            )
        try:
            from flashlight.lib.text import decoder, dictionary
            from flashlight.lib.text.decoder.kenlm import KenLM
        except ImportError as error:
            raise MissingExtra("flashlight-text", "flashlight") from error

        self._space = space
        words = list(scorer.lexicon.words(labels))
        self._words = dictionary.Dictionary([*words, "<unk>"])
        self._model = KenLM(os.fspath(scorer.path), self._words)
        start = self._model.start(False)
        trie = decoder.Trie(len(labels.tokens), space)
        for row, word in enumerate(words):
            _, score = self._model.score(start, row)
            trie.insert(spell(word, labels), row, score)
        trie.smear(decoder.SmearingMode.MAX)
        chosen = decoder.LexiconDecoderOptions(
            beam_size=options.width,
            beam_size_token=options.cutoff_top_n or len(labels.tokens),
            beam_threshold=_AFAR,
            lm_weight=scorer.alpha * math.log(10),
            word_score=scorer.beta,
            unk_score=-math.inf,
            sil_score=0.0,
            log_add=True,
            criterion_type=decoder.CriterionType.CTC,
        )
        self._decoder = decoder.LexiconDecoder(
            chosen, trie, self._model, space, labels.blank_id, self._words.get_index("<unk>"), [], False
        )

    def decode(self, log_probs: npt.ArrayLike, results: int = 1) -> list[Transcript]:
        """Up to ``results`` transcripts of (T, A) natural logarithms, the best first.

        Raises:
            DataError: the shape does not fit the labels, or these are no log-probabilities.
        """
        array = checked(log_probs, self._labels)
        last = np.full((1, array.shape[1]), -100.0)  # its words end in a space, so one follows
        last[0, self._space] = 0.0
        emissions = np.ascontiguousarray(np.concatenate([array, last]), np.float32)
        found = self._decoder.decode(emissions.ctypes.data, *emissions.shape)
        return [self._transcript(result.tokens[1:-2], float(result.score)) for result in found[:results]]

    def _transcript(self, path: list[int], score: float) -> Transcript:
        """``path``: the label of each frame. Silence may repeat the space; one of each is kept, none at the ends."""
        kept: list[int] = []
        for frame in collapse(path, self._labels.blank_id).tolist():
            if path[frame] != self._space or (kept and path[kept[-1]] != self._space):
                kept.append(frame)
        if kept and path[kept[-1]] == self._space:
            kept.pop()
        ids = tuple(path[frame] for frame in kept)
        return Transcript(self._labels.decode(ids), score, ids, tuple(kept))


class Collected:
    """:class:`FlashlightDecoder` for frames that come in pieces: they are kept until somebody asks."""

    def __init__(self, decoder: FlashlightDecoder) -> None:
        self._decoder, self._pieces = decoder, list[npt.NDArray[np.float32]]()

    def feed(self, log_probs: npt.ArrayLike) -> None:
        """Goes on with (T, A) natural logarithms; T may be 0."""
        self._pieces.append(np.asarray(log_probs, np.float32))

    def intermediate(self, results: int = 1) -> list[Transcript]:
        """Up to ``results`` transcripts of what was fed until now, the best first.

        Raises:
            DataError: the shape does not fit the labels, or these are no log-probabilities.
        """
        frames = [piece for piece in self._pieces if len(piece)]
        if not frames:
            return [Transcript("", 0.0, (), ())]
        return self._decoder.decode(np.concatenate(frames), results)

    finish = intermediate
