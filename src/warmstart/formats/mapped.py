"""Files as read-only memory."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import numpy as np

from warmstart.errors import CorruptCheckpoint, SourceError
from warmstart.formats.checkpoint import Array

MAX_DIMENSIONS = 32


def head(path: Path, count: int) -> bytes:
    """The first ``count`` bytes, or all there are; none of what is not a file."""
    if not path.is_file():
        return b""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            return file.read(min(count, size))  # of a count that is asked for, the buffer would be made at once
    except OSError as error:
        raise SourceError("cannot be read", where=path, found=error.strerror) from error


def map_file(path: Path) -> mmap.mmap:
    """The whole file, mapped read-only.

    Raises:
        SourceError: it cannot be read.
        CorruptCheckpoint: it is empty.
    """
    try:
        with path.open("rb") as file:
            if file.seek(0, 2) == 0:
                raise CorruptCheckpoint("the file is empty", where=path, todo="download or copy it again")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise SourceError("cannot be read", where=path, found=error.strerror) from error


def valid_shape(shape: object) -> bool:
    """Whether ``shape`` is a sequence of lengths that numpy can hold (empty arrays may claim any lengths)."""
    if not isinstance(shape, list | tuple) or len(shape) > MAX_DIMENSIONS:
        return False
    bound = 1
    for length in shape:
        if type(length) is not int or length < 0:
            return False
        bound *= max(length, 1)
    return bound < 2**56


def release(array: Array) -> None:
    """Says that ``array`` was read and is not needed soon: the pages of its memory map no longer count as memory of
    this process. They are read again when they are needed."""
    base: Any = array
    while isinstance(base, np.ndarray | memoryview):
        base = base.base if isinstance(base, np.ndarray) else base.obj
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)


def view(
    buffer: mmap.mmap | bytes,
    dtype: np.dtype[np.generic],
    shape: tuple[int, ...],
    offset: int,
    *,
    fortran: bool = False,
) -> Array:
    """A read-only array over ``buffer`` from ``offset``; the caller has checked that it lies within.

    What does not begin at a multiple of its elements' size is copied: numpy takes eight times as long to read it there.
    """
    count = 1
    for length in shape:
        count *= length
    if count == 0:
        array: Array = np.zeros(shape, dtype)
        array.flags.writeable = False
        return array
    if offset % dtype.alignment:
        data = np.frombuffer(buffer, np.uint8, count * dtype.itemsize, offset).copy()
        data.flags.writeable = False
        flat: Array = data.view(dtype)
    else:
        flat = np.frombuffer(buffer, dtype, count, offset)
    return flat.reshape(shape, order="F" if fortran else "C")
