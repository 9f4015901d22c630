"""What is not a checkpoint is named for what it is."""

from __future__ import annotations

import gzip
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from warmstart.errors import CorruptCheckpoint, FormatError, SourceError, UnknownFormat, WarmstartError
from warmstart.formats.checkpoint import Entry
from warmstart.formats.detect import find_candidates, formats, open_checkpoint, possible, split_choice
from warmstart.formats.looks import describe
from warmstart.formats.safetensors import write_safetensors


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n", "git-lfs pointer"),
        (b"\n<!DOCTYPE html><html><body>404</body></html>", "HTML page"),
        (pickle.dumps({"a": 1}), "pickle"),
        (gzip.compress(b"GGUF", mtime=0), "GGUF"),
        (b"GGUF\x03\0\0\0", "GGUF"),
        (b"\x1c\0\0\0TFL3" + b"\0" * 20, "TensorFlow Lite"),
        (b"mmap lm http://kheafield.com/code format version 5\n" + b"\0" * 20, "language model"),
        (b"\n\\data\\\nngram 1=37\n", "language model"),
        (b"\x08\x08\x12\x07pytorch" + b"\0" * 40, "ONNX"),
        (b'{"vocab": ["a"]}', "JSON"),
        ("слова и слова\n".encode() * 1000, "text"),
        (b"PK\x03\x04" + b"\0" * 40, "damaged or truncated zip"),
        (b"\xff\xfe\0\x01" * 9, "binary data"),
    ],
)
def test_what_is_no_checkpoint_is_described(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "model.npz"
    path.write_bytes(content)
    assert words in describe(path)[0] or content.startswith(b"\x1f\x8b")
    with pytest.raises(UnknownFormat) as caught:
        open_checkpoint(path)
    assert words in str(caught.value.found)
    assert "safetensors, marian, npz" in str(caught.value.expected)
    assert caught.value.todo


GOLDEN = Path(__file__).resolve().parent.parent / "golden"


def test_formats_that_are_not_asked_would_say_no() -> None:
    """How a file begins, and whether there is one, rules formats out; the answer is that of asking all."""
    paths = [path for path in GOLDEN.rglob("*") if path.suffix not in (".py", ".md")]
    paths += [path.with_suffix("") for path in paths if path.suffix == ".index"]  # as TensorFlow calls a checkpoint
    found: set[str] = set()
    for path in paths:
        mine = [module.FORMAT for module in formats() if module.recognise(path)]
        assert [module.FORMAT for module in formats(possible(path)) if module.recognise(path)] == mine, path
        found.update(mine)
    assert {"keras", "marian", "npz", "orbax", "t5x", "tensorflow", "ctranslate2"} <= found


@pytest.mark.parametrize("name", ["model.npz", "model.safetensors"])
def test_listing_what_is_in_a_file_imports_no_numpy(tmp_path: Path, name: str) -> None:
    if name.endswith(".npz"):
        np.savez(tmp_path / name, a=np.ones((2, 3), "f2"))
    else:
        write_safetensors(tmp_path / name, [Entry("a", (2, 3), "float16")], [np.ones((2, 3), "f2")])
    code = (
        "import sys; from warmstart.formats.detect import open_checkpoint\n"
        "entry = open_checkpoint(sys.argv[1]).entries['a']\n"
        "print(entry.shape, entry.dtype, entry.nbytes, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / name], capture_output=True, text=True, check=True)
    assert done.stdout == "(2, 3) float16 12 False\n"


def test_listing_a_tree_of_orbax_imports_no_numpy() -> None:
    """A child has it, which reads the step, too; two of it take more memory than all the rest."""
    pytest.importorskip("tensorstore")
    code = (
        "import sys; from warmstart.formats.detect import open_checkpoint\n"
        "checkpoint = open_checkpoint(sys.argv[1])\n"
        "print(checkpoint.step, 'params/encoder/stacked' in checkpoint.entries, 'numpy' in sys.modules)"
    )
    path = GOLDEN / "orbax" / "ocdbt"
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert done.stdout == "7 True False\n"


def test_renamed_archives(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "torch.npz")
    assert open_checkpoint(tmp_path / "torch.npz").format == "torch"
    with zipfile.ZipFile(tmp_path / "zip.safetensors", "w") as archive:
        archive.writestr("notes.txt", "x")
        archive.writestr("more.txt", "x")
    with pytest.raises(UnknownFormat, match=r"notes\.txt"):
        open_checkpoint(tmp_path / "zip.safetensors")


def test_content_decides_not_the_name(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.npz.bin", [Entry("a", (2,), "float32")], [np.ones(2, "f4")], {})
    assert open_checkpoint(str(tmp_path / "model.npz.bin")).format == "safetensors"


def test_directories(tmp_path: Path) -> None:
    with pytest.raises(UnknownFormat, match="empty directory"):
        open_checkpoint(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UnknownFormat, match=r"notes\.txt"):
        open_checkpoint(tmp_path)
    for name in ("a.safetensors", "b.safetensors"):
        write_safetensors(tmp_path / name, [Entry("x", (2,), "float32")], [np.ones(2, "f4")], {})
    with pytest.raises(FormatError, match=r"a\.safetensors, b\.safetensors"):
        open_checkpoint(tmp_path)
    (tmp_path / "b.safetensors").unlink()
    assert open_checkpoint(tmp_path).files == (Path("a.safetensors"),)


def test_choosing_one_of_a_directory(tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        write_safetensors(tmp_path / name, [Entry(name[0], (2,), "float32")], [np.ones(2, "f4")], {})
    assert list(open_checkpoint(f"{tmp_path}@b.safetensors").entries) == ["b"]
    assert list(open_checkpoint(Path(f"{tmp_path}/@a.safetensors")).entries) == ["a"]
    with pytest.raises(FormatError, match=r"no checkpoint here is called 'c'(?s:.*)a\.safetensors, b\.safetensors"):
        open_checkpoint(f"{tmp_path}@c")
    with pytest.raises(FormatError, match="not a directory to choose from"):
        open_checkpoint(f"{tmp_path}/a.safetensors@best")
    (tmp_path / "a@b").mkdir()
    (tmp_path / "a.safetensors").rename(tmp_path / "a@b" / "a.safetensors")
    assert list(open_checkpoint(tmp_path / "a@b").entries) == ["a"]  # what exists is a path


@pytest.mark.parametrize("name", ["a" * 300, "a" * 300 + "@best", "~nobody-of-this-name/x", "a\0b", "", "a" * 5000])
def test_what_cannot_be_a_path(name: str) -> None:
    with pytest.raises(SourceError):
        open_checkpoint(name)


def test_checkpoints_below_a_directory_are_pointed_at(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_safetensors(tmp_path / name / "m.safetensors", [Entry("a", (2,), "float32")], [np.ones(2, "f4")], {})
    (tmp_path / "other").mkdir()
    with pytest.raises(UnknownFormat, match=r"below it: one/, two/$"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("source", "place", "choice"),
    [
        ("hf:owner/name@main", "hf:owner/name@main", None),
        ("hf:owner/name@main/@best", "hf:owner/name@main", "best"),
        ("hf:owner/name/@best", "hf:owner/name", "best"),
        ("https://user@host/model", "https://user@host/model", None),
        ("https://host/models@last", "https://host/models", "last"),
        ("models@", "models@", None),
        ("@best", "@best", None),
    ],
)
def test_what_the_at_sign_belongs_to(source: str, place: str, choice: str | None) -> None:
    assert split_choice(source) == (place, choice)


def test_directory_whose_model_is_a_pointer(tmp_path: Path) -> None:
    (tmp_path / "model.npz").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UnknownFormat, match="git lfs pull"):
        open_checkpoint(tmp_path)


def test_missing_file_and_special_file(tmp_path: Path) -> None:
    (tmp_path / "model.npz").write_bytes(b"x")
    with pytest.raises(SourceError, match=r"did you mean .*model\.npz"):
        open_checkpoint(tmp_path / "modle.npz")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UnknownFormat):
        open_checkpoint(tmp_path / "pipe")


def test_random_bytes_never_leak_another_error(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    heads = [b"", b"PK\x03\x04", b'\x10\0\0\0\0\0\0\0{"', b"\x80\x02", b"\x1f\x8b", b"\x93NUMPY", b"PK\x05\x06"]
    for number in range(140):
        (tmp_path / "x").write_bytes(heads[number % len(heads)] + chance.bytes(int(chance.integers(0, 400))))
        with pytest.raises(WarmstartError):
            open_checkpoint(tmp_path / "x")


def test_a_large_file_is_opened_by_its_header(tmp_path: Path) -> None:
    """A sparse gigabyte: reading it would cost its size in memory."""
    length = 2**28
    header = b'{"a":{"dtype":"F32","shape":[%d],"data_offsets":[0,%d]}}' % (length, 4 * length)
    with (tmp_path / "x").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 4 * length)
    program = (
        "import pathlib, sys\nfrom warmstart.formats.detect import open_checkpoint\n"
        "print(open_checkpoint(sys.argv[1]).entries['a'].nbytes, 'torch' in sys.modules)\n"
        "status = pathlib.Path('/proc/self/status').read_text().splitlines()\n"
        "print(next(line.split()[1] for line in status if line.startswith('VmHWM')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "x")], capture_output=True, text=True, check=True
    )
    nbytes, torch_imported, kilobytes = done.stdout.split()
    assert (int(nbytes), torch_imported) == (4 * length, "False")
    assert int(kilobytes) < 80_000


def test_truncated_is_corrupt_not_unknown(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "x", [Entry("a", (50,), "float32")], [np.ones(50, "f4")], {})
    data = (tmp_path / "x").read_bytes()
    for length in (20, len(data) - 1):
        (tmp_path / "x").write_bytes(data[:length])
        with pytest.raises(CorruptCheckpoint):
            open_checkpoint(tmp_path / "x")


def test_a_directory_of_usual_names_is_told_by_few_formats(tmp_path: Path) -> None:
    np.savez(tmp_path / "model.npz", Wemb=np.ones((2, 3), "f4"))
    (tmp_path / "vocab.yml").write_text("a: 0\n")
    code = (
        "import sys; from warmstart.formats.detect import open_checkpoint\n"
        "print(open_checkpoint(sys.argv[1]).path.name, 'warmstart.formats.tensorflow' in sys.modules)\n"
    )

    def run() -> str:
        command = [sys.executable, "-c", code, str(tmp_path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert run() == "model.npz False\n"
    (tmp_path / "checkpoints").mkdir()
    assert run() == "model.npz True\n"


def test_a_checkpoint_under_an_odd_name_is_found_in_a_directory(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "model.txt")
    assert [candidate.name for candidate in find_candidates(tmp_path)] == ["model.txt"]
