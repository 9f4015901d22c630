"""How a beam search is set up."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import field

from warmstart.errors import ConfigError, Problem
from warmstart.inference.ctc.labels import Labels
from warmstart.inference.ctc.lexicon import spell
from warmstart.inference.ctc.scorer import Scorer
from warmstart.lean import dataclass


@dataclass(frozen=True)
class BeamOptions:
    """How wide the search is.

    Attributes:
        width: prefixes that survive a frame, 1 or more (Coqui's evaluation: 500).
        cutoff_prob: of each frame, only the likeliest labels up to this sum are looked at; 0 < … ≤ 1, 1: all.
        cutoff_top_n: and no more labels than this; None: all.
        hot_words: word → what is added to its logarithm, before alpha, wherever it stands in a scored n-gram.
    """

    width: int = 500
    cutoff_prob: float = 1.0
    cutoff_top_n: int | None = None
    hot_words: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checks = [
            (self.width >= 1, "width", "1 or more", self.width),
            (0 < self.cutoff_prob <= 1, "cutoff_prob", "above 0, up to 1", self.cutoff_prob),
            (self.cutoff_top_n is None or self.cutoff_top_n >= 1, "cutoff_top_n", "1 or more", self.cutoff_top_n),
        ]
        checks += [
            (math.isfinite(boost), f"the boost of hot word {word!r}", "a finite number", boost)
            for word, boost in self.hot_words.items()
        ]
        problems = [
            Problem(f"{name} of the beam search cannot be used", expected=expected, found=str(value))
            for good, name, expected, value in checks
            if not good
        ]
        if problems:
            raise ConfigError("the beam search cannot be set up", problems=problems)


def check_hot_words(options: BeamOptions, labels: Labels, scorer: Scorer | None) -> None:
    """Whether every hot word can be met (Coqui ignores the others in silence).

    Raises:
        ConfigError: there is no scorer, or words that cannot be spelt or are not in its list; all at once.
    """
    if options.hot_words and scorer is None:
        raise ConfigError("hot words need a scorer", todo="give a language model, or no hot words")
    problems = []
    for word in options.hot_words:
        ids = spell(word, labels)
        if ids is None or (labels.utf8 and len(word) != 1):
            expected = "one character" if labels.utf8 else "one word of the alphabet's characters"
            problems.append(Problem(f"the hot word {word!r} is never met", expected=expected))
        elif scorer is not None and scorer.lexicon is not None and ids not in scorer.lexicon:
            problems.append(Problem(f"the hot word {word!r} is never met", expected="a word of the scorer's list"))
    if problems:
        raise ConfigError("hot words would change nothing", problems=problems)
