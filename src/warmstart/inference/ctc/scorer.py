"""What a beam search asks besides the acoustic model: a language model, a lexicon and their weights."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path

from warmstart.errors import ConfigError, Problem, SourceError, VocabularyError
from warmstart.inference.ctc.labels import Labels, space_label
from warmstart.inference.ctc.language_model import KenLM, LanguageModel, arpa_words, hint
from warmstart.inference.ctc.lexicon import Lexicon
from warmstart.inference.ctc.scorer_file import check_labels, is_kenlm_binary, read_package
from warmstart.lean import dataclass

logger = logging.getLogger(__name__)

_SAMPLE = 1000


@dataclass(frozen=True)
class Scorer:
    """Each word (in byte mode: each character) adds ``alpha`` · (ln P(word | words before) + its boosts) + ``beta``.

    ``lexicon`` is what may be spelt; without one everything may. ``left_out`` are words of the list that the alphabet
    cannot spell. ``path`` is the language model's file.
    """

    model: LanguageModel
    alpha: float
    beta: float
    utf8: bool = False
    lexicon: Lexicon | None = None
    left_out: tuple[str, ...] = ()
    path: Path | None = None

    def __post_init__(self) -> None:
        problems = [
            Problem(f"{name} of a scorer must be a finite number", found=str(value))
            for name, value in (("alpha", self.alpha), ("beta", self.beta))
            if not math.isfinite(value)
        ]
        if problems:
            raise ConfigError("the scorer's weights cannot be used", problems=problems)

    def weighted(self, alpha: float, beta: float) -> Scorer:
        """The same with other weights; the language model and what it remembers are shared."""
        return replace(self, alpha=alpha, beta=beta)


def open_scorer(
    path: Path,
    labels: Labels,
    *,
    alpha: float | None = None,
    beta: float | None = None,
    words: Iterable[str] | None = None,
) -> Scorer:
    """Opens a ``.scorer`` package, an ARPA file or a KenLM binary, for a model with ``labels``.

    Args:
        alpha, beta: weights, 1 and 0 where the file brings none.
        words: what may be spelt. A package brings its own list and takes no other; an ARPA file's unigrams are taken
            where nothing is said; a binary alone restricts nothing, and words that it does not know score -1000.

    Raises:
        MissingExtra: ``kenlm`` is not installed.
        SourceError, FormatError, CorruptCheckpoint: the file cannot be read.
        VocabularyError: the scorer was made for another alphabet, or no word can be spelt.
        ConfigError: weights are no numbers, or a package is given words.
    """
    path = Path(path)
    if not path.is_file():
        raise SourceError("there is no such language model", where=path)
    package = read_package(path) if is_kenlm_binary(path) else None
    if package is not None:
        if words is not None:
            raise ConfigError(
                "a scorer package brings its own words", where=path, todo="give the bare language model with words"
            )
        if package.utf8 != labels.utf8:
            kinds = {True: "bytes of UTF-8", False: "characters of an alphabet"}
            raise VocabularyError(
                "the scorer was made for another kind of model",
                where=path,
                expected=kinds[labels.utf8],
                found=kinds[package.utf8],
                todo="use a scorer built for this model",
            )
        check_labels(package.lexicon, labels, path)
        model: LanguageModel = KenLM(path)
        _check_words(package.lexicon, labels, model, path)
        lexicon: Lexicon | None = package.lexicon
        left: list[str] = []
        alpha = package.alpha if alpha is None else alpha
        beta = package.beta if beta is None else beta
    else:
        words = arpa_words(path) if words is None else words
        model = KenLM(path)
        lexicon, left = (None, []) if words is None else Lexicon.of(words, labels)
        if lexicon is None and not labels.utf8 and space_label(labels) is None:
            raise VocabularyError("a language model of words needs a space in the alphabet", where=path)
    if left:
        logger.warning(
            "%s: %s words that the alphabet cannot spell are left out: %s", path, f"{len(left):,}", hint(left)
        )
    alpha, beta = 1.0 if alpha is None else alpha, 0.0 if beta is None else beta
    return Scorer(model, alpha, beta, labels.utf8, lexicon, tuple(left), path)


def _check_words(lexicon: Lexicon, labels: Labels, model: LanguageModel, path: Path) -> None:
    """A package does not say its alphabet, but its language model knows the words that its lexicon spells.

    Raises:
        VocabularyError: of the first words not even half are known; their labels mean something else here.
    """
    words = list(islice(lexicon.words(labels), _SAMPLE))
    unknown = [word for word in words if word not in model]
    if 2 * len(unknown) > len(words):
        raise VocabularyError(
            "the scorer was made for another alphabet",
            where=path,
            expected="words that its language model knows",
            found=f"of {len(words)} words {len(unknown)} unknown ones: {hint(unknown)}",
            todo="build the scorer with this model's alphabet",
        )
