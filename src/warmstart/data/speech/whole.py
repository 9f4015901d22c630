"""Audio files that end before what their headers say, or whose headers know nothing of their samples.

libsndfile corrects the header of such a file and decodes what is there. Noticed are RIFF (wav, also big-endian and of
64 bits), W64, AIFF, CAF, AU, NIST SPHERE and Ogg (Vorbis, Opus); FLAC and mp3 that are cut off fail to decode.

A writer that cannot go back to the header, because it writes to a pipe, leaves a size there that means nothing (about
2 or 4 GiB, or all bits set), and an Ogg stream that was recorded may lack a page that is marked as the last: such files
are whole.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable

from warmstart.errors import DataError
from warmstart.lean import dataclass

Read = Callable[[int, int], bytes]
"""(offset, count) to the bytes that are there."""


@dataclass(frozen=True)
class _Chunks:
    """A file of chunks, one after another.

    Attributes:
        layout: of a chunk's name and size.
        first: where the first chunk begins.
        samples: the name of the chunk that holds them.
        whole: layout and place of the size of the file, and how many bytes that leaves out; None if it has none.
        included: how many bytes of its header a chunk's size includes.
        align: bytes, of which a chunk with its header takes a multiple.
    """

    layout: str
    first: int
    samples: bytes
    whole: tuple[str, int, int] | None
    included: int = 0
    align: int = 2


UNKNOWN = (0x7FFF0000, 1 << 62)  # sizes of 32 and of 64 bits, from which on they mean nothing
MOST_CHUNKS = 1000
_CHUNKS = {
    **dict.fromkeys((b"RIFF", b"RF64", b"BW64"), _Chunks("<4sI", 12, b"data", ("<I", 4, 8))),
    b"RIFX": _Chunks(">4sI", 12, b"data", (">I", 4, 8)),
    b"FORM": _Chunks(">4sI", 12, b"SSND", (">I", 4, 8)),
    b"riff": _Chunks("<16sQ", 40, b"data" + bytes.fromhex("f3acd3118cd100c04f8edb8a"), ("<Q", 16, 0), 24, 8),
    b"caff": _Chunks(">4sQ", 8, b"data", None, align=1),
}
_AU = {b".snd": ">II", b"dns.": "<II"}
_NIST = b"NIST"
_PAGE = 27  # bytes of an Ogg page's header (RFC 3533); the last is the number of segments, whose sizes follow


def check_whole(read: Read, size: int, where: object) -> None:
    """Raises ``DataError`` where the audio file of ``size`` bytes is cut off, or was left by its writer unfinished."""
    magic, needed = read(0, 4), 0
    if magic in _CHUNKS or magic in _AU:
        whole, start, length = _sizes(read, _CHUNKS[magic]) if magic in _CHUNKS else _au(read, _AU[magic])
        needed = start + length
        if not length and 0 < start < size > whole:  # libsndfile would take it for an empty recording
            raise DataError(
                "the audio's header was never completed",
                where=where,
                expected="the size of the samples",
                found=f"0, and {size - start:,} bytes after it",
                todo="write the file again: ffmpeg -i FILE NEW.wav",
            )
    elif magic == _NIST:
        needed = _nist(read)
    elif magic == b"OggS":
        needed = _end_of_pages(read, size)
    if needed > size:
        raise DataError(
            "the audio is cut off", where=where, expected=f"{needed:,} bytes, as its headers say", found=f"{size:,}"
        )


def _sizes(read: Read, kind: _Chunks) -> tuple[int, int, int]:
    """Bytes of the file, offset of the samples and bytes of these, as the headers say; (0, 0, 0) where they do not."""
    whole = _number(read, kind.whole[0], kind.whole[1]) + kind.whole[2] if kind.whole else UNKNOWN[1]
    at, header_size = kind.first, struct.calcsize(kind.layout)
    unknown = UNKNOWN[0] if header_size == 8 else UNKNOWN[1]
    wide: int | None = None
    for _ in range(MOST_CHUNKS):
        header = read(at, header_size)
        if len(header) < header_size:
            break
        name, length = struct.unpack(kind.layout, header)
        at += header_size
        length = max(0, length - kind.included)
        if name == b"ds64":  # the sizes of RF64 (EBU Tech 3306): of the file but for 8 bytes, then of the samples
            whole, wide = 8 + _number(read, "<Q", at), _number(read, "<Q", at + 8)
        if name == kind.samples:
            samples, unknown = (length, unknown) if wide is None or length != 0xFFFFFFFF else (wide, UNKNOWN[1])
            return (whole, at, samples) if samples < unknown else (0, 0, 0)
        at += length + -(length + kind.included) % kind.align
    return 0, 0, 0


def _au(read: Read, layout: str) -> tuple[int, int, int]:
    """As :func:`_sizes`."""
    header = read(4, 8)
    start, length = struct.unpack(layout, header) if len(header) == 8 else (0, 0)
    return (0, start, length) if length < UNKNOWN[0] else (0, 0, 0)


def _nist(read: Read) -> int:
    """Bytes of the file by a SPHERE header: lines ``sample_count -i 2388``; 0 where it does not say how many samples of
    plain bytes there are."""
    size = read(8, 8).strip()
    if not re.fullmatch(rb"\d{1,6}", size):
        return 0
    found = dict(re.findall(rb"^(\w+) -\w+ (\S+)", read(0, int(size)), re.MULTILINE))
    numbers = [found.get(name, b"") for name in (b"sample_count", b"channel_count", b"sample_n_bytes")]
    if b"," in found.get(b"sample_coding", b"pcm") or not all(re.fullmatch(rb"\d{1,18}", n) for n in numbers):
        return 0
    samples, channels, width = map(int, numbers)
    return int(size) + samples * channels * width


def _number(read: Read, layout: str, at: int) -> int:
    """The number that is there, or 0 behind the end."""
    data = read(at, struct.calcsize(layout))
    return int(struct.unpack(layout, data)[0]) if len(data) == struct.calcsize(layout) else 0


def _end_of_pages(read: Read, size: int) -> int:
    """Of those one after another from the beginning; what is no page may follow."""
    at = 0
    while at < size:
        header = read(at, _PAGE + 255)
        if not header.startswith(b"OggS"[: len(header)]):
            break
        segments = header[_PAGE - 1] if len(header) >= _PAGE else 0
        at += _PAGE + segments + sum(header[_PAGE : _PAGE + segments])
    return at
