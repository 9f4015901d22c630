"""Tokens of a subword tokenizer, whose own files know how text becomes them."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

from warmstart.errors import VocabularyError
from warmstart.vocabularies.vocabulary import Vocabulary

ROLES = ("bos", "eos", "unk", "pad")


class SubwordVocabulary(Vocabulary):
    """The table of a tokenizer, with its special tokens and files.

    ``special`` is role (``bos``, ``eos``, ``unk``, ``pad``) → token; ``files`` is name → content, for the way back.
    Text is not cut here: ``encode`` takes tokens separated by spaces. ``eos_id`` is -1 where no token ends a text.
    """

    kind = "subwords"

    def __init__(
        self,
        tokens: Iterable[str],
        special: Mapping[str, str | None] | None = None,
        files: Mapping[str, bytes] | None = None,
    ) -> None:
        self.tokens = tuple(tokens)
        self.special = {
            role: token for role, token in (special or {}).items() if role in ROLES and isinstance(token, str)
        }
        self.files = dict(files or {})
        self.eos_id = self.index.get(self.special.get("eos", ""), -1)
        self.unk_id = self.index.get(self.special.get("unk", ""))

    def encode(self, text: str) -> list[int]:
        rows = [self.index.get(token, self.unk_id) for token in text.split(" ") if token]
        return [row for row in rows if row is not None]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(self.tokens[row] for row in ids)

    def file(self) -> tuple[str, bytes]:
        content = {"kind": self.kind, "tokens": list(self.tokens), "special": self.special}
        text = json.dumps(content, separators=(",\n", ": "))
        # Python's json takes ten times as long for base64, in which there is nothing to escape.
        files = [f'{json.dumps(name)}: "{base64.b64encode(data).decode("ascii")}"' for name, data in self.files.items()]
        between = ",\n".join(files)
        return ".json", f'{text[:-1]},\n"files": {{{between}}}}}\n'.encode("ascii")

    @classmethod
    def from_json(cls, content: Mapping[str, Any], where: object = None) -> Self:
        """The vocabulary that ``file`` wrote; ``content`` is the parsed JSON."""
        try:
            files = {str(n): base64.b64decode(text, validate=True) for n, text in content["files"].items()}
            return cls(map(str, content["tokens"]), dict(content["special"]), files)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise VocabularyError("a vocabulary of subwords is damaged", where=where, found=error) from error
