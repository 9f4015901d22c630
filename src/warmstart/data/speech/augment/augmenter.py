"""Augmentations applied one after the other, each in its domain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import numpy as np
from numpy.random import Generator, Philox

from warmstart.data.permutation import derive_key
from warmstart.data.speech.augment.anywhere import ANYWHERE
from warmstart.data.speech.augment.base import DOMAINS, Augmentation, Moment, Values
from warmstart.data.speech.augment.parse import parse_augmentations
from warmstart.data.speech.augment.ranges import Numbers
from warmstart.data.speech.split import SpeechSplit, frames_needed
from warmstart.errors import DataError
from warmstart.lean import dataclass
from warmstart.models.deepspeech.mfcc import Mfcc

SHOWN = 20


@dataclass(frozen=True)
class Augmentations:
    """First those of whole recordings, then what works on samples, spectrograms and features, each group in the order
    given (as Coqui's two stages do).

    Each has a generator of its own by (key, its place), so that another one more changes nothing of the others.
    """

    steps: tuple[Augmentation, ...]

    @classmethod
    def of(cls, texts: Sequence[str]) -> Augmentations:
        """Raises ``ConfigError``; see ``parse_augmentations``."""
        return cls(parse_augmentations(texts))

    @property
    def has_ranges(self) -> bool:
        """Whether anything changes over the training."""
        values = (getattr(step, field.name) for step in self.steps for field in fields(step))
        return any(isinstance(value, Numbers) and value.moves for value in values)

    def check(self, mfcc: Mfcc) -> None:
        """Before a training. Raises one ``DataError`` with everything that is needed and cannot be used."""
        problems = [problem for step in self.steps for problem in step.problems(mfcc)]
        if problems:
            raise DataError("augmentations cannot be used", problems=problems[:SHOWN])

    def __call__(self, split: SpeechSplit, index: int, key: int, clock: float) -> Values:
        """(T, K) features of example ``index``; see ``Augmenter``."""
        needed = frames_needed(split.spelling(index))
        drawn = [(step, Generator(Philox(key=derive_key(key, place)))) for place, step in enumerate(self.steps)]
        chosen = [
            (step, Moment(random, clock, split.mfcc, needed)) for step, random in drawn if random.random() < step.p
        ]
        if all(step.domain == "features" for step, _ in chosen):
            return _applied(np.array(split.features(index)), chosen)
        samples = split.samples(index)
        parts = {domain: [pair for pair in chosen if pair[0].domain == domain] for domain in DOMAINS}
        whole_first = sorted(parts["signal"], key=lambda pair: isinstance(pair[0], ANYWHERE))
        power_TF = _applied(split.mfcc.spectrogram(_applied(samples, whole_first)), parts["spectrogram"])
        return _applied(split.mfcc.coefficients(power_TF), parts["features"])


def _applied(values: Values, steps: Sequence[tuple[Augmentation, Moment]]) -> Values:
    for step, moment in steps:
        values = step.apply(values, moment)
    return values
