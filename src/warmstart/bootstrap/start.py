"""What a start keeps: four modes as presets over five answers, each of which can be overridden alone."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Literal

from pydantic import BaseModel, ConfigDict

from warmstart.errors import Problem
from warmstart.lean import dataclass
from warmstart.sources.config import Source

Mode = Literal["use", "continue", "init", "transfer"]
Keep = Literal["carry", "fresh"]


@dataclass(frozen=True)
class Answers:
    """The five answers.

    ``weights``: ``all`` (nothing missing, nothing left behind) or ``matching`` (those that match in name and shape).
    ``optimizer`` and ``step``: ``carry`` or ``fresh``. ``data``: ``carry`` the position or begin at the ``start``.
    ``vocabulary``: must ``match``; ``rows`` of shared tokens are loaded by token; ``new`` leaves what another
    vocabulary indexes to be initialised.
    """

    weights: Literal["all", "matching"]
    optimizer: Literal["carry", "fresh", "none"]
    step: Literal["carry", "fresh", "none"]
    data: Literal["carry", "start", "none"]
    vocabulary: Literal["match", "rows", "new"]


PRESETS: dict[str, Answers] = {
    "use": Answers("all", "none", "none", "none", "match"),
    "continue": Answers("all", "carry", "carry", "carry", "match"),
    "init": Answers("all", "fresh", "fresh", "start", "match"),
    "transfer": Answers("all", "fresh", "fresh", "start", "new"),
}


class StartConfig(BaseModel):
    """One source to start from.

    ``select`` and ``exclude`` are patterns of the source's canonical names (``encoder.**``); ``rename`` maps patterns
    to names (``{"encoder.layers.{i}.**": "encoder.layers.{i+1}.**"}``); ``into`` is the prefix under which a composite
    mounts the family. ``drop`` names stages that are initialised afresh; ``drop_last: N`` the last N of a family whose
    stages have an order. ``files`` are vocabularies, where the source does not say; ``dialect`` is the one that the
    source must be in, as ``convert --from`` takes it (``coqui:audio_sample_rate=8000``).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Source
    mode: Mode
    strict: bool | None = None
    optimizer: Keep | None = None
    step: Keep | None = None
    data: Literal["carry", "start"] | None = None
    vocabulary: Literal["match", "rows", "new"] | None = None
    select: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    rename: dict[str, str] = {}
    into: str | None = None
    drop: tuple[str, ...] = ()
    drop_last: int | None = None
    dialect: str | None = None
    files: tuple[Source, ...] = ()


def answers(config: StartConfig) -> tuple[Answers, list[Problem]]:
    """The five answers of a start, and what is wrong with its overrides: one that repeats the preset changes nothing,
    and some do not go with their mode."""
    preset = PRESETS[config.mode]
    given = {
        "weights": None if config.strict is None else "all" if config.strict else "matching",
        "optimizer": config.optimizer,
        "step": config.step,
        "data": config.data,
        "vocabulary": config.vocabulary,
    }
    problems: list[Problem] = []
    for key, value in given.items():
        spelt = f"strict: {str(config.strict).lower()}" if key == "weights" else f"{key}: {value}"
        if value is not None and value == asdict(preset)[key]:
            problems.append(
                Problem(f"`{spelt}` changes nothing: `mode: {config.mode}` means it already", todo="remove the key")
            )
        elif value is not None and config.mode == "use":
            problems.append(
                Problem(
                    f"`{spelt}` does not go with `mode: use`, which passes the model on as it is",
                    todo="use `mode: init`",
                )
            )
    shaping = {
        "select": config.select,
        "exclude": config.exclude,
        "rename": config.rename,
        "drop": config.drop,
        "drop_last": config.drop_last,
        "into": config.into,
    }
    if config.mode == "use":
        problems += [
            Problem(
                f"`{key}` does not go with `mode: use`, which passes the model on as it is", todo="use `mode: init`"
            )
            for key, value in shaping.items()
            if value
        ]
    if config.mode == "continue":
        if config.vocabulary is not None and config.vocabulary != "match":
            problems.append(
                Problem(
                    "`continue` keeps the optimizer's state, which belongs to the rows of the old vocabulary",
                    found=f"vocabulary: {config.vocabulary}",
                    todo="use `mode: init` with `vocabulary: rows`, or `mode: transfer`",
                )
            )
        if config.drop or config.drop_last:
            problems.append(
                Problem("`continue` keeps every stage", found="drop", todo="use `mode: transfer` to drop stages")
            )
    if config.mode == "init" and (config.drop or config.drop_last):
        problems.append(Problem("`init` keeps every stage", found="drop", todo="use `mode: transfer` to drop stages"))
    final = replace(preset, **{k: v for k, v in given.items() if v is not None})  # type: ignore[arg-type]
    return final, problems
