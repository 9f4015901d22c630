"""What dialects of several families check: options, layers without gaps, vocabularies that are given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from warmstart.checked import Config
from warmstart.errors import DialectError, Problem, VocabularyError
from warmstart.formats.checkpoint import Entry
from warmstart.spec.templates import match
from warmstart.vocabularies.load import load_vocabulary
from warmstart.vocabularies.vocabulary import Vocabulary


def given_vocabularies(files: Sequence[str]) -> dict[str, Vocabulary]:
    """The vocabularies in ``files``: one for both sides, or the source's and the target's."""
    paths = [Path(f) for f in files] * (2 if len(files) == 1 else 1)
    if len(paths) != 2:
        raise VocabularyError("a translation model has two vocabularies", found=len(paths))
    return dict(zip(("source", "target"), map(load_vocabulary, paths), strict=True))


def not_tables(entries: Mapping[str, Entry], names: Iterable[str]) -> list[Problem]:
    """Every array of ``names``, from whose shapes sizes are read, that is missing or has no two axes."""
    missing = [Problem(f"{name} is missing") for name in names if name not in entries]
    shapes = {name: entries[name].shape for name in names if name in entries}
    flat = {name: shape for name, shape in shapes.items() if len(shape) < 2}
    return missing + [Problem(f"{name} is no table", found=f"shape {list(shape)}") for name, shape in flat.items()]


def layers_of(names: Iterable[str], template: str, problems: list[Problem]) -> int:
    """How many layers (``template`` with a hole ``i``) there are; a gap is a problem."""
    found = {values[0]["i"] for name in names if (values := match(f"{template}.**", name))}
    missing = sorted(set(range(max(found, default=-1) + 1)) - found)
    if missing:
        problems.append(Problem(f"{template.format(i=missing[0])} is missing before later layers"))
    return len(found)


def layers_as_said(said: Mapping[str, object], found: Mapping[str, int]) -> list[Problem]:
    """That there are as many layers as an option says (``said``: side → number; None and -1 say nothing)."""
    return [
        Problem(f"the options say {number} layers of the {side}", found=f"{found[side]} in the file")
        for side, number in said.items()
        if number not in (None, -1, found[side])
    ]


def require(config: Config, framework: str, **allowed: tuple[object, ...]) -> None:
    """
    Raises:
        DialectError: ``config`` says other than what ``framework`` computes; every key is named.
    """
    problems = [
        Problem(f"{key}: {getattr(config, key)!r} is not what {framework} computes", expected=" or ".join(map(repr, v)))
        for key, v in allowed.items()
        if getattr(config, key) not in v
    ]
    if problems:
        raise DialectError(f"{framework} cannot express this model", problems=problems)


def not_allowed(said: Mapping[str, object], allowed: Mapping[str, Sequence[object]], place: str = "") -> list[Problem]:
    """Every option of ``said`` that has none of the values of ``allowed``; ``place`` stands before its name."""
    return [
        Problem(f"{place}{key}: {said[key]!r} is not supported", expected=" or ".join(map(repr, values)))
        for key, values in allowed.items()
        if key in said and said[key] not in values
    ]
