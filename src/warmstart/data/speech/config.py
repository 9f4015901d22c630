"""The piece of a configuration that says which recordings are learnt from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from warmstart.data.config import PositiveFloat, PositiveInt
from warmstart.data.mixing import check_mixing, mixing_rates
from warmstart.data.speech.augment.augmenter import Augmentations
from warmstart.data.speech.batches import Augmented, MixedSpeech, SortedSpeech, SpeechStream
from warmstart.data.speech.example import SpeechExample
from warmstart.data.speech.read import LISTS, is_list, read_examples
from warmstart.data.speech.split import SpeechSplit, Spelling, encode_speech
from warmstart.errors import ConfigError, DataError, SourceError
from warmstart.keys import Adjustable, Identity
from warmstart.models.deepspeech.mfcc import Mfcc
from warmstart.sources.config import Source
from warmstart.sources.named import Named
from warmstart.sources.uri import at_home
from warmstart.vocabularies.alphabet import Alphabet

T = TypeVar("T")
U = TypeVar("U")


def together(read: Callable[[T], U], items: Sequence[T], what: str) -> list[U]:
    """``read`` of each of ``items``. Raises one error with everything that is wrong with any of them."""
    found: list[U] = []
    wrong: list[DataError | SourceError] = []
    for item in items:
        try:
            found.append(read(item))
        except (DataError, SourceError) as error:
            wrong.append(error)
    if len(wrong) == 1:
        raise wrong[0]
    if wrong:
        problems = [problem for error in wrong for problem in (error.problem, *error.problems)]
        raise DataError(f"{what} cannot be used", problems=problems)
    return found


class SpeechSplitConfig(BaseModel):
    """``files`` are lists of recordings (``.csv``, ``.sdb``, ``.tar``, ``.tar.gz``, ``.tar.zst``), paths or URLs;
    ``folder``, a path or a URL, is where relative names in a CSV begin (beside each CSV, if not given); ``limit`` takes
    the first so many examples.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    files: Annotated[tuple[Named, ...], Field(min_length=1)]
    folder: Named | None = None
    limit: PositiveInt | None = None

    @field_validator("files", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return (value,) if isinstance(value, str | Path) else value

    @field_validator("files")
    @classmethod
    def _known(cls, value: tuple[str | Path, ...]) -> tuple[str | Path, ...]:
        wrong = [str(path) for path in value if not is_list(path)]
        if wrong:
            raise ValueError(f"recordings are listed in files called *{', *'.join(LISTS)}, not in {', '.join(wrong)}")
        return value

    @property
    def named(self) -> list[str | Path]:
        """The lists."""
        return list(self.files)

    def examples(self) -> list[SpeechExample]:
        """All of them, in order. Raises one ``DataError`` or ``SourceError`` about all lists."""
        found = together(lambda path: read_examples(path, folder=self.folder), self.files, "lists of recordings")
        examples = [example for some in found for example in some]
        return examples[: self.limit] if self.limit else examples


class SpeechTaskConfig(BaseModel):
    """The recordings of each split (``train``, ``validation``, ``test``)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    splits: Annotated[dict[str, SpeechSplitConfig], Field(min_length=1)]


class SpeechDataConfig(BaseModel):
    """Tasks of recordings, and how these are mixed and put into batches.

    ``rates``, ``temperature`` and ``maximum`` mix tasks as for texts. A batch holds recordings of similar length:
    rows × longest ≤ ``batch_seconds``, and at most ``batch_size`` rows; one of the two is enough. ``order: sorted`` is
    Coqui's: by size of file, always ``batch_size`` rows, batches shuffled from epoch ``shuffle_from`` on (null:
    never). Recordings longer than ``max_seconds`` are left out and named, like those too short for their transcript.

    ``augment`` holds augmentations of the training as Coqui writes them (``volume[p=0.1,dbfs=-10:-40]``); their
    ranges run from their beginning to their end over ``augment_epochs`` epochs.
    ``feature_cache`` is the directory of computed features (one in the cache that all trainings share, if not given).
    ``resample: false`` refuses recordings of another rate than the model's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sides: ClassVar[tuple[str, ...]] = ("text",)
    vocabulary_kinds: ClassVar[tuple[str, ...]] = (Alphabet.kind,)
    model_keys: ClassVar[tuple[str, ...]] = tuple(field.name for field in fields(Mfcc))

    type: Identity[Literal["speech"]] = "speech"
    tasks: Identity[Annotated[dict[str, SpeechTaskConfig], Field(min_length=1)]]
    rates: Identity[dict[str, PositiveFloat] | None] = None
    temperature: Identity[PositiveFloat | None] = None
    maximum: Identity[PositiveInt | None] = None
    max_seconds: Identity[PositiveFloat] = 60.0
    batch_seconds: Identity[PositiveFloat | None] = None
    batch_size: Identity[PositiveInt | None] = None
    window: Identity[PositiveInt] = 8192
    order: Identity[Literal["mixed", "sorted"]] = "mixed"
    shuffle_from: Identity[Annotated[int, Field(ge=0)] | None] = 1
    unreadable: Identity[Literal["error", "drop"]] = "error"
    empty_transcripts: Identity[Literal["error", "drop"]] = "error"
    resample: Identity[bool] = True
    augment: Identity[tuple[Source, ...]] = ()
    augment_epochs: Identity[PositiveFloat | None] = None
    feature_cache: Adjustable[Annotated[Path, AfterValidator(at_home)] | None] = None

    @field_validator("augment")
    @classmethod
    def _valid_augmentations(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        try:
            Augmentations.of(value)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.augmentations.has_ranges != (self.augment_epochs is not None):
            raise ValueError("augment_epochs goes with augmentations that change over the training (a:b), and only so")
        check_mixing(self)
        if self.batch_seconds is not None and self.max_seconds > self.batch_seconds:
            raise ValueError(f"max_seconds {self.max_seconds:g} is more than batch_seconds {self.batch_seconds:g}")
        if self.order == "sorted":
            self._consistent_sorted()
        elif "shuffle_from" in self.model_fields_set:
            raise ValueError("shuffle_from goes with order: sorted only; mixed batches are always shuffled")
        if self.batch_seconds is None and self.batch_size is None:
            object.__setattr__(self, "batch_seconds", max(160.0, self.max_seconds))
        return self

    def _consistent_sorted(self) -> None:
        if self.batch_size is None:
            raise ValueError("order: sorted needs a batch_size")
        unread = [key for key in ("batch_seconds", "rates", "temperature", "maximum") if getattr(self, key) is not None]
        if unread or "window" in self.model_fields_set:
            names = ", ".join([*unread, *(["window"] if "window" in self.model_fields_set else [])])
            raise ValueError(f"{names} changes nothing under order: sorted")

    @property
    def augmentations(self) -> Augmentations:
        return Augmentations.of(self.augment)

    def text(self, side: str, split: str = "train") -> Iterable[str]:
        """The transcripts, which are the one ``side`` that there is, of every task that has ``split``: what an alphabet
        is made from. Raises ``DataError``."""
        chosen = [task.splits[split] for task in self.tasks.values() if split in task.splits]
        if not chosen:
            raise DataError(f"no task has a split {split!r}")
        return (example.transcript or "" for part in chosen for example in part.examples())

    def read(
        self,
        task: str,
        split: str,
        alphabet: Spelling,
        mfcc: Mfcc,
        cache: Path,
        *,
        progress: Callable[[int], None] = lambda done: None,
    ) -> SpeechSplit:
        """Split ``split`` of ``task`` with its features and labels; ``cache`` is used where no ``feature_cache`` is
        configured. For validation nothing is too long. Raises ``DataError`` with everything that is wrong."""
        return encode_speech(
            self.tasks[task].splits[split].examples(),
            alphabet,
            mfcc,
            self.feature_cache or cache,
            name=f"{split} of task {task}",
            max_seconds=self.max_seconds if split == "train" else None,
            unreadable=self.unreadable,
            empty_transcripts=self.empty_transcripts,
            resample=self.resample,
            progress=progress,
        )

    def read_splits(
        self,
        splits: Sequence[str],
        alphabet: Spelling,
        mfcc: Mfcc,
        cache: Path,
        *,
        progress: Callable[[int], None] = lambda done: None,
    ) -> list[dict[str, SpeechSplit]]:
        """What :meth:`read` gives of each of ``splits``, by task. Raises one ``DataError`` about all of them."""
        wanted = [(split, name) for split in splits for name, task in self.tasks.items() if split in task.splits]

        def read(at: tuple[str, str]) -> SpeechSplit:
            return self.read(at[1], at[0], alphabet, mfcc, cache, progress=progress)

        found = dict(zip(wanted, together(read, wanted, "the recordings"), strict=True))
        return [{name: found[at, name] for at, name in wanted if at == split} for split in splits]

    def batch_frames(self, mfcc: Mfcc) -> int | None:
        """``batch_seconds`` as frames."""
        return None if self.batch_seconds is None else max(1, int(self.batch_seconds * 1000 / mfcc.step_ms))

    def mixing_rates(self, sizes: Mapping[str, int]) -> dict[str, float]:
        """The weight of each task; ``sizes`` are their kept training examples."""
        return mixing_rates(self, sizes)

    def stream(self, splits: Mapping[str, SpeechSplit], seed: int) -> SpeechStream:
        """The training batches of the tasks' training splits, augmented. Raises ``DataError``."""
        values, augmented, augmentations = list(splits.values()), None, self.augmentations
        if augmentations.steps:
            augmentations.check(values[0].mfcc)
            augmented = Augmented(augmentations, self.augment_epochs or 1.0)
        if self.order == "sorted" and self.batch_size is not None:
            size, shuffle_from = self.batch_size, self.shuffle_from
            return SortedSpeech(values, batch_size=size, shuffle_from=shuffle_from, seed=seed, augmented=augmented)
        rates = self.mixing_rates({name: len(split) for name, split in splits.items()})
        return MixedSpeech(
            values,
            batch_frames=self.batch_frames(values[0].mfcc),
            batch_size=self.batch_size,
            rates=[rates[name] for name in splits],
            window=self.window,
            seed=seed,
            augmented=augmented,
        )
