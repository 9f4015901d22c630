"""Sorted tables, as TensorFlow and leveldb lay them out: keys and values in blocks, a block of blocks, a footer.

A block is followed by its compression (0 none, 1 Snappy) and the masked CRC-32C of both. Within it, a key is stored
as what it shares with the key before and the rest; every 16th key is whole, and the block's end says where those are.
The footer's 48 bytes hold the places of two blocks of blocks and a magic number.

Definition: https://github.com/google/leveldb/blob/main/doc/table_format.md; TensorFlow, tsl/lib/io/table.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from warmstart.formats.tensorflow.crc32c import crc32c, masked
from warmstart.formats.tensorflow.protobuf import Malformed, put_varint, varint
from warmstart.formats.tensorflow.snappy import decompress

MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)
FOOTER = 48
_TRAILER = 5
_BLOCK = 256 * 1024  # bytes after which TensorFlow begins a new block
_RESTART = 16
_EXPANSION = 64  # names' bytes per byte of the table: real tables have less than 10

Item = tuple[bytes, bytes]


def read_table(data: memoryview) -> Iterator[Item]:
    """The keys and values of the table that is ``data``, in the order of the keys.

    Raises:
        Malformed: it is damaged; a block's checksum does not fit, keys are out of order or one occurs twice.
    """
    if len(data) < FOOTER or data[-8:] != MAGIC:
        raise Malformed("no footer of a table at the end")
    footer = bytes(data[-FOOTER:-8])
    position = 0
    for _ in range(2):
        _, position = varint(footer, position)
    blocks, _ = _handle(footer, position)
    last, end, names = None, 0, 0
    for _, value in _items(_block(data, blocks)):
        handle, used = _handle(value, 0)
        if used != len(value) or handle[0] < end:
            raise Malformed("blocks overlap")
        end = handle[0] + handle[1]
        for key, content in _items(_block(data, handle)):
            names += len(key)
            if last is not None and key <= last:
                raise Malformed(f"key {key[:80]!r} occurs twice or out of order")
            if names > _EXPANSION * len(data):
                raise Malformed(f"names of more than {names} bytes in a table of {len(data)}")
            last = key
            yield key, content


def _handle(data: bytes, position: int) -> tuple[tuple[int, int], int]:
    offset, position = varint(data, position)
    size, position = varint(data, position)
    return (offset, size), position


def _block(data: memoryview, handle: tuple[int, int]) -> bytes:
    offset, size = handle
    end = offset + size
    if end > len(data) - FOOTER - _TRAILER:
        raise Malformed(f"a block of {size} bytes at {offset}, beyond the end of the table")
    compression = data[end]
    stored = int.from_bytes(data[end + 1 : end + _TRAILER], "little")
    found = masked(crc32c(data[offset : end + 1]))
    if stored != found:
        raise Malformed(f"the block at {offset} has checksum {found:08x} instead of {stored:08x}")
    if compression > 1:
        raise Malformed(f"the block at {offset} is compressed in the unknown way {compression}")
    content = bytes(data[offset:end])
    return decompress(content) if compression else content


def _items(block: bytes) -> Iterator[Item]:
    if len(block) < 4:
        raise Malformed("a block without its end")
    end = len(block) - 4 - 4 * int.from_bytes(block[-4:], "little")
    if end < 0:
        raise Malformed("a block with more restarts than it can hold")
    position, key = 0, b""
    while position < end:
        shared, position = varint(block, position)
        rest, position = varint(block, position)
        length, position = varint(block, position)
        middle = position + rest
        if shared > len(key) or middle + length > end:
            raise Malformed("a key or value runs beyond its block")
        key = key[:shared] + block[position:middle]
        position = middle + length
        yield key, block[middle:position]


def write_table(file: BinaryIO, items: Iterable[Item]) -> None:
    """Writes ``items``, sorted by key, without compression: the same bytes as TensorFlow's own builder."""
    index: list[Item] = []
    block = _BlockBuilder(_RESTART)
    position = 0
    pending: tuple[bytes, bytes] | None = None  # the last key of the block before, and that block's place
    for key, value in items:
        if pending:
            index.append((_separator(pending[0], key), pending[1]))
            pending = None
        block.add(key, value)
        if block.size >= _BLOCK:
            handle, position = _flush(file, block.finish(), position)
            pending = key, handle
            block = _BlockBuilder(_RESTART)
    if block.last is not None:
        handle, position = _flush(file, block.finish(), position)
        pending = block.last, handle
    if pending:
        index.append((_successor(pending[0]), pending[1]))
    meta, position = _flush(file, _BlockBuilder(_RESTART).finish(), position)
    blocks = _BlockBuilder(1)
    for key, value in index:
        blocks.add(key, value)
    handle, position = _flush(file, blocks.finish(), position)
    file.write((meta + handle).ljust(FOOTER - 8, b"\0") + MAGIC)


class _BlockBuilder:
    def __init__(self, every: int) -> None:
        self._every = every
        self._data = bytearray()
        self._restarts = [0]
        self._count = 0
        self.last: bytes | None = None

    @property
    def size(self) -> int:
        """Bytes that the finished block will have."""
        return len(self._data) + 4 * len(self._restarts) + 4

    def add(self, key: bytes, value: bytes) -> None:
        shared = 0
        if self._count == self._every:
            self._restarts.append(len(self._data))
            self._count = 0
        elif self.last is not None:
            shared = _common(self.last, key)
        self._data += put_varint(shared) + put_varint(len(key) - shared) + put_varint(len(value)) + key[shared:] + value
        self._count += 1
        self.last = key

    def finish(self) -> bytes:
        return bytes(self._data) + struct.pack(f"<{len(self._restarts) + 1}I", *self._restarts, len(self._restarts))


def _flush(file: BinaryIO, block: bytes, position: int) -> tuple[bytes, int]:
    """Writes ``block`` at ``position``; gives its place, as the index stores it, and where the next one begins."""
    plain = block + b"\0"
    file.write(plain + struct.pack("<I", masked(crc32c(plain))))
    return put_varint(position) + put_varint(len(block)), position + len(block) + _TRAILER


def _common(left: bytes, right: bytes) -> int:
    length = min(len(left), len(right))
    return next((place for place in range(length) if left[place] != right[place]), length)


def _separator(left: bytes, right: bytes) -> bytes:
    """A short key from ``left`` up to but not including ``right`` (leveldb, util/comparator.cc)."""
    place = _common(left, right)
    if place < min(len(left), len(right)) and left[place] + 1 < right[place]:
        return left[:place] + bytes([left[place] + 1])
    return left


def _successor(key: bytes) -> bytes:
    """A short key not before ``key``."""
    for place, byte in enumerate(key):
        if byte != 255:
            return key[:place] + bytes([byte + 1])
    return key
