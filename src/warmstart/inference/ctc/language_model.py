"""Word probabilities of KenLM models, through the ``kenlm`` package."""

from __future__ import annotations

import bz2
import gzip
import lzma
import math
import os
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from warmstart.errors import FormatError, MissingExtra

OOV = -1000.0
_KEPT = 1 << 18
_COMPRESSED: dict[bytes, Callable[..., Any]] = {  # by their first bytes; KenLM reads through them, too
    b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open,
}  # fmt: skip


class LanguageModel(Protocol):
    """Scores of n-grams of at most ``order`` words."""

    @property
    def order(self) -> int: ...

    def __contains__(self, word: str) -> bool: ...

    def log_prob(self, ngram: tuple[str, ...]) -> float:
        """Natural logarithm of the last word's probability after the ones before it.

        Fewer than ``order`` words stand at the beginning of a sentence. Where any of them is unknown the answer is
        ``OOV``, without words 0 (Coqui STT 1.4.0, ``ctcdecode/scorer.cpp``).
        """


class KenLM:
    """An ARPA file, a KenLM binary or a ``.scorer``.

    Of a binary KenLM checks its header and size. It has no checksum: one that is damaged inside can give other scores,
    or end the process.

    Raises:
        MissingExtra: ``kenlm`` is not installed.
        FormatError: KenLM cannot read the file.
    """

    def __init__(self, path: Path) -> None:
        try:
            import kenlm
        except ImportError as error:
            raise MissingExtra("kenlm, which reads language models", "lm") from error
        config = kenlm.Config()
        config.show_progress = False
        config.arpa_complain = kenlm.ARPALoadComplain.NONE
        try:
            self._model = kenlm.Model(os.fspath(path), config)
        except (OSError, RuntimeError, ValueError) as error:
            raise FormatError(
                "KenLM cannot read the language model", where=path, found=str(error).strip() or type(error).__name__
            ) from error
        self._states = [kenlm.State(), kenlm.State()]
        self.log_prob = lru_cache(_KEPT)(self._log_prob)

    @property
    def order(self) -> int:
        return int(self._model.order)

    def __contains__(self, word: str) -> bool:
        return word in self._model

    def _log_prob(self, ngram: tuple[str, ...]) -> float:
        if any(word not in self._model for word in ngram):
            return OOV
        before, after = self._states
        if len(ngram) < self.order:
            self._model.BeginSentenceWrite(before)
        else:
            self._model.NullContextWrite(before)
        score = 0.0
        for word in ngram:
            score = self._model.BaseScore(before, word, after)
            before, after = after, before
        return score * math.log(10)


def arpa_words(path: Path) -> list[str] | None:
    """Words of an ARPA file's unigrams, without ``<s>``, ``</s>`` and ``<unk>``; None where it is no ARPA text,
    compressed or not.

    Raises:
        FormatError: a line of the unigrams has no word, or the file cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(8)
    opened = next((opens for magic, opens in _COMPRESSED.items() if start.startswith(magic)), open)
    try:
        with opened(path, "rb") as file:
            if not file.read(512).lstrip().startswith(b"\\data\\"):
                return None
        return _unigrams(path, opened)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise FormatError("the language model cannot be read", where=path, found=str(error)) from error


def _unigrams(path: Path, opened: Callable[..., Any]) -> list[str]:
    words: list[str] = []
    inside = False
    with opened(path, "rt", encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if line.startswith("\\"):
                if inside:
                    break
                inside = line.strip() == "\\1-grams:"
            elif inside and line.strip():
                fields = line.split("\t") if "\t" in line else line.split()
                if len(fields) < 2:
                    raise FormatError(
                        "the language model is damaged",
                        where=f"{path}, line {number}",
                        expected="a probability and a word",
                        found=repr(line.strip()[:80]),
                    )
                words.append(fields[1].strip())
    return [word for word in words if word.lower() not in ("<s>", "</s>", "<unk>")]


def hint(words: Sequence[str]) -> str:
    """``'a', 'b' and 3 more``: the first ten."""
    shown = ", ".join(map(repr, words[:10]))
    return shown if len(words) <= 10 else f"{shown} and {len(words) - 10} more"
