"""Files whose arrays lie at places that are known before any of them: written in order, or filled in any."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from warmstart.errors import FormatError
from warmstart.formats.checkpoint import Array, Entry
from warmstart.formats.mapped import Writable, write_array
from warmstart.storage.flushing import Flushing

Fill = Callable[[Flushing, Mapping[str, int]], None]
"""Puts every array of a file into its place, which the mapping gives by name: the offset of its first byte."""


def write_announced(path: Path, file: Writable, entry: Entry, array: Array | None) -> None:
    """Write ``array``, which ``entry`` has announced, as the next one of the file ``path``.

    Raises:
        FormatError: there is none, or it is another.
    """
    where = f"{path}, array {entry.name!r}"
    if array is None:
        raise FormatError("fewer arrays than entries", where=where)
    if array.shape != entry.shape or array.dtype.name != entry.dtype:
        raise FormatError(
            "an array is not as announced",
            where=where,
            expected=f"{entry.dtype} {entry.shape}",
            found=f"{array.dtype.name} {array.shape}",
        )
    write_array(file, array)
