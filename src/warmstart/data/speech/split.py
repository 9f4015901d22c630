"""A task's recordings and transcripts, ready to be put into batches."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from warmstart.data.plan import Ints
from warmstart.data.speech.audio import Samples, read_audio
from warmstart.data.speech.cache import FeatureStore, feature_store
from warmstart.data.speech.example import SpeechExample
from warmstart.data.speech.example import unreadable as unreadable_audio
from warmstart.data.speech.fetched import fetched
from warmstart.errors import DataError, Problem
from warmstart.lean import dataclass
from warmstart.models.deepspeech.mfcc import Mfcc
from warmstart.sources.uri import is_remote
from warmstart.vocabularies.alphabet import described

Floats = NDArray[np.float32]
Labels = NDArray[np.int32]
Reason = Literal["too short", "too long", "unreadable", "without transcript"]

_EMPTY = "write it, or remove the row; `data.empty_transcripts: drop` of a configuration leaves such rows out"
SHOWN = 50
NAMED = 5


class Spelling(Protocol):
    """What is asked of an alphabet."""

    @property
    def fingerprint(self) -> str: ...

    def encode(self, text: str) -> list[int]: ...

    def missing(self, transcripts: Sequence[str]) -> Counter[str]: ...


@dataclass(frozen=True)
class Dropped:
    """An example that cannot be learnt from: which one, and why."""

    where: str
    reason: Reason
    detail: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason} ({self.detail})"


@dataclass(frozen=True, eq=False)
class SpeechSplit:
    """Kept examples. ``labels[label_offsets[i]:label_offsets[i + 1]]`` spell example i, whose features are
    ``store[rows[i]]``; ``total`` counts the dropped ones too. ``alphabet`` is the fingerprint of the spelling."""

    examples: tuple[SpeechExample, ...]
    rows: Ints
    store: FeatureStore
    labels: Labels
    label_offsets: Ints
    dropped: tuple[Dropped, ...]
    mfcc: Mfcc
    alphabet: str
    resample: bool = True

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def frames(self) -> Ints:
        """(N,): frames of each example."""
        return self.store.frames[self.rows]

    @cached_property
    def label_lengths(self) -> Ints:
        return np.diff(self.label_offsets)

    @property
    def seconds(self) -> float:
        """Of audio, by steps of frames."""
        return int(self.frames.sum()) * self.mfcc.step_ms / 1000

    @property
    def counts(self) -> Counter[Reason]:
        """How many were dropped, by reason."""
        return Counter(example.reason for example in self.dropped)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the kept recordings' bytes, the settings of the features, labels and the alphabet."""
        digest = hashlib.sha256(repr((self.alphabet, asdict(self.mfcc), self.resample)).encode())
        digest.update("".join(self.store.digests[row] for row in self.rows.tolist()).encode())
        for values in (self.label_offsets, self.labels):
            digest.update(values.astype(values.dtype.newbyteorder("<")).tobytes())
        return digest.hexdigest()

    def features(self, i: int) -> Floats:
        """(T, K) of example i, as they are in the cache."""
        return self.store[int(self.rows[i])]

    def spelling(self, i: int) -> Labels:
        """(L,) rows of the alphabet."""
        return self.labels[self.label_offsets[i] : self.label_offsets[i + 1]]

    def samples(self, i: int) -> Samples:
        """(N,) samples of example i. Raises ``DataError``."""
        return read_audio(self.examples[i].audio, self.mfcc.sample_rate, resample=self.resample)

    def select(self, indices: Sequence[int]) -> SpeechSplit:
        """These examples, in this order."""
        spellings = [self.spelling(i) for i in indices]
        return SpeechSplit(
            tuple(self.examples[i] for i in indices),
            self.rows[np.asarray(indices, np.int64)],
            self.store,
            np.concatenate([*spellings, np.empty(0, np.int32)]),
            _offsets(spellings),
            self.dropped,
            self.mfcc,
            self.alphabet,
            self.resample,
        )

    def describe(self) -> list[str]:
        """Lines on what was kept, and on what was dropped and why."""
        lines = [f"{len(self):,} recordings, {self.seconds / 3600:.2f} hours"]
        for reason, count in sorted(self.counts.items()):
            named = [example for example in self.dropped if example.reason == reason]
            more = f" and {count - NAMED:,} more" if count > NAMED else ""
            shown = "; ".join(f"{example.where} ({example.detail})" for example in named[:NAMED])
            lines.append(f"{count:,} left out, {reason}: {shown}{more}")
        return lines


def encode_speech(
    examples: Sequence[SpeechExample],
    alphabet: Spelling,
    mfcc: Mfcc,
    cache: Path,
    *,
    name: str = "the data",
    max_seconds: float | None = None,
    unreadable: Literal["error", "drop"] = "error",
    empty_transcripts: Literal["error", "drop"] = "error",
    resample: bool = True,
    progress: Callable[[int], None] = lambda done: None,
) -> SpeechSplit:
    """``examples`` with their features (in the cache at ``cache``) and labels.

    Left out and named are recordings longer than ``max_seconds`` and those with fewer frames than CTC needs to spell
    the transcript. Raises one ``DataError`` with everything else: missing and damaged recordings, where these are
    errors; or, before any audio is read, characters outside the alphabet (all of them) and empty transcripts, with the
    missing recordings. Also where no example is left.
    """
    problems, dropped = _check_transcripts(examples, alphabet, name, empty_transcripts)
    if problems:
        if unreadable == "error":
            problems += at_most(SHOWN, [p for example in examples if (p := _missing(example))])
        raise DataError(f"{name} cannot be used", problems=problems)
    spoken = [example for example in examples if (example.transcript or "").strip()]
    recordings = fetched([example.audio for example in spoken])
    spoken = [e if isinstance(a, Problem) else replace(e, audio=a) for e, a in zip(spoken, recordings, strict=True)]
    store = feature_store(recordings, mfcc, cache, resample=resample, progress=progress)
    if store.faults and unreadable == "error":
        faults = [Problem(f.what, spoken[i].where, f.expected, f.found) for i, f in sorted(store.faults.items())]
        raise DataError(
            f"{name} cannot be used: {len(faults):,} recordings cannot be read",
            todo="repair or remove them; `data.unreadable: drop` of a configuration leaves them out",
            problems=at_most(SHOWN, faults),
        )
    rows: list[int] = []
    spellings: list[Labels] = []
    for i, example in enumerate(spoken):
        labels = np.array(alphabet.encode(example.transcript or ""), np.int32)
        fault = _unusable(i, store, labels, mfcc, max_seconds)
        if fault is None:
            rows.append(i)
            spellings.append(labels)
        else:
            dropped.append(Dropped(example.where, *fault))
    split = SpeechSplit(
        tuple(spoken[i] for i in rows),
        np.array(rows, np.int64),
        store,
        np.concatenate([*spellings, np.empty(0, np.int32)]),
        _offsets(spellings),
        tuple(dropped),
        mfcc,
        alphabet.fingerprint,
        resample,
    )
    if not rows:
        shown = [Problem(d.reason, d.where, found=d.detail) for d in dropped[:SHOWN]]
        raise DataError(f"{name} has no recording left", problems=shown)
    return split


def frames_needed(labels: Labels) -> int:
    """The fewest frames that CTC can spell ``labels`` in: one for each, and a blank between two that are equal
    (Graves et al. 2006)."""
    return len(labels) + int(np.count_nonzero(labels[1:] == labels[:-1]))


def at_most(count: int, problems: Sequence[Problem]) -> list[Problem]:
    """The first ``count``, and how many others there are."""
    more = [Problem(f"and {len(problems) - count:,} more")] if len(problems) > count else []
    return [*problems[:count], *more]


def _missing(example: SpeechExample) -> Problem | None:
    if is_remote(example.audio.path):  # nothing is fetched of data that cannot be used
        return None
    try:
        os.stat(example.audio.path)
    except OSError as error:
        return unreadable_audio(error, example.where).problem
    return None


def _check_transcripts(
    examples: Sequence[SpeechExample], alphabet: Spelling, name: str, empty: Literal["error", "drop"]
) -> tuple[list[Problem], list[Dropped]]:
    empties: list[Problem] = []
    unspelt: list[Problem] = []
    dropped: list[Dropped] = []
    missing: Counter[str] = Counter()
    for example in examples:
        text = example.transcript or ""
        if not text.strip():
            if empty == "drop":
                dropped.append(Dropped(example.where, "without transcript", repr(text)))
            else:
                empties.append(Problem("the transcript is empty", example.where, todo=_EMPTY))
            continue
        lacking = alphabet.missing([text])
        missing.update(lacking.keys())
        if lacking:
            found = " ".join(map(described, sorted(lacking)))
            unspelt.append(Problem("the alphabet cannot spell the transcript", example.where, found=found))
    problems = at_most(SHOWN, unspelt) + at_most(SHOWN, empties)
    if missing:
        summary = Problem(
            f"{len(unspelt)} transcript{'s hold' if len(unspelt) > 1 else ' holds'} characters that the alphabet lacks",
            name,
            found=", ".join(f"{described(c)} in {n}" for c, n in sorted(missing.items())),
            todo="give another alphabet, or clean the transcripts",
        )
        problems.insert(0, summary)
    return problems, dropped


def _unusable(
    i: int, store: FeatureStore, labels: Labels, mfcc: Mfcc, max_seconds: float | None
) -> tuple[Reason, str] | None:
    if i in store.faults:
        fault = store.faults[i]
        return "unreadable", f"{fault.what}: {fault.found}" if fault.found else fault.what
    frames, needed = int(store.frames[i]), frames_needed(labels)
    if frames < needed:
        return "too short", f"{frames} frames, its transcript needs {needed}"
    seconds = frames * mfcc.step_ms / 1000
    if max_seconds is not None and seconds > max_seconds:
        return "too long", f"{seconds:.1f} s, max_seconds is {max_seconds:g}"
    return None


def _offsets(rows: Sequence[Labels]) -> Ints:
    return np.cumsum([0, *map(len, rows)]).astype(np.int64)
