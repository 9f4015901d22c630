"""The seam between the loop and kinds of task: what is to be trained, and what one kind brings to a training.

A kind of task (text pairs, speech) is one module that makes a :class:`Workload` from a :class:`Job`;
``warmstart.kinds`` lists them. Nothing else in this room knows of kinds.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch

from warmstart.bootstrap.plan import Plan
from warmstart.bundle.model import Model
from warmstart.errors import DataError, Problem
from warmstart.inference.search import SearchConfig
from warmstart.lean import dataclass
from warmstart.models.family import Family
from warmstart.sources.uri import is_remote, local
from warmstart.training.config import TrainingConfig
from warmstart.training.terms import BatchStream, Evaluate, Measured, Objective
from warmstart.vocabularies.vocabulary import Vocabulary


class MakeWorkload(Protocol):
    """Makes of a :class:`Job` what is trained. ``write``: whether what is made once for a run may be written into its
    directory now."""

    def __call__(self, job: Job, *, write: bool, progress: bool) -> Workload: ...


@dataclass(frozen=True)
class Job:
    """A training to be done: its directory, the planned model, data and settings.

    ``device`` is where the model, its teachers and evaluations compute.
    ``data`` is the configuration of one kind of task, of which ``workload`` makes what is trained; ``search`` is how
    validation is decoded where outputs are searched for.
    """

    run: Path
    family: Family
    model_config: Any
    vocabularies: Mapping[str, Vocabulary]
    plan: Plan
    models: Sequence[Model]
    data: Any
    workload: MakeWorkload
    training: TrainingConfig
    search: SearchConfig | None
    seed: int
    device: torch.device


@dataclass(frozen=True)
class Trial:
    """The evaluation of a part of one validation split; the whole takes ``times`` as long."""

    evaluate: Evaluate
    times: float


def check_splits(train: Collection[str], validation: Collection[str], job: Job) -> None:
    """Whether there are tasks to train on, and to evaluate on where that is asked for.

    Raises:
        DataError: a split is missing, or there is one for validation that nothing would look at.
    """
    evaluated = job.training.evaluate_every is not None
    if not train or (evaluated and not validation):
        raise DataError(
            "training needs a train and a validation split",
            found=", ".join(sorted(job.data.tasks)),
            todo="`training.evaluate_every: null` trains without validation" if train else None,
        )
    if validation and not evaluated:
        raise DataError(
            "the validation splits change nothing where nothing is evaluated",
            found=", ".join(sorted(validation)),
            todo="remove them, or set `training.evaluate_every`",
        )


def check_files(job: Job) -> None:
    """Whether the files of all splits are there, also of those that are read after the training.

    Raises:
        DataError: those that are not.
    """
    problems = [
        Problem(f"{split} of task {task} names a file that is not there", where=str(file))
        for task, one in job.data.tasks.items()
        for split, files in one.splits.items()
        for file in files.named
        if not is_remote(file) and ((path := local(file)).is_dir() or not path.exists())
    ]
    if problems:
        raise DataError("the data cannot be read", problems=problems)


class Workload(Protocol):
    """What a kind of task brings to a training.

    Attributes:
        stream: the training batches.
        objective: what is minimised on them.
        fingerprint: identity of the training data.
        notes: lines about the data (kept and dropped examples).
        measures: the names of what an evaluation measures.
    """

    @property
    def stream(self) -> BatchStream: ...

    @property
    def objective(self) -> Objective: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def notes(self) -> Sequence[str]: ...

    @property
    def measures(self) -> Sequence[str]: ...

    def evaluate(self, model: Any, step: int) -> Measured:
        """Measure ``model``, which is in evaluation mode, on the validation splits."""

    def describe(self, batch: Any) -> list[dict[str, Any]]:
        """The examples of a training batch, to be looked at when its loss is not finite."""

    def longest(self) -> Any:
        """The batch that needs most memory: no batch of the training is longer."""

    def size(self, batch: Any) -> str:
        """The size of a batch in words: ``67 rows of 59 source and 61 target tokens``."""

    def computing(self) -> AbstractContextManager[None]:
        """What is to hold in this process while the model is trained, and no longer."""

    def trials(self) -> Sequence[Trial]:
        """About a batch of each validation split, evenly spread over the lengths there are."""
