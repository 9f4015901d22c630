"""A speech model scored on recordings: loss, word and character error rates, the best and the worst."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from warmstart.bundle.model import Model, open_model
from warmstart.data.speech.batches import SpeechBatch, sequential_speech
from warmstart.data.speech.config import SpeechDataConfig
from warmstart.data.speech.split import SpeechSplit
from warmstart.errors import ConfigError, DataError
from warmstart.inference.asked import Asked, require_none
from warmstart.inference.ctc import Report, SpeechSearch, error_report, write_samples
from warmstart.inference.load import load_module
from warmstart.inference.recognition import Decode, Floats, recognise
from warmstart.inference.speech.acoustic import alphabet_of, exported
from warmstart.models.deepspeech.mfcc import Mfcc
from warmstart.storage.progress import Progress
from warmstart.vocabularies.alphabet import Alphabet

logger = logging.getLogger(__name__)


def evaluate(data: SpeechDataConfig, asked: Asked) -> dict[str, dict[str, float]]:
    """Loss and error rates (in percent) of every task that has the split.

    Raises:
        ConfigError: options that change nothing for speech.
        DataError: the recordings cannot be used, or no task has the split.
    """
    require_none("evaluating speech", {"engine": asked.engine})
    from warmstart.inference.device import choose_device

    if exported(asked.model) is not None:
        raise ConfigError(
            "an exported model is not evaluated",
            where=asked.model,
            todo="evaluate what it was exported from: `warmstart verify` compares the two, `transcribe` runs both",
        )
    device = choose_device(asked.device, "--device")
    model = open_model(asked.model, vocabularies=asked.vocabularies)
    search = SpeechSearch.of(asked.search or {})
    found = evaluate_speech(model, data, asked.split, search, progress=asked.progress, device=device)
    if asked.output is not None:
        write_samples([sample for one in found.values() for sample in one.samples], asked.output)
    for name, one in found.items():
        if asked.report is not None:
            asked.report(one.text(name, 5 if asked.report_count is None else asked.report_count))
    return {name: {"loss": one.loss, "wer": 100 * one.wer, "cer": 100 * one.cer} for name, one in found.items()}


def evaluate_speech(
    model: Model,
    data: SpeechDataConfig,
    split: str,
    search: SpeechSearch | None = None,
    *,
    progress: bool = False,
    device: Any = "cpu",
) -> dict[str, Report]:
    """The report of every task that has ``split``. Rates are between 0 and 1; byte mode is sorted by CER.

    Features come from ``data.feature_cache``; without one they are made in a folder for the time being. Recordings that
    are left out are named in the log.

    Raises:
        DialectError, VocabularyError: this is no model that hears, or its alphabet is not known.
        DataError: the recordings cannot be used, or no task has the split.
    """
    alphabet = alphabet_of(model)
    tasks = [name for name, task in data.tasks.items() if split in task.splits]
    if not tasks:
        raise DataError(f"no task has a split {split!r}", found=", ".join(data.tasks))
    decode = _decode(search or SpeechSearch(), alphabet)
    config: Any = model.config
    mfcc = Mfcc.of(config)
    with TemporaryDirectory() as folder:
        (splits,) = data.read_splits([split], alphabet, mfcc, Path(folder))
        for name, recordings in splits.items():
            for line in recordings.describe()[1:]:  # the first counts those that are kept
                logger.warning("%s: %s", name, line)
        module = load_module(model, device)
        frames, rows = data.batch_frames(mfcc), data.batch_size
        return {
            name: _report(module, recordings, alphabet, frames, rows, decode, progress)
            for name, recordings in splits.items()
        }


def _decode(search: SpeechSearch, alphabet: Alphabet) -> Decode | None:
    """None where it is greedy, which goes faster for a whole batch."""
    new = search.open(alphabet)
    if search.is_greedy:
        return None

    def decode(log_probs: Floats) -> Sequence[int]:
        decoder = new()
        decoder.feed(log_probs)
        return decoder.finish()[0].ids

    return decode


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
    faults = [split.examples[i].where for i, loss in enumerate(found.losses) if math.isnan(loss)]
    if faults:
        raise DataError(
            "the model's outputs are not numbers",
            where=faults[0],
            found=f"a loss that is NaN for {len(faults):,} of {len(split):,} recordings",
            todo="the model's weights hold NaN, or became too large: take an earlier checkpoint",
        )
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
