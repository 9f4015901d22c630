"""Archives with a model inside: zip (as OPUS-MT ships), tar, and single files that gzip or zstd compressed.

They are unpacked once, into the cache. Names and links that lead outside, special files, and far more data than a
model compresses to are refused before or while they are written.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from warmstart.errors import CorruptCheckpoint, FormatError, StorageError, show_as
from warmstart.formats.archives import GZIP, ZSTD
from warmstart.formats.mapped import head
from warmstart.storage.atomic import new_directory, require_space

MAX_RATIO = 200  # of weights rarely above 2; a file of zeros reaches 1,000
MAX_MEMBERS = 100_000
_SMALL = 64 * 2**20  # bytes that may come out whatever the ratio
_CHUNK = 2**20
_BROKEN = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    EOFError,
    gzip.BadGzipFile,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OverflowError,
    IndexError,
    struct.error,
)


def unpack(path: Path, *, only_decompress: bool = False, shown: str | None = None) -> Path:
    """Where in the cache lies what ``path`` holds, unpacked now or before: the directory, or what is alone in it.

    Args:
        only_decompress: what gzip or zstd compressed is written as it is, also if it is an archive.
        shown: what errors call the archive; by default its path.

    Raises:
        CorruptCheckpoint: it is damaged, or expands beyond all measure.
        FormatError: a member would be written elsewhere, or is not a plain file.
        StorageError: there is no space, or the cache cannot be written.
    """
    place = _place(path, only_decompress)
    if not place.is_dir():
        try:
            with new_directory(place) as directory:
                _Unpacking(path, directory, only_decompress).run()
        except StorageError:
            if not place.is_dir():  # else another process was faster
                raise
    show_as(place, shown or path)
    while place.is_dir() and len(inside := list(place.iterdir())) == 1:
        place = inside[0]
    return place


def _place(path: Path, only_decompress: bool) -> Path:
    """One for each state of the file: its path, size and time."""
    from warmstart.sources.cache import default_root

    at = path.resolve()
    status = at.stat()
    key = hashlib.sha256(f"{at}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ino}".encode()).hexdigest()
    return default_root() / "unpacked" / (key[:32] + ("-decompressed" if only_decompress else ""))


class _Unpacking:
    """Writes an archive's files below ``directory``, counting what comes out."""

    def __init__(self, path: Path, directory: Path, only_decompress: bool = False) -> None:
        self.path, self.directory, self.only_decompress = path, directory, only_decompress
        self.bound = max(_SMALL, MAX_RATIO * path.stat().st_size)
        self.written = 0

    def run(self) -> None:
        import zstandard

        try:
            for name, size, stream in self._members():
                if size is not None:
                    self._bounded(self.written + size)
                    require_space(self.directory, size)
                self._write(self._target(name), stream)
        except (*_BROKEN, zstandard.ZstdError) as error:
            raise CorruptCheckpoint(
                "damaged or truncated archive",
                where=self.path,
                found=str(error) or type(error).__name__,
                todo="download or copy it again",
            ) from error

    def _members(self) -> Iterator[tuple[str, int | None, IO[bytes]]]:
        if self.only_decompress:
            return self._single()
        if head(self.path, 4).startswith(b"PK"):
            return self._zip()
        with self._decompressed() as stream:
            tar = _peek(stream, 512)[257:262] == b"ustar"
        return self._tar() if tar else self._single()

    def _zip(self) -> Iterator[tuple[str, int | None, IO[bytes]]]:
        with zipfile.ZipFile(self.path) as archive:
            infos = archive.infolist()
            self._few(len(infos))
            self._bounded(sum(info.file_size for info in infos))
            for info in infos:
                if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise self._refused(info.filename, "it is encrypted, or neither stored nor deflated")
                kind = info.external_attr >> 28  # the file type of the Unix mode; 0 where no mode is given
                if info.is_dir():
                    self._target(info.filename)
                    continue
                if kind not in (0, 0o10):
                    raise self._refused(info.filename, "it is a link or a special file")
                try:
                    stream = archive.open(info)
                except OSError as error:  # an offset that is none
                    raise zipfile.BadZipFile(str(error)) from error
                with stream:
                    yield info.filename, info.file_size, stream

    def _tar(self) -> Iterator[tuple[str, int | None, IO[bytes]]]:
        with self._decompressed() as raw, tarfile.open(fileobj=cast(Any, _Counted(raw, self)), mode="r|") as archive:
            for count, info in enumerate(archive, 1):
                self._few(count)
                if info.isdir():
                    if PurePosixPath(info.name).parts:  # `tar -c .` begins with the directory itself
                        self._target(info.name)
                    continue
                if not info.isreg():
                    raise self._refused(info.name, "it is a link or a special file")
                stream = archive.extractfile(info)
                assert stream is not None  # of a regular file there is one
                yield info.name, info.size, stream

    def _single(self) -> Iterator[tuple[str, int | None, IO[bytes]]]:
        with self._decompressed() as stream:
            yield self.path.stem, None, stream

    @contextlib.contextmanager
    def _decompressed(self) -> Iterator[IO[bytes]]:
        start = head(self.path, 4)
        if start.startswith(GZIP):
            with gzip.open(self.path) as stream:
                yield stream  # type: ignore[misc]
        elif start.startswith(ZSTD):
            import zstandard

            with self.path.open("rb") as file:
                yield zstandard.ZstdDecompressor(max_window_size=2**27).stream_reader(file)
        else:
            with self.path.open("rb") as stream:
                yield stream

    def _target(self, name: str) -> Path:
        parts = PurePosixPath(name)
        if not parts.parts or "\\" in name or "\0" in name or ":" in parts.parts[0] or parts.is_absolute():
            raise self._refused(name, "its name is not that of a file below a directory")
        if ".." in parts.parts:
            raise self._refused(name, "its name leads outside")
        return self.directory / parts

    def _write(self, target: Path, stream: IO[bytes]) -> None:
        if target.exists():
            raise self._refused(str(target.relative_to(self.directory)), "it occurs twice")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise self._refused(str(target.relative_to(self.directory)), "its directory is a file") from error
        with target.open("xb") as file:
            while chunk := stream.read(_CHUNK):
                self.written += len(chunk)
                self._bounded(self.written)
                file.write(chunk)

    def _bounded(self, nbytes: int) -> None:
        if nbytes > self.bound:
            raise CorruptCheckpoint(
                "an archive that expands beyond all measure",
                where=self.path,
                expected=f"at most {self.bound:,} bytes, {MAX_RATIO} times its size",
                found=f"{nbytes:,} bytes or more",
                todo="unpack it yourself if you trust it, and give the directory",
            )

    def _few(self, count: int) -> None:
        if count > MAX_MEMBERS:
            raise CorruptCheckpoint("too many files in an archive", where=self.path, expected=f"at most {MAX_MEMBERS}")

    def _refused(self, name: str, why: str) -> FormatError:
        return FormatError(
            "this archive is not unpacked",
            where=f"{self.path}, member {name!r}",
            found=why,
            todo="unpack it yourself if you trust it, and give the directory",
        )


def _peek(stream: IO[bytes], count: int) -> bytes:
    data = b""
    while len(data) < count and (chunk := stream.read(count - len(data))):
        data += chunk
    return data


class _Counted:
    """A stream that stops an archive's own headers and gaps from expanding without end."""

    def __init__(self, stream: IO[bytes], unpacking: _Unpacking) -> None:
        self._stream, self._unpacking, self._seen = stream, unpacking, 0

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self._seen += len(data)
        self._unpacking._bounded(self._seen - _SMALL)
        return data
