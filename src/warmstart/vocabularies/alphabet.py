"""Labels of a speech model trained with CTC: one row for each, and a last one for the blank."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Self

from warmstart.errors import Problem, VocabularyError
from warmstart.vocabularies.vocabulary import Vocabulary

BLANK = "<blank>"
_LINE = re.compile(r"\r\n|\r|\n")
_SHOWN = 200  # missing characters that one error lists


class Alphabet(Vocabulary):
    """Labels in order, then the blank. Labels are Unicode code points, or with ``utf8`` the 255 bytes but NUL.

    A label of several characters has its row, but text is cut by code point and never becomes it, as in Coqui STT
    (``native_client/alphabet.cc``). Nothing ends a sequence: ``eos_id`` is -1.

    Attributes:
        labels: the tokens without the blank; in byte mode ``<0x01>`` … ``<0xFF>``, row = byte - 1.
        blank_id: the last row.
        utf8: whether the labels are bytes of UTF-8.

    Raises:
        VocabularyError: there is no label, or labels are empty, repeated or called like the blank; all at once.
    """

    kind = "alphabet"

    def __init__(self, labels: Iterable[str], *, utf8: bool = False) -> None:
        self.labels: tuple[str, ...] = tuple(labels)
        self.utf8 = utf8
        _check_labels(self.labels)
        self.tokens = (*self.labels, BLANK)
        self.blank_id = len(self.labels)
        self.eos_id: int = -1
        self.unk_id: int | None = None
        self._rows = {label: row for row, label in enumerate(self.labels) if len(label) == 1}

    @classmethod
    def of(cls, transcripts: Iterable[str]) -> Self:
        """The characters of ``transcripts``, sorted by code point."""
        characters = set[str]()
        for transcript in transcripts:
            characters.update(transcript)
        return cls(sorted(characters))

    @classmethod
    def of_bytes(cls) -> Self:
        """Byte mode: 255 labels and the blank, the same for every language."""
        return cls((f"<0x{byte:02X}>" for byte in range(1, 256)), utf8=True)

    @classmethod
    def from_text(cls, text: str, where: object = None) -> Self:
        """The alphabet in Coqui's ``alphabet.txt``: one label a line, ``#…`` is a comment, ``\\#`` the label ``#``.

        Empty lines are nothing; lines end in LF, CR or both, the last one may end without. A mark of byte order at the
        beginning is no label.
        """
        lines = _LINE.split(text.removeprefix("\ufeff"))
        try:
            return cls("#" if line == r"\#" else line for line in lines if line and not line.startswith("#"))
        except VocabularyError as error:
            raise VocabularyError(
                "this is no alphabet", where=where, problems=[error.problem, *error.problems]
            ) from None

    def to_text(self) -> str:
        """What :meth:`from_text` reads back as an equal alphabet.

        Raises:
            VocabularyError: the file format has no way to say a label, or the labels are bytes.
        """
        if self.utf8:
            raise VocabularyError(
                "bytes of UTF-8 have no alphabet.txt", todo="say the mode instead (bytes_output_mode)"
            )
        lost = [label for label in self.labels if "\n" in label or "\r" in label or (label[0] == "#" and label != "#")]
        lost += [r"\#"] if r"\#" in self.labels else []
        if lost:
            raise VocabularyError("an alphabet.txt cannot hold these labels", found=", ".join(map(repr, lost)))
        return "".join("\\#\n" if label == "#" else f"{label}\n" for label in self.labels)

    def missing(self, transcripts: Iterable[str]) -> Counter[str]:
        """Characters of ``transcripts`` that have no label → in how many transcripts."""
        found: Counter[str] = Counter()
        for transcript in transcripts:
            characters = set(transcript)
            found.update(characters & {"\0"} if self.utf8 else characters - self._rows.keys())
        return found

    def check(self, transcripts: Iterable[str]) -> None:
        """Whether every transcript can be spelt.

        Raises:
            VocabularyError: characters have no label; all of them are listed.
        """
        missing = self.missing(transcripts)
        if missing:
            shown = missing.most_common(_SHOWN)
            raise VocabularyError(
                f"the alphabet lacks {len(missing)} characters of the transcripts",
                expected=f"one of its {len(self.labels)} labels for every character",
                found=", ".join(repr(character) for character, _ in shown),
                todo="add them to the alphabet, or take them out of the transcripts",
                problems=[Problem(f"{described(character)} in {count} transcripts") for character, count in shown],
            )

    def encode(self, text: str) -> list[int]:
        """Rows of ``text``'s characters, or of its bytes.

        Raises:
            VocabularyError: characters have no label.
        """
        if self.utf8 and "\0" not in text:
            return [byte - 1 for byte in text.encode("utf-8")]
        try:
            return [self._rows[character] for character in text]
        except KeyError:
            self.check([text])
            raise

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``; blanks are nothing, and bytes that are no UTF-8 become U+FFFD."""
        labels = [row for row in ids if row != self.blank_id]
        if self.utf8:
            return bytes(row + 1 for row in labels).decode("utf-8", "replace")
        return "".join(self.labels[row] for row in labels)

    def file(self) -> tuple[str, bytes]:
        content: dict[str, object] = {"kind": self.kind, "utf8": True}
        if not self.utf8:
            content = {"kind": self.kind, "labels": list(self.labels)}
        return ".json", (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode("utf-8")

    @classmethod
    def from_json(cls, content: dict[str, object], where: object = None) -> Self:
        """The alphabet that ``file`` wrote; ``content`` is the parsed JSON."""
        labels = content.get("labels")
        if content.get("utf8") is True and set(content) == {"kind", "utf8"}:
            return cls.of_bytes()
        if set(content) != {"kind", "labels"}:
            found = ", ".join(sorted(set(content) - {"kind"}))
            raise VocabularyError("an alphabet has 'labels', or 'utf8': true", where=where, found=found)
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            raise VocabularyError("'labels' of an alphabet is not a list of strings", where=where)
        return cls(labels)


def described(character: str) -> str:
    """``'é' (U+00E9)``."""
    return f"{character!r} (U+{ord(character):04X})"


def _check_labels(labels: tuple[str, ...]) -> None:
    first: dict[str, int] = {BLANK: len(labels)}
    problems = [] if labels else [Problem("an alphabet needs a label")]
    for row, label in enumerate(labels):
        if not label:
            problems.append(Problem("a label is empty", where=f"row {row}"))
        elif label in first:
            problems.append(Problem(f"the label {label!r} is there twice", where=f"rows {first[label]} and {row}"))
        first.setdefault(label, row)
    if problems:
        raise VocabularyError("an alphabet is a list of different labels", problems=problems)
