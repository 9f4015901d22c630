"""Flax's msgpack files: a tree of maps whose leaves are arrays, walked over a memory map without copying them.

Layouts: https://github.com/msgpack/msgpack/blob/master/spec.md; the extension types are Flax's
(flax/serialization.py): 1 = array as (shape, dtype name, bytes), 2 = complex, 3 = numpy scalar. An array above 1 GiB
lies in pieces, under a map with the key ``__msgpack_chunked_array__``.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from warmstart.errors import CorruptCheckpoint, FormatError
from warmstart.formats.checkpoint import Array, dtype_of, itemsize
from warmstart.formats.mapped import valid_shape, view
from warmstart.lean import dataclass

MAX_DEPTH = 64
MAX_NODES = 300_000  # T5X's largest model has some 10,000
MAX_TEXT = 2**20
CHUNKED = "__msgpack_chunked_array__"
_NUMPY = [f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)]
_FLOATS = ["float16", "float32", "float64", "bfloat16", "complex64", "complex128"]
_EIGHT = ["e3m4", "e4m3", "e4m3b11fnuz", "e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz", "e8m0fnu"]
DTYPES = frozenset(["bool", *_NUMPY, *_FLOATS, *(f"float8_{kind}" for kind in _EIGHT), "int4", "uint4"])
_FIXED = {  # type byte → how its number is stored
    0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h", 0xD2: ">i",
    0xD3: ">q",
}  # fmt: skip
_SIZED = {  # type byte → (what follows, how its length is stored)
    0xC4: ("bytes", ">B"), 0xC5: ("bytes", ">H"), 0xC6: ("bytes", ">I"),
    0xC7: ("ext", ">B"), 0xC8: ("ext", ">H"), 0xC9: ("ext", ">I"),
    0xD9: ("text", ">B"), 0xDA: ("text", ">H"), 0xDB: ("text", ">I"),
    0xDC: ("list", ">H"), 0xDD: ("list", ">I"), 0xDE: ("map", ">H"), 0xDF: ("map", ">I"),
}  # fmt: skip
_CONSTANT = {0xC0: None, 0xC2: False, 0xC3: True}


@dataclass(frozen=True)
class Leaf:
    """An array in the file; ``pieces`` are (offset, bytes) of its elements in C order."""

    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[tuple[int, int], ...]

    @property
    def nbytes(self) -> int:
        return sum(size for _, size in self.pieces)


@dataclass(frozen=True)
class _Bytes:
    """A run of bytes in the file."""

    offset: int
    size: int


def read_leaf(buffer: mmap.mmap | bytes, leaf: Leaf) -> Array:
    """The array, read-only: a view, or where it lies in several pieces a copy."""
    import numpy as np

    dtype = dtype_of(leaf.dtype)
    if len(leaf.pieces) == 1:
        return view(buffer, dtype, leaf.shape, leaf.pieces[0][0])
    whole = np.empty(leaf.nbytes, np.uint8)
    position = 0
    for offset, size in leaf.pieces:
        whole[position : position + size] = np.frombuffer(buffer, np.uint8, size, offset)
        position += size
    array: Array = whole.view(dtype).reshape(leaf.shape)
    array.flags.writeable = False
    return array


def looks_like_map(start: bytes) -> bool:
    """Whether ``start``, the first bytes of a file, is a map whose first key is a name and whose first value fits."""
    if not start or not (0x81 <= start[0] <= 0x8F or start[0] in (0xDE, 0xDF)):
        return False
    at = {0xDE: 3, 0xDF: 5}.get(start[0], 1)
    if len(start) < at + 2:
        return False
    if 0xA1 <= start[at] <= 0xBF:
        name = start[at + 1 : at + 1 + (start[at] & 31)]
        value = at + 1 + (start[at] & 31)
    elif start[at] == 0xD9:
        name = start[at + 2 : at + 2 + start[at + 1]]
        value = at + 2 + start[at + 1]
    else:
        return False
    try:
        printable = name.decode("utf-8").isprintable()
    except UnicodeDecodeError:
        return False
    return printable and value < len(start) and start[value] != 0xC1


def walk(buffer: mmap.mmap | bytes, path: Path) -> dict[str, Any]:
    """The file's tree: maps are dicts, lists are lists, arrays are :class:`Leaf`, the rest is Python's own.

    Raises:
        CorruptCheckpoint: it is not one whole msgpack map with Flax's arrays.
    """
    return _Walker(buffer, path).whole()


class _Walker:
    def __init__(self, buffer: mmap.mmap | bytes, path: Path) -> None:
        self._buffer, self._path = buffer, path
        self._at, self._end, self._nodes = 0, len(buffer), 0

    def whole(self) -> dict[str, Any]:
        tree = self._value(0)
        if not isinstance(tree, dict):
            self._fail("a map of names", f"a {type(tree).__name__}")
        if self._at != self._end:
            self._fail("the end of the file", f"{self._end - self._at} more bytes")
        return tree

    def _fail(self, expected: object, found: object) -> NoReturn:
        raise CorruptCheckpoint(
            "damaged msgpack file",
            where=f"{self._path}, byte {self._at}",
            expected=expected,
            found=found,
            todo="download or copy it again",
        )

    def _take(self, count: int) -> int:
        """The place of the next ``count`` bytes, which are passed over."""
        at = self._at
        if count > self._end - at:
            self._fail(f"{count} bytes", f"{self._end - at} until the end")
        self._at = at + count
        return at

    def _number(self, code: str) -> Any:
        return struct.unpack_from(code, self._buffer, self._take(struct.calcsize(code)))[0]

    def _value(self, depth: int) -> Any:
        self._nodes += 1
        if self._nodes > MAX_NODES or depth > MAX_DEPTH:
            self._fail(f"at most {MAX_NODES} values, {MAX_DEPTH} deep", "more")
        kind = self._buffer[self._take(1)]
        if kind <= 0x7F:
            return kind
        if kind >= 0xE0:
            return kind - 256
        if kind <= 0x8F:
            return self._map(kind & 15, depth)
        if kind <= 0x9F:
            return self._list(kind & 15, depth)
        if kind <= 0xBF:
            return self._text(kind & 31)
        if kind in _CONSTANT:
            return _CONSTANT[kind]
        if kind in _FIXED:
            return self._number(_FIXED[kind])
        if 0xD4 <= kind <= 0xD8:
            return self._extension(1 << (kind - 0xD4), depth)
        if kind not in _SIZED:
            self._fail("a type of msgpack", f"byte {kind:#x}")
        what, code = _SIZED[kind]
        count = self._number(code)
        if what == "bytes":
            return _Bytes(self._take(count), count)
        if what == "text":
            return self._text(count)
        if what == "ext":
            return self._extension(count, depth)
        return self._list(count, depth) if what == "list" else self._map(count, depth)

    def _text(self, count: int) -> str:
        if count > MAX_TEXT:
            self._fail(f"text of at most {MAX_TEXT} bytes", f"{count} bytes")
        at = self._take(count)
        try:
            return bytes(self._buffer[at : at + count]).decode("utf-8")
        except UnicodeDecodeError:
            self._fail("text in UTF-8", bytes(self._buffer[at : at + min(count, 40)]))

    def _list(self, count: int, depth: int) -> list[Any]:
        if count > self._end - self._at:
            self._fail(f"{count} values", f"{self._end - self._at} bytes until the end")
        return [self._value(depth + 1) for _ in range(count)]

    def _map(self, count: int, depth: int) -> Any:
        if 2 * count > self._end - self._at:
            self._fail(f"{count} pairs", f"{self._end - self._at} bytes until the end")
        values: dict[str, Any] = {}
        for _ in range(count):
            key = self._value(depth + 1)
            if not isinstance(key, str):
                self._fail("a name as key", f"a {type(key).__name__}")
            if key in values:
                self._fail("each name once", f"{key!r} twice")
            values[key] = self._value(depth + 1)
        return self._joined(values) if CHUNKED in values else values

    def _extension(self, count: int, depth: int) -> Any:
        code = self._number(">b")
        start = self._take(count)
        outer, self._end, self._at = self._end, start + count, start
        if code in (1, 3):
            value: Any = self._array(depth)
        elif code == 2:
            value = self._complex(depth)
        else:
            self._fail("extension type 1, 2 or 3 of Flax", code)
        if self._at != self._end:
            self._fail("the end of this extension", f"{self._end - self._at} more bytes")
        self._end = outer
        return value

    def _complex(self, depth: int) -> complex:
        parts = self._value(depth + 1)
        if not isinstance(parts, list) or len(parts) != 2 or not all(type(p) in (int, float) for p in parts):
            self._fail("a real and an imaginary part", type(parts).__name__)
        return complex(*parts)

    def _array(self, depth: int) -> Leaf:
        parts = self._value(depth + 1)
        if not isinstance(parts, list) or len(parts) != 3 or not valid_shape(parts[0]):
            self._fail("shape, dtype and bytes of an array", "something else")
        shape, dtype, data = tuple(parts[0]), self._plain(parts[1]), parts[2]
        dtype = "bfloat16" if dtype == "V2" else dtype
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise FormatError(
                "dtype not supported",
                where=f"{self._path}, byte {self._at}",
                expected=", ".join(sorted(DTYPES)),
                found=repr(dtype)[:60],
            )
        expected = math.prod(shape) * itemsize(dtype)
        if not isinstance(data, _Bytes) or data.size != expected:
            found = f"{data.size} bytes" if isinstance(data, _Bytes) else type(data).__name__
            self._fail(f"{expected} bytes for {dtype} {shape}", found)
        return Leaf(dtype, shape, ((data.offset, data.size),))

    def _plain(self, value: Any) -> Any:
        if isinstance(value, _Bytes):
            return bytes(self._buffer[value.offset : value.offset + min(value.size, 64)]).decode("latin-1")
        return value

    def _joined(self, values: dict[str, Any]) -> Leaf:
        shape, pieces = self._counted(values.get("shape")), self._counted(values.get("chunks"))
        if not valid_shape(shape) or not pieces or not all(isinstance(piece, Leaf) for piece in pieces):
            self._fail("shape and chunks of an array in pieces", sorted(values)[:8])
        dtype = pieces[0].dtype
        size = math.prod(shape) * itemsize(dtype)
        runs = tuple(run for piece in pieces for run in piece.pieces)
        if any(piece.dtype != dtype for piece in pieces) or sum(length for _, length in runs) != size:
            self._fail(f"{size} bytes for {dtype} {tuple(shape)}", f"{sum(length for _, length in runs)} bytes")
        return Leaf(dtype, tuple(shape), runs)

    def _counted(self, values: object) -> list[Any]:
        if not isinstance(values, dict) or list(values) != [str(k) for k in range(len(values))]:
            self._fail("values numbered from 0", type(values).__name__)
        return list(values.values())


def pack(value: Any) -> Iterator[bytes]:
    """``value`` (dicts with text keys, lists, numbers, text, None, arrays of at most 4 GiB) as msgpack with Flax's
    arrays, in parts."""
    if isinstance(value, dict):
        yield _head(len(value), 0x80, 15, (0xDE, 0xDF))
        for key, item in value.items():
            yield from pack(str(key))
            yield from pack(item)
    elif isinstance(value, list | tuple):
        yield _head(len(value), 0x90, 15, (0xDC, 0xDD))
        for item in value:
            yield from pack(item)
    elif isinstance(value, str):
        encoded = value.encode("utf-8")
        yield _head(len(encoded), 0xA0, 31, (0xD9, 0xDA, 0xDB)) + encoded
    elif value is None or isinstance(value, bool):
        yield {None: b"\xc0", False: b"\xc2", True: b"\xc3"}[value]
    elif isinstance(value, int):
        yield _integer(value)
    elif isinstance(value, float):
        yield b"\xcb" + struct.pack(">d", value)
    else:
        yield from _pack_array(value)


def _pack_array(value: Any) -> Iterator[bytes]:
    import numpy as np

    array = np.asarray(value)
    if array.dtype.name not in DTYPES:
        raise FormatError("Flax's files have no such dtype", expected=", ".join(sorted(DTYPES)), found=array.dtype.name)
    little = array.astype(array.dtype.newbyteorder("<")) if array.dtype.byteorder == ">" else array
    data = np.ascontiguousarray(little).reshape(-1).view(np.uint8)
    inner = b"\x93" + b"".join(pack(list(array.shape))) + b"".join(pack(array.dtype.name))
    inner += _head(data.size, 0, -1, (0xC4, 0xC5, 0xC6))
    yield _head(len(inner) + data.size, 0, -1, (0xC7, 0xC8, 0xC9)) + b"\x01" + inner
    yield data.tobytes()


def _head(count: int, short: int, most: int, wide: tuple[int, ...]) -> bytes:
    """The shortest head for ``count``: in the type byte up to ``most``, else after one of ``wide``."""
    if count <= most:
        return bytes([short | count])
    for kind in wide:
        code = _SIZED[kind][1]
        if count < 1 << 8 * struct.calcsize(code):
            return bytes([kind]) + struct.pack(code, count)
    raise FormatError("too large for msgpack", expected="less than 4 GiB", found=f"{count} bytes")


def _integer(value: int) -> bytes:
    if -32 <= value <= 127:
        return struct.pack(">b", value)
    kinds = (0xCC, 0xCD, 0xCE, 0xCF) if value >= 0 else (0xD0, 0xD1, 0xD2, 0xD3)
    for kind in kinds:
        bits = 8 * struct.calcsize(_FIXED[kind])
        if (0 <= value < 1 << bits) if value >= 0 else -(1 << bits - 1) <= value:
            return bytes([kind]) + struct.pack(_FIXED[kind], value)
    raise FormatError("too large for msgpack", expected="64 bits", found=value)
