"""TensorFlow's checkpoints of version 2 ("bundles"): an ``.index`` and one or several data files, read without it.

A checkpoint is called by its prefix, the path without these endings. Its index, a data file, a state file that names
it, and a SavedModel's directory mean the same.
"""

from __future__ import annotations

import re
from pathlib import Path

from warmstart.errors import FormatError, SourceError
from warmstart.formats.checkpoint import Candidate
from warmstart.formats.tensorflow import states
from warmstart.formats.tensorflow.bundle import beside
from warmstart.formats.tensorflow.checkpoint import FORMAT, BundleCheckpoint
from warmstart.formats.tensorflow.index import is_index, read_index
from warmstart.formats.tensorflow.states import write_state
from warmstart.formats.tensorflow.writer import write_bundle

__all__ = ["FORMAT", "BundleCheckpoint", "candidates", "open", "recognise", "write_bundle", "write_state"]

_ENDING = re.compile(r"\.(?:index|meta|data-\d{5,}-of-\d{5,})")


def recognise(path: Path) -> bool:
    """Whether ``path`` is or means a bundle: a prefix, one of its files, a state file, a SavedModel's directory."""
    try:
        prefix = _prefix(path)
        return (prefix is not None and (states.is_state(path) or is_index(beside(prefix, ".index")))) or is_index(path)
    except OSError:  # a name that is too long for one of the files
        return False


def candidates(directory: Path) -> list[Candidate]:
    """The bundles in ``directory`` by name; ``checkpoint`` names the last, ``best_dev_checkpoint`` the best."""
    roles = states.roles(directory)
    prefixes = [path.with_name(path.name.removesuffix(".index")) for path in sorted(directory.glob("?*.index"))]
    return [
        Candidate(prefix, prefix.name, roles.get(prefix.name, ()))
        for prefix in prefixes
        if is_index(beside(prefix, ".index"))
    ]


def open(path: Path) -> BundleCheckpoint:
    """Reads the index, the scalars, and those strings that are short.

    Raises:
        SourceError: a state file names a checkpoint that is not beside it.
        CorruptCheckpoint: a file is damaged or truncated.
        FormatError: it is of another version, or a data file is a link to elsewhere.
    """
    prefix = _prefix(path)
    if prefix is None:
        read_index(path)
        raise FormatError(
            "an index under a name that is not an index's",
            where=path,
            expected="a name that ends in .index, beside .data files of the same prefix",
            todo="give the files the names that TensorFlow gave them",
        )
    if states.is_state(path) and not beside(prefix, ".index").is_file():
        if is_index(prefix):
            read_index(prefix)  # of version 1
        here = ", ".join(candidate.name for candidate in candidates(path.parent)[:8])
        raise SourceError(
            "the checkpoint that this state file names is not beside it",
            where=path,
            expected=beside(prefix, ".index"),
            found=here or "no checkpoint in this directory",
            todo="copy its files here, or give the path of one that is here",
        )
    return BundleCheckpoint(path, prefix)


def _prefix(path: Path) -> Path | None:
    """The prefix of the bundle that ``path`` means, which may not exist; None if it means none."""
    if path.is_dir():
        model = any((path / name).is_file() for name in ("saved_model.pb", "saved_model.pbtxt"))
        return path / "variables" / "variables" if model else None
    if states.is_state(path):
        return states.named(path)
    ending = _ENDING.search(path.name)
    if ending and ending.end() == len(path.name) and ending.start():
        return path.with_name(path.name[: ending.start()])
    return None if path.is_file() or not path.name else path
