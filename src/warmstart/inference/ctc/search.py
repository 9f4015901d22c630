"""How texts are found: one set of options for evaluation, transcription and streams."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field, fields
from pathlib import Path
from typing import Any, Self

from warmstart.errors import ConfigError, Problem
from warmstart.inference.asked import require_none
from warmstart.inference.ctc.beam import DecoderStream
from warmstart.inference.ctc.flashlight import Collected, FlashlightDecoder
from warmstart.inference.ctc.greedy import GreedyStream
from warmstart.inference.ctc.labels import Labels
from warmstart.inference.ctc.options import BeamOptions
from warmstart.inference.ctc.scorer import open_scorer
from warmstart.lean import dataclass

WIDTH = 500  # Coqui's evaluation, where a language model is given

Decoder = GreedyStream | DecoderStream | Collected


@dataclass(frozen=True)
class SpeechSearch:
    """Greedily, or by a beam search where ``beam_size`` is above 1 or there is a ``scorer``.

    Attributes:
        beam_size: 1 is greedy; None is 500 with a scorer and 1 without.
        scorer: a ``.scorer`` package, ARPA file or KenLM binary.
        alpha, beta: weights of the scorer and of a word, where not those that its package brings.
        hot_words, cutoff_prob, cutoff_top_n: see :class:`~warmstart.inference.ctc.options.BeamOptions`.
        flashlight: whether flashlight-text searches: faster, with other scores.
    """

    beam_size: int | None = None
    scorer: Path | None = None
    alpha: float | None = None
    beta: float | None = None
    hot_words: Mapping[str, float] = field(default_factory=dict)
    cutoff_prob: float = 1.0
    cutoff_top_n: int | None = None
    flashlight: bool = False

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """With ``options`` that are not None.

        Raises:
            ConfigError: one is not for speech.
        """
        given = {key: value for key, value in options.items() if value is not None}
        unknown = sorted(set(given) - {field.name for field in fields(cls)})
        require_none("hearing speech", dict.fromkeys(unknown, True))
        return cls(**given)

    @property
    def is_greedy(self) -> bool:
        return self.scorer is None and self.beam_size in (None, 1)

    def open(self, labels: Labels) -> Callable[[], Decoder]:
        """What makes a decoder that has heard nothing yet.

        Raises:
            ConfigError: options that change nothing, or do not go together; all at once.
            VocabularyError, MissingExtra, SourceError, FormatError: see :func:`~.scorer.open_scorer`.
        """
        self._check_used()
        if self.is_greedy:
            return lambda: GreedyStream(labels)
        scorer = None
        if self.scorer is not None:
            scorer = open_scorer(Path(self.scorer), labels, alpha=self.alpha, beta=self.beta)
        options = BeamOptions(self.beam_size or WIDTH, self.cutoff_prob, self.cutoff_top_n, self.hot_words)
        if self.flashlight and scorer is not None:
            fast = FlashlightDecoder(labels, scorer, options)
            return lambda: Collected(fast)
        return lambda: DecoderStream(labels, options, scorer)

    def _check_used(self) -> None:
        of_scorers = {
            "alpha": self.alpha is not None, "beta": self.beta is not None, "hot_words": bool(self.hot_words),
            "flashlight": self.flashlight,
        }  # fmt: skip
        of_beams = {"cutoff_prob": self.cutoff_prob != 1.0, "cutoff_top_n": self.cutoff_top_n is not None}
        problems = [
            Problem(f"{name} changes nothing without a {needs}")
            for needs, given, missing in (
                ("scorer", of_scorers, self.scorer is None),
                ("beam search", of_beams, self.is_greedy),
            )
            for name, there in given.items()
            if there and missing
        ]
        if self.beam_size is not None and self.beam_size < 1:
            problems.append(Problem("no beam is that narrow", expected="1 (greedy) or more", found=str(self.beam_size)))
        if problems:
            raise ConfigError("these options of the search cannot be used", problems=problems)
