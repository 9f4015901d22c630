"""T5's vocabularies: pieces, then sentinels (``<extra_id_99>`` … ``<extra_id_0>``), then rows that nothing uses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from warmstart.errors import VocabularyError
from warmstart.models.t5.parameters import VOCABULARY
from warmstart.vocabularies.load import load_vocabulary
from warmstart.vocabularies.tokens import TokenVocabulary
from warmstart.vocabularies.vocabulary import Vocabulary

EOS, UNK, PAD = "</s>", "<unk>", "<pad>"
SENTINELS = 100
BYTES = 256


def vocabulary_of(paths: Sequence[Path], rows: int, where: object) -> dict[str, Vocabulary]:
    """The vocabulary in the file that is given, with as many rows as the embedding has; nothing without a file.

    Raises:
        VocabularyError: several files, or more tokens than rows.
    """
    if not paths:
        return {}
    if len(set(paths)) > 1:
        raise VocabularyError("a T5 model has one vocabulary", where=where, found=", ".join(map(str, paths)))
    vocabulary = load_vocabulary(paths[0])
    if vocabulary.kind != "sentencepiece":
        return {VOCABULARY: vocabulary}
    pieces = of_pieces(vocabulary, rows, paths[0])
    pieces.path = vocabulary.path
    return {VOCABULARY: pieces}


def of_pieces(vocabulary: Vocabulary, rows: int, where: object, sentinels: int = SENTINELS) -> TokenVocabulary:
    """The table of a SentencePiece model, with sentinels where there is room for them, and padded."""
    tokens = with_sentinels(list(vocabulary.tokens), rows, sentinels)
    eos = vocabulary.tokens[vocabulary.eos_id]
    unk = None if vocabulary.unk_id is None else vocabulary.tokens[vocabulary.unk_id]
    pad = vocabulary.tokens[0]
    files = {"spiece.model": vocabulary.file()[1]}
    return TokenVocabulary(padded(tokens, rows, where), eos, unk, bos=pad, pad=pad, files=files)


def with_sentinels(tokens: list[str], rows: int, sentinels: int) -> list[str]:
    """``tokens`` and behind them the sentinels, which count down."""
    if (not rows or len(tokens) + sentinels <= rows) and not any("<extra_id_" in token for token in tokens):
        return [*tokens, *(f"<extra_id_{k}>" for k in range(sentinels - 1, -1, -1))]
    return tokens


def padded(tokens: Sequence[str], rows: int, where: object, filler: str = "<extra_id_{}>") -> list[str]:
    """``tokens`` filled up to ``rows`` (0: unknown) with what CTranslate2's converter calls the rows that have none.

    Raises:
        VocabularyError: there are more tokens than rows.
    """
    if len(tokens) > rows > 0:
        raise VocabularyError(
            "the vocabulary has more tokens than the embedding has rows", where=where, expected=rows, found=len(tokens)
        )
    return [*tokens, *(filler.format(k) for k in range(rows - len(tokens)))]


def of_bytes() -> list[str]:
    """ByT5's table before its sentinels."""
    return [PAD, EOS, UNK, *map(chr, range(BYTES))]
