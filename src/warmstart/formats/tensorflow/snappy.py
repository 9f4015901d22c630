"""Decompression of one raw Snappy block, which older versions of TensorFlow wrote into their indexes.

Definition: https://github.com/google/snappy/blob/main/format_description.txt
"""

from __future__ import annotations

from warmstart.formats.tensorflow.protobuf import Malformed, varint

_RATIO = 32  # a copy makes 64 bytes of 3 at most


def decompress(data: bytes) -> bytes:
    """The bytes of which ``data`` is the compressed form.

    Raises:
        Malformed: it is damaged, or announces more than its length can give.
    """
    size, position = varint(data, 0)
    if size > _RATIO * len(data):
        raise Malformed(f"{len(data)} compressed bytes announce {size}")
    result = bytearray()
    while position < len(data):
        tag = data[position]
        kind, high = tag & 3, tag >> 2
        position += 1
        if kind == 0:
            extra = max(0, high - 59)
            length = 1 + (int.from_bytes(data[position : position + extra], "little") if extra else high)
            position += extra
            if length > len(data) - position:
                raise Malformed("a literal runs beyond the compressed bytes")
            result += data[position : position + length]
            position += length
        else:
            extra = (1, 2, 4)[kind - 1]
            offset = int.from_bytes(data[position : position + extra], "little")
            if len(data) - position < extra:
                raise Malformed("the compressed bytes end within a copy")
            position += extra
            length = 1 + high
            if kind == 1:
                length, offset = 4 + (high & 7), offset | (tag >> 5) << 8
            if not 0 < offset <= len(result):
                raise Malformed(f"a copy from {offset} bytes back, of {len(result)}")
            source = bytes(result[-offset : len(result) - offset + length])
            result += (source * (length // len(source) + 1))[:length]
        if len(result) > size:
            break
    if len(result) != size:
        raise Malformed(f"{size} bytes were announced, {len(result)} or more come out")
    return bytes(result)
