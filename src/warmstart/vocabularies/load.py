"""Vocabularies from files."""

from __future__ import annotations

import json
from pathlib import Path

from warmstart.errors import VocabularyError
from warmstart.vocabularies.alphabet import Alphabet
from warmstart.vocabularies.characters import CharacterVocabulary
from warmstart.vocabularies.marian_yaml import MarianVocabulary
from warmstart.vocabularies.sentencepiece import SentencePieceVocabulary
from warmstart.vocabularies.subwords import SubwordVocabulary
from warmstart.vocabularies.tokens import TokenVocabulary
from warmstart.vocabularies.vocabulary import Vocabulary

PLAIN = (".txt", ".vocab", ".list")


def load_vocabulary(path: Path) -> Vocabulary:
    """Opens a vocabulary by its content: our JSON, a SentencePiece model or Marian's YAML; in a file called ``.txt`` or
    ``.vocab`` also one token a line, as Marian reads these.

    Raises ``VocabularyError``.
    """
    data = _read(path)
    if not data.strip():
        raise VocabularyError("the vocabulary file is empty", where=path)
    try:
        vocabulary = parse_vocabulary(data, path)
        vocabulary.path = path
        return vocabulary
    except VocabularyError as error:
        if error.where == str(path):
            raise
        detail = error.what + (f" ({error.where})" if error.where else "")
        raise VocabularyError(
            detail, where=path, expected=error.expected, found=error.found, todo=error.todo, problems=error.problems
        ) from error


def load_alphabet(path: Path) -> Alphabet:
    """The alphabet in ``path``: Coqui's ``alphabet.txt``, or our JSON.

    Raises ``VocabularyError``.
    """
    if path.suffix.lower() == ".json":
        vocabulary = load_vocabulary(path)
        if isinstance(vocabulary, Alphabet):
            return vocabulary
        raise VocabularyError(
            "this vocabulary is no alphabet", where=path, expected=Alphabet.kind, found=vocabulary.kind
        )
    try:
        return Alphabet.from_text(_read(path).decode("utf-8"), path)
    except UnicodeDecodeError as error:
        raise VocabularyError("the alphabet is not UTF-8 text", where=path, found=error) from error


def _read(path: Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise VocabularyError("cannot read the vocabulary", where=path, found=error.strerror or error) from error
    except ValueError as error:  # no path at all
        raise VocabularyError("cannot read the vocabulary", where=repr(path), found=error) from None


def parse_vocabulary(data: bytes, where: object = None) -> Vocabulary:
    """The vocabulary in ``data``; ``where`` is named in errors, and as a path tells a plain list from YAML."""
    # Scores of special pieces are zeros, so a SentencePiece model always holds NUL bytes; no text does.
    if b"\x00" in data:
        return SentencePieceVocabulary(data)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise VocabularyError("the vocabulary is not UTF-8 text", where=where, found=error) from error
    if text.lstrip().startswith("{"):
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            content = None
        if isinstance(content, dict) and isinstance(content.get("kind"), str):
            if content["kind"] == TokenVocabulary.kind:
                return TokenVocabulary.from_json(content, where)
            if content["kind"] == SubwordVocabulary.kind:
                return SubwordVocabulary.from_json(content, where)
            if content["kind"] == Alphabet.kind:
                return Alphabet.from_json(content, where)
            if content["kind"] != CharacterVocabulary.kind:
                raise VocabularyError(
                    "a vocabulary of a kind this version does not know",
                    where=where,
                    expected=", ".join(
                        v.kind for v in (Alphabet, CharacterVocabulary, SubwordVocabulary, TokenVocabulary)
                    ),
                    found=content["kind"],
                )
            return CharacterVocabulary.from_json(content, where)
        if isinstance(content, dict) and isinstance(content.get("model"), dict):
            raise VocabularyError("this is a tokenizer of transformers, not a vocabulary of this model", where=where)
    if Path(str(where)).suffix.lower() in PLAIN:  # as Marian tells them apart
        return MarianVocabulary.parse_plain(text, where)
    return MarianVocabulary.parse(text, where)


def difference(a: Vocabulary, b: Vocabulary) -> str:
    """One sentence on how ``b``'s rows differ from ``a``'s: sizes, first row that differs, shared tokens."""
    if a.fingerprint == b.fingerprint:
        return f"the same {len(a)} tokens in the same rows"
    shared = len(set(a.tokens) & set(b.tokens))
    sizes = f"{len(a)} tokens" if len(a) == len(b) else f"{len(a)} and {len(b)} tokens"
    parts = [f"{sizes}, {shared} shared"]
    row = next((i for i, (x, y) in enumerate(zip(a.tokens, b.tokens, strict=False)) if x != y), None)
    if row is not None:
        parts.append(f"first difference in row {row} ({a.tokens[row]!r} and {b.tokens[row]!r})")
    elif len(a) != len(b):
        longer = a if len(a) > len(b) else b
        row = min(len(a), len(b))
        parts.append(f"the same up to row {row}, where only one has {longer.tokens[row]!r}")
    if (a.eos_id, a.unk_id) != (b.eos_id, b.unk_id):
        parts.append(f"end and unknown rows {a.eos_id}, {a.unk_id} and {b.eos_id}, {b.unk_id}")
    return "; ".join(parts)
