"""numpy's npz: a zip archive of npy members, read without pickle.

Definitions: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html, PKWARE's APPNOTE 6.3.
"""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from warmstart.errors import CorruptCheckpoint, FormatError
from warmstart.formats.checkpoint import Array, Candidate, Checkpoint, Entry
from warmstart.formats.mapped import head, valid_shape, view
from warmstart.formats.zipped import ZipArchive, first_member
from warmstart.storage.atomic import atomic_file

FORMAT = "npz"
_HEADER_BYTES = 16_384  # numpy itself refuses headers above 10,000 characters


def recognise(path: Path) -> bool:
    """Whether ``path`` starts as a zip archive whose first member is an npy file."""
    return first_member(head(path, 4096)).endswith(b".npy")


def candidates(directory: Path) -> list[Candidate]:
    """None: a directory of npz files is one checkpoint only if Marian wrote it."""
    del directory
    return []


def open(path: Path) -> NpzCheckpoint:
    """Reads the archive's directory and every member's header.

    Raises:
        CorruptCheckpoint: the archive is damaged or truncated.
        FormatError: a member is not an array of numbers.
    """
    return NpzCheckpoint(path)


@dataclass(frozen=True)
class _Member:
    name: str  # in the archive
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool
    header: int  # bytes of the npy header


class NpzFile:
    """The arrays of an npz file, by name without ``.npy``.

    Opening reads headers. :meth:`read` gives views into a memory map for members stored as they are, and
    decompresses the others; the archive's checksum is verified when a member is first read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._archive = ZipArchive(path, "npz file", ".npy")
        self._members: dict[str, _Member] = {}
        for member in self._archive.members:
            name = member.removesuffix(".npy")
            if name in self._members:
                raise self._corrupt(f"array {name!r}", "one member of this name", "several")
            self._members[name] = self._member(member, name)
        self.entries = {name: Entry(name, m.shape, m.dtype.name) for name, m in self._members.items()}

    def _corrupt(self, key: str, expected: object, found: object) -> CorruptCheckpoint:
        return self._archive.corrupt(key, expected, found)

    def _member(self, member: str, name: str) -> _Member:
        key, size = f"array {name!r}", self._archive.members[member].size
        shape, fortran, dtype, header = self._npy_header(key, self._archive.beginning(member, _HEADER_BYTES))
        expected = header + Entry(name, shape, dtype.name).size * dtype.itemsize
        if expected != size:
            raise self._corrupt(key, f"{expected} bytes for {dtype.name} {shape} and its header", f"{size} bytes")
        return _Member(member, dtype, shape, fortran, header)

    def _npy_header(self, key: str, beginning: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
        stream = io.BytesIO(beginning)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                version = npy.read_magic(stream)
                readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
                shape, fortran, dtype = readers[version](stream)
        except Exception as error:  # numpy's parser of the header text raises many kinds on damaged text
            raise self._corrupt(key, "an npy header of version 1 or 2", error) from error
        if dtype.kind not in "biufc":
            raise FormatError(
                "holds Python objects" if dtype.hasobject else "not an array of numbers",
                where=f"{self.path}, {key}",
                expected="an array of numbers",
                found=f"dtype {dtype}",
                todo="write the file again without this array",
            )
        if not valid_shape(shape):
            raise self._corrupt(f"{key}, shape", "lengths from 0", shape)
        return tuple(shape), bool(fortran), dtype, stream.tell()

    def read(self, name: str) -> Array:
        """The array ``name``, read-only.

        Raises:
            KeyError: no such array.
            CorruptCheckpoint: the bytes do not match the archive's checksum.
        """
        member = self._members[name]
        data, start = self._archive.verified(member.name)
        array = view(data, member.dtype, member.shape, start + member.header, fortran=member.fortran)
        if not member.dtype.isnative:
            array = array.astype(member.dtype.newbyteorder("="))
            array.flags.writeable = False
        return array


class NpzCheckpoint(Checkpoint):
    """A plain npz file: arrays and nothing else."""

    def __init__(self, path: Path) -> None:
        self._file = NpzFile(path)
        super().__init__(path=path, format=FORMAT, entries=self._file.entries, files=(Path(path.name),))

    def read(self, name: str) -> Array:
        return self._file.read(name)


def write_npz(path: Path, arrays: Iterable[tuple[str, Array]]) -> None:
    """Writes name–array pairs, one at a time, uncompressed, little-endian and in C order (Marian needs all three).

    The bytes depend on the arrays only, not on the clock.

    Raises:
        FormatError: a name occurs twice, or an array is not of numbers that numpy has.
        StorageError: the file cannot be written; what was at ``path`` is untouched.
    """
    names: set[str] = set()
    with atomic_file(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays:
            if name in names:
                raise FormatError("a name occurs twice", where=f"{path}, array {name!r}")
            if array.dtype.kind not in "biufc":
                raise FormatError(
                    "npz has no such dtype",
                    where=f"{path}, array {name!r}",
                    expected="an array of numbers that numpy itself has",
                    found=array.dtype.name,
                )
            names.add(name)
            little = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
            info = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            with archive.open(info, "w", force_zip64=little.nbytes >= 2**31 - 2**16) as member:
                npy.write_array(member, little, version=(1, 0), allow_pickle=False)
