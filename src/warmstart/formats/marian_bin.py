"""The binary file of ``marian-conv``, which Marian maps into memory.

Little-endian::

    u64 version (1; 2 is encrypted) · u64 n
    n × (u64 bytes of the name · u64 type · u64 rank · u64 bytes of the data)
    n × name with a closing NUL · n × rank × i32 length
    u64 count of padding bytes · padding · n × data, each padded to 256 bytes by Marian itself

A type is the bytes of one element and flags. Arrays of the gemm libraries (``intgemm8`` …, ``packed16`` …) are in a
layout of their own and are described only. Source: marian-dev, src/common/binary.cpp, types.h.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import IO

from warmstart.errors import CorruptCheckpoint, FormatError, SourceError
from warmstart.formats.checkpoint import Array, Entry, dtype_of
from warmstart.formats.mapped import head, map_file, valid_shape, view

VERSION, ENCRYPTED = 1, 2
_SIGNED, _UNSIGNED, _FLOAT, _PACKED = 0x100, 0x200, 0x400, 0x800
_AVX2, _AVX512, _SSE2, _SSSE3, _INTGEMM, _VNNI = 0x1000, 0x2000, 0x4000, 0x8000, 0x10000, 0x1000
TYPES = {
    **{_SIGNED + n: f"int{8 * n}" for n in (1, 2, 4, 8)},
    **{_UNSIGNED + n: f"uint{8 * n}" for n in (1, 2, 4, 8)},
    **{_FLOAT + n: f"float{8 * n}" for n in (2, 4, 8)},
}
DESCRIBED = {
    _PACKED + 2: "packed16",
    _PACKED + _AVX2 + 1: "packed8avx2",
    _PACKED + _AVX512 + 1: "packed8avx512",
    _INTGEMM + 1: "intgemm8",
    _INTGEMM + _SSSE3 + 1: "intgemm8ssse3",
    _INTGEMM + _AVX2 + 1: "intgemm8avx2",
    _INTGEMM + _AVX512 + 1: "intgemm8avx512",
    _INTGEMM + _AVX512 + _VNNI + 1: "intgemm8avx512vnni",
    _INTGEMM + 2: "intgemm16",
    _INTGEMM + _SSE2 + 2: "intgemm16sse2",
    _INTGEMM + _AVX2 + 2: "intgemm16avx2",
    _INTGEMM + _AVX512 + 2: "intgemm16avx512",
}
_NEUTRAL = {"intgemm8": "int8", "intgemm16": "int16"}
_ITEM = struct.Struct("<4Q")
_MAX_NAME = 2**16


def recognise(path: Path) -> bool:
    """Whether ``path`` starts as a Marian binary file, of any byte order; of an encrypted one only the version is
    legible, so that its name must agree."""
    start = head(path, 16 + _ITEM.size)
    if len(start) < 16 + _ITEM.size:
        return False
    for order in "<>":
        version, count, name, kind, rank, _ = struct.unpack_from(f"{order}6Q", start)
        if version == VERSION and 0 < count < 2**32 and 1 < name <= _MAX_NAME and rank <= 32:
            return kind in TYPES or kind in DESCRIBED
    version, header = struct.unpack_from("<2Q", start)
    return version == ENCRYPTED and path.suffix == ".bin" and 0 < header < path.stat().st_size


class BinFile:
    """The arrays of a file, by name; ``read`` gives views into a memory map.

    Raises:
        FormatError: an encrypted file, or one of a big-endian machine.
        CorruptCheckpoint: damaged or truncated.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[str, Entry] = {}
        self._offsets: dict[str, int] = {}
        try:
            with path.open("rb") as file:
                self._read_header(file)
        except OSError as error:
            raise SourceError("cannot be read", where=path, found=error.strerror) from error
        self._map = map_file(path)

    @property
    def mapped(self) -> bool:
        return True

    def read(self, name: str) -> Array:
        """The array ``name``, read-only.

        Raises:
            KeyError: no such array.
            FormatError: it is of a gemm library's own layout.
        """
        entry = self.entries[name]
        if entry.dtype not in TYPES.values():
            raise self._described(entry)
        return view(self._map, dtype_of(entry.dtype), entry.shape, self._offsets[name])

    def quantized(self, name: str) -> tuple[Array, float]:
        """The integers of an ``intgemm8`` or ``intgemm16`` array in its entry's shape, and what the weights were
        multiplied by: these are stored transposed, with the factor behind them, and alike for every processor.

        Raises:
            KeyError: no such array.
            FormatError: its layout is one processor's own, or marian-conv damaged it: its transposition (Transpose10
                in src/tensors/cpu/tensor_operators.cpp) is right only for lengths that are multiples of 16.
        """
        entry = self.entries[name]
        if entry.dtype in _NEUTRAL and any(length % 16 for length in entry.shape):
            raise FormatError(
                "marian-conv has damaged this array while it was transposed",
                where=f"{self.path}, array {name!r}",
                expected="lengths that are multiples of 16",
                found=entry.shape,
                todo="give the model.npz that this file was converted from",
            )
        if entry.dtype not in _NEUTRAL or len(entry.shape) != 2:
            raise self._described(entry)
        values = view(self._map, dtype_of(_NEUTRAL[entry.dtype]), entry.shape[::-1], self._offsets[name])
        factor = view(self._map, dtype_of("float32"), (1,), self._offsets[name] + values.nbytes)
        return values.T, float(factor[0])

    def _described(self, entry: Entry) -> FormatError:
        return FormatError(
            "this array is stored in the layout of a matrix library and can only be described",
            where=f"{self.path}, array {entry.name!r}",
            expected=", ".join(TYPES.values()),
            found=entry.dtype,
            todo="give the model.npz that this file was converted from",
        )

    def _read_header(self, file: IO[bytes]) -> None:
        size = file.seek(0, 2)
        file.seek(0)
        count = self._check_version(file.read(16), size)
        items = [_ITEM.unpack_from(data) for data in _pieces(self._take(file, size, count * _ITEM.size, "headers"))]
        names = [self._name(self._take(file, size, item[0], f"name {i}"), i) for i, item in enumerate(items)]
        shapes = [
            struct.unpack(f"<{item[2]}i", self._take(file, size, 4 * item[2], f"array {name!r}, shape"))
            for name, item in zip(names, items, strict=True)
        ]
        padding = struct.unpack("<Q", self._take(file, size, 8, "padding"))[0]
        at = file.tell() + padding
        for name, shape, (_, kind, _, stored) in zip(names, shapes, items, strict=True):
            if name in self.entries:
                raise self._corrupt(f"array {name!r}", "one array of this name", "two")
            self.entries[name] = self._entry(name, shape, kind, stored)
            self._offsets[name] = at
            at += stored
        if at != size:
            raise self._corrupt("data", f"{at} bytes, by the headers", f"{size} bytes")

    def _check_version(self, start: bytes, size: int) -> int:
        if len(start) < 16:
            raise self._corrupt("version", "16 bytes", len(start))
        version, count = struct.unpack("<2Q", start)
        if version == ENCRYPTED:
            raise FormatError(
                "an encrypted Marian model", where=self.path, todo="decrypt it with Marian, or give the model.npz"
            )
        if struct.unpack(">Q", start[:8])[0] == VERSION:
            raise FormatError(
                "a Marian binary file of a big-endian machine",
                where=f"{self.path}, version",
                expected="little-endian numbers",
                todo="give the model.npz that this file was converted from",
            )
        if version != VERSION:
            raise self._corrupt("version", VERSION, version)
        if count > (size - 16) // (_ITEM.size + 1):
            raise self._corrupt("count of arrays", f"at most {(size - 16) // (_ITEM.size + 1)}, by the size", count)
        return int(count)

    def _take(self, file: IO[bytes], size: int, count: int, key: str) -> bytes:
        at = file.tell()
        if count > size - at:
            raise self._corrupt(key, f"{count} bytes from byte {at}", f"{size - at} until the end")
        data = file.read(count)
        if len(data) != count:
            raise self._corrupt(key, f"{count} bytes from byte {at}", len(data))
        return data

    def _name(self, data: bytes, index: int) -> str:
        try:
            if data[-1:] != b"\0" or b"\0" in data[:-1]:
                raise ValueError("not closed by a zero byte")
            return data[:-1].decode("utf-8")
        except ValueError as error:
            raise self._corrupt(f"name {index}", "UTF-8 text and a zero byte", error) from error

    def _entry(self, name: str, shape: tuple[int, ...], kind: int, stored: int) -> Entry:
        key = f"array {name!r}"
        if not valid_shape(shape):
            raise self._corrupt(f"{key}, shape", "lengths from 0", shape)
        if kind in DESCRIBED:
            least = math.prod(shape) * (kind & 0xFF) + 4 if DESCRIBED[kind] in _NEUTRAL else 0
            if stored < least:
                raise self._corrupt(key, f"{least} bytes for {DESCRIBED[kind]} {shape}", f"{stored} bytes")
            return Entry(name, shape, DESCRIBED[kind], stored)
        if kind not in TYPES:
            raise self._corrupt(f"{key}, type", "one of " + ", ".join([*TYPES.values(), *DESCRIBED.values()]), kind)
        entry = Entry(name, shape, TYPES[kind])
        if stored < entry.nbytes:
            raise self._corrupt(key, f"{entry.nbytes} bytes for {entry.dtype} {shape}", f"{stored} bytes")
        return entry

    def _corrupt(self, key: str, expected: object, found: object) -> CorruptCheckpoint:
        text = str(found)
        return CorruptCheckpoint(
            "damaged or truncated Marian binary file",
            where=f"{self.path}, {key if len(key) <= 200 else key[:200] + '…'}",
            expected=expected,
            found=text if len(text) <= 200 else text[:200] + "…",
            todo="download or copy it again",
        )


def _pieces(data: bytes) -> list[bytes]:
    return [data[start : start + _ITEM.size] for start in range(0, len(data), _ITEM.size)]
