"""Writes T5X's own checkpoints, version 3, as T5X restores them."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from warmstart.errors import FormatError
from warmstart.formats.checkpoint import Array
from warmstart.formats.msgpack_tree import DTYPES, pack
from warmstart.formats.t5x import VERSION
from warmstart.storage.atomic import new_directory

CHUNK = 64 * 2**20  # bytes that T5X aims at
WRITTEN = DTYPES - {"uint4", "float8_e4m3"}  # which TensorStore does not know
SLOTS = ("m", "v", "v_row", "v_col")
_COMPRESSOR = {"id": "gzip", "level": 1}


def write_t5x(
    path: Path,
    arrays: Iterable[tuple[str, Array]],
    *,
    step: int,
    slots: Iterable[tuple[tuple[str, str], Array]] = (),
    compress: bool = True,
    force: bool = False,
) -> None:
    """Writes the directory ``path``, which T5X wants to be called ``checkpoint_<step>``.

    ``arrays`` are (name, array) with names as the reader gives them (``target/encoder/…``); ``slots`` are
    ((parameter, slot), array) of ``m``, ``v``, ``v_row`` and ``v_col``. If there are any, those that a parameter lacks
    become zeros of shape (1,), as T5X's Adafactor has them. Without ``compress`` the arrays are larger by some tenth,
    written many times as fast, and views of a memory map when they are read in one chunk; TensorStore reads both. One
    array is held at a time; the bytes depend on the arrays only.

    Raises:
        FormatError: a name occurs twice, is one beneath another, or is a slot's of no parameter; T5X has no such dtype.
        StorageError: it exists and ``force`` is not set, or cannot be written.
    """
    with new_directory(path, force=force) as temporary:
        writer = _Writer(temporary, path, _COMPRESSOR if compress else None)
        for name, array in arrays:
            writer.add(tuple(name.split("/")), array)
        parameters = [key[1:] for key in writer.keys if key[0] == "target"]
        given = set()
        for (parameter, slot), array in slots:
            key = tuple(parameter.split("/"))
            if key[0] != "target" or key not in writer.keys or slot not in SLOTS:
                raise FormatError(
                    "a slot of no parameter", where=f"{path}, {parameter!r}",
                    expected=f"{', '.join(SLOTS)} of an array that was written before", found=slot,
                )  # fmt: skip
            writer.add(("state", "param_states", *key[1:], slot), array)
            given.add((key[1:], slot))
        for rest in parameters if given else ():
            for slot in SLOTS:
                if (rest, slot) not in given:
                    writer.add(("state", "param_states", *rest, slot), np.zeros(1, np.float32))
        writer.add(("state", "step"), np.array(step, np.int32 if abs(step) < 2**31 else np.int64))
        writer.tree["state"].setdefault("param_states", {})
        with (temporary / "checkpoint").open("wb") as file:
            for part in pack({"version": VERSION, "optimizer": {"target": {}, **writer.tree}}):
                file.write(part)


class _Writer:
    def __init__(self, directory: Path, path: Path, compressor: dict[str, Any] | None) -> None:
        self._directory, self._path, self._compressor = directory, path, compressor
        self.tree: dict[str, Any] = {}
        self.keys: set[tuple[str, ...]] = set()
        self._folders: set[str] = set()

    def add(self, key: tuple[str, ...], array: Array) -> None:
        """One leaf: small ones in the tree, others in a directory of their own."""
        where = f"{self._path}, array {'/'.join(key)!r}"
        array = np.asarray(array)
        if array.dtype.name not in WRITTEN:
            raise FormatError("T5X has no such dtype", where=where, expected=", ".join(sorted(WRITTEN)),
                              found=array.dtype.name)  # fmt: skip
        if not all(key) or ".." in key or key[0] == "version":
            raise FormatError("not a name that T5X can have", where=where, expected="parts between slashes")
        node = self.tree
        for part in key[:-1]:
            node = node.setdefault(part, {})
            if not isinstance(node, dict) or "driver" in node:
                raise FormatError("a name lies beneath that of another array", where=where)
        if key[-1] in node:
            raise FormatError("a name occurs twice", where=where)
        self.keys.add(key)
        if array.ndim == 0 or array.shape == (1,) or array.size == 0:
            node[key[-1]] = np.array(array)
            return
        folder = ".".join(key)
        if folder in self._folders or folder == "checkpoint":
            raise FormatError("two names would be one directory", where=where, found=folder)
        self._folders.add(folder)
        node[key[-1]] = self._zarr(folder, array)

    def _zarr(self, folder: str, array: Array) -> dict[str, Any]:
        chunks = chunk_shape(array.shape, array.dtype.itemsize)
        (self._directory / folder).mkdir()
        described = {
            "chunks": list(chunks), "compressor": self._compressor, "dimension_separator": ".", "dtype": _code(array),
            "fill_value": None, "filters": None, "order": "C", "shape": list(array.shape), "zarr_format": 2,
        }  # fmt: skip
        (self._directory / folder / ".zarray").write_text(json.dumps(described, separators=(",", ":")))
        for index in np.ndindex(*(-(-n // c) for n, c in zip(array.shape, chunks, strict=True))):
            region = tuple(slice(i * c, (i + 1) * c) for i, c in zip(index, chunks, strict=True))
            with (self._directory / folder / ".".join(map(str, index))).open("wb") as file:
                whole = _whole(array[region], chunks).reshape(-1).view(np.uint8).data
                for part in [whole] if self._compressor is None else _gzip(whole):
                    file.write(part)
        metadata = {"chunks": list(chunks), "compressor": self._compressor, "shape": list(array.shape)}
        store = {"driver": "file", "path": f"{folder}/"}
        return {"driver": "zarr", "dtype": array.dtype.name, "kvstore": store, "metadata": metadata}


def chunk_shape(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Chunks of at most 64 MiB: the first axes are divided first."""
    chunks = list(shape)
    for axis in range(len(chunks)):
        rest = itemsize * math.prod(chunks[axis + 1 :])
        chunks[axis] = min(chunks[axis], max(1, CHUNK // rest))
    return tuple(chunks)


def _code(array: Array) -> str:
    """The dtype as TensorStore names it in ``.zarray``."""
    native = array.dtype.type.__module__ == "numpy"
    return array.dtype.newbyteorder("<").str if native else array.dtype.name


def _whole(piece: Array, chunks: tuple[int, ...]) -> Array:
    """Little-endian, and at the edges filled up with zeros, as zarr keeps them."""
    if piece.dtype.byteorder == ">":
        piece = piece.astype(piece.dtype.newbyteorder("<"))
    if piece.shape == chunks:
        return np.ascontiguousarray(piece)
    whole = np.zeros(chunks, piece.dtype)
    whole[tuple(map(slice, piece.shape))] = piece
    return whole


def _gzip(data: memoryview) -> Iterator[bytes]:
    """Compressed at level 1 as T5X does it, without a time."""
    deflater = zlib.compressobj(1, zlib.DEFLATED, 31)
    for start in range(0, len(data), 2**22):
        yield deflater.compress(data[start : start + 2**22])
    yield deflater.flush()
