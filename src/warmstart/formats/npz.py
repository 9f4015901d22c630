"""numpy's npz: a zip archive of npy members, read without pickle.

Definitions: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html, PKWARE's APPNOTE 6.3.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from warmstart.errors import CorruptCheckpoint, FormatError
from warmstart.formats import npy
from warmstart.formats.checkpoint import Array, Candidate, Checkpoint, Entry
from warmstart.formats.mapped import head
from warmstart.formats.zipped import ZipArchive, first_member
from warmstart.lean import dataclass
from warmstart.storage.atomic import atomic_file

FORMAT = "npz"
_COPIED = 2**23  # bytes up to which an array is rather copied than mapped
SIDECARS = (".optimizer.npz", ".orig.npz")  # of Marian: optimizer state, and weights before smoothing


def recognise(path: Path) -> bool:
    """Whether ``path`` starts as a zip archive whose first member is an npy file."""
    return first_member(head(path, 4096)).endswith(b".npy")


def candidates(directory: Path) -> list[Candidate]:
    """The npz files of ``directory`` but what Marian puts beside its models."""
    files = [path for path in sorted(directory.glob("*.npz")) if not path.name.endswith(SIDECARS)]
    return [Candidate(path, path.name) for path in files if recognise(path)]


def open(path: Path) -> NpzCheckpoint:
    """Reads the archive's directory and every member's header.

    Raises:
        CorruptCheckpoint: the archive is damaged or truncated.
        FormatError: a member is not an array of numbers.
    """
    return NpzCheckpoint(path)


@dataclass(frozen=True)
class _Member:
    name: str  # in the archive
    header: npy.Header


class NpzFile:
    """The arrays of an npz file, by name without ``.npy``.

    Opening reads headers. :meth:`read` reads a member into memory of its own and computes the archive's checksum on
    the way: a view into a memory map would go through its bytes once for the checksum and once more for who uses
    them, through page faults both times, and most do not lie where numpy could use them anyway.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._archive = ZipArchive(path, "npz file", ".npy")
        self._members: dict[str, _Member] = {}
        for member in self._archive.members:
            name = member.removesuffix(".npy")
            if name in self._members:
                raise self._corrupt(f"array {name!r}", "one member of this name", "several")
            self._members[name] = self._member(member, name)
        self.entries = {name: Entry(name, m.header.shape, m.header.dtype) for name, m in self._members.items()}

    def _corrupt(self, key: str, expected: object, found: object) -> CorruptCheckpoint:
        return self._archive.corrupt(key, expected, found)

    def _member(self, member: str, name: str) -> _Member:
        key, size = f"array {name!r}", self._archive.members[member].size
        header = npy.read_header(self._archive.beginning(member, npy.HEADER_BYTES), f"{self.path}, {key}")
        if header.size + header.nbytes != size:
            expected = f"{header.size + header.nbytes} bytes for {header.dtype} {header.shape} and its header"
            raise self._corrupt(key, expected, f"{size} bytes")
        return _Member(member, header)

    @property
    def mapped(self) -> bool:
        """Whether every member is stored as it is."""
        return self._archive.mapped

    def read(self, name: str, *, copy: bool = True) -> Array:
        """The array ``name``, read-only; of a large stored member a view, aligned or not, if ``copy`` is False. A small
        one is read and checked in one pass, through no page faults.

        Raises:
            KeyError: no such array.
            CorruptCheckpoint: the bytes do not match the archive's checksum.
        """
        member, header = self._members[name].name, self._members[name].header
        if (copy or header.nbytes <= _COPIED) and not self._archive.members[member].deflated:
            return npy.array_at(self._archive.copied(member, header.size), replace(header, size=0), 0)
        data, start = self._archive.verified(member)
        return npy.array_at(data, header, start, copy=copy)

    def peek(self, name: str) -> Array:
        """The array ``name`` as a view where that is possible, aligned or not; its checksum is not looked at.

        Raises:
            KeyError: no such array.
        """
        member = self._members[name]
        data, start = self._archive.data(member.name)
        return npy.array_at(data, member.header, start, copy=False)


class NpzCheckpoint(Checkpoint):
    """A plain npz file: arrays and nothing else."""

    def __init__(self, path: Path) -> None:
        self._file = NpzFile(path)
        super().__init__(path=path, format=FORMAT, entries=self._file.entries, files=(Path(path.name),))

    @property
    def mapped(self) -> bool:
        return self._file.mapped

    def read(self, name: str) -> Array:
        return self._file.read(name)

    def raw(self, name: str) -> Array:
        return self._file.read(name, copy=False)

    def peek(self, name: str) -> Array:
        return self._file.peek(name)


def write_npz(path: Path, arrays: Iterable[tuple[str, Array]]) -> None:
    """Writes name–array pairs, one at a time, uncompressed, little-endian and in C order (Marian needs all three).

    The bytes depend on the arrays only, not on the clock.

    Raises:
        FormatError: a name occurs twice, or an array is not of numbers that numpy has.
        StorageError: the file cannot be written; what was at ``path`` is untouched.
    """
    import zipfile

    from numpy.lib.format import write_array

    names: set[str] = set()
    with atomic_file(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays:
            if name in names or "\0" in name:
                raise FormatError("a name occurs twice or has a zero byte", where=f"{path}, array {name!r}")
            names.add(name)
            little = npy.writable(array, f"{path}, array {name!r}")
            info = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            with archive.open(info, "w", force_zip64=little.nbytes >= 2**31 - 2**16) as member:
                write_array(member, little, version=(1, 0), allow_pickle=False)
