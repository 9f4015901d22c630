"""What an evaluation is asked for, whatever the kind of task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from warmstart.errors import ConfigError, Problem
from warmstart.lean import dataclass


@dataclass(frozen=True)
class Asked:
    """See :func:`warmstart.api.evaluate`. What a kind of task has no use for is refused if it is given."""

    model: str | Path
    split: str
    engine: str | None = None
    vocabularies: Sequence[str] = ()
    output: Path | None = None
    report: Callable[[str], object] | None = None
    report_count: int | None = None
    progress: bool = False
    device: str = "cpu"
    search: Mapping[str, Any] | None = None


def require_none(doing: str, given: Mapping[str, Any]) -> None:
    """Raises ``ConfigError``: which of ``given`` are not None."""
    problems = [Problem(f"{key} changes nothing when {doing}") for key, value in given.items() if value is not None]
    if problems:
        raise ConfigError("these options are for another kind of model", problems=problems)
