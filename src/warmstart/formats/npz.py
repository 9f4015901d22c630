"""numpy's npz: a zip archive of npy members, read without pickle.

Definitions: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html, PKWARE's APPNOTE 6.3.
"""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from warmstart.errors import CorruptCheckpoint, FormatError
from warmstart.formats.checkpoint import Array, Candidate, Checkpoint, Entry
from warmstart.formats.mapped import head, map_file, valid_shape, view
from warmstart.storage.atomic import atomic_file

FORMAT = "npz"
_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_HEADER_BYTES = 16_384  # numpy itself refuses headers above 10,000 characters
_DEFLATE_RATIO = 1032  # the most that deflate can shrink (zlib's technical details)
ZIP_ERRORS = (
    zipfile.BadZipFile,
    NotImplementedError,
    ValueError,
    struct.error,
    EOFError,
    OSError,
    RuntimeError,
    OverflowError,
    IndexError,
)


def recognise(path: Path) -> bool:
    """Whether ``path`` starts as a zip archive whose first member is an npy file."""
    start = head(path, 4096)
    if len(start) < _LOCAL.size or start[:4] != b"PK\x03\x04":
        return False
    length = _LOCAL.unpack_from(start)[9]
    return start[_LOCAL.size : _LOCAL.size + length].endswith(b".npy")


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
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool
    start: int  # of the member's bytes in the file
    stored: int  # bytes in the file
    size: int  # bytes of the npy file, after decompression
    header: int  # bytes of the npy header
    deflated: bool
    crc: int


class NpzFile:
    """The arrays of an npz file, by name without ``.npy``.

    Opening reads headers. :meth:`read` gives views into a memory map for members stored as they are, and
    decompresses the others; the archive's checksum is verified when a member is first read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._map = map_file(path)
        self._verified: set[str] = set()
        self._members: dict[str, _Member] = {}
        try:
            with zipfile.ZipFile(path) as archive:
                listed = archive.infolist()
        except ZIP_ERRORS as error:
            raise self._corrupt("the archive's directory", "a complete zip archive", error) from error
        self._check_count(len(listed))
        for info in listed:
            name = info.filename.removesuffix(".npy")
            if name in self._members:
                raise self._corrupt(f"array {name!r}", "one member of this name", "several")
            self._members[name] = self._member(name, info)
        self.entries = {name: Entry(name, m.shape, m.dtype.name) for name, m in self._members.items()}

    def _corrupt(self, key: str, expected: object, found: object) -> CorruptCheckpoint:
        return CorruptCheckpoint(
            "damaged or truncated npz file",
            where=f"{self.path}, {key}",
            expected=expected,
            found=found,
            todo="download or copy it again",
        )

    def _check_count(self, listed: int) -> None:
        """Compares with the count at the archive's end, which ``zipfile`` ignores: damage can swallow members."""
        end = self._map.rfind(b"PK\x05\x06")
        count = int.from_bytes(self._map[end + 10 : end + 12], "little")
        if count not in (listed, 0xFFFF):  # 0xFFFF: the count is in the zip64 record
            raise self._corrupt("the archive's directory", f"{count} members", f"{listed} members")

    def _member(self, name: str, info: zipfile.ZipInfo) -> _Member:
        key = f"array {name!r}"
        if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise FormatError(
                "a member is encrypted or compressed in a way numpy does not use",
                where=f"{self.path}, {key}",
                expected="stored or deflated",
            )
        start = self._data_start(key, info)
        deflated = info.compress_type == zipfile.ZIP_DEFLATED
        bound = info.compress_size * _DEFLATE_RATIO if deflated else info.compress_size
        if info.file_size > bound or (not deflated and info.file_size != info.compress_size):
            raise self._corrupt(key, f"at most {bound} bytes", f"{info.file_size} bytes by the archive's directory")
        stored = self._map[start : start + min(info.compress_size, _HEADER_BYTES)]
        try:
            beginning = zlib.decompressobj(-15).decompress(stored, _HEADER_BYTES) if deflated else stored
        except zlib.error as error:
            raise self._corrupt(key, "deflated data", error) from error
        shape, fortran, dtype, header = self._npy_header(key, beginning)
        expected = header + Entry(name, shape, dtype.name).size * dtype.itemsize
        if expected != info.file_size:
            found = f"{info.file_size} bytes"
            raise self._corrupt(key, f"{expected} bytes for {dtype.name} {shape} and its header", found)
        return _Member(dtype, shape, fortran, start, info.compress_size, info.file_size, header, deflated, info.CRC)

    def _data_start(self, key: str, info: zipfile.ZipInfo) -> int:
        offset, size = info.header_offset, len(self._map)
        if not 0 <= offset <= size - _LOCAL.size:
            raise self._corrupt(key, "a header within the file", f"offset {offset} of {size}")
        fields = _LOCAL.unpack_from(self._map, offset)
        name_end = offset + _LOCAL.size + fields[9]
        local_name = self._map[offset + _LOCAL.size : name_end]
        encoded = info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437", "replace")
        if fields[0] != b"PK\x03\x04" or local_name != encoded or fields[3] != info.compress_type:
            raise self._corrupt(
                key, "the header that the archive's directory describes", f"{fields[0]!r} {local_name!r}"
            )
        start: int = name_end + fields[10]
        if start + info.compress_size > size:
            raise self._corrupt(
                key, f"{info.compress_size} bytes of data", f"{max(0, size - start)} until the file ends"
            )
        return start

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
        if member.deflated:
            data: Any = self._inflate(name, member)
            start = 0
        else:
            data, start = self._map, member.start
        if name not in self._verified:
            with memoryview(data) as whole, whole[start : start + member.size] as part:
                crc = zlib.crc32(part)
            if crc != member.crc:
                raise self._corrupt(f"array {name!r}", f"checksum {member.crc:08x}", f"{crc:08x}")
            self._verified.add(name)
        array = view(data, member.dtype, member.shape, start + member.header, fortran=member.fortran)
        if not member.dtype.isnative:
            array = array.astype(member.dtype.newbyteorder("="))
            array.flags.writeable = False
        return array

    def _inflate(self, name: str, member: _Member) -> bytes:
        inflater = zlib.decompressobj(-15)
        try:
            data = inflater.decompress(self._map[member.start : member.start + member.stored], member.size + 1)
        except zlib.error as error:
            raise self._corrupt(f"array {name!r}", "deflated data", error) from error
        if len(data) != member.size:
            raise self._corrupt(f"array {name!r}", f"{member.size} bytes", f"{len(data)} or more bytes")
        return data


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
