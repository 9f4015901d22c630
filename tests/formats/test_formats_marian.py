"""Marian's own files."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pytest
import yaml
from contract import FormatContract
from test_formats_npz import sparse_npz

from warmstart.errors import CorruptCheckpoint, FormatError
from warmstart.formats.checkpoint import Array
from warmstart.formats.detect import find_candidates, open_checkpoint
from warmstart.formats.marian import MarianCheckpoint, write_marian


class TestContract(FormatContract):
    FORMAT = "marian"
    DTYPES = ("float32",)
    NAMES = ("encoder_l1_self_Wq", "decoder_ff_logit_out_W", "имя", "with space")

    def write(self, directory: Path, arrays: Mapping[str, Array]) -> Path:
        write_marian(directory / "model.npz", "type: transformer\ndim-emb: 5\n", arrays.items())
        return directory

    def sparse(self, directory: Path) -> Path:
        return sparse_npz(directory / "model.npz", "encoder_l1_self_Wq")


class TestDamagedTraining(TestContract):
    """With everything that lies beside a model."""

    def write(self, directory: Path, arrays: Mapping[str, Array]) -> Path:
        write_marian(directory / "model.npz", "type: transformer\n", arrays.items())
        flat = np.ones((1, sum(-(-array.size // 64) * 64 for array in arrays.values())), "f4")
        np.savez_compressed(directory / "model.npz.optimizer.npz", adam_mt=flat, adam_vt=flat, adam_denoms=np.ones(2))
        (directory / "model.npz.progress.yml").write_text("epochs: 3\nbatches: 2500\nseed-batch: 1 2 3\n")
        (directory / "model.npz.yml").write_text("after-epochs: 10\nvocabs:\n  - vocab.yml\n")
        (directory / "model.npz.decoder.yml").write_text("normalize: 0.6\n")
        return directory


def opened(path: Path | str) -> MarianCheckpoint:
    checkpoint = open_checkpoint(path)
    assert isinstance(checkpoint, MarianCheckpoint)
    return checkpoint


@pytest.mark.parametrize(("name", "count"), [("marian-en-ru-names", 88), ("marian-ar-en-translit", 87)])
def test_arrays_and_options(fixtures: Path, name: str, count: int) -> None:
    checkpoint = opened(fixtures / "fixtures" / f"{name}@last")
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
    checkpoint = opened(fixtures / "fixtures/marian-en-ru-names@last")
    assert checkpoint.step == 2500
    assert checkpoint.metadata["progress"]["epochs"] == 6
    assert not any(key.startswith("seed-") for key in checkpoint.metadata["progress"])
    assert checkpoint.metadata["decoder"]["normalize"] == 0.6
    assert checkpoint.metadata["options"]["mini-batch"] == 128
    suffixes = ["", ".decoder.yml", ".optimizer.npz", ".progress.yml", ".yml"]
    assert sorted(map(str, checkpoint.files)) == ["model.npz" + suffix for suffix in suffixes]
    np.testing.assert_allclose(checkpoint.optimizer["adam_denoms"], [1, 1], rtol=1e-12)


def test_flat_layout_is_that_of_the_weights(fixtures: Path) -> None:
    checkpoint = opened(fixtures / "fixtures/marian-en-ru-names@last")
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
    with pytest.raises(FormatError, match=r"is called 'b\.npz'"):
        open_checkpoint(f"{tmp_path}@b.npz")
    assert open_checkpoint(tmp_path).path == tmp_path / "a.npz"


TRAINING = (
    "model.npz",
    "model.npz.best-ce-mean-words.npz",
    "model.npz.best-chrf.npz",
    "model.iter1000.npz",
    "model.iter2000.npz",
)


def training(directory: Path, names: Iterable[str] = TRAINING, *, epochs: int = 3) -> Path:
    """A training directory as Marian leaves it; the first weight of each model is its number in ``TRAINING``."""
    for name in names:
        weight = np.full((2, 3), TRAINING.index(name), "f4")
        write_marian(directory / name, "type: transformer\n", [("Wemb", weight), ("encoder_l1_self_Wq", weight)])
        (directory / f"{name}.decoder.yml").write_text("beam-size: 6\n")
    if "model.npz" in names:
        flat = np.arange(128, dtype="f4").reshape(1, 128)
        np.savez(directory / "model.npz.optimizer.npz", adam_mt=flat, adam_vt=flat * 2, adam_denoms=np.ones(2))
        (directory / "model.npz.progress.yml").write_text(f"epochs: {epochs}\nbatches: 2500\nstalled: 0\n")
        (directory / "model.npz.yml").write_text("after-epochs: 4\nafter: 0e\nearly-stopping: 10\n")
        shutil.copyfile(directory / "model.npz", directory / "model.npz.orig.npz")
    (directory / "train.log").write_text("[training] Saving model weights\n")
    return directory


def first(source: object) -> float:
    return float(open_checkpoint(str(source)).read("Wemb")[0, 0])


def test_a_training_directory_asks(tmp_path: Path) -> None:
    training(tmp_path)
    with pytest.raises(FormatError, match="several checkpoints") as caught:
        open_checkpoint(tmp_path)
    listed = (
        "model.iter1000.npz, model.iter2000.npz, model.npz (last), "
        "model.npz.best-ce-mean-words.npz (best), model.npz.best-chrf.npz (best)"
    )
    assert caught.value.found == listed
    assert f"{tmp_path}@last" in str(caught.value.todo)
    assert [first(f"{tmp_path}@{name}") for name in TRAINING] == [0, 1, 2, 3, 4]
    assert first(f"{tmp_path}@last") == 0
    with pytest.raises(FormatError, match=r"best-ce-mean-words\.npz \(best\), model\.npz\.best-chrf\.npz \(best\)"):
        open_checkpoint(f"{tmp_path}@best")
    with pytest.raises(FormatError, match="'final'"):
        open_checkpoint(f"{tmp_path}@final")
    (tmp_path / TRAINING[2]).unlink()
    assert first(f"{tmp_path}@best") == 1


@pytest.mark.parametrize("name", TRAINING)
def test_a_directory_with_one_model_opens(tmp_path: Path, name: str) -> None:
    assert first(training(tmp_path, [name])) == TRAINING.index(name)


def test_state_belongs_to_the_model_that_it_was_saved_with(tmp_path: Path) -> None:
    training(tmp_path)
    last = open_checkpoint(f"{tmp_path}@last")
    assert set(last.slots) == {(name, slot) for name in ("Wemb", "encoder_l1_self_Wq") for slot in "mv"}
    assert last.read_slot("encoder_l1_self_Wq", "v")[0, 0] == 2 * 64
    assert last.step == 2500
    for name in TRAINING[1:]:
        other = open_checkpoint(f"{tmp_path}@{name}")
        assert (other.slots, other.step, other.optimizer) == ({}, None, {})
        assert other.metadata["decoder"] == {"beam-size": 6}


@pytest.mark.parametrize(
    ("options", "final"),
    [
        ("after-epochs: 4", False),
        ("after-epochs: 2", True),  # the third epoch has begun
        ("after-batches: 2500", True),
        ("after-batches: 2501", False),
        ("after: 300Ku,2e", True),
        ("after: 3Ku", False),
        ("after: 2500u", True),
        ("after: 20Gt", False),
        ("early-stopping: 0", False),
        ("early-stopping: 5", True),
        ("after: '" + "9" * 6000 + "e'", False),
        ("after-epochs: soon", False),
    ],
)
def test_a_training_that_reached_a_limit_is_final(tmp_path: Path, options: str, final: bool) -> None:
    training(tmp_path)
    (tmp_path / "model.npz.yml").write_text(options)
    (tmp_path / "model.npz.progress.yml").write_text("epochs: 3\nbatches: 2500\nlabels-total: 99\nstalled: 5\n")
    (candidate,) = (c for c in find_candidates(tmp_path) if c.name == "model.npz")
    assert candidate.roles == (("last", "final") if final else ("last",))


def test_a_damaged_model_is_listed_and_not_passed_over(tmp_path: Path) -> None:
    training(tmp_path, TRAINING[:2])
    for name in TRAINING[:2]:
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[:-30])
        with pytest.raises(FormatError, match="several"):
            open_checkpoint(tmp_path)
        with pytest.raises(CorruptCheckpoint):
            open_checkpoint(f"{tmp_path}@{name}")
        (tmp_path / name).write_bytes(data)


def test_names_of_the_firefox_pipeline(tmp_path: Path) -> None:
    training(tmp_path)
    for old in sorted(tmp_path.iterdir()):
        if old.name.startswith("model.npz"):
            old.rename(tmp_path / f"final.{old.name}")
        else:
            old.unlink()
    assert [str(c) for c in find_candidates(tmp_path)] == [
        "final.model.npz (last)",
        "final.model.npz.best-ce-mean-words.npz (best)",
        "final.model.npz.best-chrf.npz (best)",
    ]


def test_state_of_a_training_in_float16(tmp_path: Path) -> None:
    """There 256 bytes hold 128 parameters, and so the flat arrays are padded to multiples of them."""
    sizes = {"Wemb": (3, 50), "encoder_l1_self_Wq": (10, 10)}
    arrays = {name: np.ones(shape, "f4") for name, shape in sizes.items()}
    write_marian(tmp_path / "model.npz", "type: transformer\n", arrays.items())
    moments = np.zeros((1, 256 + 128), "f4")
    moments[0, 256:356] = 7
    for total, alignment in ((384, 128), (192 + 128, 64)):
        flat = moments[:, 384 - total :]
        np.savez(tmp_path / "model.npz.optimizer.npz", adam_mt=flat, adam_vt=flat)
        checkpoint = opened(tmp_path)
        assert (checkpoint.read_slot("encoder_l1_self_Wq", "m") == 7).all(), alignment
        assert (checkpoint.read_slot("Wemb", "v") == 0).all()
    np.savez(tmp_path / "model.npz.optimizer.npz", adam_mt=moments[:, 1:], adam_vt=moments[:, 1:])
    with pytest.raises(CorruptCheckpoint, match="not that of the model"):
        open_checkpoint(tmp_path)


def test_without_options(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", encoder_l1_self_Wq=np.ones((2, 2), "f4"), Wemb=np.ones((3, 2), "f4"))
    checkpoint = open_checkpoint(tmp_path / "x.npz")
    assert checkpoint.format == "marian"
    assert "config" not in checkpoint.metadata


def test_round_trip(fixtures: Path, tmp_path: Path) -> None:
    source = opened(fixtures / "fixtures/marian-en-ru-names@last")
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
    command = [sys.executable, "-c", program, str(fixtures / "fixtures/marian-en-ru-names@last")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "88 False False\n"
