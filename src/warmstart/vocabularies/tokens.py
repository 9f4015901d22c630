"""Tokens that another tool cuts text into."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Self

from warmstart.errors import VocabularyError
from warmstart.vocabularies.vocabulary import Vocabulary


class TokenVocabulary(Vocabulary):
    """One token a row, separated by spaces in text; tokens may be any strings, and may repeat (the first counts).

    ``eos`` and ``unk`` are tokens of the table (``eos``: None where sequences end without one, then ``eos_id`` is -1);
    ``bos`` and ``pad`` what else a framework calls so (None: it has none). ``files`` are those of the tool that cuts
    text, by name: they are carried along, not read.

    Raises ``VocabularyError`` when the table has no ``eos``.
    """

    kind = "tokens"

    def __init__(
        self,
        tokens: Iterable[str],
        eos: str | None = "</s>",
        unk: str | None = "<unk>",
        *,
        bos: str | None = "<s>",
        pad: str | None = None,
        files: Mapping[str, bytes] | None = None,
    ) -> None:
        self.tokens = tuple(tokens)
        if eos is not None and eos not in self.tokens:
            raise VocabularyError("the vocabulary has no end token", expected=repr(eos))
        self.eos_id: int = -1 if eos is None else self.tokens.index(eos)
        self.unk_id: int | None = self.tokens.index(unk) if unk in self.tokens else None
        self.bos, self.pad = bos, pad
        self.files: dict[str, bytes] = dict(files or {})

    @cached_property
    def _rows(self) -> dict[str, int]:
        """token → the first of its rows."""
        last = len(self.tokens) - 1
        return {token: last - place for place, token in enumerate(reversed(self.tokens))}

    def encode(self, text: str) -> list[int]:
        rows = [self._rows.get(token, self.unk_id) for token in text.split(" ") if token]
        return [row for row in rows if row is not None]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(self.tokens[row] for row in ids)

    def file(self) -> tuple[str, bytes]:
        content: dict[str, object] = {"eos": None if self.eos_id < 0 else self.tokens[self.eos_id]}
        content["unk"] = None if self.unk_id is None else self.tokens[self.unk_id]
        content["bos"], content["pad"] = self.bos, self.pad
        # Python's json takes ten times as long for tokens and for base64, in which there is nothing to escape.
        text = json.dumps(content, ensure_ascii=False, separators=(",\n", ": "))
        text = f'{{"kind": "{self.kind}",\n"tokens": [{self._spelt()}],\n{text[1:]}'
        start = text[:-1].encode("utf-8", "backslashreplace")  # of half a pair, that is how JSON escapes it
        files = (b'%b: "%b"' % (json.dumps(name).encode(), b64encode(self.files[name])) for name in sorted(self.files))
        return ".json", start + b',\n"files": {' + b",".join(files) + b"}}\n"

    def _spelt(self) -> str:
        """The tokens as JSON, one a line."""
        joined = "".join(self.tokens)
        if self.tokens and joined.isprintable() and '"' not in joined and "\\" not in joined:
            return '"' + '",\n"'.join(self.tokens) + '"'
        return json.dumps(self.tokens, ensure_ascii=False, separators=(",\n", ": "))[1:-1]

    @classmethod
    def from_json(cls, content: dict[str, object], where: object = None) -> Self:
        """The vocabulary that ``file`` wrote; ``content`` is the parsed JSON."""
        tokens, eos, unk = content.get("tokens"), content.get("eos"), content.get("unk")
        bos, pad, files = content.get("bos", "<s>"), content.get("pad"), content.get("files", {})
        extra = sorted(set(content) - {"kind", "tokens", "eos", "unk", "bos", "pad", "files"})
        if extra:
            raise VocabularyError("a vocabulary of tokens has unknown keys", where=where, found=", ".join(extra))
        if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
            raise VocabularyError("'tokens' is not a list of strings", where=where)
        if not all(isinstance(token, str | None) for token in (eos, unk, bos, pad)):
            raise VocabularyError("'eos', 'unk', 'bos' and 'pad' must be tokens", where=where)
        return cls(tokens, eos, unk, bos=bos, pad=pad, files=_decode(files, where))  # type: ignore[arg-type]


def _decode(files: object, where: object) -> dict[str, bytes]:
    if not isinstance(files, dict) or any("/" in name or not isinstance(data, str) for name, data in files.items()):
        raise VocabularyError("'files' of a vocabulary must be names and base64", where=where)
    try:
        return {name: b64decode(data, validate=True) for name, data in files.items()}
    except ValueError as error:
        raise VocabularyError("'files' of a vocabulary must be base64", where=where, found=error) from None
