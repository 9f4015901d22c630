"""Augmentations of samples, but for ``codec``. Source: Coqui STT 1.4.0, ``util/augmentations.py``."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import ClassVar

import numpy as np

from warmstart.data.speech.audio import audio_blocks, libraries
from warmstart.data.speech.augment.base import Augmentation, Moment, Values, fitted, normalized, peak_dbfs, ratio
from warmstart.data.speech.augment.ranges import Numbers, Wholes
from warmstart.data.speech.cache import digest
from warmstart.data.speech.example import AudioSource, SpeechExample
from warmstart.data.speech.fetched import fetched
from warmstart.data.speech.read import read_examples
from warmstart.errors import DataError, Problem, SourceError
from warmstart.lean import dataclass
from warmstart.models.deepspeech.mfcc import Mfcc

SHOWN = 20
PRIMES = (17, 19, 23, 29, 31)  # delays in these proportions interfere little
SHORTEST_DELAY = 16


@dataclass(frozen=True, kw_only=True)
class Overlay(Augmentation):
    """Adds ``layers`` of recordings from the list ``source``, whose peak is ``snr`` dB below this one's.

    A layer begins anywhere in a recording taken at random and goes on with others until the end. The peak is then
    brought back to what it was.
    """

    name: ClassVar[str] = "overlay"
    limits: ClassVar = {"layers": (0, 100)}

    source: str | Path
    snr: Numbers = Numbers(3.0, 3.0)
    layers: Wholes = Wholes(1, 1)

    @cached_property
    def recordings(self) -> list[SpeechExample]:
        examples = read_examples(self.source, transcripts=False)
        here = fetched([example.audio for example in examples])
        faults = [audio for audio in here if isinstance(audio, Problem)]
        if faults:
            raise DataError(f"{len(faults)} recordings cannot be fetched", where=self.source, problems=faults[:SHOWN])
        return [replace(e, audio=a) for e, a in zip(examples, here, strict=True) if isinstance(a, AudioSource)]

    def problems(self, mfcc: Mfcc) -> list[Problem]:
        """Reads every recording to its end."""
        try:
            recordings = self.recordings
        except (DataError, SourceError) as error:
            return [error.problem, *error.problems]
        found, sound = [], False
        for example in recordings:
            try:
                sound |= sum(map(len, audio_blocks(example.audio, mfcc.sample_rate))) > 0
            except DataError as error:
                found.append(error.problem)
        if not found and not sound:
            found.append(Problem("there is nothing to overlay", str(self.source)))
        return found

    def fingerprint(self) -> str:
        return sha256("".join(digest(example.audio) for example in self.recordings).encode()).hexdigest()[:16]

    def apply(self, values: Values, moment: Moment) -> Values:
        layers = self.layers.count(moment.clock, moment.random)
        noise = np.zeros(len(values), np.float64)
        for _ in range(layers):
            noise += self._layer(len(values), moment)
        snr = self.snr.pick(moment.clock, moment.random)
        peak = peak_dbfs(values)
        return normalized(values + noise * ratio(peak - peak_dbfs(noise) - snr), peak)

    def _layer(self, length: int, moment: Moment) -> Values:
        layer, done, start = np.zeros(length, np.float32), 0, float(moment.random.random())
        while done < length:
            recording = self.recordings[int(moment.random.integers(len(self.recordings)))]
            for block in audio_blocks(recording.audio, moment.mfcc.sample_rate, start=start):
                piece = block[: length - done]
                layer[done : done + len(piece)] = piece
                done += len(piece)
                if done == length:
                    break
            start = 0.0
        return layer


@dataclass(frozen=True, kw_only=True)
class Reverb(Augmentation):
    """Five echoes: each repeats every ``delay`` ms (times 1 to 1.8), ``decay`` dB softer; the peak stays."""

    name: ClassVar[str] = "reverb"
    limits: ClassVar = {"delay": (0, 10_000)}

    delay: Numbers = Numbers(20.0, 20.0)
    decay: Numbers = Numbers(10.0, 10.0)

    def apply(self, values: Values, moment: Moment) -> Values:
        delay = self.delay.pick(moment.clock, moment.random)
        decay = ratio(-self.decay.pick(moment.clock, moment.random))
        audio = values.astype(np.float64)
        result = audio.copy()
        for prime in PRIMES:
            step = max(SHORTEST_DELAY, int(delay * prime / PRIMES[0] * moment.mfcc.sample_rate / 1000))
            layer = audio.copy()
            for at in range(step, len(layer), step):  # y[n] = x[n] + decay · y[n - step], a stretch at a time
                width = min(step, len(layer) - at)
                layer[at : at + width] += decay * layer[at - step : at - step + width]
            result += layer
        return normalized(result, peak_dbfs(values))


@dataclass(frozen=True, kw_only=True)
class Resample(Augmentation):
    """Down (or up) to ``rate`` Hz and back."""

    name: ClassVar[str] = "resample"
    limits: ClassVar = {"rate": (100, 192_000)}

    rate: Wholes = Wholes(8000, 8000)

    def apply(self, values: Values, moment: Moment) -> Values:
        soxr = libraries()[1]
        rate, own = self.rate.count(moment.clock, moment.random), moment.mfcc.sample_rate
        if rate == own or not len(values):
            return values
        there = soxr.resample(values, own, rate)
        return fitted(soxr.resample(there, rate, own) if len(there) else there, len(values))


@dataclass(frozen=True, kw_only=True)
class Volume(Augmentation):
    """Peak at ``dbfs``; 3.0103 is as loud as can be, and more is clipped."""

    name: ClassVar[str] = "volume"

    dbfs: Numbers = Numbers(3.0103, 3.0103)

    def apply(self, values: Values, moment: Moment) -> Values:
        return normalized(values, self.dbfs.pick(moment.clock, moment.random))
