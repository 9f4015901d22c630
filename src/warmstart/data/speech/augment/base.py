"""What every augmentation is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from warmstart.errors import Problem
from warmstart.lean import dataclass
from warmstart.models.deepspeech.mfcc import Mfcc

Values = NDArray[np.float32]
Domain = Literal["signal", "spectrogram", "features"]
DOMAINS: tuple[Domain, ...] = ("signal", "spectrogram", "features")


@dataclass(frozen=True)
class Moment:
    """Where and when an augmentation is applied: ``clock`` is 0 at the training's beginning and 1 at its end,
    ``frames_needed`` the fewest that the example's transcript can be spelt in."""

    random: Generator
    clock: float
    mfcc: Mfcc
    frames_needed: int = 1

    def per_millisecond(self, domain: Domain) -> float:
        """Samples, or frames."""
        return self.mfcc.sample_rate / 1000 if domain == "signal" else 1 / self.mfcc.step_ms


@dataclass(frozen=True, kw_only=True)
class Augmentation(ABC):
    """Applied with probability ``p`` to (N,) samples, a (T, F) power spectrogram or (T, K) features, as ``domain``
    says. Pure: the result depends on the values, the moment's generator and its clock alone.

    ``limits`` are (lowest, highest) of parameters that have any.
    """

    name: ClassVar[str]
    limits: ClassVar[dict[str, tuple[float, float]]] = {}

    p: float = 1.0
    domain: Domain = "signal"

    @abstractmethod
    def apply(self, values: Values, moment: Moment) -> Values:
        """New values; the given ones stay as they are."""

    def fingerprint(self) -> str:
        """A hash of the files that it takes from, if it takes from any."""
        return ""

    def problems(self, mfcc: Mfcc) -> list[Problem]:
        """What of that which it needs cannot be used; asked before a training."""
        return []


def peak_dbfs(samples: NDArray[Any]) -> float:
    """Peak in dBFS, as Coqui counts: a peak of 1 is 3.0103 dB, so that a full-scale sine has 0 dB RMS."""
    peak = float(np.abs(samples).max()) if len(samples) else 0.0
    return 20.0 * float(np.log10(max(1e-16, peak))) + 3.0103


def ratio(decibels: float) -> float:
    """Of amplitudes."""
    return float(10.0 ** (decibels / 20.0))


def normalized(samples: NDArray[Any], dbfs: float) -> Values:
    """Louder or softer, so that the peak is at ``dbfs``; what then passes ±1 is clipped."""
    return np.clip(samples * ratio(dbfs - peak_dbfs(samples)), -1.0, 1.0).astype(np.float32)


def fitted(samples: Values, length: int) -> Values:
    """The first ``length`` samples, with zeros after the end where there are fewer."""
    return np.concatenate([samples[:length], np.zeros(max(0, length - len(samples)), np.float32)])
