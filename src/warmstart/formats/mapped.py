"""Files as read-only memory."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from warmstart.errors import CorruptCheckpoint, SourceError
from warmstart.formats.checkpoint import Array

if TYPE_CHECKING:
    import numpy as np

MAX_DIMENSIONS = 32
_PIECE = 2**22  # bytes that are written at once
_FORGOTTEN = 2**24  # bytes of a map that are let go of at once


class Map(mmap.mmap):
    """A mapped file that can let go of the memory which reading it took."""

    _read = 0

    def forget(self, count: int) -> None:
        """``count`` bytes were read and are not needed again soon."""
        self._read += count
        if self._read >= _FORGOTTEN and hasattr(mmap, "MADV_DONTNEED"):
            self._read = 0
            self.madvise(mmap.MADV_DONTNEED)


class Writable(Protocol):
    """What :func:`write_array` asks of a file."""

    def write(self, data: Any, /) -> int: ...


class Place:
    """A place in the open file ``handle``, from the byte ``at`` on, whatever others write elsewhere in it."""

    def __init__(self, handle: int, at: int) -> None:
        self._handle, self._at = handle, at

    def write(self, data: Any, /) -> int:
        """As a file's own."""
        rest = memoryview(data)
        while rest:
            count = os.pwrite(self._handle, rest, self._at)
            self._at, rest = self._at + count, rest[count:]
        return len(data)


POINTER = b"version https://git-lfs"  # what stands in place of a large file until `git lfs pull`


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


def map_file(path: Path) -> Map:
    """The whole file, mapped read-only.

    Raises:
        SourceError: it cannot be read.
        CorruptCheckpoint: it is empty.
    """
    try:
        with path.open("rb") as file:
            if file.seek(0, 2) == 0:
                raise CorruptCheckpoint("the file is empty", where=path, todo="download or copy it again")
            return Map(file.fileno(), 0, access=mmap.ACCESS_READ)
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


def view(
    buffer: mmap.mmap | bytes,
    dtype: np.dtype[np.generic],
    shape: tuple[int, ...],
    offset: int,
    *,
    fortran: bool = False,
    copy: bool = True,
) -> Array:
    """A read-only array over ``buffer`` from ``offset``; the caller has checked that it lies within.

    What does not begin at a multiple of its elements' size is copied (unless ``copy`` is False): numpy takes eight
    times as long to read it there.
    """
    import numpy as np

    count = 1
    for length in shape:
        count *= length
    if count == 0:
        array: Array = np.zeros(shape, dtype)
        array.flags.writeable = False
        return array
    if offset % dtype.alignment and copy:
        data = np.frombuffer(buffer, np.uint8, count * dtype.itemsize, offset).copy()
        data.flags.writeable = False
        flat: Array = data.view(dtype)
    else:
        flat = np.frombuffer(buffer, dtype, count, offset)
    return flat.reshape(shape, order="F" if fortran else "C")


def write_array(file: Writable, array: Array) -> None:
    """Writes the elements of ``array`` in C order, little-endian, and lets go of mapped memory as it goes."""
    import numpy as np

    little = array.dtype.newbyteorder("<")
    step = max(1, _PIECE // max(1, array[:1].nbytes)) if array.ndim else 1
    for start in range(0, len(array) if array.ndim else 1, step):
        piece = array[start : start + step] if array.ndim else array
        file.write(np.ascontiguousarray(piece, little).reshape(-1).view(np.uint8).data)
        forget(piece)


def forget(array: Array) -> None:
    """Lets go of the memory that mapped arrays took when they were read, once this one and those before it were
    megabytes of their file; what is still in use comes back from the system's cache.

    Not for each array: every thread of the process stops while one lets go.
    """
    owner = _owner(array)
    if isinstance(owner, Map):
        owner.forget(array.nbytes)


def is_mapped(array: Array) -> bool:
    """Whether the elements of ``array`` lie in a mapped file."""
    return isinstance(_owner(array), mmap.mmap)


def _owner(array: Array) -> object:
    """What holds the memory of ``array``."""
    import numpy as np

    owner: object = array
    while isinstance(owner, np.ndarray | memoryview):
        owner = owner.base if isinstance(owner, np.ndarray) else owner.obj
    return owner


class PutAside:
    """Arrays that are read several times but were expensive to read (compressed, say): a file without a name in
    ``directory`` holds their bytes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __call__(self, array: Array) -> Array:
        """``array``, mapped; itself if it is mapped already, or small.

        Raises:
            OSError: the disk is full or fails.
        """
        if array.nbytes < _PIECE or is_mapped(array):
            return array
        import tempfile

        with tempfile.TemporaryFile(dir=self._directory) as file:
            write_array(file, array)
            file.flush()
            kept = Map(file.fileno(), array.nbytes, access=mmap.ACCESS_READ)
        return view(kept, array.dtype, array.shape, 0)
