"""A speech model scored on recordings: loss, word and character error rates, the best and the worst."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from warmstart.bundle.model import Model
from warmstart.data.speech.batches import SpeechBatch, sequential_speech
from warmstart.data.speech.config import SpeechDataConfig
from warmstart.data.speech.split import SpeechSplit
from warmstart.errors import DataError, DialectError, VocabularyError
from warmstart.inference.ctc import BeamOptions, Report, decode_beam, error_report, open_scorer
from warmstart.inference.recognition import Decode, mfcc_of, recognise
from warmstart.inference.translate import load_module
from warmstart.storage.progress import Progress
from warmstart.vocabularies.alphabet import Alphabet

WIDTH = 500  # Coqui's evaluation, where a language model is given


@dataclass(frozen=True)
class SpeechSearch:
    """How outputs are found: greedily, or with ``beam_size`` above 1 or a ``scorer`` by a beam search.

    ``alpha`` and ``beta`` weigh the scorer, instead of the weights that its package brings.
    """

    beam_size: int | None = None
    scorer: Path | None = None
    alpha: float | None = None
    beta: float | None = None

    def decoder(self, alphabet: Alphabet) -> Decode | None:
        """None where it is greedy.

        Raises:
            ConfigError, VocabularyError, MissingExtra, SourceError, FormatError: see ``ctc.open_scorer``.
        """
        if self.scorer is None and (self.beam_size or 1) == 1:
            return None
        scorer = None
        if self.scorer is not None:
            scorer = open_scorer(self.scorer, alphabet, alpha=self.alpha, beta=self.beta)
        options = BeamOptions(self.beam_size or WIDTH)
        return lambda log_probs: decode_beam(log_probs, alphabet, options, scorer)[0].ids


def evaluate_speech(
    model: Model, data: SpeechDataConfig, split: str, search: SpeechSearch | None = None, *, progress: bool = False
) -> dict[str, Report]:
    """The report of every task that has ``split``. Rates are between 0 and 1; byte mode is sorted by CER.

    Features come from ``data.feature_cache``; without one they are made in a folder for the time being.

    Raises:
        DialectError: this is no model that hears.
        DataError: the recordings cannot be used, or no task has the split.
    """
    alphabet = alphabet_of(model)
    tasks = [name for name, task in data.tasks.items() if split in task.splits]
    if not tasks:
        raise DataError(f"no task has a split {split!r}", found=", ".join(data.tasks))
    decode = (search or SpeechSearch()).decoder(alphabet)
    mfcc = mfcc_of(model.config)
    with TemporaryDirectory() as folder:
        splits = {name: data.read(name, split, alphabet, mfcc, Path(folder)) for name in tasks}
        module = load_module(model)
        frames, rows = data.batch_frames(mfcc), data.batch_size
        return {
            name: _report(module, recordings, alphabet, frames, rows, decode, progress)
            for name, recordings in splits.items()
        }


def alphabet_of(model: Model) -> Alphabet:
    """The labels of a speech model.

    Raises:
        DialectError: it is no model of the family deepspeech.
        VocabularyError: its alphabet is not known.
    """
    family, _, _ = model.require()
    if family.name != "deepspeech":
        raise DialectError(
            "this model does not write down recordings here", where=model.path, expected="deepspeech", found=family.name
        )
    alphabet = model.vocabularies.get("text")
    if not isinstance(alphabet, Alphabet):
        raise VocabularyError(
            "the alphabet of this model is not known", where=model.path, todo="give it with --vocab alphabet.txt"
        )
    return alphabet


def _report(
    module: Any,
    split: SpeechSplit,
    alphabet: Alphabet,
    batch_frames: int | None,
    batch_size: int | None,
    decode: Decode | None,
    progress: bool,
) -> Report:
    batches = sequential_speech(split, batch_frames=batch_frames, batch_size=batch_size)
    with Progress("evaluating", len(split), "recordings") if progress else nullcontext() as bar, torch.inference_mode():
        found = recognise(module, _counted(batches, bar), len(split), decode)
    return error_report(
        [example.where for example in split.examples],
        [example.transcript or "" for example in split.examples],
        [alphabet.decode(labels) for labels in found.outputs],
        found.losses,
        sort_by="cer" if alphabet.utf8 else "wer",
    )


def _counted(batches: Iterable[SpeechBatch], bar: Progress | None) -> Iterator[SpeechBatch]:
    for batch in batches:
        yield batch
        if bar is not None:
            bar.update(len(batch.indices))
