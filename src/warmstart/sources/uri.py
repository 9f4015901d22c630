"""From what a person wrote to a path that exists."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from warmstart.errors import SourceError

_REMOTE = re.compile(r"(?!file:)[a-z][a-z0-9+.-]+://|(https?|gs|s3|hf|ftp):", re.IGNORECASE)


def _local(source: str) -> str:
    if _REMOTE.match(source):
        raise SourceError(
            "remote sources are not supported yet",
            where=source,
            expected="a local path or a file: URL",
            todo="download it and give its path",
        )
    if not source.lower().startswith("file:"):
        return source
    try:
        parts = urlsplit(source)
    except ValueError:
        parts = None
    if parts is None or parts.netloc not in ("", "localhost") or not parts.path:
        raise SourceError("not a file: URL of this machine", where=source, expected="file:///path/to/it")
    return unquote(parts.path)


def _similar(path: Path) -> str | None:
    """What a missing ``path`` was probably meant to be: the nearest name where the path breaks off."""
    existing = path
    missing = path
    while not existing.exists() and existing != existing.parent:
        missing, existing = existing, existing.parent
    if not existing.is_dir():
        return None
    near = difflib.get_close_matches(missing.name, sorted(entry.name for entry in existing.iterdir()), n=3)
    return " or ".join(str(existing / name) for name in near) or None


def resolve(source: str | Path) -> Path:
    """The existing path that ``source`` names: a local path (with ``~``) or a ``file:`` URL.

    Raises:
        SourceError: it does not exist (the message names what is nearest), or it is remote.
    """
    text = _local(source) if isinstance(source, str) else str(source)
    try:
        path = Path(text).expanduser()
        if text and path.exists():
            return path
        near = _similar(path) if text else None
    except (OSError, ValueError, RuntimeError) as error:
        raise SourceError("this path cannot be used", where=repr(text), found=error) from error
    raise SourceError(
        "no such file or directory",
        where=path if text else "an empty path",
        todo=f"did you mean {near}?" if near else "check the path",
    )
