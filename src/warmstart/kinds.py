"""Kinds of task in one list: what ``data.type`` may be in a configuration, and what trains and evaluates such data.

A third kind is one more member of ``Data`` and of ``KINDS``, and the modules that these name.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from pydantic import Discriminator, Tag

from warmstart.data.config import DataConfig, SplitConfig, TaskConfig
from warmstart.data.speech.config import SpeechDataConfig, SpeechSplitConfig, SpeechTaskConfig
from warmstart.redact import redact
from warmstart.sources.uri import is_remote, local

if TYPE_CHECKING:
    from warmstart.inference.asked import Asked
    from warmstart.training.workload import Job, Workload


def _type_of(value: object) -> str:
    return str(value.get("type", "text") if isinstance(value, dict) else getattr(value, "type", "text"))


Data = Annotated[
    Annotated[DataConfig, Tag("text")] | Annotated[SpeechDataConfig, Tag("speech")],
    Discriminator(_type_of),
]


DATA: tuple[type[DataConfig] | type[SpeechDataConfig], ...] = (DataConfig, SpeechDataConfig)


class Kind(Protocol):
    """What belongs to one kind of task beside the keys of its configuration, whose ``type`` is ``name``."""

    @property
    def name(self) -> str: ...

    def of_files(self, files: Sequence[str | Path], split: str) -> Data | None:
        """A configuration with ``files``, paths or URLs, as ``split``, each a task or all one; None if they are of
        another kind."""
        ...

    def workload(self, job: Job, *, write: bool, progress: bool) -> Workload:
        """What the training loop is given; see :mod:`warmstart.training.workload`."""
        ...

    def evaluate(self, data: Any, asked: Asked) -> dict[str, dict[str, float]]:
        """Metrics of every task that has the split asked for.

        Raises:
            ConfigError: options that change nothing for this kind.
            DataError: no task has the split.
        """
        ...


class Text:
    name = "text"

    def of_files(self, files: Sequence[str | Path], split: str) -> DataConfig | None:
        here = [local(file) for file in files]
        if all(file.suffix.lower() == ".tsv" for file in here):
            return DataConfig(tasks={str(file): TaskConfig(splits={split: SplitConfig(tsv=file)}) for file in here})
        if len(here) != 2:
            return None
        pair = SplitConfig(source=here[0], target=here[1])
        return DataConfig(tasks={here[1].name: TaskConfig(splits={split: pair})})

    def workload(self, job: Job, *, write: bool, progress: bool) -> Workload:
        from warmstart.training.text_task import text_workload

        return text_workload(job, write=write, progress=progress)

    def evaluate(self, data: DataConfig, asked: Asked) -> dict[str, dict[str, float]]:
        from warmstart.inference.evaluate_text import evaluate

        return evaluate(data, asked)


class Speech:
    name = "speech"

    def of_files(self, files: Sequence[str | Path], split: str) -> SpeechDataConfig | None:
        from warmstart.data.speech.read import is_list

        if not all(is_list(file) for file in files):
            return None
        named = {redact(file) if is_remote(file) else str(file): file for file in files}
        splits = {name: {split: SpeechSplitConfig(files=(file,))} for name, file in named.items()}
        tasks = {name: SpeechTaskConfig(splits=some) for name, some in splits.items()}
        return SpeechDataConfig(tasks=tasks)

    def workload(self, job: Job, *, write: bool, progress: bool) -> Workload:
        from warmstart.training.speech_task import speech_workload

        return speech_workload(job, write=write, progress=progress)

    def evaluate(self, data: SpeechDataConfig, asked: Asked) -> dict[str, dict[str, float]]:
        from warmstart.inference.evaluate_speech import evaluate

        return evaluate(data, asked)


# The first that recognises files has them: any two files may be a pair of texts.
KINDS: tuple[Kind, ...] = (Speech(), Text())


def kind_of(data: Data) -> Kind:
    """The kind that a configuration's ``data`` are of."""
    return next(kind for kind in KINDS if kind.name == data.type)
