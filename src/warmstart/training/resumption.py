"""May this run go on, and what is different from when it was stopped?"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from warmstart.errors import TrainingError
from warmstart.storage.records import Records, read_records
from warmstart.training.config import TrainingConfig
from warmstart.training.state import State

logger = logging.getLogger(__name__)


def require_steps(step: int, config: TrainingConfig) -> None:
    """Raises ``TrainingError`` where no step is left."""
    if step >= config.steps:
        raise TrainingError(
            "all steps are done already", expected=f"steps above {step}", found=config.steps, todo="raise steps"
        )


def check_resumption(latest: Path, saved: State, config: TrainingConfig, seed: int, task: str) -> None:
    """Refuse another seed or task before anything is changed. Of a task earlier versions wrote down less."""
    if saved.step > config.steps or (saved.step == config.steps and saved.settled(config)):
        require_steps(saved.step, config)
    for name, was, now in (("seed", saved.seed, seed), ("task", saved.task_fingerprint, task)):
        if was != now and not (name == "task" and str(now).startswith(f"{was}+")):
            raise TrainingError(
                f"this run was begun with another {name}",
                where=latest,
                expected=was,
                found=now,
                todo=f"resume with the {name} it was begun with, or begin a new run",
            )


def mark_environment(run: Path, start: State, environment: Mapping[str, str | int], *, write: bool = True) -> State:
    """Say what makes resuming not bit-equal, write it down, and mark the run."""
    before = {"ranks": 1, **start.environment}  # earlier versions had one
    differing = {k: (before.get(k), v) for k, v in environment.items() if before.get(k) != v}
    for name, (was, now) in differing.items():
        logger.warning("resuming will not be bit for bit: %s was %s, is %s", name, was, now)
        if write:
            log_change(run, start.step, f"environment.{name}", was, now)
    return replace(start, environment=environment, exact=start.exact and not differing)


def log_change(run: Path, step: int, key: str, old: object, new: object) -> None:
    """Append to ``changes.jsonl`` what is different from ``step`` on; once, also if a killed run does it again."""
    path = run / "changes.jsonl"
    record = {"step": step, "key": key, "old": old, "new": new}
    if record not in read_records(path):
        with Records(path) as changes:
            changes.write(record)
            changes.sync()
