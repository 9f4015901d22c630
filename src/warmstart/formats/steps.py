"""The step directories of a JAX training: ``checkpoint_1000`` of T5X and Flax, ``1000`` of Orbax."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from warmstart.formats.checkpoint import Candidate
from warmstart.sources.choice import STEP

_UNFINISHED = re.compile(r".+\.orbax-checkpoint-tmp(-\d+)?|.*\.tmp-\d+")


def unfinished(path: Path) -> bool:
    """Whether the name says that the writing of ``path`` had not ended (T5X: ``.tmp-<time>``, Orbax:
    ``.orbax-checkpoint-tmp``)."""
    return _UNFINISHED.fullmatch(path.name) is not None


def step_of(path: Path) -> int | None:
    """The number in the name of a step directory or file."""
    match = STEP.fullmatch(path.name)
    return None if match is None else int(match.group(1))


def step_candidates(
    directory: Path, mine: Callable[[Path], bool], any_of: Callable[[Path], bool], otherwise: Callable[[Path], bool]
) -> list[Candidate]:
    """What in ``directory`` is ``mine``, by step; the highest of all steps that are checkpoints (``any_of``) is last.

    What has no step in its name counts where ``otherwise`` holds.
    """
    paths = [path for path in sorted(directory.iterdir()) if not unfinished(path)]
    steps = {path: step for path in paths if (step := step_of(path)) is not None and any_of(path)}
    last = max(steps.values(), default=None)
    found = [
        Candidate(path, path.name, ("last",) if steps[path] == last else ())
        for path in sorted(steps, key=lambda path: (steps[path], path.name))
        if mine(path)
    ]
    return found + [Candidate(path, path.name) for path in paths if path not in steps and otherwise(path)]
