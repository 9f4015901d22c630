"""Marian's own files."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from warmstart.errors import CorruptCheckpoint, FormatError
from warmstart.formats.detect import open_checkpoint
from warmstart.formats.marian import MarianCheckpoint, write_marian


def opened(path: Path) -> MarianCheckpoint:
    checkpoint = open_checkpoint(path)
    assert isinstance(checkpoint, MarianCheckpoint)
    return checkpoint


@pytest.mark.parametrize(("name", "count"), [("marian-en-ru-names", 88), ("marian-ar-en-translit", 87)])
def test_arrays_and_options(fixtures: Path, name: str, count: int) -> None:
    checkpoint = opened(fixtures / "fixtures" / name)
    with np.load(fixtures / "fixtures" / name / "model.npz", allow_pickle=False) as truth:
        assert [*checkpoint.entries, "special:model.yml"] == truth.files
        assert len(checkpoint.entries) == count
        for array in checkpoint.entries:
            read = checkpoint.read(array)
            np.testing.assert_array_equal(read, truth[array])
            assert (read.dtype.name, read.shape) == (checkpoint.entries[array].dtype, checkpoint.entries[array].shape)
            assert not read.flags.writeable
    assert checkpoint.metadata["config"]["type"] == "transformer"
    assert checkpoint.metadata["config"]["dim-emb"] == 96


def test_sidecars(fixtures: Path) -> None:
    checkpoint = opened(fixtures / "fixtures/marian-en-ru-names")
    assert checkpoint.step == 2500
    assert checkpoint.metadata["progress"]["epochs"] == 6
    assert not any(key.startswith("seed-") for key in checkpoint.metadata["progress"])
    assert checkpoint.metadata["decoder"]["normalize"] == 0.6
    assert checkpoint.metadata["options"]["mini-batch"] == 128
    suffixes = ["", ".decoder.yml", ".optimizer.npz", ".progress.yml", ".yml"]
    assert sorted(map(str, checkpoint.files)) == ["model.npz" + suffix for suffix in suffixes]
    np.testing.assert_allclose(checkpoint.optimizer["adam_denoms"], [1, 1], rtol=1e-12)


def test_flat_layout_is_that_of_the_weights(fixtures: Path) -> None:
    checkpoint = opened(fixtures / "fixtures/marian-en-ru-names")
    with np.load(fixtures / "fixtures/marian-en-ru-names/model.npz.optimizer.npz", allow_pickle=False) as truth:
        total = float(truth["adam_vt"].sum(dtype=np.float64))
    assert len(checkpoint.slots) == 2 * 88
    for name in checkpoint.entries:
        np.testing.assert_array_equal(checkpoint.read_flat("master_parameters", name), checkpoint.read(name))
        assert checkpoint.slots[name, "m"].shape == checkpoint.read_slot(name, "m").shape
        assert (checkpoint.read_slot(name, "v") >= 0).all()
    sums = sum(float(checkpoint.read_slot(name, "v").sum(dtype=np.float64)) for name in checkpoint.entries)
    assert sums == pytest.approx(total, rel=1e-9)  # padding holds nothing
    with pytest.raises(KeyError):
        checkpoint.read_slot("decoder_Wemb", "master_parameters")


def test_best_model_has_no_state_of_another(fixtures: Path) -> None:
    checkpoint = opened(fixtures / "fixtures/marian-en-ru-names/model.npz.best-ce-mean-words.npz")
    assert (checkpoint.slots, checkpoint.step, checkpoint.optimizer) == ({}, None, {})
    assert "progress" not in checkpoint.metadata


def test_foreign_optimizer_state(fixtures: Path, tmp_path: Path) -> None:
    shutil.copyfile(fixtures / "fixtures/marian-ar-en-translit/model.npz", tmp_path / "model.npz")
    state = fixtures / "fixtures/marian-en-ru-names/model.npz.optimizer.npz"
    shutil.copyfile(state, tmp_path / "model.npz.optimizer.npz")
    with pytest.raises(CorruptCheckpoint, match="539776"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("text", ["[1, 2]", "batches: many", "a: [", "\udcff"])
def test_unreadable_progress(fixtures: Path, tmp_path: Path, text: str) -> None:
    shutil.copyfile(fixtures / "fixtures/marian-ar-en-translit/model.npz", tmp_path / "model.npz")
    (tmp_path / "model.npz.progress.yml").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(CorruptCheckpoint, match="progress"):
        open_checkpoint(tmp_path)


def test_truncated_model_in_a_directory(fixtures: Path, tmp_path: Path) -> None:
    data = (fixtures / "fixtures/marian-ar-en-translit/model.npz").read_bytes()
    for length in (100, 5000, len(data) // 2, len(data) - 1):
        (tmp_path / "model.npz").write_bytes(data[:length])
        with pytest.raises(CorruptCheckpoint):
            open_checkpoint(tmp_path)


def test_several_models_in_one_directory(fixtures: Path, tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz"):
        shutil.copyfile(fixtures / "fixtures/marian-ar-en-translit/model.npz", tmp_path / name)
    with pytest.raises(FormatError, match=r"a\.npz, b\.npz"):
        open_checkpoint(tmp_path)
    (tmp_path / "b.npz").rename(tmp_path / "b.npz.optimizer.npz")
    assert open_checkpoint(tmp_path).path == tmp_path / "a.npz"


def test_without_options(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", encoder_l1_self_Wq=np.ones((2, 2), "f4"), Wemb=np.ones((3, 2), "f4"))
    checkpoint = open_checkpoint(tmp_path / "x.npz")
    assert checkpoint.format == "marian"
    assert "config" not in checkpoint.metadata


def test_round_trip(fixtures: Path, tmp_path: Path) -> None:
    source = opened(fixtures / "fixtures/marian-en-ru-names")
    text = yaml.safe_dump(source.metadata["config"])
    write_marian(tmp_path / "model.npz", text, ((name, source.read(name)) for name in source.entries))
    again = opened(tmp_path)
    assert again.metadata["config"] == source.metadata["config"]
    with (
        np.load(tmp_path / "model.npz", allow_pickle=False) as written,
        np.load(source.path, allow_pickle=False) as truth,
    ):
        assert written.files == truth.files
        for name in source.entries:
            assert written[name].dtype == truth[name].dtype
            np.testing.assert_array_equal(written[name], truth[name])
            np.testing.assert_array_equal(again.read(name), truth[name])
        assert written["special:model.yml"].dtype == np.int8
        assert written["special:model.yml"].tobytes() == text.encode() + b"\0"


def test_writer_refuses_what_marian_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="reserved"):
        write_marian(tmp_path / "m.npz", "", [("special:x", np.ones(1, "f4"))])
    with pytest.raises(FormatError, match="int64"):
        write_marian(tmp_path / "m.npz", "", [("x", np.ones(1, "i8"))])
    assert list(tmp_path.iterdir()) == []


def test_opening_imports_no_torch(fixtures: Path) -> None:
    program = (
        "import sys\nfrom warmstart.formats.detect import open_checkpoint\n"
        "c = open_checkpoint(sys.argv[1])\nprint(len(c.entries), 'torch' in sys.modules, 'rich' in sys.modules)"
    )
    command = [sys.executable, "-c", program, str(fixtures / "fixtures/marian-en-ru-names")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "88 False False\n"
