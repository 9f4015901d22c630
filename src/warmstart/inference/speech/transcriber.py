"""Samples to text: whole recordings in batches, or one as it comes.

A recording goes through the model in pieces that carry the LSTM's state, so that an hour of it needs no more memory
than a minute, and a stream hears what the whole recording would have.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from warmstart.data.speech.audio import audio_blocks
from warmstart.data.speech.example import AudioSource
from warmstart.errors import WarmstartError
from warmstart.inference.ctc import SpeechSearch, Timed, Transcript, characters, words
from warmstart.inference.speech.acoustic import Acoustic, Floats
from warmstart.lean import dataclass
from warmstart.models.deepspeech.mfcc import MfccStream

PIECE = 512  # frames that go through the model at once
BATCH = 64  # recordings whose features are held at once
STREAM_FRAMES = 16  # Coqui's ``n_steps``


@dataclass(frozen=True)
class Heard:
    """What was heard in ``seconds`` of audio; times are seconds from its beginning.

    ``confidence`` is the decoder's (see :class:`~warmstart.inference.ctc.transcript.Transcript`).
    """

    text: str
    confidence: float
    words: tuple[Timed, ...]
    characters: tuple[Timed, ...]
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """For programs; times to the millisecond."""
        timed = {
            f"{kind}s": [{kind: one.text, "start": round(one.start, 3), "end": round(one.end, 3)} for one in some]
            for kind, some in (("word", self.words), ("character", self.characters))
        }
        return {"text": self.text, "confidence": self.confidence, "seconds": round(self.seconds, 3), **timed}


class Transcriber:
    """A model with its search, greedy by default.

    Raises:
        WarmstartError: as :meth:`~warmstart.inference.ctc.search.SpeechSearch.open`.
    """

    def __init__(self, acoustic: Acoustic, search: SpeechSearch | None = None) -> None:
        self.acoustic = acoustic
        self.decoder = (search or SpeechSearch()).open(acoustic.alphabet)

    def stream(self, frames: int = STREAM_FRAMES) -> Stream:
        """A recording that comes in pieces; the model runs on as many ``frames`` at a time (20 ms each, usually)."""
        return Stream(self, frames)

    def files(self, recordings: Sequence[AudioSource | Path]) -> Iterator[tuple[int, Heard | WarmstartError]]:
        """(number of the file, what was heard in it or why it cannot be read), batched by length: not in order."""
        for first in range(0, len(recordings), BATCH):
            features: dict[int, Floats] = {}
            seconds: dict[int, float] = {}
            for number in range(first, min(first + BATCH, len(recordings))):
                try:
                    features[number], seconds[number] = self._features(recordings[number])
                except WarmstartError as error:
                    yield number, error
            for group in _alike(features):
                transcripts = self.transcripts([features.pop(number) for number in group])
                for number, transcript in zip(group, transcripts, strict=True):
                    yield number, self.heard(transcript, seconds[number])

    def file(self, recording: AudioSource | Path) -> Heard:
        """What was heard in one file. Raises ``WarmstartError``: it cannot be read."""
        features, seconds = self._features(recording)
        return self.heard(self.transcripts([features])[0], seconds)

    def transcripts(self, features: Sequence[Floats]) -> list[Transcript]:
        """Of the features [T, F] of several recordings, computed as one batch."""
        decoders = [self.decoder() for _ in features]
        for at, log_probs in self.pieces(features):
            for decoder, rows, own in zip(decoders, log_probs, features, strict=True):
                if at < len(own):
                    decoder.feed(rows[: len(own) - at])
        return [decoder.finish()[0] for decoder in decoders]

    def pieces(self, features: Sequence[Floats]) -> Iterator[tuple[int, Floats]]:
        """(first frame, log-probabilities [B, K, A]) of recordings with ``features`` [T, F], piece by piece; behind a
        recording's end they mean nothing."""
        model, context = self.acoustic, self.acoustic.n_context
        longest, size = max(map(len, features)), model.frames or PIECE
        whole = -(-longest // size) * size if model.frames else longest
        padded = np.zeros((len(features), whole + 2 * context, model.mfcc.n_input), np.float32)
        for row, own in zip(padded, features, strict=True):
            row[context : context + len(own)] = own
        state = model.start(len(features))
        for at in range(0, longest, size):
            log_probs, state = model.step(padded[:, at : at + size + 2 * context], state)
            yield at, log_probs

    def heard(self, transcript: Transcript, seconds: float) -> Heard:
        """``transcript`` with the times of its words and characters."""
        of = transcript, self.acoustic.alphabet, self.acoustic.mfcc.step_ms / 1000
        return Heard(transcript.text, transcript.confidence, tuple(words(*of)), tuple(characters(*of)), seconds)

    def _features(self, recording: AudioSource | Path) -> tuple[Floats, float]:
        """Features of a file, and how many seconds it lasts."""
        mfcc, samples = self.acoustic.mfcc, 0

        def blocks() -> Iterator[NDArray[np.float32]]:
            nonlocal samples
            for block in audio_blocks(recording, mfcc.sample_rate):
                samples += len(block)
                yield block

        pieces = list(mfcc.stream(blocks()))
        features = np.concatenate(pieces) if pieces else np.empty((0, mfcc.n_input), np.float32)
        return features, samples / mfcc.sample_rate


class Stream:
    """One recording that comes in pieces. What it hears in the end is what the whole recording gives.

    Coqui's client appends the last, partly filled window, so that its streams have a frame more than its training's
    features; this one leaves it out, like everything else here.
    """

    def __init__(self, transcriber: Transcriber, frames: int) -> None:
        model = transcriber.acoustic
        self._transcriber, self._model = transcriber, model
        self._frames = model.frames or frames
        self._decoder, self._state = transcriber.decoder(), model.start(1)
        self._mfcc = MfccStream(model.mfcc)
        self._features = np.zeros((model.n_context, model.mfcc.n_input), np.float32)
        self._fed = 0

    def feed(self, samples: NDArray[np.float32]) -> None:
        """Go on with (N,) samples in [-1, 1] at the model's rate; N may be 0."""
        self._fed += len(samples)
        self._features = np.concatenate([self._features, self._mfcc.feed(samples)])
        while len(self._features) >= self._frames + 2 * self._model.n_context:
            self._step(self._frames)

    def intermediate(self) -> Heard:
        """What was heard until now, as far as the model has run; the stream can go on."""
        return self._heard(self._decoder.intermediate()[0])

    def finish(self) -> Heard:
        """What was heard in all; nothing can be fed any more."""
        context = self._model.n_context
        self._features = np.pad(self._features, ((0, context), (0, 0)))
        while (left := len(self._features) - 2 * context) > 0:
            self._step(min(left, self._frames))
        return self._heard(self._decoder.finish()[0])

    def _step(self, frames: int) -> None:
        """Run the model on the next ``frames``; what a model of fixed pieces lacks at the end is zero."""
        taken = (self._model.frames or frames) + 2 * self._model.n_context
        piece = self._features[:taken]
        piece = np.pad(piece, ((0, taken - len(piece)), (0, 0)))
        log_probs, self._state = self._model.step(piece[None], self._state)
        self._decoder.feed(log_probs[0, :frames])
        self._features = self._features[frames:]

    def _heard(self, transcript: Transcript) -> Heard:
        return self._transcriber.heard(transcript, self._fed / self._model.mfcc.sample_rate)


def _alike(features: dict[int, Floats]) -> Iterator[list[int]]:
    """Numbers of recordings in groups of like length: in none is the longest over a quarter longer than the shortest,
    but for the very short."""
    group: list[int] = []
    for number in sorted(features, key=lambda number: len(features[number])):
        if group and len(features[number]) > 1.25 * len(features[group[0]]) + 25:
            yield group
            group = []
        group.append(number)
    if group:
        yield group
