"""Bundles made by hand, to say what no writer would."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from warmstart.formats.tensorflow.bundle import beside
from warmstart.formats.tensorflow.protobuf import put_bytes, put_fixed32, put_number
from warmstart.formats.tensorflow.sstable import write_table

HEADER = put_number(1, 1) + put_bytes(3, put_number(1, 1))
ALL = (0, -1)  # an extent without a length


def shape(*lengths: int) -> bytes:
    return b"".join(put_bytes(2, put_number(1, length)) for length in lengths)


def entry(
    dtype: int,
    lengths: Sequence[int],
    *,
    shard: int = 0,
    offset: int = 0,
    size: int = 0,
    crc: int = 0,
    slices: Iterable[Sequence[tuple[int, int]]] = (),
) -> bytes:
    """A BundleEntryProto; ``slices`` are extents, a (start, length) for each axis."""
    parts = b"".join(
        put_bytes(7, b"".join(put_bytes(1, put_number(1, s) + (put_number(2, n) if n >= 0 else b"")) for s, n in part))
        for part in slices
    )
    place = put_number(3, shard) + put_number(4, offset) + put_number(5, size)
    return put_number(1, dtype) + put_bytes(2, shape(*lengths)) + place + put_fixed32(6, crc) + parts


def bundle(
    prefix: Path, items: Iterable[tuple[bytes, bytes]], data: bytes = b"", *, header: bytes | None = HEADER
) -> Path:
    """Writes ``items`` in their order, after ``header``, and one data file."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    with beside(prefix, ".index").open("wb") as file:
        write_table(file, [*([(b"", header)] if header is not None else []), *items])
    beside(prefix, ".data-00000-of-00001").write_bytes(data)
    return prefix
