"""Tokens that another tool cuts text into."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Self

from warmstart.errors import VocabularyError
from warmstart.vocabularies.vocabulary import Vocabulary


class TokenVocabulary(Vocabulary):
    """One token a row, separated by spaces in text; tokens may be any strings, and may repeat (the first counts).

    ``eos`` and ``unk`` are tokens of the table. Raises ``VocabularyError`` when the table has no ``eos``.
    """

    kind = "tokens"

    def __init__(self, tokens: Iterable[str], eos: str = "</s>", unk: str | None = "<unk>") -> None:
        self.tokens = tuple(tokens)
        rows: dict[str, int] = {}
        for row, token in enumerate(self.tokens):
            rows.setdefault(token, row)
        self._rows = rows
        if eos not in rows:
            raise VocabularyError("the vocabulary has no end token", expected=repr(eos))
        self.eos_id: int = rows[eos]
        self.unk_id: int | None = rows.get(unk) if unk is not None else None

    def encode(self, text: str) -> list[int]:
        rows = [self._rows.get(token, self.unk_id) for token in text.split(" ") if token]
        return [row for row in rows if row is not None]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(self.tokens[row] for row in ids)

    def file(self) -> tuple[str, bytes]:
        content: dict[str, object] = {"kind": self.kind, "tokens": list(self.tokens)}
        content["eos"] = self.tokens[self.eos_id]
        content["unk"] = None if self.unk_id is None else self.tokens[self.unk_id]
        return ".json", (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode("utf-8", "surrogatepass")

    @classmethod
    def from_json(cls, content: dict[str, object], where: object = None) -> Self:
        """The vocabulary that ``file`` wrote; ``content`` is the parsed JSON."""
        tokens, eos, unk = content.get("tokens"), content.get("eos"), content.get("unk")
        extra = sorted(set(content) - {"kind", "tokens", "eos", "unk"})
        if extra:
            raise VocabularyError("a vocabulary of tokens has unknown keys", where=where, found=", ".join(extra))
        if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
            raise VocabularyError("'tokens' is not a list of strings", where=where)
        if not isinstance(eos, str) or not isinstance(unk, str | None):
            raise VocabularyError("'eos' and 'unk' must be tokens", where=where)
        return cls(tokens, eos, unk)
