"""Lines and pairs of text, plain or compressed."""

from __future__ import annotations

import gzip
import sys
import zlib
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import BinaryIO

from warmstart.errors import DataError
from warmstart.lean import dataclass
from warmstart.sources.uri import local

CHUNK = 1 << 20


@dataclass(frozen=True)
class ParallelFiles:
    """Two files whose lines belong together, or one with two tab-separated columns."""

    source: str | Path | None = None
    target: str | Path | None = None
    tsv: str | Path | None = None

    def __post_init__(self) -> None:
        pair = self.source is not None and self.target is not None
        if (self.tsv is not None) == pair or (self.source is None) != (self.target is None):
            raise DataError("parallel text is either source and target, or one tsv", found=self)

    @property
    def name(self) -> str:
        """The file that line numbers are counted in."""
        return str(self.tsv if self.tsv is not None else self.source)


def read_lines(path: str | Path) -> Iterator[str]:
    """Lines of a UTF-8 text (plain, gzip or zstandard, by content; a path or a URL) without their ends; a leading byte
    order mark is skipped. Raises ``DataError`` naming the line that is not UTF-8, or what else is wrong, and
    ``SourceError`` where a URL does not bring it."""
    try:
        with local(path).open("rb") as file:
            yield from _decoded(_chunks(file, path), path)
    except OSError as error:
        raise DataError("cannot read the text", where=path, found=error.strerror or error) from error


def read_standard_input() -> Iterator[str]:
    """Lines of the standard input, as :func:`read_lines` has those of a plain text."""
    return _decoded(iter(lambda: sys.stdin.buffer.read(CHUNK), b""), "standard input")


def _decoded(chunks: Iterable[bytes], where: str | Path) -> Iterator[str]:
    for number, line in enumerate(_split(chunks), 1):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError("a line is not UTF-8", where=f"{where}, line {number}", found=error) from error
        yield text.removeprefix("\ufeff") if number == 1 else text


def read_parallel(files: ParallelFiles) -> Iterator[tuple[str, str]]:
    """(source, target) pairs. Raises ``DataError`` with both counts when two files are of unequal length, or
    naming the line of a tsv that has not two columns."""
    if files.tsv is not None:
        for number, line in enumerate(read_lines(files.tsv), 1):
            columns = line.split("\t")
            if len(columns) != 2:
                raise DataError(
                    "a line has the wrong number of columns",
                    where=f"{files.tsv}, line {number}",
                    expected="2 columns, separated by a tab",
                    found=f"{len(columns)}",
                )
            yield columns[0], columns[1]
    elif files.source is not None and files.target is not None:
        counts = [0, 0]
        for pair in zip_longest(read_lines(files.source), read_lines(files.target)):
            counts = [count + (line is not None) for count, line in zip(counts, pair, strict=True)]
            source, target = pair
            if source is not None and target is not None:
                yield source, target
        if counts[0] != counts[1]:
            raise DataError(
                "source and target are of unequal length",
                where=f"{files.source} and {files.target}",
                expected="as many lines in both",
                found=f"{counts[0]} and {counts[1]} lines",
            )


def _chunks(file: BinaryIO, path: str | Path) -> Iterator[bytes]:
    magic = file.read(4)
    file.seek(0)
    if magic[:2] == b"\x1f\x8b":
        try:
            with gzip.open(file) as content:
                yield from iter(lambda: content.read(CHUNK), b"")
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError("a gzip file is damaged or truncated", where=path, found=error) from error
    elif magic == b"\x28\xb5\x2f\xfd":
        yield from _zstd_chunks(file, path)
    else:
        yield from iter(lambda: file.read(CHUNK), b"")


def _zstd_chunks(file: BinaryIO, path: str | Path) -> Iterator[bytes]:
    import zstandard

    frame = zstandard.ZstdDecompressor().decompressobj()
    try:
        while chunk := file.read(CHUNK):
            while chunk:
                if frame.eof:
                    frame = zstandard.ZstdDecompressor().decompressobj()
                yield frame.decompress(chunk)
                chunk = frame.unused_data if frame.eof else b""
    except zstandard.ZstdError as error:
        raise DataError("a zstandard file is damaged", where=path, found=error) from error
    if not frame.eof:
        raise DataError("a zstandard file is truncated", where=path)


def _split(chunks: Iterable[bytes]) -> Iterator[bytes]:
    rest: list[bytes] = []
    for chunk in chunks:
        first, *more = chunk.split(b"\n")
        rest.append(first)
        for piece in more:
            yield b"".join(rest).removesuffix(b"\r")
            rest = [piece]
    last = b"".join(rest)
    if last:
        yield last.removesuffix(b"\r")
