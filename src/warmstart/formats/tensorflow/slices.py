"""The slices of a partitioned variable: where their bytes are, what they cover, their keys in the index.

Definitions: TensorFlow, util/saved_tensor_slice_util.cc and tsl/lib/strings/ordered_code.cc.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from warmstart.formats.tensorflow.protobuf import Malformed
from warmstart.lean import dataclass

_ESCAPED = {0: b"\0\xff", 255: b"\xff\0"}


@dataclass(frozen=True)
class Piece:
    """A run of bytes in one of the data files, and their masked CRC-32C."""

    shard: int = 0
    offset: int = 0
    size: int = 0
    crc: int = 0


@dataclass(frozen=True)
class Slice:
    """A part of a partitioned variable: where it begins, its shape, its bytes."""

    start: tuple[int, ...]
    shape: tuple[int, ...]
    piece: Piece


def check_cover(shape: tuple[int, ...], slices: Sequence[Slice]) -> None:
    """Checks that slices are the cells of a grid over ``shape``, each once, and share no bytes of the data files.

    TensorFlow's partitioners cut along one axis, which is such a grid.

    Raises:
        Malformed: they overlap, leave something out, or share bytes.
    """
    cells = 1
    for axis, full in enumerate(shape):
        cuts = sorted({(part.start[axis], part.start[axis] + part.shape[axis]) for part in slices})
        if [0, *(end for _, end in cuts)] != [*(start for start, _ in cuts), full]:
            raise Malformed(f"along axis {axis}, slices from and to {str(cuts)[:200]}")
        cells *= len(cuts)
    if cells != len(slices) or len({(part.start, part.shape) for part in slices}) != cells:
        raise Malformed(f"{len(slices)} slices in {cells} places")
    runs = sorted((part.piece.shard, part.piece.offset, part.piece.size) for part in slices)
    for (shard, offset, size), (next_shard, next_offset, _) in itertools.pairwise(runs):
        if shard == next_shard and offset + size > next_offset:
            raise Malformed(f"byte {next_offset} of data file {shard} belongs to two slices")


def slice_key(name: bytes, extents: Iterable[tuple[int, int]]) -> bytes:
    """The key of one slice of the variable ``name``, from (start, length) along each axis; sorts like its parts."""
    extents = list(extents)
    escaped = b"".join(_ESCAPED.get(byte, bytes([byte])) for byte in name)
    rank = len(extents).to_bytes((len(extents).bit_length() + 7) // 8, "big")
    parts = b"".join(_ordered(value) for extent in extents for value in extent)
    return b"\0" + escaped + b"\0\1" + bytes([len(rank)]) + rank + parts


def _ordered(value: int) -> bytes:
    """A signed number whose encodings sort like the numbers: as many leading ones as bytes, then the number."""
    magnitude = ~value if value < 0 else value
    length = magnitude.bit_length() // 7 + 1
    if length == 1:
        return bytes([0x80 ^ value & 0xFF])
    encoded = bytearray((value % 2 ** (8 * length)).to_bytes(length, "big"))
    header = ((2**length - 1) << (16 - length)) & 0xFFFF
    encoded[0] ^= header >> 8
    encoded[1] ^= header & 0xFF
    return bytes(encoded)
