"""What a bundle's ``.index`` says: a table from names to where each tensor's bytes are.

The key ``""`` holds a BundleHeaderProto, every other key a BundleEntryProto. A partitioned variable has an entry
with the extents of its slices, and one more entry for each slice under a key made of zero, the name and the extent.

Definitions: TensorFlow, core/protobuf/tensor_bundle.proto, core/framework/{types,tensor_shape,tensor_slice}.proto.
"""

from __future__ import annotations

from dataclasses import field
from pathlib import Path

from warmstart.errors import CorruptCheckpoint, FormatError
from warmstart.formats.checkpoint import dtype_of
from warmstart.formats.mapped import head, map_file, valid_shape
from warmstart.formats.tensorflow.protobuf import Malformed, fields, message, number
from warmstart.formats.tensorflow.slices import Piece, Slice, check_cover, slice_key
from warmstart.formats.tensorflow.sstable import MAGIC, read_table
from warmstart.lean import dataclass

DTYPES = {
    1: "float32",
    2: "float64",
    3: "int32",
    4: "uint8",
    5: "int16",
    6: "int8",
    7: "string",
    8: "complex64",
    9: "int64",
    10: "bool",
    11: "qint8",
    12: "quint8",
    13: "qint32",
    14: "bfloat16",
    15: "qint16",
    16: "quint16",
    17: "uint16",
    18: "complex128",
    19: "float16",
    20: "resource",
    21: "variant",
    22: "uint32",
    23: "uint64",
    24: "float8_e5m2",
    25: "float8_e4m3fn",
    26: "float8_e4m3fnuz",
    27: "float8_e4m3b11fnuz",
    28: "float8_e5m2fnuz",
    29: "int4",
    30: "uint4",
    31: "int2",
    32: "uint2",
    33: "float4_e2m1fn",
}
OPAQUE = {"string", "resource", "variant"}  # not arrays of numbers
VERSION = 1  # of the bundles that TensorFlow writes since 2016
_AGAIN = "download or copy it again"


@dataclass(frozen=True)
class Tensor:
    """A tensor by its own name. ``dtype`` is TensorFlow's name; ``slices`` is empty unless it is partitioned."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    piece: Piece
    slices: tuple[Slice, ...] = ()

    @property
    def pieces(self) -> tuple[Piece, ...]:
        return tuple(part.piece for part in self.slices) or (self.piece,)

    @property
    def numbers(self) -> str:
        """The dtype of the numbers as numpy has them: quantized ones are integers."""
        return self.dtype.replace("qu", "u", 1).replace("q", "", 1) if self.dtype.startswith("q") else self.dtype


@dataclass(frozen=True)
class Index:
    """A bundle's tensors by name, in the order of the index (by bytes), and what its header says."""

    path: Path
    shards: int = 1
    big_endian: bool = False
    tensors: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class _Entry:
    """A BundleEntryProto as it is stored."""

    dtype: int = 0
    shape: tuple[int, ...] = ()
    piece: Piece = field(default_factory=Piece)
    extents: list[list[tuple[int, int]]] = field(default_factory=list)


def corrupt(path: Path, key: str, expected: object, found: object) -> CorruptCheckpoint:
    """The error for a damaged bundle; ``key`` says where in the file ``path``."""
    return CorruptCheckpoint(
        "damaged TensorFlow checkpoint", where=f"{path}, {key}", expected=expected, found=found, todo=_AGAIN
    )


def is_index(path: Path) -> bool:
    """Whether ``path`` is a table whose first key is that of a bundle's header, or the damaged remains of one."""
    start = head(path, 4)
    if len(start) < 4:
        return False
    with memoryview(map_file(path)) as data:
        if data[-len(MAGIC) :] != MAGIC:
            return path.suffix == ".index" and start[:2] == b"\0\0" and start[3] == 8
        try:
            return next(read_table(data), (b"?", b""))[0] == b""
        except Malformed:
            return True


def read_index(path: Path) -> Index:
    """Reads and checks all of ``path``: every entry has a known dtype and exactly the bytes for its shape.

    Raises:
        CorruptCheckpoint: it is damaged.
        FormatError: it is of another version.
    """
    with memoryview(map_file(path)) as data:
        try:
            items = list(read_table(data))
        except Malformed as error:
            raise corrupt(path, "table", "a complete table of tensors", error) from error
    if not items or items[0][0]:
        raise corrupt(path, "table", "a header first", f"key {items[0][0][:80]!r}" if items else "nothing")
    shards, big_endian = _header(path, items[0][1])
    entries: dict[bytes, _Entry] = {}
    for key, value in items[1:]:
        try:
            entries[key] = _entry(value)
        except Malformed as error:
            raise corrupt(path, f"entry {key[:200]!r}", "a description of a tensor", error) from error
    parts = {key: entry for key, entry in entries.items() if key.startswith(b"\0")}
    tensors: dict[str, Tensor] = {}
    for key, entry in entries.items():
        if key not in parts:
            tensor = _tensor(path, key, entry, parts, shards)
            tensors[tensor.name] = tensor
    if parts:
        raise corrupt(
            path, f"entry {next(iter(parts))[:200]!r}", "a slice of a variable that is listed", "no such variable"
        )
    return Index(path, shards, big_endian, tensors)


def _header(path: Path, data: bytes) -> tuple[int, bool]:
    shards = endianness = oldest_reader = 0
    try:
        for tag, value in fields(data):
            if tag == 1:
                if isinstance(value, bytes):
                    raise FormatError(
                        "a TensorFlow checkpoint of version 1, as written before 2017",
                        where=path,
                        expected="version 2: an .index and .data files",
                        todo="restore it with TensorFlow 1 and save it with Saver(write_version=V2)",
                    )
                shards = number(value)
            elif tag == 2:
                endianness = number(value)
            elif tag == 3:
                oldest_reader = max([number(value) for tag, value in fields(message(value)) if tag == 2], default=0)
    except Malformed as error:
        raise corrupt(path, "header", "the number of data files and a version", error) from error
    if not 1 <= shards < 2**31 or endianness not in (0, 1):
        raise corrupt(path, "header", "a number of data files and a byte order", f"{shards} and {endianness}")
    if oldest_reader > VERSION:
        raise FormatError(
            "a TensorFlow checkpoint of a newer version", where=path, expected=f"version {VERSION}", found=oldest_reader
        )
    return shards, endianness == 1


def _entry(data: bytes) -> _Entry:
    entry = _Entry()
    place = {3: 0, 4: 0, 5: 0, 6: 0}
    for tag, value in fields(data):
        if tag == 1:
            entry.dtype = number(value)
        elif tag == 2:
            entry.shape = _shape(message(value))
        elif tag in place:
            place[tag] = number(value)
        elif tag == 7:
            entry.extents.append([_extent(message(part)) for tag, part in fields(message(value)) if tag == 1])
    entry.piece = Piece(place[3], place[4], place[5], place[6])
    return entry


def _shape(data: bytes) -> tuple[int, ...]:
    shape = []
    for tag, value in fields(data):
        if tag == 3 and value:
            raise Malformed("a shape of unknown rank")
        if tag == 2:
            shape.append(sum(number(length) for tag, length in fields(message(value)) if tag == 1))
    if not valid_shape(shape):
        raise Malformed(f"shape {shape}")
    return tuple(shape)


def _extent(data: bytes) -> tuple[int, int]:
    """Start and length of a slice along one axis; a length that is not given means all, and is -1."""
    start, length = 0, -1
    for tag, value in fields(data):
        if tag == 1:
            start = number(value)
        elif tag == 2:
            length = number(value)
            if length < 0:
                raise Malformed(f"a slice of length {length}")
    return start, length


def _tensor(path: Path, key: bytes, entry: _Entry, parts: dict[bytes, _Entry], shards: int) -> Tensor:
    """The tensor that ``entry`` describes; the slices it consists of are taken out of ``parts``."""
    try:
        name = key.decode("utf-8")
    except UnicodeDecodeError as error:
        raise corrupt(path, f"entry {key[:200]!r}", "a name in UTF-8", error) from error
    where = f"tensor {name!r}"
    if entry.dtype not in DTYPES:
        raise FormatError(
            "dtype not supported", where=f"{path}, {where}", expected="one of TensorFlow's", found=entry.dtype
        )
    dtype = DTYPES[entry.dtype]
    whole = Tensor(name, dtype, entry.shape, entry.piece)
    if not entry.extents:
        _check_piece(path, where, whole, entry.shape, entry.piece, shards)
        return whole
    slices = []
    for extents in entry.extents:
        stored = parts.pop(slice_key(key, extents), None)
        if stored is None or stored.dtype != entry.dtype or len(extents) != len(entry.shape):
            raise corrupt(path, where, f"a slice at {extents} of dtype {dtype}", "another or none")
        start = tuple(first for first, _ in extents)
        shape = tuple(
            full - first if length < 0 else length for full, (first, length) in zip(entry.shape, extents, strict=True)
        )
        if shape != stored.shape or any(
            first < 0 or first + length > full for first, length, full in zip(start, shape, entry.shape, strict=True)
        ):
            raise corrupt(path, where, f"a slice within {entry.shape}", f"{stored.shape} at {start}")
        _check_piece(path, where, whole, shape, stored.piece, shards)
        slices.append(Slice(start, shape, stored.piece))
    if dtype in OPAQUE:
        raise FormatError("a partitioned variable that is not of numbers", where=f"{path}, {where}", found=dtype)
    try:
        check_cover(entry.shape, slices)
    except Malformed as error:
        raise corrupt(path, where, f"slices that are all of {entry.shape}", error) from error
    return Tensor(name, dtype, entry.shape, entry.piece, tuple(slices))


def _check_piece(path: Path, where: str, tensor: Tensor, shape: tuple[int, ...], piece: Piece, shards: int) -> None:
    if not 0 <= piece.shard < shards:
        raise corrupt(path, where, f"a data file from 0 to {shards - 1}", piece.shard)
    if piece.offset < 0 or piece.size < 0:
        raise corrupt(path, where, "a place in a data file", f"{piece.size} bytes at {piece.offset}")
    if tensor.dtype not in OPAQUE:
        try:
            size = dtype_of(tensor.numbers).itemsize
        except AttributeError as error:
            raise FormatError(
                "dtype not supported by the ml_dtypes that is installed",
                where=f"{path}, {where}",
                found=tensor.dtype,
                todo="pip install --upgrade ml_dtypes",
            ) from error
        for length in shape:
            size *= length
        if size != piece.size:
            raise corrupt(path, where, f"{size} bytes for {tensor.dtype} {shape}", f"{piece.size} bytes")
