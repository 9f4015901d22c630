"""Small speech models with random weights, and recordings, for tests of what runs them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from warmstart.bundle.layout import write_bundle
from warmstart.models.deepspeech.config import DeepSpeechConfig
from warmstart.models.deepspeech.family import DeepSpeechFamily
from warmstart.vocabularies.alphabet import Alphabet

ALPHABET = Alphabet(" abcdefg")
CONFIG = DeepSpeechConfig(vocab_size=9, n_hidden=24, sample_rate=8000)


def write_model(
    path: Path, config: DeepSpeechConfig = CONFIG, alphabet: Alphabet = ALPHABET, seed: int = 1
) -> dict[str, NDArray[np.float32]]:
    """A bundle with random weights whose outputs change from frame to frame; its arrays."""
    family, rng = DeepSpeechFamily(), np.random.default_rng(seed)
    arrays = {
        p.name: (2 * rng.standard_normal(p.shape) / np.sqrt(p.shape[-1])).astype(np.float32)
        for p in family.parameters(config)
    }
    write_bundle(path, family, config, arrays.values(), {"text": alphabet}, {})
    return arrays


def write_audio(path: Path, seconds: float, seed: int = 0, rate: int = 8000) -> NDArray[np.float32]:
    """A wav file of noise that swells and fades; its samples."""
    import soundfile

    rng, times = np.random.default_rng(seed), np.arange(int(seconds * rate)) / rate
    samples = (0.3 * rng.standard_normal(len(times)) * np.sin(9 * times)).astype(np.float32)
    soundfile.write(path, samples, rate, subtype="PCM_16")
    return samples
