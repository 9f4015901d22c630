"""Writing a torch file: the zip archive of torch 1.6 and newer, which ``torch.load(weights_only=True)`` opens.

The pickle is of protocol 2 and holds one dict: a tensor for each array, then the metadata. Storages follow one by one,
each beginning at a multiple of 64 bytes as torch's own do, so that they can be mapped.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from warmstart.errors import FormatError
from warmstart.formats.checkpoint import Array, Entry
from warmstart.storage.atomic import atomic_file

if TYPE_CHECKING:
    import zipfile

FORMAT = "torch"
ALIGNMENT = 64
_FOLDER = "archive"  # torch takes the file's name; bytes shall depend on the arrays only
_LOCAL_BYTES, _ZIP64_BYTES = 30, 20
_CLASSES = {
    **{"float32": "Float", "float64": "Double", "float16": "Half", "bfloat16": "BFloat16", "bool": "Bool"},
    **{"int64": "Long", "int32": "Int", "int16": "Short", "int8": "Char", "uint8": "Byte"},
    **{"complex64": "ComplexFloat", "complex128": "ComplexDouble"},
}
# without a storage class of their own: the pickle says their dtype with each tensor
_OTHERS = (
    *("uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"),
    "float8_e8m0fnu",
)


DTYPES = frozenset((*_CLASSES, *_OTHERS))


def write_torch(
    path: Path,
    entries: Sequence[Entry],
    arrays: Iterable[Array],
    metadata: Mapping[str, Any] | None = None,
    ties: Mapping[str, str] | None = None,
) -> None:
    """Writes ``arrays``, one for each of ``entries`` in their order, holding one at a time.

    ``metadata`` is of None, bools, numbers, strings, lists and dicts, under keys that are no array's name. ``ties``
    maps a name to the earlier one whose storage it shares; the same bytes must then come for both.

    Raises:
        FormatError: a name occurs twice, a dtype is not torch's, an array is not as its entry says, or not equal to
            the one that it is tied to.
        StorageError: the file cannot be written; what was at ``path`` is untouched.
    """
    ties = ties or {}
    keys = _keys(path, entries, ties, metadata or {})
    pickled = _pickle(path, entries, keys, metadata or {})
    shared = {keys[name] for name in ties}
    digests: dict[int, bytes] = {}
    import zipfile

    with atomic_file(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, "data.pkl", pickled)
        _add(archive, "byteorder", b"little")
        rest = iter(arrays)
        for entry in entries:
            data = _little(path, entry, next(rest, None))
            key = keys[entry.name]
            if key in shared:
                digest = hashlib.sha256(data).digest()
                if digests.setdefault(key, digest) != digest:
                    raise _refused(path, entry.name, "an array differs from the one it is tied to", "equal values")
            if entry.name not in ties:
                _add(archive, f"data/{key}", data)
        if next(rest, None) is not None:
            raise FormatError("more arrays than entries", where=path)
        _add(archive, "version", b"3\n")


def _refused(path: Path, name: str, what: str, expected: object, found: object = None) -> FormatError:
    return FormatError(what, where=f"{path}, array {name!r}", expected=expected, found=found)


def _keys(path: Path, entries: Sequence[Entry], ties: Mapping[str, str], metadata: Mapping[str, Any]) -> dict[str, int]:
    """The number of each entry's storage."""
    keys: dict[str, int] = {}
    known: dict[str, Entry] = {}
    count = 0
    for entry in entries:
        if entry.name in keys or entry.name in metadata:
            raise _refused(path, entry.name, "a name occurs twice", "names that differ")
        if entry.dtype not in _CLASSES and entry.dtype not in _OTHERS:
            expected = ", ".join([*_CLASSES, *_OTHERS])
            raise _refused(path, entry.name, "torch has no such dtype", expected, entry.dtype)
        other = ties.get(entry.name)
        if other is None:
            keys[entry.name] = count
            count += 1
        else:
            tied = known.get(other)
            if tied is None or (tied.shape, tied.dtype) != (entry.shape, entry.dtype):
                found = f"{tied.dtype} {tied.shape}" if tied else "no such array before it"
                raise _refused(path, entry.name, f"cannot be tied to {other!r}", f"{entry.dtype} {entry.shape}", found)
            keys[entry.name] = keys[other]
        known[entry.name] = entry
    unknown = sorted(set(ties) - set(keys))
    if unknown:
        raise _refused(path, unknown[0], "tied, but not among the arrays", "names of entries")
    return keys


def _little(path: Path, entry: Entry, array: Array | None) -> memoryview:
    """The array's bytes, little-endian and in C order, once it was found as announced."""
    if array is None:
        raise FormatError("fewer arrays than entries", where=f"{path}, array {entry.name!r}")
    if array.shape != entry.shape or array.dtype.name != entry.dtype:
        found = f"{array.dtype.name} {array.shape}"
        raise _refused(path, entry.name, "an array is not as announced", f"{entry.dtype} {entry.shape}", found)
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _add(archive: zipfile.ZipFile, name: str, data: bytes | memoryview) -> None:
    """A member whose data begins at a multiple of 64 bytes, by means of an extra field as torch writes it (``FB``)."""
    from zipfile import ZipInfo

    info = ZipInfo(f"{_FOLDER}/{name}", (1980, 1, 1, 0, 0, 0))
    large = len(data) >= 2**31 - 2**16
    assert archive.fp is not None
    before = archive.fp.tell() + _LOCAL_BYTES + len(info.filename) + (_ZIP64_BYTES if large else 0)
    padding = -(before + 4) % ALIGNMENT
    info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    with archive.open(info, "w", force_zip64=large) as member:
        member.write(data)


def _pickle(path: Path, entries: Sequence[Entry], keys: Mapping[str, int], metadata: Mapping[str, Any]) -> bytes:
    parts = [b"\x80\x02}("]
    for entry in entries:
        parts += [_text(entry.name), _tensor(entry, keys[entry.name])]
    for name, value in metadata.items():
        parts += [_text(name), _value(value, f"{path}, metadata {name!r}")]
    return b"".join([*parts, b"u."])


def _tensor(entry: Entry, key: int) -> bytes:
    """``_rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict())``, or ``_v3`` which adds the dtype."""
    strides = []
    step = 1
    for length in reversed(entry.shape):
        strides.append(step)
        step *= max(length, 1)
    typed = entry.dtype in _CLASSES
    kind = _global("torch", f"{_CLASSES[entry.dtype]}Storage") if typed else _global("torch.storage", "UntypedStorage")
    count = entry.size if typed else entry.nbytes
    storage = [_text("storage"), kind, _text(str(key)), _text("cpu"), _integer(count)]
    arguments = [b"(" + b"".join(storage) + b"tQ", _integer(0), _tuple(entry.shape), _tuple(strides[::-1])]
    arguments += [b"\x89", _global("collections", "OrderedDict") + b")R"]
    if not typed:
        arguments.append(_global("torch", entry.dtype))
    return _global("torch._utils", f"_rebuild_tensor_v{2 if typed else 3}") + b"(" + b"".join(arguments) + b"tR"


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _text(text: str) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def _integer(number: int) -> bytes:
    if 0 <= number < 256:
        return b"K" + bytes([number])
    if -(2**31) <= number < 2**31:
        return b"J" + struct.pack("<i", number)
    data = number.to_bytes(number.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def _tuple(numbers: Sequence[int]) -> bytes:
    return b"(" + b"".join(map(_integer, numbers)) + b"t"


def _value(value: Any, where: str) -> bytes:
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int) and value.bit_length() < 2000:
        return _integer(value)
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, list | tuple):
        return b"](" + b"".join(_value(item, where) for item in value) + b"e"
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return b"}(" + b"".join(_text(key) + _value(item, where) for key, item in value.items()) + b"u"
    raise FormatError(
        "metadata that this file cannot hold",
        where=where,
        expected="None, bools, numbers, strings, lists and dicts by strings",
        found=type(value).__name__,
    )
