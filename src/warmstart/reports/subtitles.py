"""Words with times as SubRip subtitles (``.srt``)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

PAUSE = 0.8  # seconds without a word that begin a new subtitle
SECONDS = 6.0  # that one lasts, at most
CHARACTERS = 84  # two lines of 42, as subtitlers count


class Word(Protocol):
    """A word from ``start`` to ``end``, in seconds."""

    @property
    def text(self) -> str: ...
    @property
    def start(self) -> float: ...
    @property
    def end(self) -> float: ...


def srt(words: Sequence[Word]) -> str:
    """Numbered subtitles, cut at pauses, and where they would be too long to be read."""
    blocks = []
    for number, cue in enumerate(_cues(words), 1):
        text = " ".join(word.text for word in cue)
        blocks.append(f"{number}\n{_time(cue[0].start)} --> {_time(cue[-1].end)}\n{text}\n")
    return "\n".join(blocks)


def _cues(words: Sequence[Word]) -> Iterator[list[Word]]:
    cue: list[Word] = []
    for word in words:
        characters = sum(len(one.text) + 1 for one in cue) + len(word.text)
        if cue and (word.start - cue[-1].end > PAUSE or word.end - cue[0].start > SECONDS or characters > CHARACTERS):
            yield cue
            cue = []
        cue.append(word)
    if cue:
        yield cue


def _time(seconds: float) -> str:
    milliseconds = round(seconds * 1000)
    hours, rest = divmod(milliseconds, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02}:{minutes:02}:{rest // 1000:02},{rest % 1000:03}"
