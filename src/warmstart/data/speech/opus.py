"""Opus as sample databases hold it, put into Ogg so that libsndfile decodes it.

Coqui's packing (``util/audio.py``), big-endian: u32 bytes of the 16-bit samples it was made of, u32 sample rate, u8
channels, u8 bytes of a sample, then packets: u16 size, bytes. Ogg: RFC 3533; Opus in it: RFC 7845 and 6716 § 3.1.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from warmstart.errors import DataError
from warmstart.lean import dataclass

RATES = (8_000, 12_000, 16_000, 24_000, 48_000)
GRANULES = 48_000  # Ogg counts samples at this rate, whatever the file's
LONGEST_PACKET = 120 * GRANULES // 1000
FIRST, LAST = 2, 4  # kinds of pages
_HEADER = struct.Struct(">IIBB")
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


@dataclass(frozen=True)
class Packed:
    """What the packing says: ``samples`` of each channel at ``rate``."""

    samples: int
    rate: int
    channels: int
    packets: tuple[bytes, ...]


def ogg_of_packed(data: bytes, where: object) -> bytes:
    """``data`` in Coqui's packing as an Ogg Opus file. Raises ``DataError`` where it is damaged."""
    packed = _unpack(data, where)
    head = b"OpusHead" + struct.pack("<BBHIhB", 1, packed.channels, 0, packed.rate, 0, 0)
    tags = b"OpusTags" + struct.pack("<I", 0) + struct.pack("<I", 0)
    pages = [_page(head, FIRST, 0, 0), _page(tags, 0, 0, 1)]
    end, granule = packed.samples * GRANULES // packed.rate, 0
    for number, packet in enumerate(packed.packets):
        granule += _duration(packet, where)
        is_last = number + 1 == len(packed.packets) or granule >= end
        pages.append(_page(packet, LAST if is_last else 0, min(granule, end), number + 2))
        if is_last:
            break
    if granule < end:
        raise _damaged(where, f"{granule / GRANULES:.2f} s of packets for {end / GRANULES:.2f} s of sound")
    return b"".join(pages)


def _unpack(data: bytes, where: object) -> Packed:
    if len(data) < _HEADER.size:
        raise _damaged(where, f"{len(data)} bytes")
    size, rate, channels, width = _HEADER.unpack_from(data)
    if rate not in RATES or channels not in (1, 2) or width != 2:
        raise _damaged(where, f"{rate} Hz, {channels} channels, {width} bytes a sample")
    return Packed(size // (channels * width), rate, channels, tuple(_packets(data, where)))


def _packets(data: bytes, where: object) -> Iterator[bytes]:
    at = _HEADER.size
    while at < len(data):
        size = int.from_bytes(data[at : at + 2], "big")
        packet = data[at + 2 : at + 2 + size]
        if not size or len(packet) < size or size >= 255 * 255:
            raise _damaged(where, f"a packet of {size} bytes, {len(data) - at - 2} before the end")
        yield packet
        at += 2 + size


def _duration(packet: bytes, where: object) -> int:
    """In samples at 48 kHz, as the first byte says."""
    kind, code = packet[0] >> 3, packet[0] & 3
    if kind < 12:
        frame = (480, 960, 1920, 2880)[kind % 4]
    elif kind < 16:
        frame = (480, 960)[kind % 2]
    else:
        frame = (120, 240, 480, 960)[kind % 4]
    count = (1, 2, 2, packet[1] & 63 if len(packet) > 1 else 0)[code]
    if not 0 < frame * count <= LONGEST_PACKET:
        raise _damaged(where, f"a packet of {frame * count / 48:g} ms")
    return frame * count


def _page(packet: bytes, kind: int, granule: int, number: int) -> bytes:
    """One packet as an Ogg page of stream 1."""
    lacing = bytes([255] * (len(packet) // 255) + [len(packet) % 255])
    fields = struct.pack("<4sBBqIIIB", b"OggS", 0, kind, granule, 1, number, 0, len(lacing))
    page = fields + lacing + packet
    return page[:22] + _checksum(page).to_bytes(4, "little") + page[26:]


def _checksum(page: bytes) -> int:
    """Ogg's CRC-32 goes from the highest bit to the lowest: zlib's, with the bits of every byte and of the result
    turned around, and without its inversions."""
    turned = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{turned:032b}"[::-1], 2)


def _damaged(where: object, found: str) -> DataError:
    return DataError("packed Opus is damaged", where=where, found=found)
