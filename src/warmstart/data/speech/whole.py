"""Audio files that end before what their headers say, or whose headers know nothing of their samples.

libsndfile corrects the header of such a file and decodes what is there. Noticed are RIFF (wav, also big-endian and of
64 bits), AIFF and Ogg (Vorbis, Opus); FLAC and mp3 that are cut off fail to decode.

A writer that cannot go back to the header, because it writes to a pipe, leaves a size of about 2 or 4 GiB there, and an
Ogg stream that was recorded may lack a page that is marked as the last: such files are whole.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from warmstart.errors import DataError

Read = Callable[[int, int], bytes]
"""(offset, count) to the bytes that are there."""

UNKNOWN = (0x7FFF0000, 1 << 62)  # sizes of 32 and of 64 bits, from which on they mean nothing
MOST_CHUNKS = 1000
_CHUNKS = {b"RIFF": ("<4sI", b"data"), b"RIFX": (">4sI", b"data"), b"FORM": (">4sI", b"SSND")}
_CHUNKS |= dict.fromkeys((b"RF64", b"BW64"), _CHUNKS[b"RIFF"])
_PAGE = 27  # bytes of an Ogg page's header (RFC 3533); the last is the number of segments, whose sizes follow


def check_whole(read: Read, size: int, where: object) -> None:
    """Raises ``DataError`` where the audio file of ``size`` bytes is cut off, or was left by its writer unfinished."""
    magic, needed = read(0, 4), 0
    if magic in _CHUNKS:
        whole, start, length = _sizes(read, magic)
        needed = start + length
        if not length and 0 < start < size > whole:  # libsndfile would take it for an empty recording
            raise DataError(
                "the audio's header was never completed",
                where=where,
                expected="the size of the samples",
                found=f"0, and {size - start:,} bytes after it",
                todo="write the file again: ffmpeg -i FILE -c copy NEW.wav",
            )
    elif magic == b"OggS":
        needed = _end_of_pages(read, size)
    if needed > size:
        raise DataError(
            "the audio is cut off", where=where, expected=f"{needed:,} bytes, as its headers say", found=f"{size:,}"
        )


def _sizes(read: Read, magic: bytes) -> tuple[int, int, int]:
    """Bytes of the file, offset of the samples and bytes of these, as the headers say; (0, 0, 0) where they do not."""
    layout, wanted = _CHUNKS[magic]
    whole, at = 0, 0
    wide: int | None = None
    for _ in range(MOST_CHUNKS):
        header = read(at, 8)
        if len(header) < 8:
            break
        name, length = struct.unpack(layout, header)
        at += 8
        if name == magic:
            whole, length = at + length, 4  # what kind of RIFF it is
        if name == b"ds64":  # the sizes of RF64 (EBU Tech 3306): of the file but for 8 bytes, then of the samples
            whole, wide = 8 + int.from_bytes(read(at, 8), "little"), int.from_bytes(read(at + 8, 8), "little")
        if name == wanted:
            samples, unknown = (length, UNKNOWN[0]) if wide is None or length != 0xFFFFFFFF else (wide, UNKNOWN[1])
            return (whole, at, samples) if samples < unknown else (0, 0, 0)
        at += length + length % 2
    return 0, 0, 0


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
