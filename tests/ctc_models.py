"""Language models, labels and outputs for the tests of CTC decoding."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from warmstart.inference.ctc import Scorer
from warmstart.inference.ctc.language_model import OOV
from warmstart.inference.ctc.scorer_file import read_package
from warmstart.vocabularies.alphabet import Alphabet

GOLDEN = Path(__file__).parent / "golden" / "ctc"
LABELS = Alphabet([*"abcdefgh", " ", *"ijklmnopqrstuvwxyz'é"])
BYTES = Alphabet.of_bytes()


class Arpa:
    """A back-off model in plain Python, in place of kenlm."""

    def __init__(self, path: Path) -> None:
        self.entries: dict[tuple[str, ...], tuple[float, float]] = {}
        for line in path.read_text("utf-8").splitlines():
            fields = line.split("\t")
            if len(fields) > 1:
                backoff = float(fields[2]) if len(fields) > 2 else 0.0
                self.entries[tuple(fields[1].split(" "))] = float(fields[0]), backoff
        self.order = max(map(len, self.entries))

    def __contains__(self, word: str) -> bool:
        return (word,) in self.entries and word != "<unk>"

    def log_prob(self, ngram: tuple[str, ...]) -> float:
        if any(word not in self for word in ngram):
            return OOV
        if not ngram:
            return 0.0
        words = ("<s>", *ngram) if len(ngram) < self.order else ngram
        return self._decimal(words[-self.order :]) * math.log(10)

    def _decimal(self, ngram: tuple[str, ...]) -> float:
        if ngram in self.entries:
            return self.entries[ngram][0]
        return self.entries.get(ngram[:-1], (0.0, 0.0))[1] + self._decimal(ngram[1:])


def golden_scorer(name: str, alpha: float, beta: float) -> Scorer:
    """``words`` or ``characters``: the package's lexicon, and its model through :class:`Arpa`."""
    package = read_package(GOLDEN / f"{name}.scorer")
    assert package is not None
    return Scorer(Arpa(GOLDEN / f"{name}.arpa"), alpha, beta, package.utf8, package.lexicon)


def golden_cases(name: str) -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = json.loads((GOLDEN / name).read_text())
    return cases


def log_probs(stored: np.ndarray) -> np.ndarray:
    """Natural logarithms of the outputs that ``make.py`` stored."""
    logits = stored / 16 + 0.003 * np.sin(1 + np.arange(stored.size)).reshape(stored.shape)
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def golden_input(name: str) -> np.ndarray:
    return log_probs(np.load(GOLDEN / "inputs.npz")[name])


def noise(frames: int, size: int, seed: int, sharp: float = 2.0) -> np.ndarray:
    """Log-probabilities (frames, size)."""
    logits = np.random.default_rng(seed).normal(size=(frames, size)) * sharp
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
