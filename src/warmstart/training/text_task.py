"""Text pairs as a kind of task: encoded examples, cross entropy, decoded validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from functools import partial
from typing import Any

import numpy as np

from warmstart.data.batches import Batch, BatchPlan
from warmstart.data.config import DataConfig
from warmstart.data.index import EncodedSplit, Offsets, Rows
from warmstart.data.task import Task
from warmstart.lean import dataclass
from warmstart.training.distillation import Teacher, distilled_split, open_teachers
from warmstart.training.evaluation import Evaluation, describe_batch
from warmstart.training.objective import CrossEntropy
from warmstart.training.samples import spread
from warmstart.training.terms import Measured
from warmstart.training.workload import Job, Trial, check_splits


@dataclass(frozen=True)
class TextWorkload:
    """See :class:`~warmstart.training.workload.Workload`. ``tasks`` are the names of the stream's splits, in order."""

    stream: BatchPlan
    objective: CrossEntropy
    evaluation: Evaluation
    tasks: Sequence[str]
    fingerprint: str
    notes: Sequence[str]

    @property
    def measures(self) -> list[str]:
        return self.evaluation.names

    def evaluate(self, model: Any, step: int) -> Measured:
        return self.evaluation(model, step)

    def computing(self) -> AbstractContextManager[None]:
        return nullcontext()

    def describe(self, batch: Batch) -> list[dict[str, Any]]:
        return describe_batch(batch, self.tasks, self.evaluation.source, self.evaluation.target)

    def longest(self) -> Batch:
        return self.stream.longest()

    def size(self, batch: Batch) -> str:
        rows, longest = batch.source.shape
        return f"{rows} rows of {longest} source and {batch.target.shape[1]} target tokens"

    def trials(self) -> list[Trial]:
        return validation_trials(self.evaluation, self.stream.batch_tokens)


def text_workload(job: Job, *, write: bool = True, progress: bool = True) -> TextWorkload:
    """Encode the data and open teachers.

    Args:
        write: whether what is made once for a run may be written into its directory now: what sequence-level teachers
            decode. If not, the training data are as they are.

    Raises:
        DataError: data that cannot be used, or no train or validation split.
        VocabularyError: a teacher has other vocabularies.
    """
    data, training = job.data, job.training
    source, target = job.vocabularies["source"], job.vocabularies["target"]
    tasks = data.build_tasks(source, target)
    splits, validation = _encoded(data, tasks)
    check_splits(splits, validation, job)
    notes = [f"{name}: {describe_counts(split)}" for name, split in splits.items()]
    teachers: tuple[Teacher, ...] = ()
    if config := training.distillation:
        teachers = open_teachers(config, job.vocabularies, job.device)
        if config.level == "sequence" and write:
            cache = job.run / "distilled"
            translate = partial(distilled_split, max_length=data.max_length, progress=progress)
            splits = {n: translate(s, teachers, config, job.vocabularies, cache) for n, s in splits.items()}
            notes += [f"{name}, translated by the teacher: {describe_counts(split)}" for name, split in splits.items()]
    rates = data.mixing_rates({name: len(split) for name, split in splits.items()})
    stream = BatchPlan(
        list(splits.values()),
        eos_ids=(source.eos_id, target.eos_id),
        rates=[rates[name] for name in splits],
        batch_tokens=data.batch_tokens,
        window=data.window,
        seed=job.seed,
    )
    return TextWorkload(
        stream,
        CrossEntropy(training, teachers),
        Evaluation(tasks, validation, (source, target), job.search, data.batch_tokens, training.samples),
        list(splits),
        "+".join(f"{name}:{split.fingerprint[:16]}" for name, split in splits.items()),
        notes,
    )


def _encoded(data: DataConfig, tasks: Mapping[str, Task]) -> tuple[dict[str, EncodedSplit], dict[str, EncodedSplit]]:
    """Training and validation splits by task."""
    splits = {name: data.encode(task, "train") for name, task in tasks.items() if "train" in task.splits}
    validation = {
        name: data.encode(task, "validation", keep_examples=True)
        for name, task in tasks.items()
        if "validation" in task.splits
    }
    return splits, validation


def describe_counts(split: EncodedSplit) -> str:
    """Kept and dropped examples in a sentence."""
    c = split.counts
    text = f"{c.kept:,} examples"
    others = ((c.dropped_long, "too long"), (c.dropped_empty, "empty"), (c.unknown_source, "unknown source tokens"))
    for count, what in others:
        if count:
            text += f", {count:,} {what}"
    return text


# --- for a rehearsal ------------------------------------------------------------------------------------------------


def validation_trials(evaluation: Evaluation, batch_tokens: int) -> list[Trial]:
    """About a batch of each validation split; the whole takes longer in proportion to the tokens."""
    trials = []
    for name, split in evaluation.splits.items():
        some = copy(evaluation)
        part = _part(split, batch_tokens)
        some.splits = {name: part}
        trials.append(Trial(some, _tokens(split) / _tokens(part)))
    return trials


def _part(split: EncodedSplit, batch_tokens: int) -> EncodedSplit:
    """About a batch of examples, evenly spread over the lengths there are."""
    lengths = np.maximum(split.source_lengths, split.target_lengths)
    chosen = np.argsort(lengths, kind="stable")[spread(len(split), max(1, int(batch_tokens / lengths.mean())))]

    def rows(values: Rows, offsets: Offsets) -> tuple[Rows, Offsets]:
        picked = [values[offsets[i] : offsets[i + 1]] for i in chosen]
        return np.concatenate(picked), np.cumsum([0, *map(len, picked)])

    source, target = rows(split.source, split.source_offsets), rows(split.target, split.target_offsets)
    examples = tuple(split.examples[i] for i in chosen) if split.examples else ()
    return EncodedSplit(*source, *target, split.counts, split.vocabularies, examples)


def _tokens(split: EncodedSplit) -> int:
    return len(split.source) + len(split.target)
