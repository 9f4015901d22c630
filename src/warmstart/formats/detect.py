"""Which format a path is of."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from warmstart.errors import FormatError, UnknownFormat
from warmstart.formats import marian, npz, safetensors
from warmstart.formats.checkpoint import Checkpoint
from warmstart.formats.looks import describe, looks_like
from warmstart.sources.uri import resolve


class Format(Protocol):
    """What a format's module offers."""

    FORMAT: str

    def recognise(self, path: Path) -> bool: ...

    def open(self, path: Path) -> Checkpoint: ...

    def candidates(self, directory: Path) -> list[Path]: ...


FORMATS: tuple[Format, ...] = (safetensors, marian, npz)

__all__ = ["FORMATS", "Format", "looks_like", "open_checkpoint"]


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Opens a safetensors file, an npz file, a Marian model, or a directory with exactly one of them.

    Formats are told apart by content. Only headers are read.

    Raises:
        SourceError: nothing is there.
        UnknownFormat: no format recognises it; says what it looks like and what to do.
        CorruptCheckpoint: it is damaged.
        FormatError: a directory holds several checkpoints, or an array cannot be represented.
    """
    path = resolve(path)
    if path.is_dir():
        path = _only_checkpoint(path)
    if path.is_file():
        for module in FORMATS:
            if module.recognise(path):
                return module.open(path)
    raise _unknown(path)


def _unknown(path: Path) -> UnknownFormat:
    found, todo = describe(path)
    tried = ", ".join(module.FORMAT for module in FORMATS)
    return UnknownFormat("not a checkpoint of a known format", where=path, expected=tried, found=found, todo=todo)


def _only_checkpoint(directory: Path) -> Path:
    found = [path for module in FORMATS for path in module.candidates(directory)]
    if not found:
        raise _unknown(directory)
    if len(found) > 1:
        raise FormatError(
            "several checkpoints in one directory",
            where=directory,
            expected="one",
            found=", ".join(path.name for path in found),
            todo="give the path of the one you mean",
        )
    return found[0]
