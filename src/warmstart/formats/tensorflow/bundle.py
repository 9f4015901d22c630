"""A bundle's tensors: its index, and its data files as read-only memory."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

import numpy as np

from warmstart.errors import FormatError, SourceError
from warmstart.formats.checkpoint import Array, dtype_of
from warmstart.formats.mapped import map_file, view
from warmstart.formats.tensorflow.crc32c import crc32c, masked
from warmstart.formats.tensorflow.index import OPAQUE, Tensor, corrupt, read_index
from warmstart.formats.tensorflow.protobuf import Malformed, varint
from warmstart.formats.tensorflow.slices import Piece


def beside(prefix: Path, suffix: str) -> Path:
    """The file of the bundle ``prefix`` that ends in ``suffix``."""
    return prefix.with_name(prefix.name + suffix)


class Bundle:
    """The tensors of the bundle ``prefix``, by their own names, in the order of its index.

    Attributes:
        prefix: what TensorFlow calls the checkpoint's path: the files' path without their endings.
        tensors: name → description.
        files: the index and those data files that hold something and exist.
        missing: the data files that hold something and do not exist.
    """

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        index = beside(prefix, ".index")
        self._index = read_index(index)
        self.tensors = self._index.tensors
        self._maps: dict[int, mmap.mmap] = {}
        ends: dict[int, tuple[int, str]] = {}
        for tensor in self.tensors.values():
            for piece in tensor.pieces:
                ends[piece.shard] = max(ends.get(piece.shard, (0, "")), (piece.offset + piece.size, tensor.name))
        self.files = [index]
        self.missing: list[Path] = []
        self._absent: set[int] = set()
        for shard, (end, name) in sorted(ends.items()):
            path = self._shard(shard)
            if not path.is_file():
                if end:
                    self.missing.append(path)
                    self._absent.add(shard)
                continue
            self._confine(path)
            size = path.stat().st_size
            if end > size:
                raise corrupt(path, f"tensor {name!r}", f"a file of at least {end} bytes", f"{size} bytes")
            self.files.append(path)

    def _shard(self, number: int) -> Path:
        return beside(self.prefix, f".data-{number:05d}-of-{self._index.shards:05d}")

    def _confine(self, path: Path) -> None:
        """Refuses a data file that is a link to somewhere else than where the index is, or where the link is."""
        homes = {self.prefix.parent.resolve(), beside(self.prefix, ".index").resolve().parent}
        if path.resolve().parent not in homes:
            raise FormatError(
                "a data file is a link that leads out of the checkpoint's directory",
                where=path,
                found=path.resolve(),
                todo="copy the file itself beside its index",
            )

    def _bytes(self, piece: Piece, name: str) -> mmap.mmap | bytes:
        """The data file that holds ``piece``, whole."""
        if not piece.size:
            return b""
        if piece.shard not in self._maps:
            path = self._shard(piece.shard)
            if not path.is_file():
                raise SourceError(
                    "a data file of this checkpoint is missing",
                    where=f"{self.prefix}, tensor {name!r}",
                    expected=path,
                    found="no such file",
                    todo="copy all of the checkpoint's files into one directory",
                )
            self._confine(path)
            self._maps[piece.shard] = map_file(path)
        data = self._maps[piece.shard]
        if piece.offset + piece.size > len(data):
            raise corrupt(self._shard(piece.shard), f"tensor {name!r}", f"{piece.offset + piece.size} bytes", len(data))
        return data

    def present(self, name: str) -> bool:
        """Whether the data files that hold the tensor exist."""
        return not any(piece.size and piece.shard in self._absent for piece in self.tensors[name].pieces)

    def array(self, name: str) -> Array:
        """The numbers of a tensor: a view into memory, or assembled if it is partitioned; not checked.

        Raises:
            KeyError: no such tensor.
            SourceError: the data file that holds it is missing.
            FormatError: it does not consist of numbers.
        """
        tensor = self.tensors[name]
        if not tensor.slices:
            return self._view(tensor, tensor.shape, tensor.piece)
        parts = [(part, self._view(tensor, part.shape, part.piece)) for part in tensor.slices]
        whole: Array = np.empty(tensor.shape, parts[0][1].dtype)
        for part, array in parts:
            whole[tuple(slice(at, at + length) for at, length in zip(part.start, part.shape, strict=True))] = array
        whole.flags.writeable = False
        return whole

    def _view(self, tensor: Tensor, shape: tuple[int, ...], piece: Piece) -> Array:
        self._require_numbers(tensor)
        dtype = dtype_of(tensor.numbers)
        data = self._bytes(piece, tensor.name)
        if not self._index.big_endian:
            return view(data, dtype, shape, piece.offset)
        unit = np.dtype(f"u{dtype.itemsize // (2 if dtype.kind == 'c' else 1)}")
        count = piece.size // unit.itemsize
        native: Array = view(data, unit, (count,), piece.offset).byteswap().view(dtype).reshape(shape)
        native.flags.writeable = False
        return native

    def _require_numbers(self, tensor: Tensor) -> None:
        if tensor.dtype in OPAQUE:
            where = f"{self.prefix}, tensor {tensor.name!r}"
            raise FormatError("this tensor can only be described", where=where, found=f"dtype {tensor.dtype}")

    def strings(self, name: str) -> Array:
        """The texts of a tensor of strings, as an array of ``bytes``; their checksum is verified.

        Each one's length comes first, then a checksum of the lengths, then the bytes (TensorFlow,
        util/tensor_bundle/tensor_bundle.cc, WriteStringTensor).

        Raises:
            KeyError: no such tensor.
            SourceError: the data file that holds it is missing.
            CorruptCheckpoint: the lengths do not fit, or the checksum.
        """
        tensor = self.tensors[name]
        piece = tensor.piece
        data = self._bytes(piece, name)[piece.offset : piece.offset + piece.size]
        try:
            texts = self._texts(tensor, data)
        except Malformed as error:
            path = self._shard(piece.shard)
            raise corrupt(path, f"tensor {name!r}", f"{tensor.dtype} {tensor.shape}", error) from error
        result: Array = np.empty(len(texts), object)
        result[:] = texts
        return result.reshape(tensor.shape)

    def _texts(self, tensor: Tensor, data: bytes) -> list[bytes]:
        if tensor.dtype != "string":
            raise Malformed("not of strings")
        count = 1
        for length in tensor.shape:
            count *= length
        if count > len(data):
            raise Malformed(f"{count} strings in {len(data)} bytes")
        order = ">" if self._index.big_endian else "<"
        position, lengths, encoded = 0, [], bytearray()
        for _ in range(count):
            length, position = varint(data, position)
            lengths.append(length)
            encoded += struct.pack(order + ("I" if length < 2**32 else "Q"), length)
        checksum = data[position : position + 4]
        position += 4
        if position + sum(lengths) != len(data):
            raise Malformed(f"strings of {sum(lengths)} bytes where {len(data) - position} are left")
        crc = crc32c(encoded)
        if checksum != struct.pack(order + "I", masked(crc)):
            raise Malformed("the checksum of the lengths is another")
        if masked(crc32c(data[position - 4 :], crc)) != tensor.piece.crc:
            raise Malformed("the checksum is another")
        texts = []
        for length in lengths:
            texts.append(data[position : position + length])
            position += length
        return texts

    def verify(self, name: str) -> None:
        """Compares the checksums of a tensor's bytes with those of the index.

        Raises:
            KeyError: no such tensor.
            SourceError: the data file that holds it is missing.
            FormatError: it consists neither of numbers nor of strings.
            CorruptCheckpoint: a checksum is another.
        """
        tensor = self.tensors[name]
        if tensor.dtype == "string":
            self.strings(name)
            return
        self._require_numbers(tensor)
        for piece in tensor.pieces:
            with memoryview(self._bytes(piece, name)) as data, data[piece.offset : piece.offset + piece.size] as part:
                found = masked(crc32c(part))
            if found != piece.crc:
                path = self._shard(piece.shard)
                raise corrupt(path, f"tensor {name!r}", f"checksum {piece.crc:08x}", f"{found:08x}")
