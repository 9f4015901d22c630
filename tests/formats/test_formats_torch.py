"""torch files, against torch."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import contract
import torch

from warmstart.formats.checkpoint import Array, Entry
from warmstart.formats.torch_write import write_torch

DTYPES = (
    *("float32", "float16", "float64", "bfloat16", "int8", "uint8", "int16", "int32", "int64", "uint16", "uint32"),
    *("uint64", "bool", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz"),
    *("float8_e5m2fnuz", "float8_e8m0fnu"),
)


def entries(arrays: Mapping[str, Array]) -> list[Entry]:
    return [Entry(name, array.shape, array.dtype.name) for name, array in arrays.items()]


def tensors(arrays: Mapping[str, Array]) -> dict[str, torch.Tensor]:
    """The same bytes as torch's tensors."""
    return {
        name: torch.frombuffer(bytearray(array.tobytes() or bytes(16)), dtype=getattr(torch, array.dtype.name))[
            : array.size
        ].reshape(array.shape)
        for name, array in arrays.items()
    }


class TestZip(contract.FormatContract):
    """What is written here."""

    FORMAT = "torch"
    DTYPES = DTYPES

    def write(self, directory: Path, arrays: Mapping[str, Array]) -> Path:
        write_torch(directory / "model.pt", entries(arrays), arrays.values())
        return directory / "model.pt"

    def twice(self, directory: Path) -> Path:
        torch.save({"a.b": torch.ones(2), "a": {"b": torch.ones(2)}}, directory / "model.pt")
        return directory / "model.pt"

    def sparse(self, directory: Path) -> Path:
        return sparse_zip(directory / "model.pt", 5 * 2**30)


class TestLegacy(contract.FormatContract):
    """What torch wrote before 1.6."""

    FORMAT = "torch"
    DTYPES = tuple(dtype for dtype in DTYPES if dtype not in ("uint16", "uint32", "uint64") and "float8" not in dtype)

    def write(self, directory: Path, arrays: Mapping[str, Array]) -> Path:
        torch.save(tensors(arrays), directory / "model.pth", _use_new_zipfile_serialization=False)
        return directory / "model.pth"

    def twice(self, directory: Path) -> Path:
        root = {"a.b": torch.ones(2), "a": {"b": torch.ones(2)}}
        torch.save(root, directory / "model.pt", _use_new_zipfile_serialization=False)
        return directory / "model.pt"

    def sparse(self, directory: Path) -> Path:
        path = directory / "model.pth"
        torch.save({"a": torch.zeros(3, dtype=torch.uint8)}, path, _use_new_zipfile_serialization=False)
        count = 5 * 2**30
        data = path.read_bytes().replace(b"K\x03Ntq", b"\x8a\x05" + count.to_bytes(5, "little") + b"Ntq")
        data = data.replace(b"K\x03\x85q", b"\x8a\x05" + count.to_bytes(5, "little") + b"\x85q")
        data = data[: -3 - 8] + struct.pack("<q", count)
        with path.open("wb") as file:
            file.write(data)
            file.truncate(len(data) + count)
        return path


class TestSharded(contract.FormatContract):
    """An index with its shards, as transformers writes them."""

    FORMAT = "torch"
    DTYPES = DTYPES

    def write(self, directory: Path, arrays: Mapping[str, Array]) -> Path:
        names = list(arrays)
        weight_map = {}
        for number, part in enumerate((names[::2], names[1::2])):
            file = f"pytorch_model-{number + 1:05}-of-00002.bin"
            if part:
                torch.save(tensors({name: arrays[name] for name in part}), directory / file)
            weight_map.update(dict.fromkeys(part, file))
        index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
        (directory / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        return directory

    def sparse(self, directory: Path) -> Path:
        sparse_zip(directory / "pytorch_model-00001-of-00001.bin", 5 * 2**30)
        index = {"weight_map": {"a": "pytorch_model-00001-of-00001.bin"}}
        (directory / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        return directory


def sparse_zip(path: Path, size: int) -> Path:
    """A zip archive as torch's, with one tensor of ``size`` bytes that are a hole in the file."""
    info: Any = None
    with zipfile.ZipFile(path, "w") as archive:
        pickled = (
            b"\x80\x02}X\x01\0\0\0actorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nByteStorage\n"
            b"X\x01\0\0\x000X\x03\0\0\0cpu\x8a\x05%stQK\0\x8a\x05%s\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtRs."
        )
        number = size.to_bytes(5, "little")
        archive.writestr("archive/data.pkl", pickled.replace(b"%s", number))
        archive.writestr("archive/version", "3\n")
        assert archive.fp is not None
        info = zipfile.ZipInfo("archive/data/0")
        info.header_offset = archive.fp.tell()
        info.CRC = 0
        info.file_size = info.compress_size = size
        archive.fp.write(info.FileHeader(zip64=True))
        archive.fp.seek(size, 1)
        archive.start_dir = archive.fp.tell()
        archive.filelist.append(info)
        archive.NameToInfo[info.filename] = info
        archive._didModify = True  # type: ignore[attr-defined]
    return path


def test_a_sparse_file_is_one_for_torch_too(tmp_path: Path) -> None:
    path = sparse_zip(tmp_path / "a.pt", 5 * 2**30)
    assert torch.load(path, mmap=True, weights_only=True)["a"].nbytes == 5 * 2**30
