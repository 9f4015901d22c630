"""The two ways in which torch lays a pickle and its storages into a file.

* Since 1.6 a zip archive: ``NAME/data.pkl``, ``NAME/data/KEY`` for each storage, ``NAME/byteorder``,
  ``NAME/version`` (torch/serialization.py and caffe2/serialize/inline_container.cc).
* Before, four pickles in a row (a magic number, a protocol number, facts on the machine, the object), a fifth with
  the storages' keys, then for each storage its length as an int64 and its data; both little-endian whatever the
  machine (torch/csrc/serialization.cpp).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from warmstart.errors import CorruptCheckpoint, FormatError
from warmstart.formats.mapped import map_file
from warmstart.formats.pickled import PLAIN, Refused, brief
from warmstart.formats.pickles import load
from warmstart.formats.torch_tensors import TORCH, Storage, storage_of
from warmstart.formats.zipped import ZipArchive

MAGIC = 0x1950A86A20F9469CFC6C
LAST_VERSION = 10  # of the zip archive; torch 2.13 writes 3
_AGAIN = "download or copy it again"


class Container(ABC):
    """An opened file: ``root`` is what was pickled in ``size`` bytes; storages are read where they lie."""

    root: Any
    size: int
    big_endian = False
    facts: dict[str, Any]

    @property
    @abstractmethod
    def mapped(self) -> bool:
        """Whether storages lie in the file as they are."""

    @abstractmethod
    def place(self, storage: Storage) -> tuple[Any, int]:
        """A buffer and where in it the storage begins."""

    def verify(self, storage: Storage) -> None:
        """Checks the storage's checksum, if the file keeps one."""
        del storage


class ZipContainer(Container):
    """The zip archive. Storages that are compressed, which torch itself never does, are decompressed on reading."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._archive = archive = ZipArchive(path, "torch file")
        roots = [name for name in archive.members if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(roots) != 1:
            raise archive.corrupt("the archive's directory", "one NAME/data.pkl", f"{len(roots)} of them")
        self._folder = roots[0].removesuffix("data.pkl")
        self._checksums = any(member.crc for member in archive.members.values())  # torch can be told to write none
        self._check_version()
        self.big_endian = self._byteorder()
        self._known: set[tuple[str, str, int]] = set()
        pickled = self._small("data.pkl")
        self.size = len(pickled)
        self.root, _ = load(pickled, f"{path}, data.pkl", TORCH, self._storage)
        self.facts = {}
        if f"{self._folder}constants.pkl" in archive.members:
            self.facts["torchscript"] = True

    @property
    def mapped(self) -> bool:
        return self._archive.mapped

    def _small(self, name: str) -> bytes:
        member = self._folder + name
        data, start = self._archive.verified(member) if self._checksums else self._archive.data(member)
        return bytes(data[start : start + self._archive.members[member].size])

    def _check_version(self) -> None:
        if self._folder + "version" not in self._archive.members:
            return
        text = self._small("version")[:20].strip()
        if not text.isdigit():
            raise self._archive.corrupt("version", "a number", text)
        if int(text) > LAST_VERSION:
            raise FormatError(
                "a torch file of a newer kind than is known here",
                where=self.path,
                expected=f"version {LAST_VERSION} or lower",
                found=f"version {int(text)}",
                todo="update warmstart, or save it as safetensors with the torch that wrote it",
            )

    def _byteorder(self) -> bool:
        if self._folder + "byteorder" not in self._archive.members:
            return False
        order = self._small("byteorder")[:20]
        if order not in (b"little", b"big"):
            raise self._archive.corrupt("byteorder", "little or big", order)
        return order == b"big"

    def _storage(self, identifier: Any) -> Storage:
        storage = storage_of(identifier)
        if (storage.key, storage.dtype, storage.whole) not in self._known:
            name = self._member(storage)
            member = self._archive.members.get(name)
            if member is None or member.size != storage.nbytes:
                found = "none" if member is None else f"{member.size} bytes"
                raise self._archive.corrupt(f"member {name!r}", f"a storage of {storage.nbytes} bytes", found)
            self._known.add((storage.key, storage.dtype, storage.whole))
        return storage

    def _member(self, storage: Storage) -> str:
        return f"{self._folder}data/{storage.key}"

    def place(self, storage: Storage) -> tuple[Any, int]:
        return self._archive.data(self._member(storage))

    def verify(self, storage: Storage) -> None:
        if self._checksums:
            self._archive.verified(self._member(storage))


class LegacyContainer(Container):
    """The row of pickles that torch wrote before 1.6, and still does when told to. It keeps no checksums."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._map = map_file(path)
        self._storages: dict[str, Storage] = {}
        self._starts: dict[str, int] = {}
        magic, position = load(self._map, f"{path}, magic number", {})
        if magic != MAGIC:
            raise self._corrupt("magic number", MAGIC, brief(magic))
        _, position = load(self._map, f"{path}, protocol number", PLAIN, None, position)
        facts, position = load(self._map, f"{path}, facts on the machine", PLAIN, None, position)
        del facts  # the machine's byte order says nothing of the file's
        self.root, end = load(self._map, f"{path}, object", TORCH, self._storage, position)
        self.size = end - position
        keys, position = load(self._map, f"{path}, keys of the storages", PLAIN, None, end)
        if not isinstance(keys, list):
            raise self._corrupt("keys of the storages", "a list", type(keys).__name__)
        self._place_all(keys, position)
        self.facts = {}

    @property
    def mapped(self) -> bool:
        return True

    def _corrupt(self, key: str, expected: object, found: object) -> CorruptCheckpoint:
        return CorruptCheckpoint(
            "damaged or truncated torch file",
            where=f"{self.path}, {key}",
            expected=expected,
            found=found,
            todo=_AGAIN,
        )

    def _storage(self, identifier: Any) -> Any:
        if isinstance(identifier, tuple) and len(identifier) == 4 and identifier[0] == "module":
            return identifier[1]  # a module's class, with its source code, which is left alone
        storage = storage_of(identifier)
        known = self._storages.setdefault(storage.key, storage)
        if (known.dtype, known.whole) != (storage.dtype, storage.whole):
            raise Refused(f"storage {storage.key[:40]!r} is said to be two things")
        return storage

    def _place_all(self, keys: list[Any], position: int) -> None:
        size = len(self._map)
        for key in keys:
            storage = self._storages.get(str(key)) if isinstance(key, str | int) else None
            if storage is None or str(key) in self._starts:
                raise self._corrupt("keys of the storages", "the storages of the object, each once", brief(key))
            count = int.from_bytes(self._map[position : position + 8], "little", signed=True)
            position += 8
            if count != storage.whole or position + storage.nbytes > size:
                found = f"{count} elements" if count != storage.whole else f"{max(0, size - position)} bytes are left"
                expected = f"{storage.whole} elements, {storage.nbytes} bytes"
                raise self._corrupt(f"storage {str(key)[:40]!r}", expected, found)
            self._starts[str(key)] = position
            position += storage.nbytes
        missing = set(self._storages) - set(self._starts)
        if missing:
            raise self._corrupt("keys of the storages", f"storage {sorted(missing)[0][:40]!r}", "none of this key")
        if position != size:
            raise self._corrupt("the end", "nothing after the last storage", f"{size - position} bytes")

    def place(self, storage: Storage) -> tuple[Any, int]:
        return self._map, self._starts[storage.key]
