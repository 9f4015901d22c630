"""Zip archives whose members are read where they lie: what npz and torch files have in common.

Definition: PKWARE's APPNOTE 6.3. Python's ``zipfile`` reads the directory at the end; this checks it against the
members' own headers, so that both tell the same story, and gives the bytes without copying them.
"""

from __future__ import annotations

import os
import struct
import weakref
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from warmstart.errors import CorruptCheckpoint, FormatError
from warmstart.formats.mapped import forget, map_file
from warmstart.lean import dataclass

if TYPE_CHECKING:
    import zipfile

    import numpy as np
    from numpy.typing import NDArray

LOCAL = struct.Struct("<4sHHHHHIIIHH")
_PIECE = 2**18  # bytes that are read and checked while they are in the processor's cache
_DEFLATE_RATIO = 1032  # the most that deflate can shrink (zlib's technical details)
_CHUNK = 2**22  # bytes
_SMALL = 2**24  # bytes
_DAMAGED = (
    NotImplementedError,
    ValueError,
    struct.error,
    EOFError,
    OSError,
    RuntimeError,
    OverflowError,
    IndexError,
)  # what zipfile raises on damaged archives beside its own error
STORED, DEFLATED = 0, 8  # ways of compression


class NotZip(ValueError):
    """What is no zip archive, or one without a whole directory."""


@dataclass(frozen=True)
class Member:
    """One member: ``stored`` bytes of the file from ``start``, which are ``size`` bytes after decompression."""

    start: int
    stored: int
    size: int
    deflated: bool
    crc: int


def first_member(start: bytes) -> bytes:
    """The name of the first member of the zip archive that begins with ``start``; empty if it is none."""
    if len(start) < LOCAL.size or start[:4] != b"PK\x03\x04":
        return b""
    return start[LOCAL.size : LOCAL.size + LOCAL.unpack_from(start)[9]]


_directories: ContextVar[dict[Path, list[zipfile.ZipInfo]] | None] = ContextVar("_directories", default=None)


@contextmanager
def directories_once() -> Iterator[None]:
    """While several formats look at one file, the directory of an archive is read once."""
    if _directories.get() is not None:
        yield
        return
    token = _directories.set({})
    try:
        yield
    finally:
        _directories.reset(token)


def directory(path: Path) -> list[zipfile.ZipInfo]:
    """What the archive's directory says of its members, unchecked.

    Raises:
        NotZip: it has none.
    """
    import zipfile

    known = _directories.get()
    if known is not None and path in known:
        return known[path]
    try:
        with zipfile.ZipFile(path) as archive:
            listed = archive.infolist()
    except (zipfile.BadZipFile, *_DAMAGED) as error:
        raise NotZip(str(error)) from error
    if known is not None:
        known[path] = listed
    return listed


def member_names(path: Path) -> list[str]:
    """The names in the archive's directory; none where it is no archive, or damaged."""
    try:
        return [info.filename for info in directory(path)]
    except NotZip:
        return []


class ZipArchive:
    """The members of a zip archive by name, each stored or deflated, none overlapping another.

    Opening reads the archive's directory and the members' headers. ``kind`` names the file in errors, and members
    are called there without ``suffix``.

    Raises:
        CorruptCheckpoint: the archive is damaged or truncated, or contradicts itself.
        FormatError: a member is encrypted or compressed in another way.
    """

    def __init__(self, path: Path, kind: str = "zip archive", suffix: str = "") -> None:
        self.path = path
        self.map = map_file(path)
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)
        self._kind, self._suffix = kind, suffix
        self._verified: set[str] = set()
        self.members: dict[str, Member] = {}
        try:
            listed = directory(path)
        except NotZip as error:
            raise self.corrupt("the archive's directory", "a complete zip archive", error) from error
        self._check_count(len(listed))
        spans = []
        for info in listed:
            if info.filename in self.members:
                raise self.corrupt(self.key(info.filename), "one member of this name", "several")
            member = self._member(info)
            self.members[info.filename] = member
            spans.append((info.header_offset, member.start + member.stored, info.filename))
        self._check_spans(spans)

    @property
    def mapped(self) -> bool:
        """Whether every member is stored as it is."""
        return not any(member.deflated for member in self.members.values())

    def key(self, name: str) -> str:
        """What errors call the member ``name``."""
        return f"array {name.removesuffix(self._suffix)!r}" if self._suffix else f"member {name!r}"

    def corrupt(self, key: str, expected: object, found: object) -> CorruptCheckpoint:
        return CorruptCheckpoint(
            f"damaged or truncated {self._kind}",
            where=f"{self.path}, {key}",
            expected=expected,
            found=found,
            todo="download or copy it again",
        )

    def _check_count(self, listed: int) -> None:
        """Compares with the count at the archive's end, which ``zipfile`` ignores: damage can swallow members."""
        end = self.map.rfind(b"PK\x05\x06")
        count = int.from_bytes(self.map[end + 10 : end + 12], "little")
        if count not in (listed, 0xFFFF):  # 0xFFFF: the count is in the zip64 record
            raise self.corrupt("the archive's directory", f"{count} members", f"{listed} members")

    def _check_spans(self, spans: list[tuple[int, int, str]]) -> None:
        position = 0
        for begin, end, name in sorted(spans):
            if begin < position:
                raise self.corrupt(self.key(name), "bytes of its own", "bytes shared with another member")
            position = end

    def _member(self, info: zipfile.ZipInfo) -> Member:
        key = self.key(info.filename)
        if info.flag_bits & 1 or info.compress_type not in (STORED, DEFLATED):
            raise FormatError(
                f"a member is encrypted or compressed in a way that no {self._kind} is",
                where=f"{self.path}, {key}",
                expected="stored or deflated",
            )
        start = self._data_start(key, info)
        deflated = info.compress_type == DEFLATED
        bound = info.compress_size * _DEFLATE_RATIO if deflated else info.compress_size
        if info.file_size > bound or (not deflated and info.file_size != info.compress_size):
            raise self.corrupt(key, f"at most {bound} bytes", f"{info.file_size} bytes by the archive's directory")
        return Member(start, info.compress_size, info.file_size, deflated, info.CRC)

    def _data_start(self, key: str, info: zipfile.ZipInfo) -> int:
        offset, size = info.header_offset, len(self.map)
        if not 0 <= offset <= size - LOCAL.size:
            raise self.corrupt(key, "a header within the file", f"offset {offset} of {size}")
        encoded = info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437", "replace")
        local = self._bytes(offset, LOCAL.size + len(encoded))
        fields, local_name = LOCAL.unpack_from(local), local[LOCAL.size :]
        name_end = offset + LOCAL.size + fields[9]
        if (
            fields[9] != len(encoded)
            or fields[0] != b"PK\x03\x04"
            or local_name != encoded
            or fields[3] != info.compress_type
        ):
            raise self.corrupt(
                key, "the header that the archive's directory describes", f"{fields[0]!r} {local_name[:200]!r}"
            )
        start: int = name_end + fields[10]
        if start + info.compress_size > size:
            found = f"{max(0, size - start)} until the file ends"
            raise self.corrupt(key, f"{info.compress_size} bytes of data", found)
        return start

    def _bytes(self, start: int, count: int) -> bytes:
        """A header: read, since a map brings in sixteen pages around each place that is looked at."""
        return os.pread(self._descriptor, count, start)

    def beginning(self, name: str, count: int) -> bytes:
        """The first ``count`` bytes of a member, or all it has; its checksum is not looked at."""
        member = self.members[name]
        stored = self._bytes(member.start, min(member.stored, count))
        return self._inflated(name, stored, count) if member.deflated else stored

    def data(self, name: str) -> tuple[Any, int]:
        """A buffer and where in it the member begins: the file's map, or the bytes after decompression."""
        member = self.members[name]
        if not member.deflated:
            return self.map, member.start
        stored = self.map[member.start : member.start + member.stored]
        data = self._inflated(name, stored, member.size + 1)
        if len(data) != member.size:
            raise self.corrupt(self.key(name), f"{member.size} bytes", f"{len(data)} or more bytes")
        return data, 0

    def _inflated(self, name: str, stored: bytes, count: int) -> bytes:
        try:
            return zlib.decompressobj(-15).decompress(stored, count)
        except zlib.error as error:
            raise self.corrupt(self.key(name), "deflated data", error) from error

    def verified(self, name: str) -> tuple[Any, int]:
        """As :meth:`data`, once the checksum was found right.

        Raises:
            CorruptCheckpoint: the bytes do not match the archive's checksum.
        """
        data, start = self.data(name)
        if name not in self._verified:
            member = self.members[name]
            crc = _crc(data, start, member.size)
            if crc != member.crc:
                raise self.corrupt(self.key(name), f"checksum {member.crc:08x}", f"{crc:08x}")
            self._verified.add(name)
        return data, start

    def copied(self, name: str, skipped: int) -> NDArray[np.uint8]:
        """A stored member without its first ``skipped`` bytes, in memory of its own and checked on the way: of what
        lies badly in the file, this is read once instead of twice.

        Raises:
            CorruptCheckpoint: the bytes do not match the archive's checksum.
        """
        import numpy as np
        from zlib_ng.zlib_ng import crc32  # many times as fast as zlib's

        member = self.members[name]
        crc = crc32(self._bytes(member.start, skipped))
        data = np.empty(member.size - skipped, np.uint8)
        for begin in range(0, len(data), _PIECE):
            part = data[begin : begin + _PIECE].data
            if os.preadv(self._descriptor, [part], member.start + skipped + begin) != len(part):
                raise self.corrupt(self.key(name), f"{member.size} bytes", "fewer: the file was cut off")
            crc = crc32(part, crc)
        if crc != member.crc:
            raise self.corrupt(self.key(name), f"checksum {member.crc:08x}", f"{crc:08x}")
        data.flags.writeable = False
        return data


def _crc(data: Any, start: int, size: int) -> int:
    """CRC-32 of a part of ``data``, chunk by chunk, so that a large part of a mapped file does not fill the memory; a
    small one stays, since who asks goes through it next."""
    import numpy as np
    from zlib_ng.zlib_ng import crc32

    crc = 0
    if not size:
        return crc
    flat = np.frombuffer(data, np.uint8, size, start)
    for k in range(0, size, _CHUNK):
        crc = crc32(flat[k : k + _CHUNK].data, crc)
        if size > _SMALL:
            forget(flat[k : k + _CHUNK])
    return crc
