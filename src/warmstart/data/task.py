"""Tasks, with the semantics of SeqIO (Raffel et al. 2020; Roberts et al. 2022)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from warmstart.data.text import ParallelFiles, read_parallel
from warmstart.errors import DataError
from warmstart.lean import dataclass
from warmstart.vocabularies.vocabulary import Vocabulary

Example = Mapping[str, Any]
Preprocessor = Callable[[Example], Example | Iterable[Example] | None]
MetricFn = Callable[..., Mapping[str, float]]


@dataclass(frozen=True)
class Feature:
    """One field of an example that becomes rows of ``vocabulary``; ``add_eos`` appends its end row."""

    vocabulary: Vocabulary
    add_eos: bool = True
    required: bool = True

    def encode(self, text: str) -> list[int]:
        ids = self.vocabulary.encode(text)
        return [*ids, self.vocabulary.eos_id] if self.add_eos else ids


def _unchanged(text: str, example: Example) -> Any:
    return text


@dataclass(frozen=True)
class Task:
    """Where examples come from, how they become features, how outputs are scored.

    A split is parallel files (examples with ``source``, ``target`` and ``where``) or a function that returns
    examples. A preprocessor returns an example, none (the example is dropped) or several. ``postprocess``
    gets an output text and its example. A metric function is called by the names of its parameters:
    ``(targets, predictions)`` or ``(targets, scores)``.
    """

    name: str
    splits: Mapping[str, Callable[[], Iterable[Example]] | ParallelFiles]
    features: Mapping[str, Feature]
    preprocessors: Sequence[Preprocessor] = ()
    postprocess: Callable[[str, Example], Any] = _unchanged
    metric_fns: Sequence[MetricFn] = ()

    def __post_init__(self) -> None:
        for function in self.metric_fns:
            _metric_input(function, self.name)

    def examples(self, split: str) -> Iterator[Example]:
        """Preprocessed examples, in order. Raises ``DataError`` for an unknown split, an example without a
        required feature, and what the files hold."""
        if split not in self.splits:
            raise DataError(
                f"task {self.name} has no split {split!r}", expected=f"one of {', '.join(sorted(self.splits))}"
            )
        source = self.splits[split]
        examples: Iterable[Example] = _file_examples(source) if isinstance(source, ParallelFiles) else source()
        for preprocessor in self.preprocessors:
            examples = _apply(preprocessor, examples)
        for example in examples:
            missing = [name for name, feature in self.features.items() if feature.required and name not in example]
            if missing:
                raise DataError(
                    f"an example of task {self.name} has no {', '.join(missing)}",
                    where=example.get("where"),
                    found=f"fields {', '.join(sorted(example))}",
                )
            yield example

    def score(
        self, targets: Sequence[Any], predictions: Sequence[Any] | None = None, scores: Sequence[float] | None = None
    ) -> dict[str, float]:
        """What every metric function whose input is given says of ``targets``, in one table.

        Raises ``DataError`` when lengths differ or two functions report one name.
        """
        given = {"predictions": predictions, "scores": scores}
        result: dict[str, float] = {}
        for function in self.metric_fns:
            parameter = _metric_input(function, self.name)
            values = given[parameter]
            if values is None:
                continue
            if len(values) != len(targets):
                raise DataError(
                    f"task {self.name} cannot be scored", expected=f"{len(targets)} {parameter}", found=len(values)
                )
            reported = function(**{"targets": targets, parameter: values})
            twice = sorted(set(reported) & set(result))
            if twice:
                raise DataError(f"two metrics of task {self.name} report {', '.join(twice)}")
            result |= reported
        return result


def _file_examples(files: ParallelFiles) -> Iterator[Example]:
    for number, (source, target) in enumerate(read_parallel(files), 1):
        yield {"source": source, "target": target, "where": f"{files.name}, line {number}"}


def _apply(preprocessor: Preprocessor, examples: Iterable[Example]) -> Iterator[Example]:
    for example in examples:
        result = preprocessor(example)
        if isinstance(result, Mapping):
            yield result
        elif result is not None:
            yield from result


def _metric_input(function: MetricFn, task: str) -> str:
    """``predictions`` or ``scores``: what ``function`` takes beside ``targets``."""
    names = set(inspect.signature(function).parameters)
    for parameter in ("predictions", "scores"):
        if names == {"targets", parameter}:
            return parameter
    raise DataError(
        f"a metric function of task {task} takes other parameters",
        expected="(targets, predictions) or (targets, scores)",
        found=f"{getattr(function, '__name__', function)}{inspect.signature(function)}",
    )
