"""Speech as a kind of task: recordings as features, CTC, greedy validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np

from warmstart.data.metrics import cer, wer
from warmstart.data.speech.batches import SpeechBatch, SpeechStream, sequential_speech
from warmstart.data.speech.cache import shared_folder
from warmstart.data.speech.config import SpeechDataConfig
from warmstart.data.speech.split import SpeechSplit
from warmstart.errors import ConfigError, Problem
from warmstart.inference.recognition import recognise
from warmstart.inference.search import SearchConfig
from warmstart.lean import dataclass
from warmstart.models.deepspeech.mfcc import Mfcc
from warmstart.storage.progress import Progress
from warmstart.training.config import TrainingConfig
from warmstart.training.ctc import CTC
from warmstart.training.denormals import flushed_denormals
from warmstart.training.samples import sample_rows, spread
from warmstart.training.terms import Measured, validation_prefix
from warmstart.training.workload import Job, Trial, check_splits
from warmstart.vocabularies.vocabulary import Vocabulary

_MEASURED = ("loss", "wer", "cer")
_OF_TEXT = ("label_smoothing", "z_loss", "distillation", "compile")


@dataclass(frozen=True)
class SpeechEvaluation:
    """CTC loss, word and character error rate of greedy outputs, of every task; ``validation/loss`` is nats an
    utterance over all, the rates are percent.

    With several tasks each has its own ``validation/TASK/METRIC``, the loss too. ``samples`` outputs of each task are
    returned to be looked at.
    """

    splits: Mapping[str, SpeechSplit]
    alphabet: Vocabulary
    batch_frames: int | None
    batch_size: int | None
    samples: int = 0

    @property
    def names(self) -> list[str]:
        """What is measured."""
        of_tasks = [f"{validation_prefix(name, self.splits)}/{key}" for name in self.splits for key in _MEASURED]
        return list(dict.fromkeys(["validation/loss", *of_tasks]))

    def __call__(self, model: Any, step: int) -> Measured:
        out: dict[str, float] = {}
        rows: list[dict[str, Any]] = []
        total, utterances = 0.0, 0
        for name, split in self.splits.items():
            batches = sequential_speech(split, batch_frames=self.batch_frames, batch_size=self.batch_size)
            found = recognise(model, batches, len(split))
            outputs = [self.alphabet.decode(labels) for labels in found.outputs]
            examples = [{"source": e.where, "target": e.transcript or ""} for e in split.examples]
            references = [example["target"] for example in examples]
            total, utterances = total + sum(found.losses), utterances + len(split)
            prefix = validation_prefix(name, self.splits)
            scores = {"loss": sum(found.losses) / len(split), **wer(references, outputs), **cer(references, outputs)}
            out |= {f"{prefix}/{key}": value for key, value in scores.items()}
            rows += sample_rows(name, examples, outputs, self.samples)
        return Measured({**out, "validation/loss": total / utterances}, rows)


@dataclass(frozen=True)
class SpeechWorkload:
    """See :class:`~warmstart.training.workload.Workload`. ``tasks`` are the names of the stream's splits, in order."""

    stream: SpeechStream
    objective: CTC
    evaluation: SpeechEvaluation
    tasks: Sequence[str]
    fingerprint: str
    notes: Sequence[str]

    @property
    def measures(self) -> list[str]:
        return self.evaluation.names

    def evaluate(self, model: Any, step: int) -> Measured:
        return self.evaluation(model, step)

    def computing(self) -> AbstractContextManager[None]:
        """CTC's gradients vanish over time, to numbers that take a processor ten times as long."""
        return flushed_denormals()

    def describe(self, batch: SpeechBatch) -> list[dict[str, Any]]:
        rows = zip(batch.tasks, batch.indices, batch.feature_lengths, strict=True)
        return [
            {
                "task": self.tasks[int(t)],
                "index": int(i),
                "file": (example := self.stream.splits[int(t)].examples[int(i)]).where,
                "transcript": example.transcript,
                "frames": int(frames),
                "labels": self.stream.splits[int(t)].spelling(int(i)).tolist(),
            }
            for t, i, frames in rows
        ]

    def longest(self) -> SpeechBatch:
        return self.stream.longest()

    def size(self, batch: SpeechBatch) -> str:
        seconds = int(batch.feature_lengths.max()) * self.objective.step_seconds
        return f"{len(batch.features)} recordings of {seconds:.1f} s and {batch.labels.shape[1]} labels"

    def trials(self) -> list[Trial]:
        return [_trial(self.evaluation, name, split) for name, split in self.evaluation.splits.items()]


def speech_workload(job: Job, *, write: bool = True, progress: bool = True) -> SpeechWorkload:
    """Read the recordings and make their features, or take them from the cache.

    Args:
        write: changes nothing here: features go into the cache.

    Raises:
        ConfigError: keys that change nothing for speech.
        DataError: data that cannot be used, or no train or validation split.
    """
    _check_used(job.training, job.search)
    data: SpeechDataConfig = job.data
    mfcc = Mfcc.of(job.model_config)
    own = job.run / "features"  # where runs of earlier versions keep theirs
    cache = own if own.is_dir() else shared_folder()
    with Progress("features", None, "recordings") if progress else nullcontext() as bar:
        counted = bar.update if bar is not None else lambda done: None
        alphabet: Any = job.vocabularies["text"]
        splits, validation = data.read_splits(["train", "validation"], alphabet, mfcc, cache, progress=counted)
    check_splits(splits, validation, job)
    evaluation = SpeechEvaluation(
        validation, job.vocabularies["text"], data.batch_frames(mfcc), data.batch_size, job.training.samples
    )
    stream = data.stream(splits, job.seed)
    fingerprints = [f"{name}:{split.fingerprint[:16]}" for name, split in splits.items()]
    fingerprints += [f"{step.name}:{taken}" for step in data.augmentations.steps if (taken := step.fingerprint())]
    return SpeechWorkload(
        stream,
        CTC(job.training, mfcc.step_ms / 1000),
        evaluation,
        list(splits),
        "+".join(fingerprints),
        [f"{name}: {line}" for name, split in splits.items() for line in split.describe()],
    )


def _check_used(training: TrainingConfig, search: SearchConfig | None) -> None:
    """Raises ``ConfigError`` for every key that changes nothing."""
    said = [f"training.{key}" for key in _OF_TEXT if key in training.model_fields_set]
    if search is not None:
        plain = SearchConfig()
        said += [f"decoding.{key}" for key in SearchConfig.model_fields if getattr(search, key) != getattr(plain, key)]
    if said:
        problems = [Problem(f"{key} changes nothing where speech is learnt", todo="remove it") for key in said]
        raise ConfigError("these keys are for text", problems=problems)


def _trial(evaluation: SpeechEvaluation, name: str, split: SpeechSplit) -> Trial:
    """About a batch of a validation split, evenly spread over the lengths; the whole takes longer in proportion."""
    rows = evaluation.batch_size or len(split)
    if evaluation.batch_frames is not None:
        rows = min(rows, int(evaluation.batch_frames / split.frames.mean()))
    order = np.argsort(split.frames, kind="stable")
    part = split.select([int(order[k]) for k in spread(len(split), max(1, rows))])
    some = replace(evaluation, splits={name: part})
    return Trial(some, float(split.frames.sum() / part.frames.sum()))
