"""``ls`` and ``fetch``: the same for every scheme and for local paths."""

from __future__ import annotations

import filecmp
import shutil
from collections.abc import Sequence
from pathlib import Path

from warmstart.errors import SourceError, StorageError
from warmstart.redact import redact
from warmstart.sources.cache import Cache
from warmstart.sources.policy import is_offline
from warmstart.sources.remote import entries, obtain
from warmstart.sources.schemes import Listed, Obtained
from warmstart.sources.uri import is_remote, prepared, split_choice
from warmstart.storage.atomic import atomic_file, require_space


def listing(source: str | Path) -> list[Listed]:
    """What there is at ``source``, one level deep; a file is its own only entry.

    Raises:
        SourceError: nothing is there, it may not be read, or the network is off.
    """
    where, _ = prepared(source, None)
    if isinstance(where, Path):
        paths = sorted(where.iterdir()) if where.is_dir() else [where]
        return [
            Listed(p.name + "/" * p.is_dir(), str(p) + "/" * p.is_dir(), None if p.is_dir() else p.stat().st_size)
            for p in paths
        ]
    if is_offline():
        raise SourceError("a listing needs the network, which is off", where=where)
    return [Listed(e.name, redact(e.url), e.size) for e in entries(where)]


def bring(
    source: str | Path,
    directory: Path | None,
    *,
    offline: bool | None = None,
    everything: bool = False,
    force: bool = False,
    progress: bool = True,
) -> list[Path]:
    """Fetches ``source`` with what belongs to it into the cache, and copies it into ``directory`` if one is given. Of
    ``URL@NAME`` (``@best`` …) it brings what that checkpoint of a directory needs.

    Returns:
        The files, in ``directory`` or in the cache. A file goes there under its own name; of a directory, its contents.

    Raises:
        SourceError, MissingExtra.
        StorageError: it cannot be written, or another file is there already and ``force`` is not set.
    """
    place, choice = split_choice(source)
    where, sha256 = prepared(place if is_remote(place) else source, None)
    if isinstance(where, Path):
        got = _local(where)
    else:
        off = is_offline() if offline is None else offline
        got = obtain(where, sha256=sha256, offline=off, everything=everything, progress=progress, choice=choice)
    top = got.path if got.path.is_dir() else got.path.parent
    files = [got.base / name for name in got.files]
    if directory is None:
        return files
    return _copy(files, top, directory, force)


def cached() -> list[dict[str, object]]:
    """What the cache holds; see ``api.cache_list``."""
    cache = Cache()
    records = cache.records()
    rows: list[dict[str, object]] = []
    for key, record in sorted(records.items(), key=lambda item: item[1].url):
        parts = [records.get(part) for part in (record.files or {}).values()]
        own = record.size if record.name else sum(part.size for part in parts if part is not None)
        complete = (not record.name or cache.holds(record)) and all(map(cache.holds, parts))
        path = cache.tree(record.tree) / (record.name or str(record.more.get("path", "")))
        rows.append(
            {"url": record.url, "bytes": own, "sha256": record.sha256 or None, "path": str(path)}
            | {"used": cache.used(key), "complete": complete}
        )
    return rows


def _local(path: Path) -> Obtained:
    if path.is_file():
        return Obtained(path, path.parent, [path.name])
    return Obtained(path, path, [str(p.relative_to(path)) for p in sorted(path.rglob("*")) if p.is_file()])


def _copy(files: Sequence[Path], top: Path, directory: Path, force: bool) -> list[Path]:
    pairs = [(file, directory / file.relative_to(top)) for file in files]
    new = [(a, b) for a, b in pairs if not (b.is_file() and filecmp.cmp(a, b, shallow=False))]
    other = [str(b) for _, b in new if b.exists()]
    if other and not force:
        raise StorageError(
            "other files are there already",
            where=directory,
            found=", ".join(other[:5]) + (f" and {len(other) - 5} more" if len(other) > 5 else ""),
            todo="choose another directory, or --force their replacement",
        )
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError("cannot be written", where=directory, found=error.strerror) from error
    require_space(directory, sum(a.stat().st_size for a, _ in new))
    for a, b in new:
        with atomic_file(b) as temporary:
            shutil.copyfile(a, temporary)
    return [b for _, b in pairs]
