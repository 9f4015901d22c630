"""What a decoder found, with the frame of every label."""

from __future__ import annotations

from warmstart.inference.ctc.labels import Labels, begins_character, space_label
from warmstart.lean import dataclass


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
    ids, times = transcript.ids, transcript.timesteps
    starts = [i for i, label in enumerate(ids) if i == 0 or not labels.utf8 or begins_character(label)]
    ends = [*starts[1:], len(ids)] if starts else []
    return [
        Timed(
            labels.decode(ids[start:end]),
            times[start] * step_seconds,
            (times[end] if end < len(ids) else times[-1] + 1) * step_seconds,
        )
        for start, end in zip(starts, ends, strict=True)
    ]


def words(transcript: Transcript, labels: Labels, step_seconds: float) -> list[Timed]:
    """Every word, from its first character until the space behind it; the last one ends one step after its last
    character began. What is between spaces is a word, also in byte mode."""
    ids, times = transcript.ids, transcript.timesteps
    space = ord(" ") - 1 if labels.utf8 else space_label(labels)
    found, start = [], 0
    for end in [*(i for i, label in enumerate(ids) if label == space), len(ids)]:
        if end > start:
            last = times[end] if end < len(ids) else times[end - 1] + 1
            found.append(Timed(labels.decode(ids[start:end]), times[start] * step_seconds, last * step_seconds))
        start = end + 1
    return found
