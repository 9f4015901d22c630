"""The data's piece of a configuration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from warmstart.data.index import EncodedSplit, encode_split
from warmstart.data.metrics import METRICS
from warmstart.data.mixing import check_mixing, mixing_rates
from warmstart.data.preprocessors import PREPROCESSORS
from warmstart.data.task import Feature, Task
from warmstart.data.text import ParallelFiles
from warmstart.errors import DataError
from warmstart.keys import Identity
from warmstart.sources.named import Named
from warmstart.vocabularies.vocabulary import Vocabulary

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]


class SplitConfig(BaseModel):
    """``source`` and ``target``, two files whose lines belong together, or ``tsv``, one with two columns. Each is a
    path or a URL."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Named | None = None
    target: Named | None = None
    tsv: Named | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        pair = self.source is not None and self.target is not None
        if pair == (self.tsv is not None) or (self.source is None) != (self.target is None):
            raise ValueError("give source and target, or tsv alone")
        return self

    @property
    def named(self) -> list[str | Path]:
        """The one or two files."""
        return [file for file in (self.source, self.target, self.tsv) if file is not None]

    def files(self) -> ParallelFiles:
        return ParallelFiles(self.source, self.target, self.tsv)


class TaskConfig(BaseModel):
    """Files of each split, names of preprocessors (in order) and of metrics."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    splits: Annotated[dict[str, SplitConfig], Field(min_length=1)]
    preprocess: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ("chrf", "exact_match", "cer")

    @field_validator("preprocess")
    @classmethod
    def _known_preprocessors(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return _known("preprocessor", names, PREPROCESSORS)

    @field_validator("metrics")
    @classmethod
    def _known_metrics(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return _known("metric", names, METRICS)


class DataConfig(BaseModel):
    """Tasks of text pairs, and how their examples are mixed and put into batches.

    ``rates`` are weights of the tasks; without them they are the sizes, capped at ``maximum`` and to the power
    1/``temperature``. ``max_length`` counts tokens with the end (longer examples are dropped), ``batch_tokens``
    bounds rows × longest on each side, ``window`` is in examples.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sides: ClassVar[tuple[str, ...]] = ("source", "target")
    vocabulary_kinds: ClassVar[tuple[str, ...]] = ()  # any
    model_keys: ClassVar[tuple[str, ...]] = ()

    type: Identity[Literal["text"]] = "text"
    tasks: Identity[Annotated[dict[str, TaskConfig], Field(min_length=1)]]
    rates: Identity[dict[str, PositiveFloat] | None] = None
    temperature: Identity[PositiveFloat | None] = None
    maximum: Identity[PositiveInt | None] = None
    max_length: Identity[PositiveInt] = 200
    batch_tokens: Identity[PositiveInt] = 4096
    window: Identity[PositiveInt] = 8192
    empty_lines: Identity[Literal["error", "drop"]] = "error"
    unknown_target: Identity[Literal["error", "allow"]] = "error"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_mixing(self)
        if self.max_length > self.batch_tokens:
            raise ValueError(f"max_length {self.max_length} is more than batch_tokens {self.batch_tokens}")
        return self

    def build_tasks(self, source: Vocabulary, target: Vocabulary) -> dict[str, Task]:
        """The tasks, in order, with the features ``source`` and ``target`` in these vocabularies."""
        features = {"source": Feature(source), "target": Feature(target)}
        return {name: build_task(name, config, features) for name, config in self.tasks.items()}

    def mixing_rates(self, sizes: Mapping[str, int]) -> dict[str, float]:
        """The weight of each task; ``sizes`` are their kept training examples."""
        return mixing_rates(self, sizes)

    def encode(self, task: Task, split: str, *, keep_examples: bool = False) -> EncodedSplit:
        """``encode_split`` with this configuration's limits."""
        return encode_split(
            task,
            split,
            max_length=self.max_length,
            empty_lines=self.empty_lines,
            unknown_target=self.unknown_target,
            keep_examples=keep_examples,
        )

    def text(self, side: str, split: str = "train") -> Iterable[str]:
        """Preprocessed lines of one side of every task that has ``split``: what a vocabulary is made from.

        Raises ``DataError`` when no task has it.
        """
        tasks = [build_task(name, config, {}) for name, config in self.tasks.items() if split in config.splits]
        if not tasks:
            raise DataError(f"no task has a split {split!r}")
        return (str(example[side]) for task in tasks for example in task.examples(split))


def build_task(name: str, config: TaskConfig, features: Mapping[str, Feature]) -> Task:
    """The task that ``config`` describes."""
    return Task(
        name=name,
        splits={split: files.files() for split, files in config.splits.items()},
        features=features,
        preprocessors=tuple(PREPROCESSORS[key] for key in config.preprocess),
        metric_fns=tuple(METRICS[key] for key in config.metrics),
    )


def _known(noun: str, names: tuple[str, ...], table: Mapping[str, object]) -> tuple[str, ...]:
    for name in names:
        if name not in table:
            near = get_close_matches(name, table, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"no {noun} {name!r}{hint} (there are {', '.join(sorted(table))})")
    if len(set(names)) != len(names):
        raise ValueError(f"a {noun} is named twice")
    return names
