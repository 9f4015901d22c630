"""numpy's npy: one array behind a header that is Python text, read without pickle.

Definition: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

from __future__ import annotations

import io
import math
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from warmstart.errors import CorruptCheckpoint, FormatError
from warmstart.formats.checkpoint import Array, Candidate, Checkpoint, Entry, itemsize
from warmstart.formats.mapped import head, map_file, valid_shape, view
from warmstart.lean import dataclass
from warmstart.storage.atomic import atomic_file

if TYPE_CHECKING:
    import numpy as np

FORMAT = "npy"
NAME = "arr_0"  # what numpy calls an array that nobody named
MAGIC = b"\x93NUMPY"
_PLAIN = re.compile(
    rb"\x93NUMPY(?:\x01\x00(..)|[\x02\x03]\x00(....))"
    rb"\{'descr': '([<>|][biufc]\d{1,2})', 'fortran_order': (True|False), "
    rb"'shape': \((|\d{1,18},|\d{1,18}(?:, \d{1,18})+)\), \} *\n",
    re.DOTALL,
)
_KINDS = {"i": ("int", (1, 2, 4, 8)), "u": ("uint", (1, 2, 4, 8)), "f": ("float", (2, 4, 8)), "c": ("complex", (8, 16))}
_DTYPES = {"|b1": "bool"} | {
    f"{order if size > 1 else '|'}{kind}{size}": f"{name}{8 * size}"
    for kind, (name, sizes) in _KINDS.items()
    for size in sizes
    for order in "<>"
}  # as a header spells them → numpy's names
HEADER_BYTES = 16_384  # numpy itself refuses headers above 10,000 characters


@dataclass(frozen=True)
class Header:
    """What an npy file says of its array; ``size`` is the header's own length in bytes.

    ``spelt`` is the dtype as numpy writes it (``<f4``), ``dtype`` its name.
    """

    spelt: str
    dtype: str
    shape: tuple[int, ...]
    fortran: bool
    size: int

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * itemsize(self.dtype)


def read_header(beginning: bytes, where: str) -> Header:
    """The header at the start of ``beginning``: versions 1 to 3, which differ in its length's width and its encoding.

    Raises:
        CorruptCheckpoint: it is damaged.
        FormatError: Python objects, records, text or dates, which are not arrays of numbers.
    """
    if (plain := _plain(beginning)) is not None:
        return plain
    from numpy.lib import format as npy

    stream = io.BytesIO(beginning)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            version = npy.read_magic(stream)
            # A header of version 3 is one of version 2 in UTF-8, which matters to names of a record's fields only.
            readers = {
                (1, 0): npy.read_array_header_1_0,
                (2, 0): npy.read_array_header_2_0,
                (3, 0): npy.read_array_header_2_0,
            }
            shape, fortran, dtype = readers[version](stream)
    except Exception as error:  # numpy's parser of the header text raises many kinds on damaged text
        raise _corrupt(where, "an npy header of version 1, 2 or 3", str(error)[:200]) from error
    if not _is_number(dtype):
        nameless = dtype.kind == "V" and dtype.names is None  # numpy drops the names of types that it lacks
        raise FormatError(
            "holds Python objects" if dtype.hasobject else "not an array of numbers",
            where=where,
            expected="an array of numbers",
            found=f"dtype {str(dtype)[:200]}" + (", which may have been bfloat16" if nameless else ""),
            todo="write the file again with this array as float32" if nameless else "write the file again without it",
        )
    if not valid_shape(shape):
        raise _corrupt(f"{where}, shape", "lengths from 0", str(shape)[:200])
    return Header(dtype.str, dtype.name, tuple(shape), bool(fortran), stream.tell())


def _plain(beginning: bytes) -> Header | None:
    """The header if it is spelt as numpy itself spells it, which is seen twenty times as fast."""
    match = _PLAIN.match(beginning)
    if match is None:
        return None
    length = int.from_bytes(match[1] or match[2], "little")
    shape = tuple(int(number) for number in match[5].replace(b",", b" ").split())
    spelt = match[3].decode()
    dtype = _DTYPES.get(spelt)
    if dtype is None or match.end() != match.start(3) - len("{'descr': '") + length or not valid_shape(shape):
        return None
    return Header(spelt, dtype, shape, match[4] == b"True", match.end())


def array_at(buffer: Any, header: Header, start: int, *, copy: bool = True) -> Array:
    """The array whose npy file begins at ``start`` of ``buffer``: a read-only view if it is little-endian (and aligned,
    unless ``copy`` is False)."""
    import numpy as np

    dtype: np.dtype[Any] = np.dtype(header.spelt)
    array = view(buffer, dtype, header.shape, start + header.size, fortran=header.fortran, copy=copy)
    if not dtype.isnative:
        array = array.astype(dtype.newbyteorder("="))
        array.flags.writeable = False
    return array


def recognise(path: Path) -> bool:
    """Whether ``path`` starts with numpy's magic bytes."""
    return head(path, len(MAGIC)) == MAGIC


def candidates(directory: Path) -> list[Candidate]:
    """None: arrays in files of their own are data more often than a model."""
    del directory
    return []


def open(path: Path) -> NpyCheckpoint:
    """Reads the header of ``path``.

    Raises:
        CorruptCheckpoint: header and file do not agree.
        FormatError: not an array of numbers.
    """
    return NpyCheckpoint(path)


class NpyCheckpoint(Checkpoint):
    """A file of one array, which is called ``arr_0``: a view into a memory map, unless it is big-endian."""

    def __init__(self, path: Path) -> None:
        self._header = read_header(head(path, HEADER_BYTES), str(path))
        entry = Entry(NAME, self._header.shape, self._header.dtype)
        found = path.stat().st_size - self._header.size
        if found != entry.nbytes:
            raise _corrupt(str(path), f"{entry.nbytes} bytes for {entry.dtype} {entry.shape}", f"{found} bytes")
        self._map = map_file(path)
        super().__init__(path=path, format=FORMAT, entries={NAME: entry}, files=(Path(path.name),))

    def read(self, name: str) -> Array:
        if name != NAME:
            raise KeyError(name)
        return array_at(self._map, self._header, 0)


def write_npy(path: Path, array: Array) -> None:
    """Writes ``array``, little-endian and in C order.

    Raises:
        FormatError: not an array of numbers that numpy itself has.
        StorageError: the file cannot be written; what was at ``path`` is untouched.
    """
    from numpy.lib import format as npy

    with atomic_file(path) as temporary, temporary.open("wb") as file:
        npy.write_array(file, writable(array, str(path)), version=(1, 0), allow_pickle=False)


def writable(array: Array, where: str) -> Array:
    """``array`` as numpy's formats are written here: little-endian, in C order.

    Raises:
        FormatError: its dtype is not one of numpy's own numbers.
    """
    import numpy as np

    if not _is_number(array.dtype):
        raise FormatError(
            "numpy's files have no such dtype",
            where=where,
            expected="an array of numbers that numpy itself has",
            found=array.dtype.name,
        )
    return np.asarray(array, array.dtype.newbyteorder("<"), order="C")


def _is_number(dtype: np.dtype[Any]) -> bool:
    """Whether it is one of numpy's own types of numbers (those that ml_dtypes adds may say ``f`` too)."""
    return dtype.kind in "biufc" and dtype.num < 256  # types that others register are numbered from 256


def _corrupt(where: str, expected: object, found: object) -> CorruptCheckpoint:
    return CorruptCheckpoint(
        "damaged or truncated npy file", where=where, expected=expected, found=found, todo="download or copy it again"
    )
