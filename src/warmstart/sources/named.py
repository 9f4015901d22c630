"""A key of a configuration that names a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, PlainSerializer

from warmstart.redact import redact
from warmstart.sources.uri import is_remote


def _spelt(file: str | Path) -> str | Path:
    return file if is_remote(file) else Path(file)


def _stored(file: str | Path) -> str:
    return redact(file) if is_remote(file) else str(file)


Named = Annotated[str | Path, AfterValidator(_spelt), PlainSerializer(_stored, return_type=str, when_used="json")]
"""A path, or the text of a URL, which is asked for when the file is read (``uri.local``). A run's files have it without
its secrets."""
