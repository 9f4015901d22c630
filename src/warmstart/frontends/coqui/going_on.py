"""A run that goes on: what flags say that it keeps otherwise, and where its source is if a directory was moved."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from warmstart.bundle.layout import describe_files
from warmstart.bundle.model import Model, open_model
from warmstart.errors import WarmstartError
from warmstart.frontends.coqui.flags import Flags
from warmstart.frontends.coqui.places import STATE_FILES
from warmstart.frontends.coqui.written import SOURCE
from warmstart.storage import atomic


def model_of(save: Path) -> Model | None:
    """The last checkpoint that the run in ``save`` wrote for Coqui, if it came to one."""
    return open_model(f"{save}@last") if (save / STATE_FILES["last"]).is_file() else None


def refused(flags: Flags, wanted: dict[str, str], config: Any) -> Iterator[str]:
    """A line for each flag in ``wanted`` (key of the model → flag) that was given and is not what the run has."""
    for key, name in wanted.items():
        if name in flags.given and flags[name] != getattr(config, key):
            yield f"--{name} {flags[name]:g} is not the run's {getattr(config, key):g}, which is taken"


def start_of(save: Path, stored: dict[str, Any], load: Path | None) -> tuple[list[dict[str, Any]], str | None]:
    """``start`` of the run in ``save``, and a line where its source is elsewhere now: ``source-of-run`` in a directory
    that was moved, or a directory ``load`` with the very bytes that the run began with."""
    start: list[dict[str, Any]] = stored.get("start") or []
    if len(start) != 1:
        return start, None
    old = str(start[0]["source"])
    folder, _, name = old.rpartition("@") if "@" in old else (old, "", "")
    if Path(folder).exists():
        return start, None
    there = save / SOURCE if Path(folder).name == SOURCE else load
    new = f"{there}@{name}" if name else str(there)
    if there is None or not there.exists() or not _same(save, new):
        return start, None
    return [{**start[0], "source": new}], f"what the run began with, {old}, is {new} now"


def follow(save: Path, stored: dict[str, Any], start: list[dict[str, Any]] | None) -> None:
    """Write down where the run's source is now, if :func:`start_of` found it elsewhere. Raises ``StorageError``."""
    import yaml

    if start and start != stored.get("start"):
        text = yaml.safe_dump({**stored, "start": start}, sort_keys=False, allow_unicode=True)
        atomic.write_text(save / "config.yaml", text)


def _same(save: Path, source: str) -> bool:
    """Whether ``source`` has the files that the run remembers."""
    try:
        (remembered,) = json.loads((save / "starts.json").read_bytes())
        return bool(remembered["files"] == describe_files(open_model(source).checkpoint))
    except (WarmstartError, OSError, ValueError, KeyError, TypeError):
        return False
