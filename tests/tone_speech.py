"""A language that needs no voice: every letter is a tone, so that a small model learns it in a few hundred updates."""

from __future__ import annotations

import wave
from collections.abc import Sequence
from pathlib import Path

import numpy as np

RATE = 8000
LETTER, GAP = 0.08, 0.04  # seconds


def words(letters: str, count: int, seed: int) -> list[str]:
    """Of one to three ``letters``."""
    random = np.random.default_rng(seed)
    return ["".join(random.choice(list(letters), random.integers(1, 4))) for _ in range(count)]


def speak(word: str, seed: int, letters: str = "abcdefgh") -> np.ndarray:
    """int16 samples: letter k is a tone of 300 · 1.35^k Hz, in a little noise."""
    random = np.random.default_rng(seed)
    times = np.arange(round(LETTER * RATE)) / RATE
    silence = np.zeros(round(GAP * RATE))
    parts = [silence]
    for letter in word:
        hertz = 300 * 1.35 ** letters.index(letter) * random.uniform(0.98, 1.02)
        parts += [0.4 * np.sin(2 * np.pi * hertz * times), silence]
    samples = np.concatenate(parts)
    return np.asarray(32767 * (samples + 0.01 * random.standard_normal(len(samples))), np.int16)


def write_wav(path: Path, samples: np.ndarray, rate: int = RATE) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())


def write_list(folder: Path, name: str, transcripts: Sequence[str], seed: int = 0, letters: str = "abcdefgh") -> Path:
    """``NAME.csv`` and its recordings in ``folder``; tones are those of ``letters``."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    lines = ["wav_filename,wav_filesize,transcript"]
    for number, word in enumerate(transcripts):
        path = folder / name / f"{number}.wav"
        write_wav(path, speak(word, 1000 * seed + number, letters))
        lines.append(f"{name}/{path.name},{path.stat().st_size},{word}")
    (folder / f"{name}.csv").write_text("\n".join(lines) + "\n", "utf-8")
    return folder / f"{name}.csv"
