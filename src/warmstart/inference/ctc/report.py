"""Word and character error rates of transcripts, and the report that Coqui STT 1.4.0 prints (``evaluate_tools.py``)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from warmstart.data.metrics import edit_distance
from warmstart.errors import DataError, Problem
from warmstart.lean import dataclass
from warmstart.storage.atomic import write_text

LINE = "-" * 80


@dataclass(frozen=True)
class Sample:
    """One utterance: what was said (``src``), what was found (``res``), the CTC loss and edit distances.

    Rates are edits per character (spaces count) or word of ``src``; they may exceed 1.
    """

    wav_filename: str
    src: str
    res: str
    loss: float
    char_distance: int
    char_length: int
    word_distance: int
    word_length: int
    cer: float
    wer: float


@dataclass(frozen=True)
class Report:
    """``samples`` in the report's order: by rising ``sort_by``, equal ones by falling loss.

    ``wer`` and ``cer`` are edits of all samples per word and character of all, at most 1; ``loss`` is the mean.
    """

    samples: tuple[Sample, ...]
    wer: float
    cer: float
    loss: float
    sort_by: Literal["wer", "cer"]

    def text(self, dataset: str, count: int = 5) -> str:
        """Coqui's text: a summary, then the ``count`` best, median and worst samples (fewer where there are fewer)."""
        middle, left = len(self.samples) // 2, count // 2
        parts = {
            "Best": self.samples[:count],
            # Where the median's neighbours reach below zero, Coqui's slice is empty; here it begins with the best.
            "Median": self.samples[max(0, middle - left) : middle + count - left],
            "Worst": self.samples[-count:] if count else (),
        }
        lines = [f"Test on {dataset} - WER: {self.wer:f}, CER: {self.cer:f}, loss: {self.loss:f}", LINE]
        for name, samples in parts.items():
            lines += [f"{name} WER: ", LINE]
            for sample in samples:
                lines += [
                    f"WER: {sample.wer:f}, CER: {sample.cer:f}, loss: {sample.loss:f}",
                    f" - wav: {sample.wav_filename}",
                    f' - src: "{sample.src}"',
                    f' - res: "{sample.res}"',
                    LINE,
                ]
        return "\n".join(lines) + "\n"


def error_report(
    names: Sequence[str],
    references: Sequence[str],
    transcripts: Sequence[str],
    losses: Sequence[float],
    *,
    sort_by: Literal["wer", "cer"] = "wer",
) -> Report:
    """Compares ``transcripts`` with ``references``; Coqui sorts by CER in byte mode.

    Raises:
        DataError: no samples, or references without words; all are listed.
    """
    empty = [name for name, reference in zip(names, references, strict=True) if not reference.split()]
    if empty or not names:
        raise DataError(
            "error rates need references with words",
            found=f"{len(empty)} without words" if empty else "no samples",
            problems=[Problem("the reference has no words", where=name) for name in empty[:20]],
        )
    rows = zip(names, references, transcripts, losses, strict=True)
    samples = [_sample(name, reference, found, float(loss)) for name, reference, found, loss in rows]
    samples.sort(key=lambda sample: sample.loss, reverse=True)
    samples.sort(key=lambda sample: getattr(sample, sort_by))
    wer = sum(s.word_distance for s in samples) / sum(s.word_length for s in samples)
    cer = sum(s.char_distance for s in samples) / sum(s.char_length for s in samples)
    loss = sum(s.loss for s in samples) / len(samples)
    return Report(tuple(samples), min(wer, 1.0), min(cer, 1.0), loss, sort_by)


def write_samples(samples: Sequence[Sample], path: Path) -> None:
    """The JSON of Coqui's ``--test_output_file``: a list of samples.

    Raises:
        StorageError: it cannot be written.
    """
    write_text(path, json.dumps([asdict(sample) for sample in samples], ensure_ascii=False, indent=2))


def _sample(name: str, reference: str, found: str, loss: float) -> Sample:
    characters, words = edit_distance(reference, found), edit_distance(reference.split(), found.split())
    count = len(reference.split())
    return Sample(
        name,
        reference,
        found,
        loss,
        characters,
        len(reference),
        words,
        count,
        characters / len(reference),
        words / count,
    )
