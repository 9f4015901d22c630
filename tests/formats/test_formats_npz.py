"""npz, against numpy."""

from __future__ import annotations

import io
import random
import struct
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from contract import FormatContract

from warmstart.errors import CorruptCheckpoint, FormatError, WarmstartError
from warmstart.formats import npz
from warmstart.formats.checkpoint import Array, Entry
from warmstart.formats.detect import open_checkpoint
from warmstart.formats.mapped import is_mapped
from warmstart.formats.npz import write_npz
from warmstart.formats.safetensors import write_safetensors


def sparse_npz(path: Path, name: str) -> Path:
    """An npz file of one array of 5 GB in zip64 that takes no space on disk; the checksum is not that of zeros."""
    length = 1_250_000_000
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": (length,)})
    info = zipfile.ZipInfo(f"{name}.npy")
    info.CRC = info.header_offset = 0
    info.file_size = info.compress_size = len(stream.getvalue()) + 4 * length
    with zipfile.ZipFile(path, "w") as archive:
        assert archive.fp is not None
        archive.fp.write(info.FileHeader(zip64=True))
        archive.fp.write(stream.getvalue())
        archive.start_dir = archive.fp.seek(4 * length, 1)
        archive.filelist.append(info)
        archive._didModify = True  # type: ignore[attr-defined]
    return path


class TestContract(FormatContract):
    FORMAT = "npz"

    def write(self, directory: Path, arrays: Mapping[str, Array]) -> Path:
        write_npz(directory / "x.npz", arrays.items())
        return directory

    def twice(self, directory: Path) -> Path:
        stream = io.BytesIO()
        np.save(stream, np.ones(2))
        with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(directory / "x.npz", "w") as archive:
            for _ in range(2):
                archive.writestr("a.npy", stream.getvalue())
        return directory

    def sparse(self, directory: Path) -> Path:
        return sparse_npz(directory / "x.npz", "weights")


class TestDeflated(FormatContract):
    FORMAT = "npz"

    def write(self, directory: Path, arrays: Mapping[str, Array]) -> Path:
        with zipfile.ZipFile(directory / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w") as member:
                    np.lib.format.write_array(member, array)
        return directory


def arrays() -> dict[str, Array]:
    return {
        "a/weight": np.arange(6, dtype="f4").reshape(2, 3),
        "big endian": np.arange(4, dtype=">i4"),
        "columns": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        "scalar": np.array(3, "i8"),
        "empty": np.zeros((0, 3), "f2"),
        "имя": np.array([True, False]),
    }


def test_reads_what_numpy_writes(tmp_path: Path) -> None:
    values = arrays()
    np.savez(tmp_path / "stored.npz", **values)  # type: ignore[arg-type]
    np.savez_compressed(tmp_path / "deflated.npz", **values)  # type: ignore[arg-type]
    for name in ("stored.npz", "deflated.npz"):
        checkpoint = open_checkpoint(tmp_path / name)
        assert checkpoint.format == "npz"
        assert list(checkpoint.entries) == list(values)
        for key, array in values.items():
            read = checkpoint.read(key)
            np.testing.assert_array_equal(read, array)
            assert read.dtype == array.dtype.newbyteorder("=")
            assert (checkpoint.entries[key].shape, checkpoint.entries[key].dtype) == (array.shape, array.dtype.name)
            assert not read.flags.writeable


def test_numpy_reads_what_is_written_and_bytes_do_not_depend_on_the_clock(tmp_path: Path) -> None:
    values = arrays()
    write_npz(tmp_path / "a.npz", values.items())
    write_npz(tmp_path / "b.npz", values.items())
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with np.load(tmp_path / "a.npz", allow_pickle=False) as truth:
        assert truth.files == list(values)
        assert all(np.array_equal(truth[name], array) for name, array in values.items())


def test_real_npz_of_others(fixtures: Path) -> None:
    path = fixtures / "fixtures/npz-g2p-en/checkpoint20.npz"
    checkpoint = open_checkpoint(path)
    with np.load(path, allow_pickle=False) as truth:
        assert all(np.array_equal(checkpoint.read(name), truth[name]) for name in truth.files)


@pytest.mark.parametrize("array", [np.array([{}, None], object), np.array(["text"]), np.zeros(2, [("x", "f4")])])
def test_members_that_are_not_numbers_are_named(tmp_path: Path, array: Array) -> None:
    np.savez(tmp_path / "x.npz", good=np.ones(2), bad=array)
    with pytest.raises(FormatError, match="'bad'"):
        open_checkpoint(tmp_path / "x.npz")
    if array.dtype != object:
        with pytest.raises(FormatError, match="'bad'"):
            write_npz(tmp_path / "y.npz", [("bad", array)])


def member(header: str, data: bytes = b"") -> bytes:
    text = header.encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not numpy",
        member("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }"),
        member("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }"),
        member("{'descr': '<f4', 'fortran_order': False, 'shape': (0, 4611686018427387904), }"),
        member("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", b"1234"),
        member("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }", b"12345"),
        member("{'descr': '<f4', "),
        member("(" * 5000),
    ],
)
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damaged_members(tmp_path: Path, content: bytes, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w", method) as archive:
        archive.writestr("a.npy", content)
    with pytest.raises(CorruptCheckpoint, match="'a'"):
        open_checkpoint(tmp_path / "x.npz")


def test_duplicate_names_and_other_compressions(tmp_path: Path) -> None:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.ones(2))
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("a.npy", stream.getvalue())
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a.npy", stream.getvalue())
    with pytest.raises(CorruptCheckpoint, match="several"):
        open_checkpoint(tmp_path / "x.npz")
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.npy", stream.getvalue())
    with pytest.raises(FormatError, match="'a'"):
        open_checkpoint(tmp_path / "x.npz")


def test_declared_size_beyond_what_deflate_can_do(tmp_path: Path) -> None:
    size = 2**31
    header = member(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({size},), }}")
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", header)
        archive.filelist[0].file_size = size + len(header)
    with pytest.raises(CorruptCheckpoint):
        open_checkpoint(tmp_path / "x.npz")


@pytest.mark.parametrize("compressed", [False, True])
def test_mutations_are_refused_or_change_nothing(tmp_path: Path, compressed: bool) -> None:
    values = {"a": np.arange(6, dtype="f4").reshape(2, 3), "b": np.arange(5, dtype="i2")}
    (np.savez_compressed if compressed else np.savez)(tmp_path / "whole.npz", **values)  # type: ignore[operator]
    data = (tmp_path / "whole.npz").read_bytes()
    same = 0
    for seed in range(200):
        chance = random.Random(seed)
        changed = bytearray(data[: chance.randrange(len(data))] if chance.random() < 0.2 else data)
        for _ in range(chance.choice([1, 1, 3]) if changed else 0):
            changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
        path = tmp_path / "mutated.npz"
        path.write_bytes(changed)
        try:
            checkpoint = open_checkpoint(path)
            read = [checkpoint.read(name) for name in checkpoint.entries]
        except WarmstartError:
            continue
        same += 1
        for array, truth in zip(read, values.values(), strict=True):
            assert array.dtype == truth.dtype
            np.testing.assert_array_equal(array, truth)
    assert same < 150


def stored(array: Array) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array)
    return stream.getvalue()


def test_members_written_to_a_pipe(tmp_path: Path) -> None:
    """There sizes and checksums stand behind the data: data descriptors."""
    program = (
        "import sys, zipfile, numpy as np\n"
        "class Pipe:\n"
        "    write, flush = sys.stdout.buffer.write, sys.stdout.buffer.flush\n"
        "with zipfile.ZipFile(Pipe(), 'w', int(sys.argv[1])) as archive:\n"
        "    with archive.open('a.npy', 'w') as member:\n"
        "        np.lib.format.write_array(member, np.arange(1000, dtype='f4'))\n"
    )
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with (tmp_path / "x.npz").open("wb") as file:
            subprocess.run([sys.executable, "-c", program, str(method)], check=True, stdout=file)
        with zipfile.ZipFile(tmp_path / "x.npz") as archive:
            assert archive.infolist()[0].flag_bits & 8
        np.testing.assert_array_equal(open_checkpoint(tmp_path).read("a"), np.arange(1000))


def test_comments_and_extra_fields(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        for name in ("a", "b"):
            info = zipfile.ZipInfo(f"{name}.npy")
            info.extra, info.comment = struct.pack("<HH4s", 0xCAFE, 4, b"more"), b"of a member"
            archive.writestr(info, stored(np.ones(2)))
        archive.comment = b"of the archive"
    checkpoint = open_checkpoint(tmp_path)
    assert [float(checkpoint.read(name).sum()) for name in checkpoint.entries] == [2, 2]


def test_encrypted_members_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("a.npy", stored(np.ones(2)))
        archive.filelist[0].flag_bits |= 1
    with pytest.raises(FormatError, match="encrypted"):
        open_checkpoint(tmp_path / "x.npz")


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    """Zeros deflate by 1,000; nothing deflates by more, and what unpacks to more than was said is damaged."""
    array = np.zeros(3_000_000, "u1")
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", stored(array))
    np.testing.assert_array_equal(open_checkpoint(tmp_path).read("a"), array)
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", stored(array[:10])[:-10] + array.tobytes())
        archive.filelist[0].file_size = len(stored(array[:10]))
    with pytest.raises(CorruptCheckpoint):
        open_checkpoint(tmp_path).read("a")


def test_a_directory_with_one_npz_opens(tmp_path: Path) -> None:
    np.savez(tmp_path / "weights.npz", a=np.ones(2))
    np.savez(tmp_path / "weights.npz.optimizer.npz", a=np.ones(2))
    np.save(tmp_path / "data.npy", np.ones(2))
    assert open_checkpoint(tmp_path).path == tmp_path / "weights.npz"
    np.savez(tmp_path / "other.npz", a=np.ones(2))
    with pytest.raises(FormatError, match=r"other\.npz, weights\.npz"):
        open_checkpoint(tmp_path)
    (tmp_path / "model").mkdir()
    np.savez(tmp_path / "model/data.npz", a=np.ones(2))
    write_safetensors(tmp_path / "model/model.safetensors", [Entry("a", (2,), "float32")], [np.ones(2, "f4")])
    assert open_checkpoint(tmp_path / "model").format == "safetensors"


def test_reading_takes_bytes_into_memory_wherever_they_lie_and_raw_leaves_large_ones(tmp_path, monkeypatch) -> None:
    """What the length of a name decides decides nothing: a view would be gone through again after its checksum."""
    arrays = {"a" * length: np.arange(100, dtype="f4") for length in range(1, 9)}
    np.savez(tmp_path / "m.npz", **arrays)  # type: ignore[arg-type]
    checkpoint = open_checkpoint(tmp_path / "m.npz")
    assert not any(is_mapped(checkpoint.raw(name)) for name in arrays)
    monkeypatch.setattr(npz, "_COPIED", 399)
    assert {checkpoint.raw(name).ctypes.data % 4 for name in arrays} == {0, 1, 2, 3}
    for name, array in arrays.items():
        assert np.array_equal(checkpoint.read(name), array)
        assert not is_mapped(checkpoint.read(name))
        assert is_mapped(checkpoint.raw(name))
