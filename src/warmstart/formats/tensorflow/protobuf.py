"""Protocol buffers' wire format, as far as checkpoints need it.

Definition: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

Field = tuple[int, int | bytes]


class Malformed(ValueError):
    """Bytes that are not what they should be; whoever knows the file turns it into an error with a place."""


def varint(data: bytes, position: int) -> tuple[int, int]:
    """The unsigned number that begins at ``position``, and where it ends.

    Raises:
        Malformed: it is longer than 10 bytes, above 64 bits, or the data ends within it.
    """
    if position < len(data) and data[position] < 128:
        return data[position], position + 1  # most are short
    value = shift = 0
    for end in range(position, min(position + 10, len(data))):
        byte = data[end]
        value |= (byte & 127) << shift
        if byte < 128:
            if value >= 2**64:
                break
            return value, end + 1
        shift += 7
    raise Malformed(f"a number at byte {position} does not end, or has more than 64 bits")


def signed(value: int) -> int:
    """A number of type int64 or int32, which is negative if its highest bit is set."""
    return value - 2**64 if value >= 2**63 else value


def fields(data: bytes) -> Iterator[Field]:
    """The fields of a message in their order: (number, value), where a value is a number or bytes.

    Raises:
        Malformed: it is not a message.
    """
    position, end = 0, len(data)
    while position < end:
        tag, position = varint(data, position)
        number, kind = tag >> 3, tag & 7
        value: int | bytes
        if kind == 0:
            value, position = varint(data, position)
        else:
            if kind == 2:
                length, position = varint(data, position)
            elif kind in (1, 5):
                length = 8 if kind == 1 else 4
            else:
                raise Malformed(f"wire type {kind} at byte {position}")
            if length > end - position:
                raise Malformed(f"a field of {length} bytes where {end - position} are left")
            value = data[position : position + length]
            position += length
            if kind != 2:
                value = int.from_bytes(value, "little")
        if not number:
            raise Malformed("a field with number 0")
        yield number, value


def number(value: int | bytes) -> int:
    """``value`` of a field that holds a number of type int64.

    Raises:
        Malformed: it holds bytes.
    """
    if isinstance(value, bytes):
        raise Malformed("bytes where a number should be")
    return signed(value)


def message(value: int | bytes) -> bytes:
    """``value`` of a field that holds bytes, text or a message.

    Raises:
        Malformed: it holds a number.
    """
    if isinstance(value, int):
        raise Malformed("a number where bytes should be")
    return value


def put_varint(value: int) -> bytes:
    """``value`` from 0 to 2**64 - 1, seven bits a byte, the lowest first."""
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def put_number(field: int, value: int) -> bytes:
    """A field of type int64 or an enumeration; zero is left out, as the third version of the language does."""
    return put_varint(field << 3) + put_varint(value % 2**64) if value else b""


def put_bytes(field: int, value: bytes) -> bytes:
    """A field of bytes or a message, also an empty one."""
    return put_varint(field << 3 | 2) + put_varint(len(value)) + value


def put_fixed32(field: int, value: int) -> bytes:
    """A field of type fixed32; zero is left out."""
    return put_varint(field << 3 | 5) + struct.pack("<I", value) if value else b""
