"""The safetensors format: an 8-byte length, a JSON header, one contiguous run of arrays.

Definition: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from warmstart.errors import CorruptCheckpoint, FormatError
from warmstart.formats.checkpoint import Array, Candidate, Checkpoint, Entry, dtype_of
from warmstart.formats.mapped import head, map_file, valid_shape, view
from warmstart.formats.placed import Fill, write_announced
from warmstart.storage.atomic import atomic_file
from warmstart.storage.flushing import Flushing

FORMAT = "safetensors"
MAX_HEADER = 100_000_000  # the reference implementation's own bound
DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}
PACKED = {"F4": ("float4_e2m1fn", 4), "F6_E2M3": ("float6_e2m3fn", 6), "F6_E3M2": ("float6_e3m2fn", 6)}  # and bits
_SHARD = re.compile(r"(.+)-\d+-of-\d+\.safetensors")
_CODES = {name: code for code, name in DTYPES.items()}
_AGAIN = "download or copy it again"


def recognise(path: Path) -> bool:
    """Whether ``path`` starts with a plausible length and the opening of a JSON object."""
    start = head(path, 10)
    return len(start) == 10 and start[8:] in (b'{"', b"{}", b"{ ") and struct.unpack("<Q", start[:8])[0] < 2**40


def candidates(directory: Path) -> list[Candidate]:
    """The safetensors files of ``directory`` but those that are shards of an index there."""
    files = sorted(path for path in directory.glob("*.safetensors") if path.is_file())
    return [Candidate(path, path.name) for path in files if not _is_shard(path)]


def _is_shard(path: Path) -> bool:
    match = _SHARD.fullmatch(path.name)
    return match is not None and path.with_name(f"{match[1]}.safetensors.index.json").is_file()


def open(path: Path) -> SafetensorsCheckpoint:
    """Reads and checks the header of ``path``.

    Raises:
        CorruptCheckpoint: header and file do not agree.
        FormatError: an array has a dtype that is not supported.
    """
    return SafetensorsCheckpoint(path)


class SafetensorsCheckpoint(Checkpoint):
    """A safetensors file; ``metadata`` is its ``__metadata__`` (str → str), arrays are views into a memory map."""

    @property
    def mapped(self) -> bool:
        return True

    def __init__(self, path: Path) -> None:
        self._map = map_file(path)
        header, start = _header(path, self._map)
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise _corrupt(path, "__metadata__", "an object of strings", metadata)
        entries: dict[str, Entry] = {}
        self._offsets: dict[str, int] = {}
        spans: list[tuple[int, int, str]] = []
        for name, description in header.items():
            entry, begin, end = _entry(path, name, description)
            entries[name] = entry
            self._offsets[name] = start + begin
            spans.append((begin, end, name))
        _check_spans(path, spans, len(self._map) - start)
        super().__init__(path=path, format=FORMAT, entries=entries, metadata=metadata, files=(Path(path.name),))

    def read(self, name: str) -> Array:
        entry = self.entries[name]
        if not entry.readable:
            raise FormatError(
                "this array is packed in fewer than 8 bits and can only be described",
                where=f"{self.path}, array {name!r}",
                expected=", ".join(DTYPES.values()),
                found=entry.dtype,
                todo="convert this array with the library that wrote it",
            )
        return view(self._map, dtype_of(entry.dtype), entry.shape, self._offsets[name])


def _corrupt(path: Path, key: str, expected: object, found: object) -> CorruptCheckpoint:
    text = str(found)
    return CorruptCheckpoint(
        "damaged safetensors file",
        where=f"{path}, {key}",
        expected=expected,
        found=text if len(text) <= 200 else text[:200] + "…",
        todo=_AGAIN,
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) != len(pairs):
        raise ValueError("a name occurs twice")
    return names


def _header(path: Path, data: Any) -> tuple[dict[str, Any], int]:
    size = len(data)
    if size < 8:
        raise _corrupt(path, "header length", "8 bytes", f"{size} bytes")
    length = struct.unpack("<Q", data[:8])[0]
    if length > MAX_HEADER:
        raise _corrupt(path, "header length", f"at most {MAX_HEADER} bytes", length)
    if length > size - 8:
        raise _corrupt(path, "header length", f"at most the rest of the file, {size - 8} bytes", length)
    try:
        header = json.loads(data[8 : 8 + length].decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _corrupt(path, "header", "JSON with unique names", error) from error
    if not isinstance(header, dict):
        raise _corrupt(path, "header", "a JSON object", type(header).__name__)
    return header, 8 + length


def _entry(path: Path, name: str, description: object) -> tuple[Entry, int, int]:
    key = f"array {name!r}"
    if not isinstance(description, dict) or set(description) != {"dtype", "shape", "data_offsets"}:
        raise _corrupt(path, key, "an object with dtype, shape and data_offsets", description)
    code, shape, offsets = description["dtype"], description["shape"], description["data_offsets"]
    if not isinstance(code, str) or (code not in DTYPES and code not in PACKED):
        raise FormatError(
            "dtype not supported",
            where=f"{path}, {key}",
            expected=", ".join([*DTYPES, *PACKED]),
            found=code,
            todo="convert this array with the library that wrote it",
        )
    if not valid_shape(shape):
        raise _corrupt(path, f"{key}, shape", "a list of lengths", shape)
    if not (
        isinstance(offsets, list)
        and len(offsets) == 2
        and all(type(offset) is int for offset in offsets)
        and 0 <= offsets[0] <= offsets[1]
    ):
        raise _corrupt(path, f"{key}, data_offsets", "[begin, end]", offsets)
    entry = _packed(name, tuple(shape), code) if code in PACKED else Entry(name, tuple(shape), DTYPES[code])
    if entry.nbytes != offsets[1] - offsets[0]:
        expected = f"{entry.nbytes} bytes for {entry.dtype} {entry.shape}"
        raise _corrupt(path, f"{key}, data_offsets", expected, f"{offsets[1] - offsets[0]} bytes")
    return entry, offsets[0], offsets[1]


def _packed(name: str, shape: tuple[int, ...], code: str) -> Entry:
    dtype, bits = PACKED[code]
    return Entry(name, shape, dtype, -(-math.prod(shape) * bits // 8))


def _check_spans(path: Path, spans: list[tuple[int, int, str]], size: int) -> None:
    """Checks that the arrays, in the order of their offsets, cover the data without gap or overlap."""
    position = 0
    for begin, end, name in sorted(spans):
        if begin != position:
            raise _corrupt(path, f"array {name!r}, data_offsets", f"begin at {position}", f"begin at {begin}")
        position = end
    if position != size:
        raise _corrupt(path, "data", f"{position} bytes, by the header", f"{size} bytes")


def write_safetensors(
    path: Path, entries: Sequence[Entry], arrays: Iterable[Array] | Fill, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes ``arrays``, one for each of ``entries`` in their order, holding one at a time; or lets them be put into
    their places, in any order.

    The header is padded with spaces to a multiple of 8 bytes, as the reference implementation does.

    Raises:
        FormatError: a name occurs twice, a dtype has no code, or an array is not as its entry says.
        StorageError: the file cannot be written; what was at ``path`` is untouched.
    """
    encoded = _encode_header(path, entries, metadata or {})
    with atomic_file(path) as temporary, temporary.open("wb") as out, Flushing(out) as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        if callable(arrays):
            places = {entry.name: file.skip(entry.nbytes) for entry in entries}
            out.truncate()
            arrays(file, places)
            return
        rest = iter(arrays)
        for entry in entries:
            write_announced(path, file, entry, next(rest, None))
        if next(rest, None) is not None:
            raise FormatError("more arrays than entries", where=path)


def _encode_header(path: Path, entries: Sequence[Entry], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for entry in entries:
        if entry.name in header or entry.name == "__metadata__":
            raise FormatError("a name occurs twice or is reserved", where=f"{path}, array {entry.name!r}")
        if entry.dtype not in _CODES:
            raise FormatError(
                "safetensors has no code for this dtype",
                where=f"{path}, array {entry.name!r}",
                expected=", ".join(_CODES),
                found=entry.dtype,
            )
        end = position + entry.nbytes
        header[entry.name] = {"dtype": _CODES[entry.dtype], "shape": list(entry.shape), "data_offsets": [position, end]}
        position = end
    encoded = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    return encoded + b" " * (-len(encoded) % 8)
