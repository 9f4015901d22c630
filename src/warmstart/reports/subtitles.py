"""Words with times as SubRip subtitles (``.srt``)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from warmstart.lean import dataclass

PAUSE = 0.8  # seconds without a word that begin a new subtitle
SECONDS = 6.0  # that one lasts, at most
CHARACTERS = 84  # two lines of 42, as subtitlers count


class Word(Protocol):
    """A word or character from ``start`` to ``end``, in seconds."""

    @property
    def text(self) -> str: ...
    @property
    def start(self) -> float: ...
    @property
    def end(self) -> float: ...


@dataclass(frozen=True)
class _Piece:
    """Some characters of a word."""

    text: str
    start: float
    end: float


def srt(words: Sequence[Word], characters: Iterable[Word] = ()) -> str:
    """Numbered subtitles, cut at pauses, and where they would be too long to be read; between the ``characters`` of a
    word that is too long itself, as text without spaces is."""
    blocks = []
    for number, cue in enumerate(_cues(_pieces(words, characters)), 1):
        text = " ".join(word.text for word in cue)
        blocks.append(f"{number}\n{_time(cue[0].start)} --> {_time(cue[-1].end)}\n{text}\n")
    return "\n".join(blocks)


def _cues(words: Iterable[Word]) -> Iterator[list[Word]]:
    cue: list[Word] = []
    for word in words:
        if cue and (word.start - cue[-1].end > PAUSE or _too_long([*cue, word], between=1)):
            yield cue
            cue = []
        cue.append(word)
    if cue:
        yield cue


def _pieces(words: Sequence[Word], characters: Iterable[Word]) -> Iterator[Word]:
    """The words; of one that is too long as many characters as one subtitle takes, and again."""
    rest = iter([character for character in characters if character.text != " "])
    for word in words:
        own = [character for _, character in zip(word.text, rest, strict=False)]
        if not _too_long([word]) or not own:
            yield word
            continue
        piece: list[Word] = []
        for character in own:
            if piece and _too_long([*piece, character]):
                yield _joined(piece)
                piece = []
            piece.append(character)
        yield _joined(piece)


def _joined(piece: Sequence[Word]) -> Word:
    return _Piece("".join(character.text for character in piece), piece[0].start, piece[-1].end)


def _too_long(words: Sequence[Word], between: int = 0) -> bool:
    characters = sum(len(word.text) + between for word in words) - between
    return words[-1].end - words[0].start > SECONDS or characters > CHARACTERS


def _time(seconds: float) -> str:
    milliseconds = round(seconds * 1000)
    hours, rest = divmod(milliseconds, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02}:{minutes:02}:{rest // 1000:02},{rest % 1000:03}"
