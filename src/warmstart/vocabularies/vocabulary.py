"""What every vocabulary offers: text ↔ rows of an embedding."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path


class Vocabulary(ABC):
    """Tokens, one for each row of an embedding, and how text is cut into them.

    ``eos_id`` ends every sequence; ``unk_id`` stands for what has no row (None where every text can be
    spelt). Ids are rows: 0 ≤ id < ``len(vocabulary)``.
    """

    kind: str
    path: Path | None = None  # the file it was read from
    beside: Sequence[Path] = ()  # further ones
    tokens: tuple[str, ...]
    eos_id: int
    unk_id: int | None

    def __len__(self) -> int:
        return len(self.tokens)

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Rows of ``text``'s tokens, without the end token."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``, which hold no end token."""

    @abstractmethod
    def file(self) -> tuple[str, bytes]:
        """(suffix, content) of the file that ``load_vocabulary`` reads back as an equal vocabulary."""

    @cached_property
    def index(self) -> dict[str, int]:
        """token → row."""
        return dict(zip(self.tokens, range(len(self.tokens)), strict=True))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the token ↔ row table and the special rows: two vocabularies with the same
        fingerprint give every row the same meaning, whatever file they came from."""
        table = json.dumps([list(self.tokens), self.eos_id, self.unk_id], ensure_ascii=False)
        return hashlib.sha256(table.encode("utf-8", "surrogatepass")).hexdigest()
