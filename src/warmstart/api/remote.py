"""Files from elsewhere, and the cache of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def ls(source: str | Path) -> list[dict[str, Any]]:
    """What there is at ``source`` (a path or URL), one level deep: ``name`` (``/`` ends a directory's), ``url`` without
    secrets, ``size`` in bytes or None.

    Over http nobody lists a directory; what the frameworks' own names find is listed.

    Raises:
        SourceError, MissingExtra.
    """
    from dataclasses import asdict

    from warmstart.sources.verbs import listing

    return [asdict(entry) for entry in listing(source)]


def fetch(
    source: str | Path,
    directory: str | Path | None = None,
    *,
    everything: bool = False,
    force: bool = False,
    progress: bool = True,
) -> list[Path]:
    """Bring what ``source`` names, and what belongs to it, into the cache, and copy it into ``directory`` if given.

    Args:
        everything: of a directory that is listed, also the files that no framework's model needs.
        force: replace other files of the same names in ``directory``.
        progress: draw a bar on stderr.

    Returns:
        The files, in ``directory`` or in the cache.

    Raises:
        SourceError, MissingExtra, StorageError.
    """
    from warmstart.sources.verbs import bring

    where = None if directory is None else Path(directory)
    return bring(source, where, everything=everything, force=force, progress=progress)


def cache_list() -> list[dict[str, Any]]:
    """What was fetched: ``url`` without secrets, ``bytes``, ``sha256``, ``path``, and ``used`` (seconds since 1970).

    A directory's ``bytes`` are those of its files, which have rows of their own.
    """
    from warmstart.sources.verbs import cached

    return cached()


def cache_prune(days: float = 30.0) -> int:
    """Remove what was not used for ``days`` from the cache; returns the number of bytes that this frees."""
    from warmstart.sources.cache import Cache

    return Cache().prune(days * 86400)


def cache_verify() -> list[str]:
    """Compare the contents of every cached file with its SHA-256, and remove those that differ; returns their URLs."""
    from warmstart.sources.cache import Cache

    return Cache().damaged()
