"""What a decoder found, with the frame of every label."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from warmstart.inference.ctc.labels import Labels, space_label


@dataclass(frozen=True)
class Transcript:
    """``ids`` are labels without blanks, ``timesteps`` the frame in which each began (the same length).

    ``confidence`` is a natural logarithm: of the best path (greedy), of all paths found (beam search), with a language
    model plus its weighted scores, so that it may be positive.
    """

    text: str
    confidence: float
    ids: tuple[int, ...]
    timesteps: tuple[int, ...]


@dataclass(frozen=True)
class Timed:
    """A character or word from ``start`` to ``end``, in seconds."""

    text: str
    start: float
    end: float


def characters(transcript: Transcript, labels: Labels, step_seconds: float) -> list[Timed]:
    """Every character (in byte mode: every code point) until the next one; the last one lasts one step."""
    return _timed(transcript, list(_characters(transcript, labels)), labels, step_seconds)


def words(transcript: Transcript, labels: Labels, step_seconds: float) -> list[Timed]:
    """Every word, from its first character until the space behind it; the last one ends one step after its last
    character began. What is between spaces is a word, also in byte mode."""
    space = 31 if labels.utf8 else space_label(labels)  # label 31 is byte 32
    found, start = [], 0
    ends = [i for i, label in enumerate(transcript.ids) if label == space]
    for end in [*ends, len(transcript.ids)]:
        if end > start:
            last = transcript.timesteps[end] if end in ends else transcript.timesteps[end - 1] + 1
            text = labels.decode(transcript.ids[start:end])
            found.append(Timed(text, transcript.timesteps[start] * step_seconds, last * step_seconds))
        start = end + 1
    return found


def _characters(transcript: Transcript, labels: Labels) -> Iterator[tuple[int, int]]:
    """(first, end) of each character in ``ids``."""
    starts = [
        i
        for i, label in enumerate(transcript.ids)
        if not labels.utf8 or (label + 1) & 0xC0 != 0x80  # not a continuation byte
    ]
    if transcript.ids and (not starts or starts[0] != 0):
        starts.insert(0, 0)
    yield from zip(starts, [*starts[1:], len(transcript.ids)], strict=True)


def _timed(transcript: Transcript, spans: list[tuple[int, int]], labels: Labels, step_seconds: float) -> list[Timed]:
    times = transcript.timesteps
    return [
        Timed(
            labels.decode(transcript.ids[first:end]),
            times[first] * step_seconds,
            (times[end] if end < len(times) else times[-1] + 1) * step_seconds,
        )
        for first, end in spans
    ]
