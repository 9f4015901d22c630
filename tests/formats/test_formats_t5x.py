"""T5X's directories: its own fixtures, what we write, and specifications that lead astray."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import contract
import ml_dtypes
import numpy as np
import pytest
from jax_arrays import parameters, slots

from warmstart.errors import CorruptCheckpoint, FormatError, StorageError, UnknownFormat
from warmstart.formats import t5x_write
from warmstart.formats.checkpoint import Array
from warmstart.formats.detect import open_checkpoint
from warmstart.formats.msgpack_tree import pack
from warmstart.formats.t5x_write import write_t5x

GOLDEN = Path(__file__).resolve().parent.parent / "golden"


def write_tree(directory: Path, tree: Mapping[str, Any]) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "checkpoint").write_bytes(b"".join(pack({"version": 3, "optimizer": tree})))
    return directory


class TestT5X(contract.FormatContract):
    FORMAT = "t5x"
    DTYPES = tuple(sorted(t5x_write.WRITTEN))
    NAMES = tuple(f"target/{name}" for name in ("a", "encoder.layers.0.weight", "имя/вес", "with space", "很长" * 20))

    def write(self, directory: Path, arrays: Mapping[str, Array]) -> Path:
        path = directory / "checkpoint_7"
        write_t5x(path, arrays.items(), step=7)
        return path

    def twice(self, directory: Path) -> Path:
        return write_tree(directory / "checkpoint_1", {"target": {"a/b": np.ones(2), "a": {"b": np.ones(2)}}})

    def sparse(self, directory: Path) -> Path:
        layout = {"shape": [1250, 2**20], "chunks": [1250, 2**20], "compressor": None}
        spec = {
            "driver": "zarr",
            "dtype": "float32",
            "kvstore": {"driver": "file", "path": "target.w/"},
            "metadata": layout,
        }
        path = write_tree(directory / "checkpoint_1", {"target": {"w": spec}, "state": {"step": 1}})
        (path / "target.w").mkdir()
        with (path / "target.w" / "0.0").open("wb") as file:
            file.truncate(1250 * 2**22)
        return path

    def test_a_large_array_without_compression_is_a_view(self, tmp_path: Path) -> None:
        checkpoint = open_checkpoint(self.sparse(tmp_path))
        assert not checkpoint.read("target/w")[::600, 0].any()
        assert checkpoint.step == 1


def test_what_flax_and_tensorstore_wrote_is_read() -> None:
    """In several chunks, in Fortran's order, with ``/`` between the chunk's numbers, and bfloat16."""
    checkpoint = open_checkpoint(GOLDEN / "t5x" / "checkpoint_1000")
    assert (checkpoint.format, checkpoint.step, checkpoint.metadata) == ("t5x", 1000, {"version": 3})
    assert set(checkpoint.entries) == {f"target/{name}" for name in parameters()}
    assert set(checkpoint.slots) == {(f"target/{name}", slot) for name, slot in slots()}
    assert checkpoint.optimizer == {"unused_slots": {"m": 4, "v": 3, "v_row": 1, "v_col": 1}}
    for name, array in parameters().items():
        read = checkpoint.read(f"target/{name}")
        assert (read.dtype, read.shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(read, array)
    for (name, slot), array in slots().items():
        np.testing.assert_array_equal(checkpoint.read_slot(f"target/{name}", slot), array)
        entry = checkpoint.slots[f"target/{name}", slot]
        whole = parameters()[name].shape
        assert (
            entry.shape == whole
            if entry.axis is None
            else entry.shape == (*whole[: entry.axis], *whole[entry.axis + 1 :])
        )
    assert checkpoint.slots["target/encoder/stacked", "v_row"].axis == 2
    assert checkpoint.slots["target/encoder/stacked", "v_col"].axis == 0


def test_square_matrices_are_averaged_as_adafactor_does(tmp_path: Path) -> None:
    """numpy's argsort takes the last of equal axes as the largest: ``v_row`` is the mean over it."""
    slots = {("target/w", "v_row"): np.arange(128.0), ("target/w", "v_col"): np.ones(128)}
    write_t5x(tmp_path / "checkpoint_1", [("target/w", np.ones((128, 128)))], step=1, slots=slots.items())
    checkpoint = open_checkpoint(tmp_path / "checkpoint_1")
    assert {slot: entry.axis for (_, slot), entry in checkpoint.slots.items()} == {"v_row": 1, "v_col": 0}
    assert checkpoint.read_slot("target/w", "v_row")[5] == 5
    assert checkpoint.optimizer == {"unused_slots": {"m": 1, "v": 1}}


class TestFixtures:
    def test_single_file(self, fixtures: Path) -> None:
        """52 parameters of T5.1.1-tiny, unfactored slots that are all zero, step 0."""
        checkpoint = open_checkpoint(fixtures / "fixtures/t5x/testdata/test_t5_tiny.checkpoint_0")
        assert (checkpoint.format, checkpoint.step) == ("t5x", 0)
        assert len(checkpoint.entries) == len(checkpoint.slots) == 52
        assert sum(entry.size for entry in checkpoint.entries.values()) == 518_240
        assert checkpoint.entries["target/token_embedder/embedding"].shape == (32128, 8)
        assert checkpoint.entries["target/decoder/layers_1/mlp/wi_0/kernel"].shape == (8, 16)
        assert not any(checkpoint.read_slot(*slot).any() for slot in checkpoint.slots)
        assert checkpoint.optimizer["unused_slots"] == {"m": 52, "v_row": 52, "v_col": 52}
        assert checkpoint.read("target/decoder/decoder_norm/scale").tolist() == [1.0] * 8

    def test_zarray_missing_but_described(self, fixtures: Path) -> None:
        checkpoint = open_checkpoint(fixtures / "fixtures/t5x/testdata/tiny_t5")
        assert checkpoint.step == 1
        described = {name: (entry.shape, entry.dtype) for name, entry in checkpoint.entries.items()}
        assert described == {
            "state/param_states/bias": ((5,), "float32"),
            "state/param_states/kernel": ((10, 5), "float64"),
            "state/param_states/step": ((), "int32"),
        }
        assert checkpoint.read("state/param_states/bias").tolist() == [1.0] * 5
        kernel = checkpoint.read("state/param_states/kernel")
        assert 0 <= kernel.min() < kernel.max() < 1
        assert kernel[0, 0] == pytest.approx(0.15038408)
        assert checkpoint.read("state/param_states/step") == 1

    def test_arrays_that_nothing_describes(self, fixtures: Path) -> None:
        with pytest.raises(CorruptCheckpoint, match=r"4 of 4 arrays without \.zarray") as caught:
            open_checkpoint(fixtures / "fixtures/t5x/testdata/tiny_orbax/1")
        assert "whose names begin with a dot" in str(caught.value.todo)

    def test_written_again(self, fixtures: Path, tmp_path: Path) -> None:
        source = open_checkpoint(fixtures / "fixtures/t5x/testdata/test_t5_tiny.checkpoint_0")
        path = tmp_path / "checkpoint_0"
        write_t5x(
            path,
            ((name, source.read(name)) for name in source.entries),
            step=0,
            slots=((key, source.read_slot(*key)) for key in source.slots),
        )
        assert sum(1 for entry in path.iterdir() if entry.is_dir()) == 104  # as write_native.py, which T5X restored
        again = open_checkpoint(path)
        assert dict(again.entries) == dict(source.entries)
        assert dict(again.slots) == dict(source.slots)
        assert (again.step, again.optimizer) == (0, source.optimizer)
        for name in source.entries:
            np.testing.assert_array_equal(again.read(name), source.read(name))


def test_writing_is_deterministic_and_divides_large_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(t5x_write, "CHUNK", 64)
    arrays = {"target/w": np.arange(60.0, dtype=">f4").reshape(3, 20), "target/b": np.ones(3, ml_dtypes.bfloat16)}
    trees = []
    for name in ("one", "two"):
        write_t5x(tmp_path / name, arrays.items(), step=5)
        trees.append(
            {p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()}
        )
    assert trees[0] == trees[1]
    assert sorted(p.name for p in (tmp_path / "one/target.w").iterdir()) == [
        ".zarray", "0.0", "0.1", "1.0", "1.1", "2.0", "2.1",
    ]  # fmt: skip
    np.testing.assert_array_equal(open_checkpoint(tmp_path / "one").read("target/w"), arrays["target/w"])


def test_written_without_compression(tmp_path: Path) -> None:
    array = np.arange(60.0, dtype=">f4").reshape(3, 20)
    write_t5x(tmp_path / "c", [("target/w", array)], step=5, compress=False)
    assert (tmp_path / "c/target.w/0.0").read_bytes() == array.astype("<f4").tobytes()
    read = open_checkpoint(tmp_path / "c").read("target/w")
    np.testing.assert_array_equal(read, array)
    assert not read.flags.owndata


def test_what_cannot_be_written(tmp_path: Path) -> None:
    one = np.ones((2, 2))
    for arrays in (
        [("target/a", one), ("target/a", one)],
        [("target/a", one), ("target/a/b", one)],
        [("target/a/b", one), ("target/a", one)],
        [("target/a.b", one), ("target/a/b", one)],
        [("target/a", np.array(["x"]))],
        [("target//a", one)],
        [("target/../a", one)],
    ):
        with pytest.raises(FormatError):
            write_t5x(tmp_path / "checkpoint_1", arrays, step=1)
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(FormatError, match="a slot of no parameter"):
        write_t5x(tmp_path / "c", [("target/a", one)], step=1, slots=[(("target/b", "v"), one)])
    write_t5x(tmp_path / "c", [("target/a", one)], step=1)
    with pytest.raises(StorageError):
        write_t5x(tmp_path / "c", [("target/a", one)], step=2)
    write_t5x(tmp_path / "c", [("target/a", one)], step=2, force=True)
    assert open_checkpoint(tmp_path / "c").step == 2


def test_a_training_directory(tmp_path: Path) -> None:
    for step in (1000, 500):
        write_t5x(tmp_path / f"checkpoint_{step}", [("target/a", np.full((2,), step))], step=step)
    write_t5x(tmp_path / "checkpoint_2000.tmp-1700000000", [("target/a", np.zeros(2))], step=2000)
    with pytest.raises(FormatError, match=r"checkpoint_500, checkpoint_1000 \(last\)"):
        open_checkpoint(tmp_path)
    assert open_checkpoint(f"{tmp_path}@last").step == 1000
    with pytest.raises(CorruptCheckpoint, match="never finished"):
        open_checkpoint(tmp_path / "checkpoint_2000.tmp-1700000000")
    for name in ("checkpoint_500", "checkpoint_1000"):
        (tmp_path / name).rename(tmp_path.parent / f"{tmp_path.name}-{name}")
    with pytest.raises(UnknownFormat, match=r"unfinished.*checkpoint_2000\.tmp-1700000000"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("version", [1, 2, 4, None, "3"])
def test_other_versions_are_refused(tmp_path: Path, version: Any) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "checkpoint").write_bytes(b"".join(pack({"version": version, "optimizer": {"target": {}}})))
    with pytest.raises(FormatError, match="another version"):
        open_checkpoint(tmp_path / "c")


def spec(**changes: Any) -> dict[str, Any]:
    metadata = {"shape": [2], "chunks": [2], "compressor": None}
    store = {"driver": "file", "path": "w/"}
    return {"driver": "zarr", "dtype": "float32", "kvstore": store, "metadata": metadata, **changes}


@pytest.mark.parametrize(
    "changes",
    [
        {"driver": "n5"},
        {"driver": "http"},
        {"kvstore": "file:///etc/"},
        {"kvstore": {"driver": "http", "base_url": "http://localhost", "path": "w/"}},
        {"kvstore": {"driver": "file", "path": "../w/"}},
        {"kvstore": {"driver": "file", "path": "a/../../w/"}},
        {"kvstore": {"driver": "file", "path": "/etc/"}},
        {"kvstore": {"driver": "file", "path": ""}},
        {"kvstore": {"driver": "file", "path": "w\0/"}},
        {"kvstore": {"driver": "file", "path": 3}},
        {"kvstore": {"driver": "ocdbt", "base": "file:///etc/", "path": "w/"}},
        {"path": "../w"},
        {"transform": {"input_rank": 1}},
        {"base": {"driver": "zarr"}},
        {"dtype": "|O"},
        {"dtype": "O"},
        {"dtype": "<M8"},
        {"dtype": ["f4"]},
        {"metadata": {"shape": [10**12, 10**12], "chunks": [1, 1], "compressor": None}},
        {"metadata": {"shape": [2], "chunks": [0], "compressor": None}},
        {"metadata": {"shape": [-2], "chunks": [2], "compressor": None}},
        {"metadata": {"shape": [2, 2], "chunks": [2], "compressor": None}},
        {"metadata": {"shape": [2], "chunks": [2], "compressor": {"id": "blosc"}}},
        {"metadata": {"shape": [2], "chunks": [2], "compressor": None, "order": "Z"}},
        {"metadata": {"shape": [2], "chunks": [2], "compressor": None, "dimension_separator": "../"}},
        {"metadata": "w"},
        {"metadata": {}},
    ],
)
def test_specifications_that_lead_astray(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = write_tree(tmp_path / "c", {"target": {"w": spec(**changes)}, "state": {}})
    for directory in (tmp_path / "w", path / "w"):
        directory.mkdir()
        (directory / "0").write_bytes(b"\0" * 8)
    with pytest.raises(FormatError) as caught:
        open_checkpoint(path)
    assert str(path) in str(caught.value.where)


def test_a_file_alone_that_needs_its_directory(tmp_path: Path) -> None:
    path = write_tree(tmp_path / "c", {"target": {"w": spec()}, "state": {}})
    with pytest.raises(CorruptCheckpoint, match="give the directory"):
        open_checkpoint(path / "checkpoint")


def test_zarray_and_tree_must_agree(tmp_path: Path) -> None:
    write_t5x(tmp_path / "c", [("target/w", np.ones((2, 3)))], step=1)
    file = tmp_path / "c/target.w/.zarray"
    file.write_text(file.read_text().replace('"shape":[2,3]', '"shape":[3,2]'))
    checkpoint = open_checkpoint(tmp_path / "c")
    with pytest.raises(CorruptCheckpoint, match="not what the checkpoint says"):
        checkpoint.read("target/w")
