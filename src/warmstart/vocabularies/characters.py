"""One row for each character."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Self

from warmstart.errors import VocabularyError
from warmstart.vocabularies.vocabulary import Vocabulary

EOS, UNK, SPACE = "</s>", "<unk>", "▁"
REPLACEMENT = "\ufffd"


class CharacterVocabulary(Vocabulary):
    """Characters (code points) as tokens; a space is the token ``▁``, and a literal ``▁`` is unknown.

    An unknown row decodes to U+FFFD. Raises ``VocabularyError`` for repeated tokens, tokens longer than one
    character, and special rows outside the table.
    """

    kind = "characters"

    def __init__(self, tokens: Iterable[str], eos_id: int = 0, unk_id: int = 1) -> None:
        self.tokens = tuple(tokens)
        self.eos_id: int = eos_id
        self.unk_id: int = unk_id
        if eos_id == unk_id or not (0 <= eos_id < len(self.tokens) and 0 <= unk_id < len(self.tokens)):
            raise VocabularyError(
                "the end and unknown rows of a character vocabulary must be two of its rows",
                expected=f"0 ≤ row < {len(self.tokens)}",
                found=f"eos_id {eos_id}, unk_id {unk_id}",
            )
        self._rows: dict[str, int] = {}
        for row, token in enumerate(self.tokens):
            if row in (eos_id, unk_id):
                continue
            if len(token) != 1 or token == " " or token in self._rows:
                fault = "repeated" if token in self._rows else "not one character (a space is written ▁)"
                raise VocabularyError(f"token {token!r} of a character vocabulary is {fault}", where=f"row {row}")
            self._rows[token] = row
        self._characters = [" " if token == SPACE else token for token in self.tokens]
        self._characters[eos_id], self._characters[unk_id] = "", REPLACEMENT
        space = self._rows.pop(SPACE, None)
        if space is not None:
            self._rows[" "] = space

    @classmethod
    def train(cls, lines: Iterable[str], min_count: int = 1) -> Self:
        """``</s>``, ``<unk>``, then the characters of ``lines`` seen at least ``min_count`` times, by falling
        count, then by code point."""
        counts: Counter[str] = Counter()
        for line in lines:
            counts.update(line)
        counts.pop(SPACE, None)
        kept = sorted((c for c, n in counts.items() if n >= min_count), key=lambda c: (-counts[c], c))
        if not kept:
            raise VocabularyError(
                "no character to make a vocabulary of", expected=f"a character seen {min_count} times or more"
            )
        return cls([EOS, UNK, *(SPACE if c == " " else c for c in kept)])

    def encode(self, text: str) -> list[int]:
        rows, unknown = self._rows, self.unk_id
        return [rows.get(character, unknown) for character in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self._characters[row] for row in ids)

    def file(self) -> tuple[str, bytes]:
        content: dict[str, object] = {"kind": self.kind, "tokens": list(self.tokens)}
        if (self.eos_id, self.unk_id) != (0, 1):
            content |= {"eos_id": self.eos_id, "unk_id": self.unk_id}
        return ".json", (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode("utf-8")

    @classmethod
    def from_json(cls, content: dict[str, object], where: object = None) -> Self:
        """The vocabulary that ``file`` wrote; ``content`` is the parsed JSON."""
        tokens, eos_id, unk_id = content.get("tokens"), content.get("eos_id", 0), content.get("unk_id", 1)
        extra = sorted(set(content) - {"kind", "tokens", "eos_id", "unk_id"})
        if extra:
            raise VocabularyError("a character vocabulary has unknown keys", where=where, found=", ".join(extra))
        if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
            raise VocabularyError("'tokens' of a character vocabulary is not a list of strings", where=where)
        if type(eos_id) is not int or type(unk_id) is not int:
            raise VocabularyError("'eos_id' and 'unk_id' of a character vocabulary must be integers", where=where)
        return cls(tokens, eos_id, unk_id)
