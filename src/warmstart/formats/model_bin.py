"""CTranslate2's ``model.bin``, byte by byte, binary versions 1 to 6.

Little-endian throughout; ``str`` is a u16 length that counts the closing NUL, UTF-8, NUL::

    u32 version · str specification (from 2) · u32 revision (from 2) · u32 count of variables
    variable: str name · u8 rank · rank × u32 length
              from 4:  u8 type · u32 bytes
              until 3: u8 bytes of one item (4 float32, 2 int16, 1 int8) · u32 items
              data in C order, not aligned
    u32 count of aliases (from 3) · alias: str name · str variable

Version 5 changed only how weights are rounded, version 6 moved texts and switches to ``config.json``.
Source: CTranslate2, src/models/model.cc and python/ctranslate2/specs/model_spec.py.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO

from warmstart.errors import CorruptCheckpoint, FormatError, SourceError
from warmstart.formats.checkpoint import Array, Entry
from warmstart.formats.mapped import valid_shape
from warmstart.formats.placed import Fill, write_announced
from warmstart.lean import dataclass
from warmstart.storage.atomic import atomic_file
from warmstart.storage.flushing import Flushing

VERSION = 6  # the newest that is known, and the one that is written
TYPES = ("float32", "int8", "int16", "int32", "float16", "bfloat16")
_BY_ITEM = {4: "float32", 2: "int16", 1: "int8"}
_MAX_U32 = 2**32 - 1
_MAX_NAME = 2**16 - 2
_SMALLEST_VARIABLE = 2 + 1 + 1 + 5  # an empty name, rank 0, type and size
_SMALLEST_ALIAS = 2 * (2 + 1)
_PLAUSIBLE_VERSIONS = 64


@dataclass(frozen=True)
class Variable:
    """An array's header, and the offset of its data in the file."""

    entry: Entry
    offset: int


@dataclass(frozen=True)
class Header:
    """All of a ``model.bin`` but the data. ``aliases`` says for a name which variable it is another name of."""

    version: int
    specification: str
    revision: int
    variables: Mapping[str, Variable]
    aliases: Mapping[str, str]


def version_of(start: bytes) -> tuple[int, str] | None:
    """The version and the byte order ("<" or ">") if ``start`` reads like the start of a ``model.bin``.

    There is no magic number: a small version must be followed by a specification's name (in version 1, which
    has none, by the name of a variable).
    """
    for order in "<>":
        if len(start) < 16:
            return None
        (version,) = struct.unpack_from(f"{order}I", start)
        if not 1 <= version <= _PLAUSIBLE_VERSIONS:
            continue
        at = 4 if version > 1 else 8
        (length,) = struct.unpack_from(f"{order}H", start, at)
        name = start[at + 2 : at + 2 + length]
        if length < 2 or len(name) != length or name[-1] != 0:
            continue
        text = name[:-1]
        if text.isalnum() if version > 1 else all(33 <= byte < 127 for byte in text):
            return version, order
    return None


def read_header(path: Path) -> Header:
    """Walks over the headers of ``path``; of the data nothing is read.

    Raises:
        FormatError: a version above the newest that is known, or a file of the other byte order.
        CorruptCheckpoint: damaged or truncated.
        SourceError: cannot be read.
    """
    try:
        with path.open("rb") as file:
            return _Walk(path, file).header()
    except OSError as error:
        raise SourceError("cannot be read", where=path, found=error.strerror) from error


class _Walk:
    """Reads a file's headers in order, never past its end."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self._path, self._file = path, file
        self._size = file.seek(0, 2)
        self._at = 0

    def header(self) -> Header:
        self._refuse_foreign()
        version = self._number("I", "version")
        specification = self._text("specification") if version > 1 else ""
        revision = self._number("I", "revision") if version > 1 else 1
        variables = self._variables(version)
        aliases = self._aliases(variables) if version > 2 else {}
        if self._at != self._size:
            raise self.corrupt("the end of the file", f"byte {self._at}", f"{self._size} bytes")
        return Header(version, specification, revision, variables, aliases)

    def _refuse_foreign(self) -> None:
        self._file.seek(0)
        found = version_of(self._file.read(4096))
        if found is not None and found[1] == ">":
            raise FormatError(
                "a model.bin of a big-endian machine",
                where=f"{self._path}, version",
                expected="little-endian numbers",
                found=f"version {found[0]} with its bytes in the other order",
                todo="convert the original model on a little-endian machine (x86, ARM)",
            )
        if found is not None and found[0] > VERSION:
            raise FormatError(
                "a model.bin of a newer version than is known",
                where=f"{self._path}, version",
                expected=f"1 to {VERSION}",
                found=found[0],
                todo="update warmstart, or convert the original model with an older ctranslate2",
            )
        if found is None:
            raise self.corrupt("version", f"1 to {VERSION} and a specification's name", "other bytes")

    def _variables(self, version: int) -> dict[str, Variable]:
        variables: dict[str, Variable] = {}
        for _ in range(self._count("variables", _SMALLEST_VARIABLE)):
            name = self._text("name of a variable")
            key = f"array {name!r}"
            rank = self._number("B", key)
            shape = struct.unpack(f"<{rank}I", self._take(4 * rank, f"{key}, shape"))
            code = self._number("B", key)
            amount = self._number("I", key)
            dtype = (dict(enumerate(TYPES)) if version > 3 else _BY_ITEM).get(code)
            if dtype is None:
                raise self.corrupt(f"{key}, type", "one of " + ", ".join(TYPES), code)
            if not valid_shape(shape):
                raise self.corrupt(f"{key}, shape", "lengths", shape)
            entry = Entry(name, shape, dtype)
            found = amount if version > 3 else amount * code
            if entry.nbytes != found:
                raise self.corrupt(f"{key}, size", f"{entry.nbytes} bytes for {dtype} {shape}", f"{found} bytes")
            if name in variables:
                raise self.corrupt(key, "one variable of this name", "two")
            variables[name] = Variable(entry, self._at)
            self._skip(entry.nbytes, key)
        return variables

    def _aliases(self, variables: Mapping[str, Variable]) -> dict[str, str]:
        aliases: dict[str, str] = {}
        for _ in range(self._count("aliases", _SMALLEST_ALIAS)):
            name, target = self._text("name of an alias"), self._text("target of an alias")
            if name in variables or name in aliases:
                raise self.corrupt(f"alias {name!r}", "a name that occurs once", "two")
            if target not in variables:
                raise self.corrupt(f"alias {name!r}", "the name of a variable of this file", repr(target))
            aliases[name] = target
        return aliases

    def _count(self, what: str, smallest: int) -> int:
        count = self._number("I", f"count of {what}")
        bound = (self._size - self._at) // smallest
        if count > bound:
            raise self.corrupt(f"count of {what}", f"at most {bound}, by the file's size", count)
        return count

    def _number(self, code: str, key: str) -> int:
        value: int = struct.unpack(f"<{code}", self._take(struct.calcsize(f"<{code}"), key))[0]
        return value

    def _text(self, key: str) -> str:
        data = self._take(self._number("H", key), key)
        try:
            if data[-1:] != b"\0" or b"\0" in data[:-1]:
                raise ValueError("not closed by a zero byte")
            return data[:-1].decode("utf-8")
        except ValueError as error:
            raise self.corrupt(f"{key}, at byte {self._at - len(data)}", "UTF-8 text and a zero byte", error) from error

    def _take(self, count: int, key: str) -> bytes:
        start = self._at
        self._skip(count, key)
        self._file.seek(start)
        data = self._file.read(count)
        if len(data) != count:
            raise self.corrupt(key, f"{count} bytes from byte {start}", f"{len(data)}")
        return data

    def _skip(self, count: int, key: str) -> None:
        if self._at + count > self._size:
            raise self.corrupt(key, f"{count} bytes from byte {self._at}", f"{self._size - self._at} until the end")
        self._at += count

    def corrupt(self, key: str, expected: object, found: object) -> CorruptCheckpoint:
        text = str(found)
        return CorruptCheckpoint(
            "damaged or truncated model.bin",
            where=f"{self._path}, {key if len(key) <= 200 else key[:200] + '…'}",
            expected=expected,
            found=text if len(text) <= 200 else text[:200] + "…",
            todo="download or copy it again",
        )


def write_ctranslate2(
    path: Path,
    specification: str,
    revision: int,
    entries: Sequence[Entry],
    arrays: Iterable[Array] | Fill,
    aliases: Mapping[str, str] | None = None,
) -> None:
    """Writes a ``model.bin`` of version 6: ``arrays``, one for each of ``entries`` in their order, one at a time, or
    what puts them into their places, in any order.

    With entries sorted by name (as CTranslate2 sorts them) the bytes are those that CTranslate2 writes. ``aliases``
    says for a name which of ``entries`` it is another name of.

    Raises:
        FormatError: something that the layout cannot hold (4 GiB in one array, other dtypes, a name twice, an
            alias of nothing), or an array that is not as its entry says.
        StorageError: the file cannot be written; what was at ``path`` is untouched.
    """
    aliases = aliases or {}
    _check_writable(path, entries, aliases)
    with atomic_file(path) as temporary, temporary.open("wb") as out, Flushing(out) as file:
        file.write(struct.pack("<I", VERSION) + _encoded(specification, path))
        file.write(struct.pack("<II", revision, len(entries)))
        places: dict[str, int] = {}
        rest = None if callable(arrays) else iter(arrays)
        for entry in entries:
            shape = struct.pack(f"<B{len(entry.shape)}I", len(entry.shape), *entry.shape)
            file.write(_encoded(entry.name, path) + shape + struct.pack("<BI", TYPES.index(entry.dtype), entry.nbytes))
            if rest is None:
                places[entry.name] = file.skip(entry.nbytes)
            else:
                write_announced(path, file, entry, next(rest, None))
        if rest is not None and next(rest, None) is not None:
            raise FormatError("more arrays than entries", where=path)
        file.write(struct.pack("<I", len(aliases)))
        for name in sorted(aliases):
            file.write(_encoded(name, path) + _encoded(aliases[name], path))
        if callable(arrays):
            arrays(file, places)


def _check_writable(path: Path, entries: Sequence[Entry], aliases: Mapping[str, str]) -> None:
    names: set[str] = set()
    for entry in entries:
        where = f"{path}, array {entry.name!r}"
        if entry.name in names:
            raise FormatError("a name occurs twice", where=where)
        names.add(entry.name)
        if entry.dtype not in TYPES:
            raise FormatError("model.bin has no such dtype", where=where, expected=", ".join(TYPES), found=entry.dtype)
        if entry.nbytes > _MAX_U32 or any(length > _MAX_U32 for length in entry.shape):
            raise FormatError("model.bin cannot hold an array of 4 GiB", where=where, found=f"{entry.nbytes} bytes")
    for name, target in aliases.items():
        if name in names or target not in names:
            raise FormatError(
                "an alias must be a new name of one of the arrays", where=f"{path}, alias {name!r}", found=repr(target)
            )


def _encoded(text: str, path: Path) -> bytes:
    data = text.encode("utf-8")
    if len(data) > _MAX_NAME or b"\0" in data:
        raise FormatError(
            "model.bin cannot hold this name",
            where=path,
            expected=f"at most {_MAX_NAME} bytes without a zero byte",
            found=repr(text[:80]),
        )
    return struct.pack("<H", len(data) + 1) + data + b"\0"
