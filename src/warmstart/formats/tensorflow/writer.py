"""Writing bundles: the bytes that TensorFlow's own Saver writes for the same arrays."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from warmstart.errors import FormatError, StorageError
from warmstart.formats.checkpoint import Array
from warmstart.formats.tensorflow.bundle import beside
from warmstart.formats.tensorflow.crc32c import crc32c, masked
from warmstart.formats.tensorflow.index import DTYPES, OPAQUE, VERSION
from warmstart.formats.tensorflow.protobuf import put_bytes, put_fixed32, put_number, put_varint
from warmstart.formats.tensorflow.slices import Piece
from warmstart.formats.tensorflow.sstable import write_table
from warmstart.storage.atomic import atomic_file

_CODES = {name: code for code, name in DTYPES.items() if name not in OPAQUE and not name.startswith("q")}


def write_bundle(prefix: Path, arrays: Iterable[tuple[str, Array]], *, force: bool = False) -> None:
    """Writes ``prefix.data-00000-of-00001`` and ``prefix.index``, holding one array at a time.

    Data lies in the order in which ``arrays`` come, as in TensorFlow; its Saver of version 1 sorts them by the bytes
    of their names. An array of dtype object holds strings, as ``bytes``. The index appears last, so that a checkpoint
    is complete or invisible; of one that is replaced, the old index disappears first.

    Raises:
        FormatError: a name occurs twice or is empty, or an array is of a dtype that TensorFlow does not have.
        StorageError: the files cannot be written, or exist and ``force`` is not set.
    """
    index, data = beside(prefix, ".index"), beside(prefix, ".data-00000-of-00001")
    existing = [path for path in (index, data) if path.exists() or path.is_symlink()]
    if existing and not force:
        raise StorageError(
            "this exists already",
            where=existing[0],
            expected="a checkpoint that does not exist yet",
            todo="choose another name, delete it, or force its replacement",
        )
    with atomic_file(index) as index_file, atomic_file(data) as data_file:
        with data_file.open("wb") as file:
            entries = _write_data(file, prefix, arrays)
        header = put_number(1, 1) + put_bytes(3, put_number(1, VERSION))
        with index_file.open("wb") as file:
            write_table(file, [(b"", header), *sorted(entries.items())])
        if existing:
            with contextlib.suppress(FileNotFoundError):
                index.unlink()


def _write_data(file: BinaryIO, prefix: Path, arrays: Iterable[tuple[str, Array]]) -> dict[bytes, bytes]:
    """Writes the arrays' bytes; gives the entries of the index."""
    entries: dict[bytes, bytes] = {}
    position = 0
    for name, array in arrays:
        where = f"{prefix}, array {name!r}"
        key = _key(name, where)
        if key in entries:
            raise FormatError("a name occurs twice", where=where)
        if array.dtype.kind == "O":
            dtype = "string"
            parts, crc = _encode_strings(array, where)
            for part in parts:
                file.write(part)
            size = sum(map(len, parts))
        else:
            dtype = array.dtype.name
            if dtype not in _CODES:
                raise FormatError("TensorFlow has no such dtype", where=where, expected=", ".join(_CODES), found=dtype)
            raw = _little_endian(array)
            file.write(raw.data)
            size, crc = raw.size, crc32c(raw)
        entries[key] = _encode_entry(dtype, array.shape, Piece(0, position, size, masked(crc)))
        position += size
    return entries


def _key(name: str, where: str) -> bytes:
    """The name in the index; names that begin with a zero would be slices."""
    try:
        key = name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise FormatError("not a name that a checkpoint can hold", where=where, found=error.reason) from error
    if not key or key[0] == 0:
        raise FormatError("not a name that a checkpoint can hold", where=where, expected="at least one character")
    return key


def _little_endian(array: Array) -> Array:
    """The bytes of ``array`` in the order of the file; without a copy if they lie so already."""
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    flat: Array = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return flat


def _encode_strings(array: Array, where: str) -> tuple[list[bytes], int]:
    """Lengths, checksum of the lengths, texts (TensorFlow, util/tensor_bundle/tensor_bundle.cc, WriteStringTensor)."""
    texts = array.reshape(-1).tolist()
    wrong = next((text for text in texts if not isinstance(text, bytes)), None)
    if wrong is not None:
        raise FormatError("not strings", where=where, expected="objects of type bytes", found=type(wrong).__name__)
    lengths = b"".join(struct.pack("<I" if len(text) < 2**32 else "<Q", len(text)) for text in texts)
    crc = crc32c(lengths)
    checksum = struct.pack("<I", masked(crc))
    joined = b"".join(texts)
    return [b"".join(put_varint(len(text)) for text in texts), checksum, joined], crc32c(joined, crc32c(checksum, crc))


def _encode_entry(dtype: str, shape: tuple[int, ...], piece: Piece) -> bytes:
    dimensions = b"".join(put_bytes(2, put_number(1, length)) for length in shape)
    place = put_number(3, piece.shard) + put_number(4, piece.offset) + put_number(5, piece.size)
    return put_number(1, _CODES.get(dtype, 7)) + put_bytes(2, dimensions) + place + put_fixed32(6, piece.crc)
