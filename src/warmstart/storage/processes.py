"""The only place that knows rank and world size."""

from __future__ import annotations

import os

from warmstart.errors import StorageError


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    if not text.isdecimal():
        raise StorageError(
            f"the environment variable {name} is not a number",
            expected="a whole number from 0",
            found=repr(text),
            todo=f"unset {name}, or let the launcher set it",
        )
    return int(text)


def rank() -> int:
    """This process's number, from 0 (the environment variable ``RANK``; 0 if unset, and where there is only one)."""
    return _number("RANK", 0) if world_size() > 1 else 0


def local_rank() -> int:
    """This process's number among those of its machine, from 0 (``LOCAL_RANK``; else its rank)."""
    return _number("LOCAL_RANK", rank()) if world_size() > 1 else 0


def world_size() -> int:
    """The number of processes, from 1 (the environment variable ``WORLD_SIZE``; 1 if unset)."""
    return max(1, _number("WORLD_SIZE", 1))
