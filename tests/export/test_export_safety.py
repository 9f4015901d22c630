"""Whatever happens, the old output stays or the new one is complete; the source is never touched."""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from marian_models import OPTIONS, arrays, write
from warmstart import api, contains_model
from warmstart.errors import CorruptCheckpoint, SourceError, StorageError
from warmstart.export import run
from warmstart.storage import atomic

BIG = {**OPTIONS, "dim-emb": 128, "transformer-dim-ffn": 512, "enc-depth": 4, "dec-depth": 4}


@pytest.fixture
def folder(tmp_path) -> Path:
    return write(tmp_path / "marian", OPTIONS, arrays(OPTIONS))


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def test_an_output_that_contains_its_source_is_refused(folder, tmp_path):
    before = contents(tmp_path)
    for destination in (folder, tmp_path, folder / "model.npz"):
        with pytest.raises(SourceError, match="would replace its own source"):
            api.convert(folder, destination, "ctranslate2", force=True)
    link = tmp_path / "link"
    link.symlink_to(folder)
    with pytest.raises(SourceError, match="would replace its own source"):
        api.convert(folder, link, "ctranslate2", force=True)
    link.unlink()
    assert contents(tmp_path) == before
    api.convert(folder, folder / "ct2", "ctranslate2")  # below the source is beside it
    assert contains_model(folder / "ct2")
    assert not contains_model(folder)


def test_an_output_that_contains_anything_that_was_given_is_refused(folder, tmp_path):
    """An archive (which is read from the cache), vocabularies, lines to verify on."""
    there = tmp_path / "there"
    for name in ("vocab.src.yml", "vocab.trg.yml"):
        there.mkdir(exist_ok=True)
        shutil.copy(folder / name, there)
    (there / "lines.txt").write_text("a\n")
    archive = shutil.make_archive(str(there / "model"), "zip", folder)
    before = contents(tmp_path)
    vocabularies = [str(there / f"vocab.{side}.yml") for side in ("src", "trg")]
    for source, options in (
        (archive, {}),
        (f"file://{archive}", {}),
        (f"{archive}#sha256={sha256(Path(archive).read_bytes()).hexdigest()}", {}),
        (folder / "model.npz", {"vocabularies": vocabularies}),
        (folder, {"verify": True, "inputs": there / "lines.txt"}),
    ):
        with pytest.raises(SourceError, match="would replace its own source"):
            api.convert(source, there, "ctranslate2", force=True, **options)
    with pytest.raises(SourceError, match="would replace its own source"):
        api.convert(archive, archive, "ctranslate2", force=True)
    assert contents(tmp_path) == before


def test_links_and_files_to_copy_are_not_replaced_either(folder, tmp_path):
    """A directory of links, as snapshots of the Hub are; a copied file or map from the output itself."""
    links, there = tmp_path / "links", tmp_path / "there"
    links.mkdir()
    there.mkdir()
    for path in folder.iterdir():
        (links / path.name).symlink_to(path)
    (there / "vmap.txt").write_text("a\tb\n")
    (links / "vmap.txt").symlink_to(there / "vmap.txt")
    before = contents(tmp_path)
    for source, destination, options in (
        (links / "model.npz", links, {}),
        (folder, links, {"vmap": links / "vmap.txt"}),
        (folder, there, {"copy_files": ["../there/vmap.txt"]}),
    ):
        with pytest.raises(SourceError, match="would replace its own source"):
            api.convert(source, destination, "ctranslate2", force=True, **options)
    assert contents(tmp_path) == before


def test_the_users_directory_may_be_written_as_a_tilde(folder, tmp_path, monkeypatch):
    """Shells leave ``--output_dir=~/out`` as it is."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "map.txt").write_text("a\tb\n")
    api.convert(f"~/{folder.name}", "~/out", "ctranslate2", vmap="~/map.txt")
    assert contains_model(tmp_path / "out")
    assert not (tmp_path / "~").exists()


def test_an_existing_output(folder, tmp_path):
    api.convert(folder, tmp_path / "ct2", "ctranslate2")
    before = contents(tmp_path / "ct2")
    with pytest.raises(StorageError, match="exists already"):
        api.convert(folder, tmp_path / "ct2", "ctranslate2", quantize="int8")
    assert contents(tmp_path / "ct2") == before
    api.convert(folder, tmp_path / "ct2", "ctranslate2", quantize="int8", force=True)
    assert contents(tmp_path / "ct2") != before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ct2", "marian"]


@pytest.mark.parametrize("seed", range(12))
def test_a_full_disk_at_some_point(seed, folder, tmp_path, monkeypatch):
    api.convert(folder, tmp_path / "ct2", "ctranslate2")
    before = contents(tmp_path)
    budget = random.Random(seed).randrange(0, 130_000)
    opened = Path.open
    spent = 0

    class Full:
        def __init__(self, file) -> None:
            self._file = file

        def write(self, data) -> int:
            nonlocal spent
            spent += memoryview(data).nbytes if not isinstance(data, str) else len(data)
            if spent > budget:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self._file.write(data)

        def __enter__(self):
            return self

        def __exit__(self, *details) -> None:
            self._file.close()

        def __getattr__(self, name):
            return getattr(self._file, name)

    def full(path, mode="r", *args, **kwargs):
        file = opened(path, mode, *args, **kwargs)
        return Full(file) if "w" in mode or "x" in mode else file

    def put(handle, data, at, own=os.pwrite):
        nonlocal spent
        spent += memoryview(data).nbytes
        if spent > budget:
            raise OSError(errno.ENOSPC, "No space left on device")
        return own(handle, data, at)

    monkeypatch.setattr(Path, "open", full)
    monkeypatch.setattr(os, "pwrite", put)
    with pytest.raises(StorageError, match="No space left on device"):
        api.convert(folder, tmp_path / "ct2", "ctranslate2", quantize="int8", force=True)
    monkeypatch.undo()
    assert contents(tmp_path) == before


def command(folder, output):
    """A process of its own, which shares its work among processes."""
    return [sys.executable, "-m", "warmstart", "convert", folder, output, "--to", "ctranslate2", "--quantize", "int8"]


def test_processes_write_what_threads_write(tmp_path):
    folder = write(tmp_path / "marian", BIG, arrays(BIG))
    api.convert(folder, tmp_path / "threads", "ctranslate2", quantize="int8")
    subprocess.run(command(folder, tmp_path / "processes"), check=True, capture_output=True)
    assert contents(tmp_path / "processes") == contents(tmp_path / "threads")


@pytest.mark.parametrize("part", [0.0, 0.3, 0.6, 0.95])
def test_processes_on_a_full_disk(part, tmp_path):
    folder = write(tmp_path / "marian", BIG, arrays(BIG))
    api.convert(folder, tmp_path / "ct2", "ctranslate2", quantize="int8")
    before = contents(tmp_path)
    room = int(part * len(before["ct2/model.bin"]))
    result = subprocess.run(
        [*command(folder, tmp_path / "ct2"), "--force"], check=False, capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room)),
    )  # fmt: skip
    assert (result.returncode, "Traceback" in result.stderr) == (1, False), result.stderr
    assert "File too large" in result.stderr
    assert contents(tmp_path) == before


def test_processes_name_the_array_that_cannot_be_stored(tmp_path):
    values = arrays(BIG)
    for name in ("encoder_l2_ffn_W1", "decoder_l3_self_Wq"):
        values[name] = values[name].copy()
        values[name][3, 5] = np.nan
    folder = write(tmp_path / "marian", BIG, values)
    said = set()
    for _ in range(4):
        result = subprocess.run(command(folder, tmp_path / "ct2"), check=False, capture_output=True, text=True)
        assert (result.returncode, "Traceback" in result.stderr) == (1, False), result.stderr
        assert [file.name for file in tmp_path.iterdir()] == ["marian"]
        said.add(result.stderr.partition("error: ")[2])
    (text,) = said
    assert "encoder/layer_1/ffn/linear_0/weight" in text
    assert "NaN" in text


CLAIM = "from warmstart.storage import crew; crew.claim(); "


@pytest.mark.parametrize("first", ["", CLAIM], ids=["threads", "processes"])
def test_killed_at_some_point(first, tmp_path):
    folder = write(tmp_path / "marian", BIG, arrays(BIG))
    api.convert(folder, tmp_path / "ct2", "ctranslate2")
    before = contents(tmp_path / "ct2")
    api.convert(folder, tmp_path / "whole", "ctranslate2", quantize="int8")
    after = contents(tmp_path / "whole")
    code = (
        "import sys; from warmstart import api; "
        + first
        + "print('on', flush=True); "
        + ("api.convert(sys.argv[1], sys.argv[2], 'ctranslate2', quantize='int8', force=True)")
    )
    rng, killed = random.Random(0), 0
    for _ in range(6):
        command = [sys.executable, "-c", code, str(folder), str(tmp_path / "ct2")]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(rng.uniform(0.1, 0.6))
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        process.stdout.close()
        found = contents(tmp_path / "ct2")
        assert found in (before, after)
        visible = {p.name for p in tmp_path.iterdir() if not p.name.startswith(".")}
        assert visible == {"marian", "ct2", "whole"}
    assert killed


def test_the_moment_of_replacement(folder, tmp_path, monkeypatch):
    api.convert(folder, tmp_path / "ct2", "ctranslate2")
    before = contents(tmp_path / "ct2")
    monkeypatch.setattr(atomic, "_sync_tree", lambda _: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(StorageError, match="Input/output error"):
        api.convert(folder, tmp_path / "ct2", "ctranslate2", quantize="int8", force=True)
    assert contents(tmp_path / "ct2") == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ct2", "marian"]


@pytest.mark.parametrize("quantize", [None, "int8", "int16", "float16", "int8_bfloat16"])
def test_however_the_work_is_parted(quantize, tmp_path, monkeypatch):
    """Arrays in parts across those that they are joined of, small ones alone or together, blocks of a few rows."""
    folder = write(tmp_path / "marian", OPTIONS, arrays(OPTIONS))
    api.convert(folder, tmp_path / "whole", "ctranslate2", quantize=quantize)
    for number, (block, large, small) in enumerate([(40, 100, 10), (7, 333, 10_000), (2**18, 50, 1)]):
        monkeypatch.setattr(run, "_BLOCK", block)
        monkeypatch.setattr(run, "_LARGE", large)
        monkeypatch.setattr(run, "_SMALL", small)
        api.convert(folder, tmp_path / str(number), "ctranslate2", quantize=quantize)
        assert contents(tmp_path / str(number)) == contents(tmp_path / "whole")


def test_a_damaged_array_is_found_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "_LARGE", 100)
    folder = write(tmp_path / "marian", OPTIONS, arrays(OPTIONS))
    data = bytearray((folder / "model.npz").read_bytes())
    place = data.index(arrays(OPTIONS)["encoder_l1_self_Wk"].tobytes())
    data[place + 5] ^= 1
    (folder / "model.npz").write_bytes(data)
    with pytest.raises(CorruptCheckpoint, match="encoder_l1_self_Wk"):
        api.convert(folder, tmp_path / "ct2", "ctranslate2", quantize="int8")
    assert [file.name for file in tmp_path.iterdir()] == ["marian"]


def test_a_command_that_fails_before_its_source_leaves_no_process(tmp_path):
    folder = write(tmp_path / "marian", BIG, arrays(BIG))
    code = (
        "import os, sys; from warmstart.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: print('status', stop.code)\n"
        "try: os.waitpid(-1, 0)\n"
        "except ChildProcessError: print('alone')\n"
    )
    for words in (["ct2-opus-mt-converter", "--model_dir", folder], ["convert", folder, "--nonsense"]):
        result = subprocess.run([sys.executable, "-c", code, *words], check=False, capture_output=True, text=True)
        assert result.stdout.split() == ["status", "2", "alone"], result.stderr
