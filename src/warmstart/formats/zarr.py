"""zarr version 2 as TensorStore writes it: a directory with ``.zarray`` (JSON) and one file per chunk.

Definition: https://zarr-specs.readthedocs.io/en/latest/v2/v2.0.html. Chunks at the edge are stored in full size.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from warmstart.errors import CorruptCheckpoint, FormatError
from warmstart.formats.checkpoint import Array, dtype_of
from warmstart.formats.mapped import head, map_file, valid_shape, view
from warmstart.formats.msgpack_tree import DTYPES
from warmstart.lean import dataclass

if TYPE_CHECKING:
    import numpy as np

MAX_JSON = 2**20
MAX_CHUNKS = 1_000_000
SMALL = 16 * 2**20  # bytes that an array may have however little is stored of it
_RATIOS = {"gzip": 1100, "zlib": 1100, "zstd": 45_000}  # the most that a byte can become
_AGAIN = "download or copy it again"


@dataclass(frozen=True)
class Layout:
    """What ``.zarray`` says. ``dtype`` is as stored, maybe big-endian; ``fill`` is None where there is none."""

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype[Any]
    compressor: str | None
    fortran: bool = False
    separator: str = "."
    fill: Any = None

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def chunk_nbytes(self) -> int:
        return math.prod(self.chunks) * self.dtype.itemsize

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of chunks along each axis."""
        return tuple(-(-length // chunk) for length, chunk in zip(self.shape, self.chunks, strict=True))


def below(root: Path, relative: str) -> Path:
    """``root / relative``, which may not lead out of ``root`` by its text; links are not looked at.

    Raises:
        FormatError: it does.
    """
    parts = relative.rstrip("/").split("/")
    if relative.startswith("/") or ".." in parts or "\0" in relative or "\\" in relative or not parts[0]:
        raise _outside(root, relative)
    return root / relative


def inside(root: Path, relative: str) -> Path:
    """``root / relative``, which may not lead out of ``root``, by its text or by links.

    Raises:
        FormatError: it does.
    """
    path = below(root, relative)
    try:
        resolved = path.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise _outside(root, relative) from error
    if not resolved.is_relative_to(root.resolve()):
        raise _outside(root, relative)
    return path


def _outside(root: Path, relative: str) -> FormatError:
    return FormatError(
        "a part of this checkpoint is said to lie outside of it",
        where=root,
        expected="a relative path within the checkpoint",
        found=repr(relative)[:300],
        todo="do not trust this checkpoint; if it is yours, replace links by the files",
    )


def parse_layout(text: bytes | str, where: str) -> Layout:
    """The content of a ``.zarray`` file.

    Raises:
        CorruptCheckpoint: it is damaged.
        FormatError: it is of another version, or a dtype, filter or compressor that is not supported.
    """
    try:
        described = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _corrupt(where, "JSON", f"{str(text[:60])!r}") from error
    if not isinstance(described, dict):
        raise _corrupt(where, "a JSON object", type(described).__name__)
    if described.get("zarr_format") != 2:
        raise FormatError("zarr of another version", where=where, expected="2", found=described.get("zarr_format"))
    if described.get("filters"):
        raise FormatError("zarr filters are not supported", where=where, found=repr(described["filters"])[:200])
    return layout_of(described, described.get("dtype"), where)


def layout_of(described: Mapping[str, Any], dtype: object, where: str) -> Layout:
    """A layout from ``shape``, ``chunks`` and what else ``described`` has; see :func:`parse_layout`."""
    shape, chunks = described.get("shape"), described.get("chunks")
    if not valid_shape(shape) or not isinstance(shape, list | tuple):
        raise _corrupt(where, "shape: a list of lengths", repr(shape)[:100])
    if not isinstance(chunks, list | tuple) or len(chunks) != len(shape) or not valid_shape(chunks) or 0 in chunks:
        raise _corrupt(where, f"chunks: {len(shape)} lengths from 1", repr(chunks)[:100])
    order, separator = described.get("order", "C"), described.get("dimension_separator", ".")
    if order not in ("C", "F") or separator not in (".", "/"):
        raise _corrupt(where, "order C or F, separator . or /", repr((order, separator))[:100])
    stored = _dtype(dtype, where)
    fill = described.get("fill_value")
    return Layout(
        tuple(shape),
        tuple(chunks),
        stored,
        _compressor(described.get("compressor"), where),
        order == "F",
        separator,
        None if fill is None else _fill(fill, stored, where),
    )


def _dtype(code: object, where: str) -> np.dtype[Any]:
    import numpy as np

    if isinstance(code, str):
        if code in DTYPES:
            return dtype_of(code)
        if len(code) < 8 and code[1:] == "V2":
            return dtype_of("bfloat16")
        if len(code) in (3, 4) and code[0] in "<>|" and code[1] in "biufc" and code[2:].isdigit():
            try:
                return np.dtype(code)
            except TypeError:
                pass
    raise FormatError(
        "dtype not supported", where=where, expected="numbers such as <f4 or bfloat16", found=repr(code)[:60]
    )


def _compressor(described: object, where: str) -> str | None:
    if described is None:
        return None
    name = described.get("id") if isinstance(described, dict) else described
    if isinstance(name, str) and name in _RATIOS:
        return name
    raise FormatError(
        "compressor not supported",
        where=where,
        expected="none, gzip, zlib or zstd",
        found=repr(name)[:60],
        todo="write the checkpoint again with gzip or zstd",
    )


def _fill(value: object, dtype: np.dtype[Any], where: str) -> Any:
    import numpy as np

    special = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
    number = special.get(value) if isinstance(value, str) else value
    try:
        if not isinstance(number, bool | int | float):
            raise ValueError
        return np.array(number).astype(dtype)[()]
    except (ValueError, OverflowError, TypeError) as error:
        raise _corrupt(where, f"fill_value: a {dtype.name}", repr(value)[:60]) from error


class ZarrArray:
    """One array below ``root``; ``name`` is how errors call it."""

    def __init__(self, root: Path, relative: str, layout: Layout, name: str) -> None:
        self._root, self._relative, self.layout = root, relative.rstrip("/"), layout
        self._where = f"{root}, array {name!r}"
        if math.prod(layout.grid) > MAX_CHUNKS:
            raise _corrupt(self._where, f"at most {MAX_CHUNKS} chunks", f"{math.prod(layout.grid)} by {layout.chunks}")

    def read(self) -> Array:
        """The array, read-only, in the machine's byte order; a view where one uncompressed chunk holds it.

        Raises:
            CorruptCheckpoint: a chunk is damaged, or missing without a value to fill in.
            FormatError: a chunk lies outside of the checkpoint.
        """
        try:
            return self._read()
        except MemoryError as error:
            raise _corrupt(self._where, "an array that fits into memory", f"{self.layout.nbytes} bytes") from error

    def _read(self) -> Array:
        import numpy as np

        layout, present = self.layout, self._present()
        if layout.fill is None and len(present) < math.prod(layout.grid):
            raise self._missing(present)
        self._check_size(present)
        if not present or layout.nbytes == 0:
            value = np.array(0 if layout.fill is None else layout.fill).astype(layout.dtype.newbyteorder("="))
            return np.broadcast_to(value, layout.shape)
        if len(present) == 1 and layout.chunks == layout.shape:
            return _native(self._chunk(*present.values()))
        whole = np.empty(layout.shape, layout.dtype)
        if layout.fill is not None:
            whole[...] = layout.fill
        for index, path in present.items():
            starts = [i * chunk for i, chunk in zip(index, layout.chunks, strict=True)]
            region = tuple(slice(start, start + chunk) for start, chunk in zip(starts, layout.chunks, strict=True))
            within = tuple(slice(0, length - start) for start, length in zip(starts, layout.shape, strict=True))
            whole[region] = self._chunk(path)[within]
        return _native(whole)

    def _present(self) -> dict[tuple[int, ...], Path]:
        """Every chunk that has a file, by its place in the grid."""
        grid, found = self.layout.grid, {}
        depth = len(grid) if self.layout.separator == "/" else 1
        for number, name in enumerate(self._names("", max(depth, 1))):
            if number > MAX_CHUNKS:
                raise _corrupt(self._where, f"at most {MAX_CHUNKS} files", "more")
            parts = name.split(self.layout.separator) if grid else ["-1"][: name != "0"]
            if not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
                continue
            index = tuple(map(int, parts))
            if len(index) == len(grid) and all(i < n for i, n in zip(index, grid, strict=True)):
                found[index] = self._root / self._relative / name
        return found

    def _names(self, below: str, depth: int) -> Iterator[str]:
        """Files in the array's directory, relative to it, none of which may be a link that leads outside."""
        directory = inside(self._root, f"{self._relative}/{below}")
        try:
            entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
        except OSError as error:
            raise _corrupt(self._where, f"a directory {self._relative}", error.strerror) from error
        for entry in entries:
            if entry.is_symlink():
                inside(self._root, f"{self._relative}/{below}{entry.name}")
            if os.path.isfile(entry):  # False for a link to itself, where Python 3.13's resolve() says nothing
                yield below + entry.name
            elif depth > 1 and os.path.isdir(entry):
                yield from self._names(f"{below}{entry.name}/", depth - 1)

    def _missing(self, present: Mapping[tuple[int, ...], Path]) -> CorruptCheckpoint:
        index = next(i for i in itertools.product(*map(range, self.layout.grid)) if i not in present)
        name = self.layout.separator.join(map(str, index)) or "0"
        return CorruptCheckpoint(
            "a chunk is missing, and nothing says what to fill in",
            where=self._where,
            expected=f"{math.prod(self.layout.grid)} chunks",
            found=f"{len(present)}, without {self._relative}/{name}",
            todo="copy the whole checkpoint again",
        )

    def _check_size(self, present: Mapping[tuple[int, ...], Path]) -> None:
        """Refuses arrays that the files cannot hold. Without any file nothing is allocated."""
        layout = self.layout
        ratio = 1 if layout.compressor is None else _RATIOS[layout.compressor]
        stored = sum(path.stat().st_size for path in present.values())
        if present and max(layout.nbytes, layout.chunk_nbytes) > SMALL + stored * ratio:
            raise _corrupt(self._where, f"bytes for {layout.dtype.name} {layout.shape}", f"{stored} bytes in its files")

    def _chunk(self, path: Path) -> Array:
        """One chunk in its full size."""
        layout, where = self.layout, f"{self._where}, file {path.relative_to(self._root)}"
        order = layout.fortran and len(layout.shape) > 1
        mapped = map_file(path)
        if layout.compressor is None:
            if len(mapped) != layout.chunk_nbytes:
                raise _corrupt(where, f"{layout.chunk_nbytes} bytes", f"{len(mapped)} bytes")
            return view(mapped, layout.dtype, layout.chunks, 0, fortran=order)
        ratio = _RATIOS[layout.compressor]
        if layout.chunk_nbytes > ratio * len(mapped) + 1024:
            raise _corrupt(where, f"{layout.chunk_nbytes} bytes when expanded", f"{len(mapped)} compressed bytes")
        data = expand(layout.compressor, mapped, layout.chunk_nbytes, where)
        return view(data, layout.dtype, layout.chunks, 0, fortran=order)


def _native(array: Array) -> Array:
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    array.flags.writeable = False
    return array


def expand(compressor: str, data: Any, size: int, where: str) -> bytes:
    """``data`` decompressed, which must give exactly ``size`` bytes.

    Raises:
        CorruptCheckpoint: it does not, or is damaged.
    """
    import zstandard

    try:
        if compressor == "zstd":
            reader = zstandard.ZstdDecompressor(max_window_size=2**27).stream_reader(data, read_across_frames=True)
            result: bytes = reader.read(size + 1)
            while len(result) <= size and (more := reader.read(size + 1 - len(result))):
                result += more
        else:
            inflater = zlib.decompressobj(31 if compressor == "gzip" else 15)
            result = inflater.decompress(data, size + 1)
            if len(result) == size:
                result += inflater.flush()
            if not inflater.eof or inflater.unused_data:
                raise zlib.error("the stream does not end where the file does")
    except (zlib.error, zstandard.ZstdError, MemoryError, ValueError) as error:
        raise _corrupt(where, f"{compressor} data of {size} bytes", str(error) or "out of memory") from error
    if len(result) != size:
        raise _corrupt(where, f"{size} bytes", f"{len(result)} or more bytes")
    return result


def read_json(path: Path) -> bytes:
    """The content of a small metadata file."""
    data = head(path, MAX_JSON + 1)
    if len(data) > MAX_JSON:
        raise _corrupt(str(path), f"at most {MAX_JSON} bytes", "more")
    return data


def _corrupt(where: str, expected: object, found: object) -> CorruptCheckpoint:
    return CorruptCheckpoint("damaged zarr array", where=where, expected=expected, found=found, todo=_AGAIN)
