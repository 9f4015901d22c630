"""A key of a configuration that names a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from warmstart.sources.uri import is_remote


def _spelt(file: str | Path) -> str | Path:
    return file if is_remote(file) else Path(file)


Named = Annotated[str | Path, AfterValidator(_spelt)]
"""A path, or the text of a URL, which is asked for when the file is read (``uri.local``)."""
