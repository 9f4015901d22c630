"""What is in a checkpoint, and what differs between two."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from warmstart.errors import ConfigError


def inspect(source: str | Path, *, names: Sequence[str] = (), stats: bool = False) -> dict[str, Any]:
    """What is in a checkpoint, from its headers: format, family, dialect, configuration, entries, slots, step, ties.

    Args:
        source: a file, directory, run or URL; of several checkpoints in a directory ``DIR@best``.
        names: patterns such as ``*.weight``; only entries that match, and their slots, are listed.
        stats: read the arrays, one at a time, for ``stats`` of each: see ``values.statistics.Statistics``.

    Raises:
        SourceError, FormatError, BundleError: it cannot be opened.
        ConfigError: a pattern matches nothing.
    """
    from warmstart.bundle.model import open_anyway
    from warmstart.values.describe import describe_model

    model, notes = open_anyway(source)
    return describe_model(model, names=names, stats=stats, notes=notes)


def diff(
    a: str | Path,
    b: str | Path,
    *,
    names: Sequence[str] = (),
    tolerance: float = 0.0,
    relative: float = 0.0,
    weights_only: bool = False,
) -> dict[str, Any]:
    """What differs between two checkpoints of any formats: ``same`` says whether anything does.

    Names, shapes, dtypes and values of arrays and optimizer slots, the step, configuration and vocabularies; metadata
    is not compared. In canonical names where the dialects of both are known.

    Args:
        names: patterns such as ``*.weight``; only arrays that match, and their slots, are compared.
        tolerance, relative: elements a and b count as equal if |a - b| <= tolerance + relative * max(|a|, |b|); if one
            of them is given, other dtypes are no difference.
        weights_only: compare arrays and nothing else.

    Raises:
        SourceError, FormatError, BundleError: one of them cannot be opened or is damaged.
        ConfigError: a pattern matches nothing, or a tolerance is below 0.
    """
    from warmstart.bundle.model import open_anyway
    from warmstart.values.compare import compare_models

    if not (tolerance >= 0 and relative >= 0):
        raise ConfigError("a tolerance is a number from 0", found=f"{tolerance}, {relative}")
    (left, first), (right, second) = open_anyway(a), open_anyway(b)
    return compare_models(
        left,
        right,
        names=names,
        tolerance=tolerance,
        relative=relative,
        weights_only=weights_only,
        notes=[*(f"A: {note}" for note in first), *(f"B: {note}" for note in second)],
    )


def extract(
    source: str | Path, destination: str | Path, *, names: Sequence[str] = (), slots: bool = False, force: bool = False
) -> dict[str, Any]:
    """Write chosen arrays, names as they are in ``source``, to a new ``.npz``, ``.safetensors`` or ``.pt`` file.

    Args:
        names: patterns such as ``*.weight``; all arrays by default.
        slots: the optimizer's state too, as ``optimizer.SLOT.NAME``; of a run, that of its last checkpoint.
        force: replace an existing destination.

    Raises:
        SourceError, FormatError, ConfigError, StorageError; an existing destination is left as it was.
    """
    from warmstart.bundle.model import open_anyway
    from warmstart.export.extract import extract_arrays

    model, _ = open_anyway(source, with_state=slots)
    return extract_arrays(model.checkpoint, Path(destination), names=names, slots=slots, force=force)


def contains_model(path: str | Path) -> bool:
    """Whether the directory ``path`` holds a CTranslate2 model."""
    return (Path(path) / "model.bin").is_file()
