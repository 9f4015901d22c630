"""Archives: what is inside opens, and nothing leaves its place."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zstandard

import hostile
from warmstart.errors import CorruptCheckpoint, FormatError, UnknownFormat
from warmstart.formats.archives import recognise
from warmstart.formats.detect import open_checkpoint
from warmstart.formats.npz import write_npz
from warmstart.formats.unpacking import unpack

ARRAYS = {"encoder_l1_self_Wq": np.arange(6, dtype="f4").reshape(2, 3)}


def model(directory: Path) -> Path:
    write_npz(directory / "model.npz", ARRAYS.items())
    (directory / "README.md").write_text("a model")
    return directory / "model.npz"


def zipped(path: Path, files: dict[str, bytes], kind: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def tarred(path: Path, files: dict[str, bytes], inside: str = "") -> Path:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        if inside == "./":
            here = tarfile.TarInfo("./")
            here.type = tarfile.DIRTYPE
            archive.addfile(here)
        for name, data in files.items():
            info = tarfile.TarInfo(inside + name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    path.write_bytes(stream.getvalue())
    return path


WRITERS: dict[str, Callable[[Path, dict[str, bytes]], Path]] = {
    "zip": zipped,
    "stored zip": lambda path, files: zipped(path, files, zipfile.ZIP_STORED),
    "zip of a directory": lambda path, files: zipped(path, {f"opus/{name}": data for name, data in files.items()}),
    "tar": tarred,
    "tar of a directory": lambda path, files: tarred(path, files, "opus/"),
    "tar of where one stands": lambda path, files: tarred(path, files, "./"),
    "tar.gz": lambda path, files: _compressed(tarred(path, files), gzip.compress),
    "tar.zst": lambda path, files: _compressed(tarred(path, files), zstandard.compress),
    "npz.gz": lambda path, files: _compressed(_bare(path, files), gzip.compress),
    "npz.zst": lambda path, files: _compressed(_bare(path, files), zstandard.compress),
}


def _bare(path: Path, files: dict[str, bytes]) -> Path:
    path.write_bytes(files["model.npz"])
    return path


def _compressed(path: Path, compress: Callable[[bytes], bytes]) -> Path:
    path.write_bytes(compress(path.read_bytes()))
    return path


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    (tmp_path / "made").mkdir()
    path = model(tmp_path / "made")
    return {"model.npz": path.read_bytes(), "README.md": b"a model"}


@pytest.mark.parametrize("kind", WRITERS)
def test_what_is_inside_opens(tmp_path: Path, files: dict[str, bytes], kind: str) -> None:
    path = WRITERS[kind](tmp_path / "model.anything", files)
    checkpoint = open_checkpoint(path)
    assert checkpoint.format == "marian"
    assert np.array_equal(checkpoint.read("encoder_l1_self_Wq"), ARRAYS["encoder_l1_self_Wq"])
    before = checkpoint.path.stat().st_mtime_ns
    assert open_checkpoint(path).path.stat().st_mtime_ns == before  # unpacked once
    assert not list(unpack(path).parent.glob("*tmp*"))


def test_a_changed_archive_is_unpacked_again(tmp_path: Path, files: dict[str, bytes]) -> None:
    path = zipped(tmp_path / "a.zip", files)
    first = unpack(path)
    zipped(path, {**files, "more.txt": b"x"})
    assert unpack(path) != first


def test_choosing_inside_an_archive(tmp_path: Path, files: dict[str, bytes]) -> None:
    path = zipped(tmp_path / "a.zip", {"one.npz": files["model.npz"], "two.npz": files["model.npz"]})
    with pytest.raises(FormatError, match=r"a\.zip@one\.npz or .*a\.zip@two\.npz"):
        open_checkpoint(path)
    assert open_checkpoint(f"{path}@two.npz").path.name == "two.npz"


def test_two_processes_unpack_at_once(tmp_path: Path, files: dict[str, bytes]) -> None:
    path = zipped(tmp_path / "a.zip", {**files, "large": os.urandom(5_000_000)}, zipfile.ZIP_STORED)
    program = "import sys; from warmstart.formats.detect import open_checkpoint; open_checkpoint(sys.argv[1])"
    several = [subprocess.Popen([sys.executable, "-c", program, str(path)]) for _ in range(4)]
    assert [process.wait() for process in several] == [0] * 4
    assert len(list(unpack(path).parent.iterdir())) >= 1


@pytest.mark.parametrize("name", ["../out", "a/../../out", "/tmp/out", "a\\..\\out", "C:/out", "./../out", ".."])
@pytest.mark.parametrize("write", [zipped, tarred])
def test_no_name_leads_outside(tmp_path: Path, name: str, write: Callable[..., Path]) -> None:
    path = write(tmp_path / "a", {"x": b"1", name: b"2"})
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(FormatError):
        open_checkpoint(path)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_special_files_in_a_tar(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        info = tarfile.TarInfo("link")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
        inner = tarfile.TarInfo("link/x")
        inner.size = 1
        archive.addfile(inner, io.BytesIO(b"x"))
    with pytest.raises(FormatError, match="a link or a special file"):
        open_checkpoint(tmp_path / "a.tar")


def test_a_link_in_a_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        info = zipfile.ZipInfo("link")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(FormatError, match="a link or a special file"):
        open_checkpoint(tmp_path / "a.zip")


def test_a_file_where_a_directory_should_be_and_a_name_twice(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="directory is a file"):
        open_checkpoint(tarred(tmp_path / "a", {"x": b"1", "x/y": b"2"}))
    with pytest.raises(FormatError, match="twice"):
        open_checkpoint(tarred(tmp_path / "b", {"x": b"1", "./x": b"2"}))


def bomb(size: int) -> bytes:
    return gzip.compress(gzip.compress(b"\0" * size, 9), 9)


def test_bombs(tmp_path: Path) -> None:
    zeros = b"\0" * 100_000_000
    (tmp_path / "a.gz").write_bytes(gzip.compress(zeros))
    (tmp_path / "a.zst").write_bytes(zstandard.compress(zeros))
    zipped(tmp_path / "a.zip", {"x": zeros, "y": b"1"})
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        info = tarfile.TarInfo("x")
        info.size = len(zeros)
        archive.addfile(info, io.BytesIO(zeros))
    (tmp_path / "a.tgz").write_bytes(stream.getvalue())
    for name in ("a.gz", "a.zst", "a.zip", "a.tgz"):
        with hostile.limits(5), pytest.raises(CorruptCheckpoint, match="beyond all measure"):
            open_checkpoint(tmp_path / name)


def test_a_header_that_lies_about_its_size(tmp_path: Path, files: dict[str, bytes]) -> None:
    path = tarred(tmp_path / "a.tar", {"x": b"1"})
    data = bytearray(path.read_bytes())
    data[124:136] = b"77777777777\0"
    data[148:156] = b"%06o\0 " % (sum(data[:148]) + 8 * 32 + sum(data[156:512]))
    path.write_bytes(data)
    with pytest.raises(CorruptCheckpoint):
        open_checkpoint(path)


def test_encrypted_members_are_named(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", {"x": b"1", "y": b"2"}, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    place = data.find(b"PK\x01\x02")
    data[place + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(FormatError, match="encrypted"):
        open_checkpoint(path)


def test_own_zips_of_others_are_no_archives(tmp_path: Path) -> None:
    zipped(tmp_path / "t.pt", {"t/data.pkl": b"x", "t/data/0": b"x"})
    zipped(tmp_path / "k.keras", {"config.json": b"{}", "model.weights.h5": b"x"})
    np.savez(tmp_path / "n.npz", a=np.ones(2))
    assert not any(map(recognise, tmp_path.iterdir()))


def test_an_archive_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(UnknownFormat, match=r"a\.zip") as caught:
        open_checkpoint(zipped(tmp_path / "a.zip", {"notes.txt": b"x", "more.txt": b"y"}))
    assert "more.txt" in str(caught.value.found)


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.zst"])
def test_damage(tmp_path: Path, files: dict[str, bytes], kind: str) -> None:
    (tmp_path / "whole").mkdir()
    path = WRITERS[kind](tmp_path / "whole" / "a", files)
    hostile.run(path, [path], tmp_path / "work", mutants=None if os.environ.get("WARMSTART_NIGHTLY") else 100)
