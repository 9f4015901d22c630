"""Chosen arrays come out bit for bit under their own names, or nothing is written."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from warmstart import api
from warmstart.errors import ConfigError, CorruptCheckpoint, FormatError, StorageError
from warmstart.formats.checkpoint import Array, Checkpoint, Entry
from warmstart.formats.detect import open_checkpoint
from warmstart.formats.safetensors import write_safetensors
from warmstart.formats.writers import WRITERS


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def save(path: str, arrays: dict[str, Array]) -> None:
    entries = [Entry(name, array.shape, array.dtype.name) for name, array in arrays.items()]
    write_safetensors(Path(path), entries, arrays.values())


def content(path: str | Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    checkpoint = open_checkpoint(path)
    return {n: (e.dtype, e.shape, checkpoint.read(n).tobytes()) for n, e in checkpoint.entries.items()}


@pytest.mark.parametrize("ending", sorted(WRITERS))
def test_arrays_return_bit_for_bit(ending: str) -> None:
    chance = np.random.default_rng(0)
    arrays = {
        "encoder/layer_1/веса": chance.standard_normal((3, 4)).astype(np.float32),
        "scalar": np.asarray(7, np.int64),
        "empty": np.zeros((0, 3), np.float16),
        "flags": np.array([True, False]),
        "nan": np.array([np.nan, -0.0, np.inf]),
    }
    save("model", arrays)
    facts = api.extract("model", f"out{ending}")
    assert content(f"out{ending}") == content("model")
    assert (facts["arrays"], facts["slots"], facts["bytes"]) == (5, 0, Path(f"out{ending}").stat().st_size)
    api.extract("model", f"some{ending}", names=["*веса", "scalar"])
    assert list(content(f"some{ending}")) == ["encoder/layer_1/веса", "scalar"]


def test_other_libraries_read_what_was_extracted(fixtures: Path) -> None:
    source = fixtures / "fixtures" / "marian-en-ru-names" / "model.npz"
    from safetensors.numpy import load_file

    api.extract(source, "out.safetensors", names=["*_l1_self_W?"], slots=True)
    api.extract(source, "out.npz", names=["*_l1_self_W?"], slots=True)
    theirs = load_file("out.safetensors")
    with np.load("out.npz") as ours, np.load(source) as original:
        assert set(ours.files) == set(theirs)
        assert len(theirs) == 8 * 3
        for name in ("encoder_l1_self_Wq", "decoder_l1_self_Wo"):
            assert theirs[name].tobytes() == ours[name].tobytes() == original[name].tobytes()
    checkpoint = open_checkpoint(source)
    for slot in "mv":
        moments = checkpoint.read_slot("encoder_l1_self_Wq", slot)
        assert theirs[f"optimizer.{slot}.encoder_l1_self_Wq"].tobytes() == moments.tobytes()


def test_what_exists_stays_unless_forced() -> None:
    save("model", {"x": np.ones(3)})
    Path("out.npz").write_text("mine")
    with pytest.raises(StorageError, match="this exists already"):
        api.extract("model", "out.npz")
    assert Path("out.npz").read_text() == "mine"
    api.extract("model", "out.npz", force=True)
    assert list(content("out.npz")) == ["x"]
    Path("dir.npz").mkdir()
    with pytest.raises(StorageError):
        api.extract("model", "dir.npz", force=True)
    save("self.safetensors", {"x": np.arange(5.0), "y": np.ones(2)})
    before = content("self.safetensors")
    api.extract("self.safetensors", "self.safetensors", names=["x"], force=True)
    assert content("self.safetensors") == {"x": before["x"]}


def test_what_the_format_cannot_hold_is_said_before_anything_is_written() -> None:
    save("model", {"x": np.ones(3, ml_dtypes.bfloat16), "y": np.ones(3), "z\0": np.ones(3)})
    with pytest.raises(FormatError, match="npz cannot hold 2 of these 3 arrays") as raised:
        api.extract("model", "out.npz")
    assert [p.what for p in raised.value.problems] == [
        "x: npz has no dtype bfloat16",
        "z\0: a zip archive cannot hold this name",
    ]
    api.extract("model", "out.npz", names=["y"])
    with pytest.raises(ConfigError, match="the ending names no format"):
        api.extract("model", "out.onnx")
    with pytest.raises(ConfigError, match="'w' matches nothing"):
        api.extract("model", "other.npz", names=["w", "y"])
    with pytest.raises(FormatError, match="no optimizer state"):
        api.extract("model", "other.npz", names=["y"], slots=True)
    assert sorted(p.name for p in Path().iterdir()) == ["model", "out.npz"]


def test_packed_arrays_and_unheld_names(monkeypatch: pytest.MonkeyPatch) -> None:
    save("model", {"y": np.ones(3)})
    checkpoint = open_checkpoint("model")
    more = {"packed": Entry("packed", (3,), "intgemm8", 9), "__metadata__": Entry("__metadata__", (3,), "float64")}
    checkpoint.entries = {**checkpoint.entries, **more, "c": Entry("c", (3,), "complex128")}
    monkeypatch.setattr("warmstart.bundle.model.open_checkpoint", lambda *_: checkpoint)
    with pytest.raises(FormatError) as raised:
        api.extract("model", "out.safetensors")
    assert [p.what for p in raised.value.problems] == [
        "packed: its values, of dtype intgemm8, can only be described",
        "__metadata__: safetensors cannot hold this name",
        "c: safetensors has no dtype complex128",
    ]


class Breaking(Checkpoint):
    """One whose second array is damaged."""

    def __init__(self) -> None:
        super().__init__(Path("x"), "x", {n: Entry(n, (2,), "float64") for n in "ab"})
        self.alive: list[int] = []

    def read(self, name: str) -> Array:
        if name == "b":
            raise CorruptCheckpoint("damaged", where="b")
        return np.zeros(2)


@pytest.mark.parametrize("ending", sorted(WRITERS))
def test_a_damaged_source_leaves_nothing_behind(ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    save("model", {"y": np.ones(3)})
    monkeypatch.setattr("warmstart.bundle.model.open_checkpoint", lambda *_: Breaking())
    Path(f"out{ending}").write_text("mine")
    with pytest.raises(CorruptCheckpoint):
        api.extract("model", f"out{ending}", force=True)
    assert Path(f"out{ending}").read_text() == "mine"
    assert sorted(p.name for p in Path().iterdir()) == ["model", f"out{ending}"]
