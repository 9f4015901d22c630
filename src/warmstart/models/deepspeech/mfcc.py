"""MFCCs as TensorFlow's ``AudioSpectrogram`` and ``Mfcc`` compute them, in numpy.

Shapes: N samples, T frames, F frequencies (fft_length / 2 + 1), C = 40 mel channels, K = ``n_input`` coefficients.
Source: tensorflow/core/kernels/{spectrogram,mfcc,mfcc_mel_filterbank,mfcc_dct}.cc, with the settings of Coqui STT.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from warmstart.errors import ConfigError
from warmstart.lean import dataclass

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

CHANNELS = 40
LOWEST_HZ = 20.0
FLOOR = 1e-12
BLOCK = 128  # frames at a time: their spectra stay in the processor's cache, and an hour of audio needs no memory


class Settings(Protocol):
    """What a model's configuration says of its features."""

    @property
    def sample_rate(self) -> int: ...
    @property
    def win_ms(self) -> int: ...
    @property
    def step_ms(self) -> int: ...
    @property
    def n_input(self) -> int: ...


@dataclass(frozen=True)
class Mfcc:
    """``Mfcc(sample_rate)(samples)``: (N,) samples in [-1, 1] to (T, K) float32, T = 1 + (N - window) // step.

    Nothing is padded: what does not fill a last window is left out, and fewer samples than one window give T = 0.
    The window is a periodic Hann, the FFT the next power of two; no pre-emphasis, dither or normalisation.
    Raises ``ConfigError`` where window or step are not a whole number of samples.
    """

    sample_rate: int = 16000
    win_ms: int = 32
    step_ms: int = 20
    n_input: int = 26

    @classmethod
    def of(cls, config: Settings) -> Self:
        """The features that a model of this configuration was made for."""
        return cls(config.sample_rate, config.win_ms, config.step_ms, config.n_input)

    def __post_init__(self) -> None:
        if min(self.sample_rate, self.win_ms, self.step_ms, self.n_input) < 1 or self.n_input > CHANNELS:
            raise ConfigError(
                "these are no settings for features",
                expected=f"positive sample_rate, win_ms and step_ms, and n_input of 1 to {CHANNELS}",
                found=self,
            )
        for key, milliseconds in (("win_ms", self.win_ms), ("step_ms", self.step_ms)):
            if milliseconds * self.sample_rate % 1000:
                raise ConfigError(
                    f"{key} is not a whole number of samples",
                    expected=f"{key} · sample_rate divisible by 1000",
                    found=f"{milliseconds} ms at {self.sample_rate} Hz",
                    todo="resample to 8000, 16000 or 48000 Hz",
                )
        if self.fft_length < 4:
            raise ConfigError("a window is shorter than three samples", found=self)

    @property
    def window(self) -> int:
        """Samples of a frame."""
        return self.sample_rate * self.win_ms // 1000

    @property
    def step(self) -> int:
        """Samples from one frame's beginning to the next one's."""
        return self.sample_rate * self.step_ms // 1000

    @property
    def fft_length(self) -> int:
        return 1 << (self.window - 1).bit_length()

    def frames(self, samples: int) -> int:
        """T of as many ``samples``."""
        return max(0, 1 + (samples - self.window) // self.step)

    @cached_property
    def hann(self) -> Doubles:
        """(window,): the periodic Hann window."""
        return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(self.window) / self.window)

    @cached_property
    def mel_weights(self) -> Doubles:
        """(F, C): triangles of equal width on the mel scale, from 20 Hz to half the sample rate.

        Frequencies below ``int(1.5 + 20 Hz / bin)`` are left out, as TensorFlow leaves them out.
        """
        frequencies = self.fft_length // 2 + 1
        hz_per_bin = 0.5 * self.sample_rate / (frequencies - 1)
        lowest, highest = _mel(LOWEST_HZ), _mel(self.sample_rate / 2)
        spacing = (highest - lowest) / (CHANNELS + 1)
        centres_C = lowest + spacing * np.arange(1, CHANNELS + 1)
        mels_F = _mel(np.arange(frequencies) * hz_per_bin)
        weights_FC: Doubles = np.maximum(0.0, 1.0 - np.abs(mels_F[:, None] - centres_C) / spacing)
        weights_FC[: int(1.5 + LOWEST_HZ / hz_per_bin)] = 0.0
        return weights_FC

    @cached_property
    def cosines(self) -> Doubles:
        """(C, K): the first K rows of the DCT-II times √(2 / C), transposed."""
        j, i = np.arange(CHANNELS)[:, None] + 0.5, np.arange(self.n_input)
        cosines_CK: Doubles = np.sqrt(2.0 / CHANNELS) * np.cos(np.pi / CHANNELS * i * j)
        return cosines_CK

    def spectrogram(self, samples: NDArray[Any]) -> Floats:
        """(T, F) float32 power spectrum of (N,) samples."""
        power_TF = np.empty((self.frames(len(samples)), self.fft_length // 2 + 1), np.float32)
        for start in range(0, len(power_TF), BLOCK):
            stop = min(start + BLOCK, len(power_TF))
            power_TF[start:stop] = self._power(samples[start * self.step : (stop - 1) * self.step + self.window])
        return power_TF

    def coefficients(self, power_TF: Floats) -> Floats:
        """(T, K) float32 MFCCs of a (T, F) power spectrum."""
        result_TK = np.empty((len(power_TF), self.n_input), np.float32)
        for start in range(0, len(power_TF), BLOCK):
            mel_TC = np.sqrt(power_TF[start : start + BLOCK].astype(np.float64)) @ self.mel_weights
            result_TK[start : start + BLOCK] = np.log(np.maximum(mel_TC, FLOOR)) @ self.cosines
        return result_TK

    def __call__(self, samples: NDArray[Any]) -> Floats:
        blocks = (samples[at : at + BLOCK * self.step] for at in range(0, len(samples), BLOCK * self.step))
        result_TK = np.empty((self.frames(len(samples)), self.n_input), np.float32)
        done = 0
        for features_TK in self.stream(blocks):
            result_TK[done : done + len(features_TK)] = features_TK
            done += len(features_TK)
        return result_TK

    def stream(self, blocks: Iterable[NDArray[Any]]) -> Iterator[Floats]:
        """(t, K) pieces of the features of samples that come in blocks of any length; joined they are the
        features of the joined samples."""
        stream = MfccStream(self)
        for block in blocks:
            if len(features_TK := stream.feed(block)):
                yield features_TK

    def _power(self, samples: NDArray[Any]) -> Floats:
        frames_TW = np.lib.stride_tricks.sliding_window_view(samples, self.window)[:: self.step]
        spectrum_TF = np.fft.rfft(frames_TW * self.hann, self.fft_length)
        return (spectrum_TF.real**2 + spectrum_TF.imag**2).astype(np.float32)


class MfccStream:
    """:class:`Mfcc` of one recording that comes in pieces."""

    def __init__(self, mfcc: Mfcc) -> None:
        self._mfcc, self._rest = mfcc, np.empty(0, np.float32)
        self._skipped = 0  # samples until the next window begins, where windows have gaps between them

    def feed(self, samples: NDArray[Any]) -> Floats:
        """(t, K) features that the next (N,) ``samples`` complete; N and t may be 0."""
        mfcc = self._mfcc
        new, self._skipped = samples[self._skipped :], max(0, self._skipped - len(samples))
        samples = np.concatenate([self._rest, new]) if len(self._rest) else new
        features_TK = mfcc.coefficients(mfcc.spectrogram(samples))
        done = len(features_TK) * mfcc.step
        self._rest, self._skipped = samples[done:], self._skipped + max(0, done - len(samples))
        return features_TK


def _mel(hertz: Any) -> Any:
    return 1127.0 * np.log1p(hertz / 700.0)
