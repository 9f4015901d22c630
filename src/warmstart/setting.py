"""A configuration with everything that it names: what `plan` prints and `train` carries out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from warmstart.bootstrap.plan import Plan
from warmstart.bootstrap.planner import Target, make_plan
from warmstart.bundle.model import Model, check_vocabulary_sizes, open_model, read_as
from warmstart.config import Change, RunConfig, changes, load_config
from warmstart.errors import ConfigError, Problem, validation_problems
from warmstart.keys import IDENTITY
from warmstart.kinds import DATA, Data
from warmstart.lean import dataclass
from warmstart.models.family import Family
from warmstart.models.registry import FAMILIES, dialect, family
from warmstart.sources.policy import using
from warmstart.vocabularies.config import build_vocabulary
from warmstart.vocabularies.vocabulary import Vocabulary


@dataclass
class Setting:
    """Opened sources, vocabularies, the model's configuration and the plan of a run; ``changes`` are keys that have
    another value than when the run was begun."""

    config: RunConfig
    models: list[Model]
    family: Any
    model_config: Any
    vocabularies: dict[str, Vocabulary]
    plan: Plan
    changes: Sequence[Change] = ()


def open_setting(path: str | Path, overrides: Sequence[str], require_coverage: float) -> Setting:
    """Load the configuration, open what it names and make the plan; no weights are read.

    Raises:
        ConfigError, PlanError: every reason why it cannot start so.
    """
    config = load_config(Path(path), overrides)
    with using(mirrors=config.sources.mirrors):
        return _open(config, require_coverage)


def _open(config: RunConfig, require_coverage: float) -> Setting:
    of = family(config.family)
    _check_sides(config, of)
    models = [
        open_model(s.source, vocabularies=s.files, with_state=s.mode == "continue", dialect=s.dialect)
        for s in config.start
    ]
    for model in models:
        if model.family is None:
            model.require()
    _check_families(models, of)
    vocabularies = _vocabularies(config, of, models)
    model_config = _model_config(config, of, models, vocabularies)
    if config.training is not None and hasattr(of, "require_computed"):  # some that a family converts it cannot train
        of.require_computed(model_config)
    for start, model in zip(config.start, models, strict=True):
        if model.reading is None and start.dialect is not None:
            read_as(model, of, model_config, dialect(of, str(model.dialect)))
        model.require()
        if model.config is not model_config:
            check_vocabulary_sizes(model)
    target = Target(
        of.parameters(model_config), of.stages, of.order, of.behaviour(model_config), vocabularies, model_config
    )
    made = make_plan(list(zip(config.start, models, strict=True)), target, require_coverage=require_coverage)
    return Setting(config, models, of, model_config, vocabularies, made)


def _check_sides(config: RunConfig, of: Family) -> None:
    """The family's vocabularies must be those that the data and ``vocabularies`` speak of.

    Raises:
        ConfigError: every one that is not.
    """
    sides = tuple(of.vocabulary_sizes)
    problems: list[Problem] = []
    known = (*sides, "shared") if len(sides) > 1 else sides
    for side in sorted(set(config.vocabularies) - set(known)):
        problems.append(Problem(f"vocabularies.{side} is no vocabulary of {of.name}", expected=" and ".join(sides)))
    if "shared" in config.vocabularies and len(config.vocabularies) > 1:
        problems.append(Problem("vocabularies.shared stands alone", found=", ".join(config.vocabularies)))
    if config.data is not None and not _learns(of, config.data):
        what = f"a model of the family {of.name} does not learn from data of the type {config.data.type}"
        if types := [one.model_fields["type"].default for one in DATA if _learns(of, one)]:
            problems.append(Problem(what, expected=" or ".join(types), todo="set `data.type` or `family`"))
        else:
            trained = ", ".join(f.name for f in FAMILIES if any(_learns(f, one) for one in DATA))
            problems.append(Problem(what, expected=f"a family that is trained here: {trained}"))
    if problems:
        raise ConfigError("the data and vocabularies do not fit the family", problems=problems)


def _learns(of: Family, data: type[Data] | Data) -> bool:
    return set(data.sides) == set(of.vocabulary_sizes) and set(data.model_keys) <= set(of.config_type.model_fields)


def _check_families(models: Sequence[Model], of: Family) -> None:
    """Raises ``ConfigError``: sources that are models of another family, all of them."""
    problems = [
        Problem("a source is a model of another family", str(m.source), expected=of.name, found=m.family.name)
        for m in models
        if m.family is not None and m.family.name != of.name
    ]
    if problems:
        raise ConfigError(
            f"a model of the family {of.name} cannot start from these",
            problems=problems,
            todo="set `family`, or give another source",
        )


def _vocabularies(config: RunConfig, of: Family, models: Sequence[Model]) -> dict[str, Vocabulary]:
    """The vocabulary of each side: as configured, or the source's.

    Raises:
        ConfigError: there is none, or it is of a kind that the data cannot be spelt with.
    """
    found = _found_vocabularies(config, of, models)
    kinds = config.data.vocabulary_kinds if config.data is not None else ()
    problems = [
        Problem(
            f"data of the type {data_of(config).type} are not spelt with vocabularies.{side}",
            expected=" or ".join(kinds),
            found=vocabulary.kind,
            todo=f"set `vocabularies.{side}.type: {kinds[0]}`",
        )
        for side, vocabulary in found.items()
        if kinds and vocabulary.kind not in kinds
    ]
    if problems:
        raise ConfigError("the data and vocabularies do not fit", problems=problems)
    return found


def _found_vocabularies(config: RunConfig, of: Family, models: Sequence[Model]) -> dict[str, Vocabulary]:
    sides = tuple(of.vocabulary_sizes)
    inherited = {side: v for model in reversed(models) for side, v in model.vocabularies.items()}
    shared = config.vocabularies.get("shared")
    if shared is not None and shared.type != "inherit":
        both: list[str] = []
        if shared.made_from_text:
            data = data_of(config)
            both = [line for side in sides for line in data.text(side)]
        one = build_vocabulary(shared, both)
        return dict.fromkeys(sides, one)
    out: dict[str, Vocabulary] = {}
    for side in sides:
        piece = config.vocabularies.get(side)
        if piece is None or piece.type == "inherit":
            if side not in inherited:
                kind = next(iter(config.data.vocabulary_kinds if config.data else ()), "characters")
                raise ConfigError(
                    f"there is no {side} vocabulary",
                    todo=f"add `vocabularies: {{{side}: {{type: {kind}}}}}`, or `start.files` "
                    "where the source does not name its own",
                )
            out[side] = inherited[side]
        else:
            lines: Iterable[str] = data_of(config).text(side) if piece.made_from_text else ()
            out[side] = build_vocabulary(piece, lines)
    return out


def data_of(config: RunConfig) -> Data:
    if config.data is None:
        raise ConfigError("data is missing", expected="data: tasks: …")
    return config.data


def _model_config(
    config: RunConfig, family: Any, models: Sequence[Model], vocabularies: Mapping[str, Vocabulary]
) -> Any:
    base: dict[str, Any] = {}
    inherited = next((m.config for m in models if m.config is not None), None)
    if inherited is not None:
        base = inherited.model_dump()
    sizes = {key: len(vocabularies[side]) for side, key in family.vocabulary_sizes.items()}
    problems: list[Problem] = []
    for key, value in config.model.items():
        if key in sizes and value != sizes[key]:
            problems.append(
                Problem(f"model.{key} is not the vocabulary's size", expected=str(sizes[key]), found=str(value))
            )
        elif inherited is not None and key in base and base[key] == value:
            problems.append(
                Problem(f"`model.{key}: {value}` changes nothing: the source has it already", todo="remove the key")
            )
        elif key not in family.config_type.model_fields:
            near = difflib.get_close_matches(key, family.config_type.model_fields, n=1)
            problems.append(
                Problem(f"unknown key model.{key}", todo=f"did you mean {near[0]}?" if near else "remove it")
            )
    if problems:
        raise ConfigError("the model is not valid", problems=problems)
    try:
        return family.config_type.model_validate({**base, **config.model, **sizes})
    except ValueError as error:
        raise ConfigError("the model is not valid", problems=validation_problems(error, "model.")) from None


def changes_of_run(config: RunConfig) -> list[Change]:
    """What is another value than when the run in this directory was begun, and may be; nothing for a new run, nor for
    one that came to no checkpoint.

    Raises:
        ConfigError: keys of the run's identity differ, each named; or the configuration it was begun with is gone.
    """
    stored = config.run / "config.yaml"
    begun = any(config.run.glob("checkpoints/step-*/state.json")) or (config.run / "model").is_dir()
    if not begun:
        return []
    if not stored.is_file():
        raise ConfigError(
            "nothing says any more what the run in this directory is",
            where=stored,
            expected="the configuration that it was begun with",
            todo="put it back, or begin another run with `run=...`",
        )
    found = changes(load_config(stored), config)
    problems = [
        Problem(
            f"{change.key} belongs to the run's identity",
            expected=str(change.old),
            found=str(change.new),
            todo="set it back, or begin another run with `run=...`",
        )
        for change in found
        if change.kind == IDENTITY
    ]
    if problems:
        raise ConfigError("the run directory holds another run", where=config.run, problems=problems)
    return found
