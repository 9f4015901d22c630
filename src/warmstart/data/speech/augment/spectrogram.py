"""Augmentations of power spectrograms. Source: Coqui STT 1.4.0, ``util/augmentations.py``.

Shapes: T frames, F frequencies.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from warmstart.data.speech.augment.base import Augmentation, Domain, Moment, Values
from warmstart.data.speech.augment.ranges import Numbers, Wholes
from warmstart.lean import dataclass

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Pitch(Augmentation):
    """Frequencies times ``pitch``: stretched, then cut off or filled with zeros at the top."""

    name: ClassVar[str] = "pitch"
    limits: ClassVar = {"pitch": (0.05, 20)}

    domain: Domain = "spectrogram"
    pitch: Numbers = Numbers(1.075, 1.075, 0.125)

    def apply(self, values: Values, moment: Moment) -> Values:
        size = values.shape[1]
        stretched = resized(values, max(1, int(size * self.pitch.pick(moment.clock, moment.random))), axis=1)
        result = np.zeros_like(values)
        result[:, : stretched.shape[1]] = stretched[:, :size]
        return result


@dataclass(frozen=True, kw_only=True)
class Tempo(Augmentation):
    """As many frames divided by ``factor``; at most ``max_time`` milliseconds (-1: no bound), and never fewer than
    the transcript needs."""

    name: ClassVar[str] = "tempo"
    limits: ClassVar = {"factor": (0.05, 20)}

    domain: Domain = "spectrogram"
    factor: Numbers = Numbers(1.1, 1.1)
    max_time: float = -1.0

    def apply(self, values: Values, moment: Moment) -> Values:
        size = int(len(values) / self.factor.pick(moment.clock, moment.random))
        if self.max_time > 0:
            size = min(size, int(self.max_time * moment.per_millisecond(self.domain)))
        return resized(values, max(size, moment.frames_needed, 1), axis=0)


@dataclass(frozen=True, kw_only=True)
class Warp(Augmentation):
    """Moves ``num_t`` × ``num_f`` evenly spread points, and what is between them smoothly along, at random by a
    standard deviation of ``warp_t`` and ``warp_f`` half distances between points. The edges stay."""

    name: ClassVar[str] = "warp"
    limits: ClassVar = {"num_t": (0, 1000), "num_f": (0, 1000), "warp_t": (0, 10), "warp_f": (0, 10)}

    domain: Domain = "spectrogram"
    num_t: Wholes = Wholes(1, 1)
    num_f: Wholes = Wholes(1, 1)
    warp_t: Numbers = Numbers(0.1, 0.1)
    warp_f: Numbers = Numbers(0.0, 0.0)

    def apply(self, values: Values, moment: Moment) -> Values:
        if min(values.shape) < 2:
            return values
        points = (self.num_t.count(moment.clock, moment.random), self.num_f.count(moment.clock, moment.random))
        flows = []
        for axis, warp in enumerate((self.warp_t, self.warp_f)):
            stddev = warp.pick(moment.clock, moment.random) * values.shape[axis] / (2 * (points[axis] + 1))
            grid = np.pad(moment.random.normal(0.0, stddev, points), 1)
            flows.append(cubic(grid.shape[0], values.shape[0]) @ grid @ cubic(grid.shape[1], values.shape[1]).T)
        return _moved(values, flows[0], flows[1])


@dataclass(frozen=True, kw_only=True)
class FrequencyMask(Augmentation):
    """Sets ``n`` bands of ``size`` frequencies to zero."""

    name: ClassVar[str] = "frequency_mask"
    limits: ClassVar = {"n": (0, 10_000), "size": (0, 100_000)}

    domain: Domain = "spectrogram"
    n: Wholes = Wholes(3, 3)
    size: Wholes = Wholes(2, 2)

    def apply(self, values: Values, moment: Moment) -> Values:
        result, total = values.copy(), values.shape[1]
        for _ in range(self.n.count(moment.clock, moment.random)):
            size = max(1, min(total - 1, self.size.count(moment.clock, moment.random)))
            start = int(moment.random.integers(total - size))
            result[:, start : start + size] = 0.0
        return result


def resized(values: Values, size: int, axis: int) -> Values:
    """Linear interpolation to ``size`` along ``axis``: element i of the result lies at i · old / new, as in
    TensorFlow's ``resize_bilinear``."""
    old = values.shape[axis]
    if old in (0, size):
        return values
    at = np.arange(size) * (old / size)
    low = at.astype(np.int64)
    share = (at - low).astype(np.float32)
    share = share[:, None] if axis == 0 else share
    first, second = (np.take(values, index, axis) for index in (low, np.minimum(low + 1, old - 1)))
    result: Values = first + (second - first) * share
    return result


def cubic(old: int, new: int) -> Floats:
    """(new, old) weights of cubic interpolation (Keys 1981, a = -0.75) of ``old`` points that reach from the first to
    the last of ``new`` ones; beyond the edges the outermost point is repeated."""
    at = np.linspace(0, old - 1, new)
    low = np.floor(at).astype(np.int64)
    weights = np.zeros((new, old))
    for offset in (-1, 0, 1, 2):
        distance = np.abs(at - (low + offset))
        near = ((-0.75 + 2) * distance - (-0.75 + 3)) * distance**2 + 1
        far = -0.75 * (((distance - 5) * distance + 8) * distance - 4)
        weight = np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
        np.add.at(weights, (np.arange(new), np.clip(low + offset, 0, old - 1)), weight)
    return weights


def _moved(values: Values, flow_t: Floats, flow_f: Floats) -> Values:
    """values[t - flow_t, f - flow_f], interpolated linearly, the nearest inside."""
    size_t, size_f = values.shape
    t = np.clip(np.arange(size_t)[:, None] - flow_t, 0, size_t - 1)
    f = np.clip(np.arange(size_f) - flow_f, 0, size_f - 1)
    t0, f0 = np.minimum(t.astype(np.int64), size_t - 2), np.minimum(f.astype(np.int64), size_f - 2)
    dt, df = t - t0, f - f0
    upper = values[t0, f0] * (1 - df) + values[t0, f0 + 1] * df
    lower = values[t0 + 1, f0] * (1 - df) + values[t0 + 1, f0 + 1] * df
    moved: Values = (upper * (1 - dt) + lower * dt).astype(np.float32)
    return moved
