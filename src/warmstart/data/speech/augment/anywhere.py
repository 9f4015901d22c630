"""Augmentations of samples, spectrograms or features. Source: Coqui STT 1.4.0, ``util/augmentations.py``.

A power is never negative: what noise would make so is zero.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from warmstart.data.speech.augment.base import Augmentation, Domain, Moment, Values
from warmstart.data.speech.augment.ranges import Numbers, Wholes
from warmstart.lean import dataclass


@dataclass(frozen=True, kw_only=True)
class TimeMask(Augmentation):
    """Sets ``n`` stretches of ``size`` milliseconds (at least one frame or sample) to zero."""

    name: ClassVar[str] = "time_mask"
    limits: ClassVar = {"n": (0, 10_000), "size": (0, 1e7)}

    domain: Domain = "spectrogram"
    n: Wholes = Wholes(3, 3)
    size: Numbers = Numbers(10.0, 10.0)

    def apply(self, values: Values, moment: Moment) -> Values:
        result, total = values.copy(), len(values)
        for _ in range(self.n.count(moment.clock, moment.random) if total > 1 else 0):
            size = int(self.size.pick(moment.clock, moment.random) * moment.per_millisecond(self.domain))
            size = max(1, min(total - 1, size))
            start = int(moment.random.integers(total - size))
            result[start : start + size] = 0.0
        return result


@dataclass(frozen=True, kw_only=True)
class Dropout(Augmentation):
    """Sets a share ``rate`` of all values to zero."""

    name: ClassVar[str] = "dropout"
    limits: ClassVar = {"rate": (-1, 1)}

    domain: Domain = "spectrogram"
    rate: Numbers = Numbers(0.05, 0.05)

    def apply(self, values: Values, moment: Moment) -> Values:
        rate = max(0.0, self.rate.pick(moment.clock, moment.random))
        return values * (moment.random.random(values.shape, np.float32) >= rate)

    def notes(self) -> list[str]:
        return ["dropout: rate is the share that becomes zero; Coqui STT 1.4.0 keeps that share and zeroes the rest"]


@dataclass(frozen=True, kw_only=True)
class Add(Augmentation):
    """Adds normal noise of standard deviation ``stddev``."""

    name: ClassVar[str] = "add"
    limits: ClassVar = {"stddev": (-1e9, 1e9)}  # Coqui's manual has 0~0.5; the sign changes nothing

    domain: Domain = "features"
    stddev: Numbers = Numbers(5.0, 5.0)

    def apply(self, values: Values, moment: Moment) -> Values:
        noise = moment.random.standard_normal(values.shape, np.float32)
        return _possible(values + noise * np.float32(self.stddev.pick(moment.clock, moment.random)), self.domain)


@dataclass(frozen=True, kw_only=True)
class Multiply(Augmentation):
    """Multiplies by normal factors of mean 1 and standard deviation ``stddev``."""

    name: ClassVar[str] = "multiply"
    limits: ClassVar = {"stddev": (-1e9, 1e9)}  # Coqui's manual has 0~0.5; the sign changes nothing

    domain: Domain = "features"
    stddev: Numbers = Numbers(5.0, 5.0)

    def apply(self, values: Values, moment: Moment) -> Values:
        noise = moment.random.standard_normal(values.shape, np.float32)
        factors = 1 + noise * np.float32(self.stddev.pick(moment.clock, moment.random))
        return _possible(values * factors, self.domain)


ANYWHERE = (TimeMask, Dropout, Add, Multiply)
"""Those that take ``domain=…``."""


def _possible(values: Values, domain: Domain) -> Values:
    return np.maximum(values, np.float32(0)) if domain == "spectrogram" else values
