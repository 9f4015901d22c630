"""Marian's vocabulary files: one ``token: row`` a line, as YAML or JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import chain
from typing import Self

from warmstart.errors import Problem, VocabularyError
from warmstart.vocabularies.vocabulary import Vocabulary

EOS, UNK = "</s>", "<unk>"
SHOWN = 10


class MarianVocabulary(Vocabulary):
    """Tokens separated by spaces. ``</s>`` ends a sequence, ``<unk>`` stands for unknown tokens.

    Raises ``VocabularyError`` for repeated or empty tokens and when one of the two special tokens is missing.
    """

    kind = "marian-yaml"
    _text: str | None = None  # the file that it was read from, where that is spelt as it is written here

    def __init__(self, tokens: Iterable[str]) -> None:
        self.tokens = tuple(tokens)
        joined = "".join(self.tokens)
        simple = len(self.index) == len(self.tokens) and " " not in joined and "\n" not in joined
        for row, token in enumerate(self.tokens if not simple or "" in self.index else ()):
            if not token or " " in token or "\n" in token or self.index[token] != row:
                fault = "repeated" if self.index[token] != row else "empty or holds a space"
                raise VocabularyError(f"token {token!r} is {fault}", where=f"row {row}")
        missing = [token for token in (EOS, UNK) if token not in self.index]
        if missing:
            raise VocabularyError(
                f"the vocabulary has no row for {' and '.join(missing)}", expected=f"{EOS} and {UNK} among the tokens"
            )
        self.eos_id: int = self.index[EOS]
        self.unk_id: int = self.index[UNK]

    @classmethod
    def parse(cls, text: str, where: object = None) -> Self:
        """The vocabulary in ``text``, where every row from 0 up has one token. Keys are taken literally: a
        token ``no``, ``1``, ``~`` or ``null`` is that string."""
        usual = _usual(text)
        if usual:
            with suppress(VocabularyError):  # said below, of the file's lines
                vocabulary = cls(usual)
                vocabulary._text = text
                return vocabulary
        pairs = _pairs(text, where)
        tokens = [token for token, _ in pairs]
        if [value for _, value in pairs] == list(map(str, range(len(pairs)))) and len({*tokens}) == len(tokens):
            return cls(tokens)
        problems: list[Problem] = []
        rows: dict[int, str] = {}
        seen: set[str] = set()
        for token, value in pairs:
            if not (value.isascii() and value.isdigit() and len(value) < 10):
                problems.append(Problem(f"the row of token {token!r} is not a whole number", found=repr(value)))
            elif token in seen:
                problems.append(Problem(f"token {token!r} appears twice"))
            elif int(value) in rows:
                problems.append(Problem(f"row {value} has two tokens", found=f"{rows[int(value)]!r} and {token!r}"))
            else:
                rows[int(value)] = token
            seen.add(token)
        gaps = [row for row in range(len(pairs)) if row not in rows]
        if gaps and not problems:
            problems.append(
                Problem("rows are missing", expected=f"0 to {len(pairs) - 1}", found=f"no token for row {gaps[0]}")
            )
        if problems:
            raise VocabularyError(
                f"the vocabulary is not a table of tokens and rows ({len(problems)} problems)",
                where=where,
                problems=problems[:SHOWN],
            )
        return cls(rows[row] for row in range(len(rows)))

    @classmethod
    def parse_plain(cls, text: str, where: object = None) -> Self:
        """The vocabulary in ``text``, which has one token in each line, row after row."""
        lines = text.split("\n")
        if lines[-1] == "":
            lines.pop()
        if all(line.endswith("\r") for line in lines):
            lines = [line[:-1] for line in lines]
        if all("\t" in line for line in lines):
            raise VocabularyError(
                "a list of pieces and their scores does not say how text is cut",
                where=where,
                todo="give the SentencePiece model (.model or .spm) that it was made with",
            )
        if _line_by_line(text) is not None:
            return cls.parse(text, where)  # a table under another name
        return cls(lines)

    def encode(self, text: str) -> list[int]:
        # Marian splits at U+0020 only: a no-break space is part of a token.
        return [self.index.get(token, self.unk_id) for token in text.split(" ") if token]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(self.tokens[row] for row in ids)

    def file(self) -> tuple[str, bytes]:
        if self._text is not None:
            return ".yml", self._text.encode("utf-8")
        joined = "".join(self.tokens)
        plain = joined.isprintable() and '"' not in joined and "\\" not in joined
        return ".yml", _spelt(self.tokens if plain else [_quoted(token)[1:-1] for token in self.tokens]).encode("utf-8")


# A line that stands for itself: a key in double quotes without escapes but \" and \\, in single quotes, or plain; or
# one in double quotes with other escapes. Source: https://yaml.org/spec/1.2.2/, 7.3.
_ODD = r"\x00-\x1f\x7f-\xa0\u2028\u2029\ufeff\ud800-\udfff"  # control characters and other ends of lines
_LINES = (
    rf"""(?m:^)(?:"((?:[^"\\{_ODD}]++|\\["\\])*+)"|'((?:[^'{_ODD}]|'')*)'"""
    rf"""|((?:[^\s\-?:,\[\]{{}}#&*!|>'"%@`{_ODD}]|[-?:](?=[^\s,\[\]{{}}{_ODD}]))(?:[^\s:{_ODD}]|:(?=[^\s{_ODD}]))*)"""
    rf"""|("(?:[^"\\{_ODD}]|\\[^{_ODD}])*")): +(\d+)\r?(?m:$)"""
)


def _usual(text: str) -> Sequence[str]:
    """The tokens of ``text`` where it is spelt as it is written here, and nothing is escaped; else none."""
    before, *parts = text.split('"')
    tokens, rows = parts[::2], parts[1::2]
    expected = (": %d\n" * len(tokens)) % tuple(range(len(tokens)))
    if before or rows != expected.splitlines(keepends=True) or re.search(rf"[\\{_ODD}]", "".join(tokens)):
        return ()
    return tokens


def _spelt(tokens: Sequence[str]) -> str:
    """The file of ``tokens`` in whose spelling there is nothing to escape."""
    return ('"%s": %d\n' * len(tokens)) % tuple(chain.from_iterable(zip(tokens, range(len(tokens)), strict=True)))


def _line_by_line(text: str) -> list[tuple[str, str]] | None:
    """What ``_pairs`` gives, a hundred times faster; None where a line is not as simple as Marian writes it."""
    found = re.findall(_LINES, text)  # compiled here: most files are spelt in the usual way
    if len(found) != text.rstrip("\n").count("\n") + 1:
        return None
    pairs = []
    for double, single, plain, escaped, row in found:
        if double:
            key = re.sub(r'\\(["\\])', r"\1", double) if "\\" in double else double
        elif single:
            key = single.replace("''", "'")
        elif plain or not escaped:
            key = plain
        else:
            import yaml

            try:
                key = str(yaml.load(escaped, Loader=yaml.BaseLoader))
            except yaml.YAMLError:
                return None
        pairs.append((key, row))
    return pairs


def _quoted(token: str) -> str:
    """``token`` as a double-quoted YAML scalar with every unprintable character escaped."""
    if token.isprintable() and '"' not in token and "\\" not in token:
        return f'"{token}"'
    plain = token.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in plain) + '"'


def _pairs(text: str, where: object) -> list[tuple[str, str]]:
    """(key, value) of a flat mapping in JSON or YAML, all as the strings they are spelt by."""
    if text.lstrip().startswith("{"):
        try:
            content = json.loads(text, object_pairs_hook=lambda pairs: [(k, json.dumps(v)) for k, v in pairs])
        except (ValueError, TypeError, RecursionError):
            pass
        else:
            return list(content)
    simple = _line_by_line(text)
    if simple is not None:
        return simple
    import yaml

    try:
        node = yaml.compose(text, Loader=getattr(yaml, "CBaseLoader", yaml.BaseLoader))
    except (yaml.YAMLError, RecursionError) as error:
        raise _not_a_table(where, str(error)) from error
    if not isinstance(node, yaml.MappingNode):
        raise _not_a_table(where, "no mapping; it looks like a plain list of tokens or another text")
    pairs = []
    for key, value in node.value:
        if not (isinstance(key, yaml.ScalarNode) and isinstance(value, yaml.ScalarNode)):
            raise _not_a_table(where, f"a nested value in line {key.start_mark.line + 1}")
        pairs.append((key.value, value.value))
    return pairs


def _not_a_table(where: object, found: str) -> VocabularyError:
    return VocabularyError(
        "not a vocabulary in Marian's YAML",
        where=where,
        expected="a line 'token: row' for each token",
        found=found,
        todo="write the row beside each token, or give the SentencePiece model",
    )
